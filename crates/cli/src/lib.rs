//! The shardwright command line as a library: arguments, rendering, exit codes. What is decided is decided in the other crates.

mod args;
mod exit;
mod table;

use std::process::ExitCode;

/// Runs the program with this process's arguments. A binary with its own strategies calls this after naming their crates.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
