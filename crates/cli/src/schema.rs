//! `shardwright schema`: the JSON Schema of the YAML.

use shardwright_config::schema::schema;
use shardwright_core::registry::Registry;

use crate::{
    exit::{Exit, Failure},
    output::print,
    render,
};

/// Runs the command.
pub fn run() -> Result<Exit, Failure> {
    let registry = Registry::linked().map_err(|d| render::failure(&[d], &[]))?;
    print(&format!("{:#}\n", schema(&registry)))?;
    Ok(Exit::Done)
}
