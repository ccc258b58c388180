//! The one error of this crate. It names no file: the caller knows which one it handed over.

use std::{fmt, io};

use shardwright_core::text::shown;

/// Shorthand for this crate's results.
pub type Result<T, E = FormatError> = std::result::Result<T, E>;

/// Why bytes are not what they should be.
#[derive(Debug, thiserror::Error)]
pub struct FormatError {
    what: String,
    expected: Option<String>,
    found: Option<String>,
    #[source]
    cause: Option<io::Error>,
}

impl FormatError {
    /// An error; `what` is a lowercase fragment.
    pub fn new(what: impl fmt::Display) -> Self {
        Self { what: what.to_string(), expected: None, found: None, cause: None }
    }

    /// The caller could not read.
    pub fn io(what: impl fmt::Display, cause: io::Error) -> Self {
        Self { cause: Some(cause), ..Self::new(what) }
    }

    /// Says what should have been there.
    #[must_use]
    pub fn expected(mut self, expected: impl fmt::Display) -> Self {
        self.expected = Some(expected.to_string());
        self
    }

    /// Says what was there.
    #[must_use]
    pub fn found(mut self, found: impl fmt::Display) -> Self {
        self.found = Some(found.to_string());
        self
    }

    /// Puts a context in front of the message: `context: message`.
    #[must_use]
    pub fn within(mut self, context: impl fmt::Display) -> Self {
        self.what = format!("{context}: {}", self.what);
        self
    }

    /// True where the caller could not read.
    pub(crate) fn is_io(&self) -> bool {
        self.cause.is_some()
    }

    /// The operating system's error, where there was one.
    pub fn into_io(self) -> Option<io::Error> {
        self.cause
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.what))?;
        if let Some(expected) = &self.expected {
            write!(f, ": expected {}", shown(expected))?;
        }
        if let Some(found) = &self.found {
            write!(f, "{} {}", if self.expected.is_some() { ", found" } else { ": found" }, shown(found))?;
        }
        self.cause.as_ref().map_or(Ok(()), |cause| write!(f, ": {cause}"))
    }
}
