//! Readers and writers of checkpoint headers: `torch.save` archives, pickles, torch's distributed checkpoints, DeepSpeed's files.
//!
//! Nothing here opens a file and nothing of a file is executed. A reader asks its caller for bytes through [`ReadAt`] and says where tensors
//! lie; tensor data itself is never read. Every count, depth and size that a file states is bounded before it is believed.

#![forbid(unsafe_code)]

pub mod build;
pub mod dcp;
pub mod deepspeed;
mod error;
pub mod globals;
pub mod pickle;
mod read_at;
pub mod torch_file;
pub mod zip;

pub use crate::{
    error::{FormatError, Result},
    read_at::{ReadAt, Window},
};
