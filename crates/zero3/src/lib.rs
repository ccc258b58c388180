//! DeepSpeed's ZeRO-3 (`deepspeed.zero.Init`): every parameter flat and cut into equal partitions before it is ever whole, one dtype for
//! storage and compute.
//!
//! Layout is in [`layout`]. No file, no device, and nothing of another strategy.

#![forbid(unsafe_code)]

pub mod codes;
pub mod config;
pub mod layout;

pub use config::{DeepSpeedConfig, Zero3Config};
pub use layout::Zero3;
