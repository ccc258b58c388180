//! Configs: from the user's texts to what a load needs, with a place and a reason for every value. Pure: texts, environment and model
//! facts are arguments; who reads files is the engine.

pub mod de;
pub mod document;
pub mod json;
pub mod node;
mod scalar;
pub mod yaml;

pub use self::{
    de::from_node,
    document::{Document, Origin, Sourced},
    node::{Entry, Node, Value},
};
