//! A checkpoint as its headers describe it: which files, which tensors, where each lies. No tensor data is read here.
//!
//! `find` turns a path or a hub id into a directory, `files` says which of its files count, `config` reads `config.json`, `index`
//! `model.safetensors.index.json`, `header` one file's header.

mod config;
mod files;
mod find;
mod header;
mod index;
mod named;
mod parts;
mod record;
mod safetensors;
mod types;

pub(crate) use self::{find::led_out, header::holds_parts, named::Places, parts::Parts};
pub use self::{
    find::{HubEnv, ModelDir},
    header::parse_header,
    index::parse_index,
    record::ModelRecord,
    types::{Checkpoint, CheckpointFile, Location},
};
pub use crate::file::Stamp;

#[cfg(test)]
mod tests;
