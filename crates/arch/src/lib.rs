//! Architecture data of transformers: a model's parameters, and from which tensors of a checkpoint each is made.
//!
//! The data is made by `scripts/make-architectures.py` from transformers itself, for every model type that it knows. [`assemble`] applies it: renames
//! and conversions as transformers would run them on names and shapes, without reading a file.

mod assemble;
mod contract;
mod data;
mod hub;
mod inverse;
mod kinds;
mod lazy;
mod names;
mod ops;
mod own;
mod regex;
mod rename;
mod size;
mod stored;
mod switch;
mod tree;

pub use assemble::{
    Assembled, Made, Misfit, Missing, Options, Reason, Same, Unused, Use, assemble, attribute, knows, model_types, version, without,
};
pub use hub::hub_tensors;
pub use own::{Architecture, Assemble, Flaw, Rename, Step};
