//! Predicts the memory of a training run: for every rank and phase, what lies on the device, in host memory and on NVMe.
//!
//! The input is a validated [`ShardPlan`](shardwright_core::ShardPlan), the resolved settings of the run and the numbers of `config.json`;
//! no tensor data is read. Each amount is one of the formulas listed in [`formulas`], which name the engine's source. An engine's step is
//! replayed as a timeline of allocations ([`Timeline`](ledger::Timeline)), and a phase reports its highest point.

#![forbid(unsafe_code)]

mod activations;
mod adapters;
mod advice;
pub mod formulas;
mod fsdp2;
pub mod ledger;
mod optimizer;
pub mod output;
mod predict;
mod replay;
mod replicate;
mod settings;
mod sizes;
mod zero3;

pub use self::{
    activations::{Architecture, Facts},
    adapters::{adapters, adapters_trained},
    advice::{Budget, advise, advise_strategies},
    optimizer::Optimizer,
    predict::predict,
    settings::{Engine, Init, Settings, Zero},
};
