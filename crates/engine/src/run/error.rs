//! The one error of the main job.

use std::{error, fmt};

use shardwright_core::{
    PlanError,
    diagnostic::{Diagnostic, Location, Severity},
};

use crate::error::{EngineError, ErrorKind};

/// Why a step of a [`Run`](super::Run) failed: what kind of failure, where, and the cause beneath it.
#[derive(Debug)]
pub struct Error(Cause);

#[derive(Debug)]
enum Cause {
    /// Of the config.
    Findings(Vec<Diagnostic>),
    Plan(PlanError),
    Engine(EngineError),
}

impl Error {
    pub(super) fn findings(findings: Vec<Diagnostic>) -> Self {
        Self(Cause::Findings(findings))
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match &self.0 {
            Cause::Findings(_) => ErrorKind::Config,
            Cause::Plan(_) => ErrorKind::Plan,
            Cause::Engine(error) => error.kind(),
        }
    }

    /// The code that the command line exits with for it.
    pub fn exit_code(&self) -> u8 {
        self.kind().exit_code()
    }

    /// What is wrong with the config, finding by finding; warnings are among them.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        match &self.0 {
            Cause::Findings(findings) => findings,
            _ => &[],
        }
    }

    /// Where in the config, where it is the config's fault.
    pub fn location(&self) -> Option<&Location> {
        self.errors().find_map(|finding| finding.at.as_ref())
    }

    /// The tensor concerned, where one is.
    pub fn tensor(&self) -> Option<&str> {
        match &self.0 {
            Cause::Engine(error) => error.tensor_name(),
            Cause::Plan(PlanError::Tensor { tensor, .. }) => Some(tensor),
            _ => None,
        }
    }

    fn errors(&self) -> impl Iterator<Item = &Diagnostic> {
        self.diagnostics().iter().filter(|finding| finding.severity == Severity::Error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Cause::Plan(error) => error.fmt(f),
            Cause::Engine(error) => error.fmt(f),
            Cause::Findings(_) => {
                let mut errors = self.errors();
                if let Some(first) = errors.next() {
                    first.fmt(f)?;
                }
                match errors.count() {
                    0 => Ok(()),
                    more => write!(f, "; and {more} more"),
                }
            }
        }
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match &self.0 {
            Cause::Findings(_) => None,
            Cause::Plan(error) => Some(error),
            Cause::Engine(error) => Some(error),
        }
    }
}

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Self {
        Self(Cause::Engine(error))
    }
}

impl From<PlanError> for Error {
    fn from(error: PlanError) -> Self {
        Self(Cause::Plan(error))
    }
}
