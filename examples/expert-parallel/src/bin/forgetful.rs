//! The program without `use expert_parallel as _;`. It builds, and the strategy is not in it: nothing here names the crate, so the linker
//! never sees its entry. A test holds this to be so, for it is the one mistake that nothing else reports.

fn main() -> std::process::ExitCode {
    shardwright::main()
}
