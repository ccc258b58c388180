//! The program.

// An inventory entry is linked only if something names its crate.
use shardwright as _;

fn main() -> std::process::ExitCode {
    shardwright::main()
}
