//! From the user's texts to what a load needs, with a place and a reason for every value.
//!
//! Two phases: [`Draft::parse`] reads the texts at hand and says which files it wants; [`Draft::resolve`] decides everything, once, into
//! [`Resolved`]. Pure: texts, environment and model facts are arguments; who reads files is the engine. A strategy or policy outside of this
//! repository never needs this crate.

#![forbid(unsafe_code)]

mod accelerate;
mod checks;
pub mod codes;
mod draft;
mod elsewhere;
mod keys;
mod lint;
mod modules;
pub mod output;
mod overrides;
pub mod reference;
mod released;
mod resolve;
mod resolved;
pub mod schema;
mod sections;
mod settings;
mod starts;
mod v0;

pub use self::{
    draft::{Draft, Input},
    resolve::{ADVICE, Outcome, Resolved, Supplied},
    settings::{ByteSize, DeepSpeedVersion, Engines, IoSettings, Place, Settings, TransformersVersion},
    starts::{AtPath, Look},
};
