//! What went wrong in a worker, and where.

use std::io;

use crate::error::EngineError;

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

/// What went wrong first, and where.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) at: Place,
    pub(super) error: FaultKind,
}

#[derive(Debug)]
pub(super) enum FaultKind {
    Read(io::Error),
    /// The file ended so many bytes too early.
    Short(u64),
    /// A device's; the place is added.
    Device(EngineError),
    /// A complete error already.
    Other(EngineError),
}
