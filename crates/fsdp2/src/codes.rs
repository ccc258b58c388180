//! The codes of this crate's diagnostics, which are part of its interface.

use shardwright_core::diagnostic::{Code, Severity};

/// By name.
#[rustfmt::skip]
pub const CODES: &[Code] = &[
    Code { name: "fsdp2-reshard", severity: Severity::Error, meaning: "`reshard_after_forward` is a number that does not divide the shard ranks" },
    Code { name: "offload-unpinned", severity: Severity::Warning, meaning: "parameters or optimizer states are offloaded to memory that is not pinned" },
];
