//! shardwright with tensor parallelism: the two lines that a binary with strategies of its own needs.

use tensor_parallel as _;

fn main() -> std::process::ExitCode {
    shardwright::main()
}
