//! `shardwright schema`: the JSON Schema of the YAML.

use shardwright_config::schema::schema;
use shardwright_core::registry::Registry;
use shardwright_engine::architecture::architecture_schema;

use crate::{
    args::SchemaArgs,
    exit::{Exit, Failure},
    output::print,
    render,
};

/// Runs the command.
pub fn run(args: &SchemaArgs) -> Result<Exit, Failure> {
    if args.architecture {
        print(&format!("{:#}\n", architecture_schema()))?;
        return Ok(Exit::Done);
    }
    let registry = Registry::linked().map_err(|d| render::failure(&[d], &[]))?;
    print(&format!("{:#}\n", schema(&registry)))?;
    Ok(Exit::Done)
}
