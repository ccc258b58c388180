//! Exit codes, in one place, and how failures get theirs. The codes are part of the interface and listed in `--help`.

use shardwright_core::{PlanError, text::harmless};
use shardwright_engine::{EngineError, ErrorKind};

/// Why the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All is well.
    Done = 0,
    /// The command line makes no sense (clap's own code).
    Usage = 2,
    /// A config file, an override or an environment variable is wrong.
    Config = 3,
    /// The checkpoint, or a directory of shards, is missing or malformed.
    Checkpoint = 4,
    /// The strategy refuses the model or the world, or its plan does not hold.
    Plan = 5,
    /// Reading or writing failed.
    Io = 6,
    /// There is not enough memory.
    Memory = 7,
    /// Shards differ from their manifest or their source.
    Mismatch = 8,
    /// A resolution differs from its lock.
    Drift = 9,
    /// The device is missing or failed.
    Device = 10,
    /// Interrupted by a signal.
    Interrupted = 130,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<ErrorKind> for Exit {
    fn from(kind: ErrorKind) -> Self {
        let all = [Self::Config, Self::Checkpoint, Self::Plan, Self::Memory, Self::Mismatch, Self::Device, Self::Interrupted];
        all.into_iter().find(|exit| *exit as u8 == kind.exit_code()).unwrap_or(Self::Io)
    }
}

/// Why a command ends early: its exit code, and what standard error says, complete but for a last newline.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub text: String,
}

impl Failure {
    /// A failure that one sentence describes.
    pub fn new(exit: Exit, what: impl std::fmt::Display) -> Self {
        Self { exit, text: harmless(&format!("error: {what}")).replace('\n', "\\n") }
    }

    /// Standard output, or another file of ours, cannot be written.
    pub fn output(what: impl std::fmt::Display, cause: &std::io::Error) -> Self {
        Self::new(Exit::Io, format_args!("cannot write {what}: {cause}"))
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self::new(error.kind().into(), error)
    }
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        Self::new(Exit::Plan, error)
    }
}
