//! shardwright with expert parallelism: the two lines that a binary with strategies of its own needs.

use expert_parallel as _;

fn main() -> std::process::ExitCode {
    shardwright::main()
}
