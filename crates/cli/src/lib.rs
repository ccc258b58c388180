//! The shardwright command line as a library: arguments, rendering, exit codes. What is decided is decided in the other crates.

mod args;
mod contents;
mod convert;
mod counted;
mod device;
mod exit;
mod host;
mod input;
mod inspect;
mod load;
mod model;
mod output;
mod page;
mod plan;
mod plugins;
mod progress;
mod render;
mod resolve;
mod save;
mod schema;
mod signals;
mod strategies;
mod summary;
mod table;
mod verify;
mod yaml;

#[doc(hidden)]
pub use host::{Prepared, Stopped, prepare, resolve as resolve_config};

use std::{ffi::OsString, io::Write, process::ExitCode};

use clap::Parser;
use shardwright_core::{diagnostic::Diagnostic, registry::Registry};

use crate::{
    args::{Cli, Command},
    plugins::Plugins,
};

/// A write beyond `ulimit -f` sends SIGXFSZ, whose default ends the process on the spot. With a handler the write fails instead, and is
/// reported and cleaned up after as any other.
fn report_file_size_limits() {
    // Where it cannot be caught, the default stays.
    drop(signal_hook::flag::register(libc::SIGXFSZ, std::sync::Arc::default()));
}

/// Runs the program with this process's arguments. A binary with its own strategies calls this after naming their crates.
pub fn main() -> ExitCode {
    ExitCode::from(run(Cli::parse(), Registry::linked))
}

/// Runs the program with these arguments, the program's name first, and with this registry, and returns its exit code; for hosts in other
/// languages, whose strategies are not linked.
pub fn main_from<T: Into<OsString> + Clone>(arguments: impl IntoIterator<Item = T>, registry: fn() -> Result<Registry, Diagnostic>) -> u8 {
    match Cli::try_parse_from(arguments) {
        Ok(cli) => run(cli, registry),
        Err(usage) => {
            // Help and version are printed this way too; a closed standard stream leaves the exit code.
            drop(usage.print());
            u8::try_from(usage.exit_code()).unwrap_or(1)
        }
    }
}

fn run(cli: Cli, plugins: Plugins) -> u8 {
    report_file_size_limits();
    let done = match cli.command {
        Command::Load(args) => load::run(&args, plugins),
        Command::Resolve(args) => resolve::run(&args, plugins),
        Command::Plan(args) => plan::run(&args, plugins),
        Command::Verify(args) => verify::run(&args),
        Command::Convert(args) => convert::convert(&args),
        Command::Diff(args) => convert::compare(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Strategies(args) => strategies::run(&args, plugins),
        Command::Schema(args) => schema::run(&args, plugins),
    };
    let exit = done.unwrap_or_else(|failure| {
        // A closed standard error leaves the exit code.
        drop(writeln!(std::io::stderr(), "{}", failure.text));
        failure.exit
    });
    exit as u8
}
