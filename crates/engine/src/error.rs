//! The one error type of the engine: what kind of failure, in which file, tensor and rank, what was expected and what was found.
//! How errors are rendered and which exit code a kind gets is the command line's business.

use std::{fmt, io, path::PathBuf};

use shardwright_core::text::shown;

/// What went wrong, coarse enough to act upon. The command line gives each kind one exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An option that makes no sense.
    Config,
    /// The checkpoint is missing, malformed, or changed while it was read.
    Checkpoint,
    /// The plan does not fit the checkpoint or the request.
    Plan,
    /// Ranks and world size are contradictory.
    World,
    /// The operating system refused to read or write.
    Io,
    /// There is not enough memory.
    Memory,
    /// Something is already there and may not be overwritten.
    Exists,
    /// A verification found other bytes.
    Mismatch,
    /// The caller asked to stop.
    Cancelled,
    /// A device is missing, too small, or failed.
    Device,
}

impl ErrorKind {
    /// The code that the command line exits with for it.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Config => 3,
            Self::Checkpoint => 4,
            Self::Plan | Self::World => 5,
            Self::Io | Self::Exists => 6,
            Self::Memory => 7,
            Self::Mismatch => 8,
            Self::Device => 10,
            Self::Cancelled => 130,
        }
    }
}

/// A failure with its context. `Display` gives one line, the operating system's cause at its end; names of others in it are made harmless
/// to a terminal, see [`shardwright_core::text`].
#[derive(Debug)]
#[non_exhaustive]
pub struct EngineError(Box<Details>);

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for EngineError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.cause.as_ref().map(|cause| cause as _)
    }
}

#[derive(Debug)]
struct Details {
    kind: ErrorKind,
    what: String,
    file: Option<PathBuf>,
    tensor: Option<String>,
    rank: Option<u32>,
    offset: Option<u64>,
    expected: Option<String>,
    found: Option<String>,
    cause: Option<io::Error>,
}

/// Shorthand for the engine's results.
pub type Result<T, E = EngineError> = std::result::Result<T, E>;

impl EngineError {
    /// A failure of that kind; `what` is a lowercase fragment.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        let what = what.into();
        Self(Box::new(Details { kind, what, file: None, tensor: None, rank: None, offset: None, expected: None, found: None, cause: None }))
    }

    /// An operating system's failure to do `what` with `file`.
    pub fn io(what: impl Into<String>, file: impl Into<PathBuf>, cause: io::Error) -> Self {
        Self::new(ErrorKind::Io, what).file(file).cause(cause)
    }

    /// Names the file.
    #[must_use]
    pub fn file(mut self, file: impl Into<PathBuf>) -> Self {
        self.0.file = Some(file.into());
        self
    }

    /// Names the tensor.
    #[must_use]
    pub fn tensor(mut self, tensor: impl Into<String>) -> Self {
        self.0.tensor = Some(tensor.into());
        self
    }

    /// Names the rank.
    #[must_use]
    pub fn rank(mut self, rank: u32) -> Self {
        self.0.rank = Some(rank);
        self
    }

    /// Names the byte offset in the file.
    #[must_use]
    pub fn offset(mut self, offset: u64) -> Self {
        self.0.offset = Some(offset);
        self
    }

    /// Says what should have been there.
    #[must_use]
    pub fn expected(mut self, expected: impl fmt::Display) -> Self {
        self.0.expected = Some(expected.to_string());
        self
    }

    /// Says what was there.
    #[must_use]
    pub fn found(mut self, found: impl fmt::Display) -> Self {
        self.0.found = Some(found.to_string());
        self
    }

    /// Adds the operating system's own error.
    #[must_use]
    pub fn cause(mut self, cause: io::Error) -> Self {
        self.0.cause = Some(cause);
        self
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The operating system's error, where there was one.
    pub fn io_error(&self) -> Option<&io::Error> {
        self.0.cause.as_ref()
    }

    /// The tensor concerned, where one is.
    pub fn tensor_name(&self) -> Option<&str> {
        self.0.tensor.as_deref()
    }
}

impl fmt::Display for Details {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", shown(&file.display().to_string()))?;
        }
        if let Some(tensor) = &self.tensor {
            write!(f, "tensor '{}': ", shown(tensor))?;
        }
        if let Some(rank) = self.rank {
            write!(f, "rank {rank}: ")?;
        }
        f.write_str(&shown(&self.what))?;
        if let Some(offset) = self.offset {
            write!(f, " at byte {offset}")?;
        }
        match (self.expected.as_deref().map(shown), self.found.as_deref().map(shown)) {
            (Some(expected), Some(found)) => write!(f, ": expected {expected}, found {found}")?,
            (Some(expected), None) => write!(f, ": expected {expected}")?,
            (None, Some(found)) => write!(f, ": found {found}")?,
            (None, None) => {}
        }
        self.cause.as_ref().map_or(Ok(()), |cause| write!(f, ": {cause}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_everything_that_is_known() {
        let error = EngineError::io("cannot read", "a/b.safetensors", io::Error::from_raw_os_error(5))
            .tensor("w")
            .rank(3)
            .offset(4096)
            .expected("64 bytes")
            .found("12");
        assert_eq!(
            error.to_string(),
            "a/b.safetensors: tensor 'w': rank 3: cannot read at byte 4096: expected 64 bytes, found 12: Input/output error (os error 5)"
        );
        assert_eq!(error.kind(), ErrorKind::Io);
    }

    /// Names come out of files that anyone may have written.
    #[test]
    fn a_message_is_one_line_whatever_it_names() {
        let hostile = format!("\u{1b}[2J\n{}", "x".repeat(1 << 20));
        let error =
            EngineError::new(ErrorKind::Checkpoint, hostile.as_str()).file(&hostile).tensor(&hostile).expected(&hostile).found(&hostile);
        let text = error.to_string();
        assert!(text.len() < 8000 && !text.contains(char::is_control), "{} bytes", text.len());
    }
}
