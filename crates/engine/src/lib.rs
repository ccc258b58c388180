//! Every side effect of shardwright: checkpoints and their bytes, the load pipeline, memory, saving and verifying shards.
//!
//! The engine loads for a plan. It never names a strategy, and what it does follows from the plan, the checkpoint and the options alone.

pub mod architecture;
pub mod checkpoint;
mod codes;
pub mod contents;
pub mod convert;
pub mod device;
pub mod digest;
pub mod error;
pub mod file;
pub mod filenames;
#[cfg(any(test, feature = "testkit"))]
pub mod generate;
pub mod inspect;
pub mod load;
pub mod memory;
mod open;
mod parallel;
pub mod report;
pub mod run;
pub mod save;
pub mod saved;
pub mod setup;
mod source;
#[cfg(test)]
mod testing;
#[cfg(feature = "testkit")]
pub mod testkit;
pub mod verify;
pub mod world;

pub use crate::{
    checkpoint::{Checkpoint, HubEnv, ModelDir},
    error::{EngineError, ErrorKind},
    load::{CancelToken, IoOptions, Loaded, Loader, RankShards, TensorView},
    source::ReadMethod,
    world::{World, WorldFlags},
};
