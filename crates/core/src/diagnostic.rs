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

    /// The place of a byte range of the text; a range outside of it, or inside of a character, is moved to the nearest place that is.
    /// For many places of one text, make [`Places`] once.
    pub fn at(&self, span: Range<usize>) -> Location {
        if span.end == 0 {
            return Location { file: self.name.clone(), line: 1, column: 1, span: 0..0 };
        }
        Places::new(self).at(span)
    }
}

/// Turns byte ranges of a text into lines and columns in constant time, so that a hostile text cannot make that slow.
#[doc(hidden)]
#[derive(Debug)]
pub struct Places<'a> {
    source: &'a Source,
    /// Where each line starts, in bytes.
    lines: Vec<usize>,
    /// Characters before each byte; empty where every character is a byte.
    chars: Vec<u32>,
}

#[doc(hidden)]
impl<'a> Places<'a> {
    /// Indexes a text.
    pub fn new(source: &'a Source) -> Self {
        let text = &source.text;
        let lines = std::iter::once(0).chain(text.bytes().enumerate().filter(|&(_, b)| b == b'\n').map(|(at, _)| at + 1)).collect();
        let mut chars = Vec::new();
        if !text.is_ascii() {
            chars.reserve(text.len() + 1);
            let mut count = 0u32;
            for c in text.chars() {
                chars.extend(std::iter::repeat_n(count, c.len_utf8()));
                count = count.saturating_add(1);
            }
            chars.push(count);
        }
        Self { source, lines, chars }
    }

    /// As [`Source::at`].
    pub fn at(&self, span: Range<usize>) -> Location {
        let text = &self.source.text;
        let floor = |at: usize| (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        let (start, end) = (floor(span.start), floor(span.end.max(span.start)));
        let line = self.lines.partition_point(|&at| at <= start) - 1;
        let line_start = self.lines[line];
        let column = match (self.chars.get(start), self.chars.get(line_start)) {
            (Some(here), Some(there)) => usize::try_from(here - there).unwrap_or(usize::MAX),
            _ => start - line_start,
        };
        let number = |n: usize| u32::try_from(n.saturating_add(1)).unwrap_or(u32::MAX);
        Location { file: self.source.name.clone(), line: number(line), column: number(column), span: start..end }
    }
}

/// The name of the source of overrides: one a line.
#[doc(hidden)]
pub const COMMAND_LINE: &str = "<command line>";
/// The name of the source of environment variables: one a line.
#[doc(hidden)]
pub const ENVIRONMENT: &str = "<environment>";

/// A place in a [`Source`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
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

/// A diagnostic's code and what it is about.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// Stable, kebab-case.
    pub name: &'static str,
    /// How grave it is.
    pub severity: Severity,
    /// In a sentence, Markdown.
    pub meaning: &'static str,
}

#[doc(hidden)]
impl Code {
    /// Of errors.
    pub const fn error(name: &'static str, meaning: &'static str) -> Self {
        Self { name, severity: Severity::Error, meaning }
    }

    /// Of warnings.
    pub const fn warning(name: &'static str, meaning: &'static str) -> Self {
        Self { name, severity: Severity::Warning, meaning }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// Stable, kebab-case, listed in `docs/diagnostics.md`.
    pub code: &'static str,
    /// One sentence, lowercase, without a final dot: what was expected and what was found.
    pub message: Box<str>,
    /// Where, if it has a place.
    pub at: Option<Location>,
    /// Other places that matter, with what each is.
    pub also: Vec<(Location, String)>,
    /// What to do about it.
    pub help: Option<Box<str>>,
}

impl Diagnostic {
    /// An error.
    pub fn error(code: &'static str, message: impl Into<Box<str>>) -> Self {
        Self { severity: Severity::Error, code, message: message.into(), at: None, also: Vec::new(), help: None }
    }

    /// A warning.
    pub fn warning(code: &'static str, message: impl Into<Box<str>>) -> Self {
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
    pub fn help(mut self, help: impl Into<Box<str>>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// On one line: place, severity, code, message and advice.
impl std::fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use crate::text::shown;
        if let Some(at) = &self.at {
            write!(f, "{}:{}:{}: ", shown(&at.file), at.line, at.column)?;
        }
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{severity}[{}]: {}", self.code, shown(&self.message))?;
        self.help.as_ref().map_or(Ok(()), |help| write!(f, "; help: {}", shown(help)))
    }
}
