//! What went wrong in a worker, and where.

use crate::{error::EngineError, source::ReadFailure};

/// Where a worker is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) file: u32,
    pub(super) offset: u64,
    /// Index in the plan; `None` where a file is opened.
    pub(super) tensor: Option<u32>,
    /// Index of the first rank that it is for.
    pub(super) rank: Option<u32>,
}

impl Place {
    /// A file as such: its opening.
    pub(super) fn of_file(file: u32) -> Self {
        Self { file, offset: 0, tensor: None, rank: None }
    }
}

/// What went wrong first, and where.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) at: Place,
    pub(super) error: FaultKind,
}

#[derive(Debug)]
pub(super) enum FaultKind {
    Read(ReadFailure),
    /// A device's; the place is added.
    Device(EngineError),
    /// A complete error already.
    Other(EngineError),
}
