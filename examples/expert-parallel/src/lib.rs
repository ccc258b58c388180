//! Expert parallelism as a sharding strategy: each rank of an `ep` group holds whole experts, and everything else is cut on dim 0.
//!
//! The section is in [`config`], which expert a tensor belongs to in [`experts`], where it goes in [`layout`].

#![forbid(unsafe_code)]

pub mod config;
pub mod experts;
pub mod layout;

pub use config::ExpertParallelConfig;
pub use layout::ExpertParallel;
