//! Texts as trees in which every key and every value knows its place, and trees as types. What a key means is not known here.

mod de;
pub mod json;
mod node;
mod scalar;
mod syntax;
mod truth;
pub mod yaml;

pub use self::{
    de::{from_node, truth},
    node::{Entry, MAX_DEPTH, Node, Value},
    syntax::TAB,
    truth::truthiness,
};
