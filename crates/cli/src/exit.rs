//! Exit codes, in one place. They are part of the interface and listed in `--help`.

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
