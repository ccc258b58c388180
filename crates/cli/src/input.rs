//! What `load` starts from: a config that is decided, a checkpoint whose headers hold, and who this process is.

use std::path::Path;

use shardwright_core::{config::Resolved, registry::Registry};
use shardwright_engine::{Checkpoint, IoOptions, ReadMethod, World, WorldFlags, setup, world::set_process_world};

use crate::{
    args::WorldArgs,
    exit::{Exit, Failure},
    render,
};

/// Everything that a plan and a load need.
#[derive(Debug)]
pub struct Input {
    pub resolved: Resolved,
    pub checkpoint: Checkpoint,
    pub world: World,
    pub io: IoOptions,
}

/// Reads the config, says what is odd about it, and opens the checkpoint.
pub fn read(config: &Path, overrides: &[String], world: WorldArgs) -> Result<Input, Failure> {
    let world = known_world(world)?;
    let registry = Registry::linked().map_err(|d| render::failure(&[d], &[]))?;
    let setup = setup::resolve(config, overrides, &world, &registry)?;
    let outcome = setup.outcome;
    let Some(resolved) = outcome.resolved else { return Err(render::failure(&outcome.diagnostics, &outcome.sources)) };
    render::warn(&outcome.diagnostics, &outcome.sources);
    let checkpoint = setup.model?.checkpoint()?;
    for warning in checkpoint.warnings() {
        eprintln!("warning: {warning}");
    }
    if let Some(open) = resolved.unresolved.first() {
        return Err(Failure::new(Exit::Config, format_args!("{} is not decided: it needs {}", open.pointer, open.needs)));
    }
    let io = io_options(&resolved, &world);
    Ok(Input { resolved, checkpoint, world, io })
}

/// Who this process is: said once, kept by the engine.
pub fn known_world(args: WorldArgs) -> Result<World, Failure> {
    let world = World::from_process(WorldFlags { rank: args.rank, world_size: args.world_size })?;
    Ok(set_process_world(world)?.clone())
}

fn io_options(resolved: &Resolved, world: &World) -> IoOptions {
    let io = &resolved.io;
    let method = match (io.mmap, io.direct) {
        (Some(true), _) => Some(ReadMethod::Mmap),
        (_, Some(true)) => Some(ReadMethod::Direct),
        (Some(false), _) | (_, Some(false)) => Some(ReadMethod::Pread),
        (None, None) => None,
    };
    IoOptions {
        threads: io.threads.map(|n| n as usize),
        queue_depth: io.queue_depth.map(|n| n as usize),
        block_size: io.block_size.map(|size| usize::try_from(size.0).unwrap_or(usize::MAX)),
        method,
        drop_cache: io.drop_cache.unwrap_or(false),
        local_processes: world.local_size,
        ..IoOptions::default()
    }
}
