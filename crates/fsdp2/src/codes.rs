//! The codes of this crate's diagnostics, which are part of its interface.

use shardwright_core::diagnostic::Code;

/// By name.
#[rustfmt::skip]
pub const CODES: &[Code] = &[
    Code::error("fsdp2-reshard", "`reshard_after_forward` is a number that does not divide the shard ranks"),
    Code::warning("offload-unpinned", "parameters or optimizer states are offloaded to memory that is not pinned"),
];
