//! PyTorch's FSDP2 (`torch.distributed.fsdp.fully_shard`): parameters are cut on one dim over the shard axis, and what is stored may have
//! another dtype than what is computed with.
//!
//! Layout is in [`layout`], all-gather groups are in [`groups`]. No file, no device, and nothing of another strategy.

#![forbid(unsafe_code)]

pub mod codes;
pub mod config;
pub mod groups;
pub mod layout;
pub mod wrap;

pub use config::Fsdp2Config;
pub use layout::Fsdp2;
