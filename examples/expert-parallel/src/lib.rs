//! Expert parallelism under FSDP as a sharding strategy: experts go to the ranks of an `ep` axis, those that share an expert cut it over an
//! `fsdp` axis, and everything else is cut on dim 0 over both.
//!
//! The section is in [`config`], which expert a tensor belongs to in [`experts`], where it goes in [`layout`].

#![forbid(unsafe_code)]

pub mod config;
pub mod experts;
pub mod layout;

pub use config::ExpertParallelConfig;
pub use layout::ExpertParallel;
