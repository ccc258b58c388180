//! The pure heart of shardwright: what a model's tensors are, how a strategy lays them out over ranks, and the check that a layout holds.
//!
//! Nothing here opens a file, reads the environment, starts a thread or touches a device; `clippy.toml` makes that mechanical. A strategy
//! outside this repository depends on this crate alone.

#![forbid(unsafe_code)]

pub mod check;
pub mod codes;
pub mod diagnostic;
pub mod document;
pub mod dtype;
mod facts;
pub mod glob;
pub mod local;
pub mod mesh;
pub mod model;
mod name;
#[doc(hidden)]
pub mod panics;
pub mod piece;
pub mod placement;
pub mod plan;
pub mod precision;
pub mod region;
pub mod registry;
pub mod replicate;
mod steps;
pub mod strategy;
pub mod strategy_config;
pub mod suggest;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
pub mod text;
pub mod trainable;
pub mod tree;

pub use crate::{
    dtype::DType,
    glob::Globs,
    mesh::{GroupAxis, Mesh},
    model::{ModelFacts, ModelMeta, Modules, TensorKind, TensorMeta},
    name::Name,
    piece::{Assembly, Loop, Model, Piece},
    placement::{Cut, Layout, Padding, Placement},
    plan::{Offload, ParamGroup, Reshard, ShardPlan, TensorPlan},
    precision::{Precision, PrecisionPolicy},
    region::Region,
    strategy::{PlanError, PlanInput, ShardStrategy, plan_checked},
    trainable::Trainable,
};
pub use {inventory, schemars, serde};

/// This crate's version, which a registered plugin was built against.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
