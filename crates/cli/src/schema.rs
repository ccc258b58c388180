//! `shardwright schema`: the JSON Schema of the YAML.

use shardwright_config::schema::schema;
use shardwright_engine::architecture::architecture_schema;

use crate::{
    args::SchemaArgs,
    exit::{Exit, Failure},
    output::{print, print_next},
    plugins::Plugins,
    render,
};

/// Runs the command.
pub fn run(args: &SchemaArgs, plugins: Plugins) -> Result<Exit, Failure> {
    if args.architecture {
        print(&format!("{:#}\n", architecture_schema()))?;
        print_next("shardwright inspect MODEL --as-model --architecture FILE shows what such a file makes of a checkpoint");
        return Ok(Exit::Done);
    }
    let registry = plugins().map_err(|d| render::failure(&[d], &[]))?;
    print(&format!("{:#}\n", schema(&registry)))?;
    print_next("saved to a file, editors check against it: # yaml-language-server: $schema=FILE as the first line of a config");
    Ok(Exit::Done)
}
