//! What metadata speaks of: tensors, their chunks, and where each lies.

use std::sync::Arc;

use shardwright_core::DType;

use crate::{FormatError, pickle::Plain};

/// Keys of nested mappings, outermost first: what torch calls planner data.
pub type Path = Vec<Plain>;

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its fully qualified name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Global shape.
    pub shape: Vec<u64>,
    /// Boxes that tile it.
    pub chunks: Vec<Chunk>,
}

/// A box of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// First index in each dim.
    pub offsets: Vec<u64>,
    /// Size in each dim.
    pub sizes: Vec<u64>,
    /// Where it lies.
    pub place: Place,
}

/// An item of a `.distcp` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file's name in the directory.
    pub file: Arc<str>,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

pub(super) fn error(what: impl std::fmt::Display) -> FormatError {
    FormatError::new(format_args!("not metadata of torch's distributed checkpoints: it has {what}"))
}
