//! Configs: from the user's texts to what a load needs, with a place and a reason for every value. Pure: texts, environment and model
//! facts are arguments; who reads files is the engine.

mod accelerate;
mod checks;
pub mod de;
pub mod document;
mod draft;
pub mod json;
pub mod keys;
pub mod node;
pub mod output;
mod overrides;
mod resolve;
mod resolved;
mod scalar;
mod sections;
pub mod settings;
pub mod yaml;

pub use self::{
    de::from_node,
    document::{Document, Origin, Sourced},
    draft::{Draft, Input},
    node::{Entry, Node, Value},
    resolve::{DEFAULT_POLICY, Outcome, Resolved, Supplied},
    settings::{ByteSize, IoSettings, Settings},
};
