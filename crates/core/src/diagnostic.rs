//! What went wrong or is worth saying, and where in the user's files. Rendering is the CLI's.

use std::{ops::Range, sync::Arc};

use serde::Serialize;

/// A text that locations point into: a config file, an override, an environment variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// As the user named it.
    pub name: Arc<str>,
    /// All of it.
    pub text: Arc<str>,
}

impl Source {
    /// A source of that name and text.
    pub fn new(name: impl Into<Arc<str>>, text: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), text: text.into() }
    }
}

/// A place in a [`Source`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Location {
    /// The source's name.
    pub file: Arc<str>,
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
    /// Bytes of the source's text.
    #[serde(skip)]
    pub span: Range<usize>,
}

/// How grave a diagnostic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing is loaded.
    Error,
    /// It goes on.
    Warning,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// Stable, kebab-case, listed in `docs/diagnostics.md`.
    pub code: &'static str,
    /// One sentence, lowercase, without a final dot: what was expected and what was found.
    pub message: String,
    /// Where, if it has a place.
    pub at: Option<Location>,
    /// Other places that matter, with what each is.
    pub also: Vec<(Location, String)>,
    /// What to do about it.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error.
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, code, message: message.into(), at: None, also: Vec::new(), help: None }
    }

    /// A warning.
    pub fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, message) }
    }

    /// At a place.
    #[must_use]
    pub fn at(mut self, location: impl Into<Option<Location>>) -> Self {
        self.at = location.into();
        self
    }

    /// With another place.
    #[must_use]
    pub fn and(mut self, location: Location, what: impl Into<String>) -> Self {
        self.also.push((location, what.into()));
        self
    }

    /// With advice.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}
