//! What `load` starts from: a config that is decided, a checkpoint whose headers hold, and who this process is.

use std::path::Path;

use shardwright_config::{IoSettings, Resolved};
use shardwright_core::{
    diagnostic::{Diagnostic, Severity, Source},
    registry::Registry,
    text::shown,
};
use shardwright_engine::{Checkpoint, EngineError, IoOptions, ReadMethod, World, WorldFlags, run, setup};

use crate::{
    args::{IoArgs, WorldArgs},
    exit::Failure,
    output::print_note,
    plugins::Plugins,
    render,
};

/// Everything that a plan and a load need.
#[derive(Debug)]
pub struct Input {
    pub resolved: Resolved,
    /// The texts that its places point into.
    pub sources: Vec<Source>,
    /// As the model's class has it.
    pub checkpoint: Checkpoint,
    pub world: World,
    pub io: IoOptions,
}

/// Something that stops nothing.
#[derive(Debug)]
pub enum Note<'a> {
    /// Findings of the config, with the texts that their places point into.
    Findings(&'a [Diagnostic], &'a [Source]),
    /// A sentence.
    Warning(&'a str),
}

/// Why there is no input.
#[derive(Debug)]
pub enum Refused {
    /// Findings of the config.
    Findings(Vec<Diagnostic>, Vec<Source>),
    /// Everything else.
    Failure(Failure),
}

impl From<EngineError> for Refused {
    fn from(error: EngineError) -> Self {
        Self::Failure(error.into())
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Findings(diagnostics, sources) => render::failure(&diagnostics, &sources),
            Refused::Failure(failure) => failure,
        }
    }
}

/// Reads the config, prints what is odd about it, and opens the checkpoint.
pub fn read(config: &Path, overrides: &[String], world: WorldArgs, io: &IoArgs, plugins: Plugins) -> Result<Input, Failure> {
    let world = known_world(world)?;
    let registry = plugins().map_err(|d| render::failure(&[d], &[]))?;
    let print = |note: Note<'_>| match note {
        Note::Findings(diagnostics, sources) => render::warn(diagnostics, sources),
        Note::Warning(text) => print_note(&format!("warning: {text}")),
    };
    Ok(gather(config, overrides, world, &registry, io, &print)?)
}

/// Reads the config and opens the checkpoint; what is odd goes to `note`.
pub fn gather(
    config: &Path,
    overrides: &[String],
    world: World,
    registry: &Registry,
    io: &IoArgs,
    note: &dyn Fn(Note<'_>),
) -> Result<Input, Refused> {
    let setup = setup::resolve(config, overrides, &world, registry)?;
    let mut outcome = setup.outcome;
    let Some(resolved) = outcome.resolved else { return Err(Refused::Findings(outcome.diagnostics, outcome.sources)) };
    // Advice on a training is of no use beside what keeps it from starting, which the checkpoint may show.
    let is_advice = |d: &Diagnostic| shardwright_config::ADVICE.contains(&d.code);
    let (advice, findings): (Vec<_>, Vec<_>) = std::mem::take(&mut outcome.diagnostics).into_iter().partition(is_advice);
    note(Note::Findings(&findings, &outcome.sources));
    let checkpoint = setup.model?.checkpoint()?;
    for warning in checkpoint.warnings() {
        note(Note::Warning(&shown(warning)));
    }
    let checkpoint = run::with_model(checkpoint, &resolved, &mut |warning| note(Note::Warning(&shown(warning))))?;
    let (misfits, odd): (Vec<_>, Vec<_>) =
        resolved.misfits(checkpoint.assembled()).into_iter().partition(|found| found.severity == Severity::Error);
    if !misfits.is_empty() {
        return Err(Refused::Findings(misfits, outcome.sources));
    }
    note(Note::Findings(&odd, &outcome.sources));
    let undecided = resolved.undecided();
    if !undecided.is_empty() {
        return Err(Refused::Findings(undecided, outcome.sources));
    }
    note(Note::Findings(&advice, &outcome.sources));
    let io = io_options(io, &resolved.io, &world);
    Ok(Input { resolved, sources: outcome.sources, checkpoint, world, io })
}

/// Who this process is.
pub fn known_world(args: WorldArgs) -> Result<World, Failure> {
    let world = World::from_process(WorldFlags { rank: args.rank, world_size: args.world_size })?;
    if let Some(doubt) = &world.doubt {
        crate::output::print_note(&format!("warning: {doubt}"));
    }
    Ok(world)
}

/// How to read: a flag wins over the config.
fn io_options(args: &IoArgs, io: &IoSettings, world: &World) -> IoOptions {
    let set = run::io_options(io, world);
    let method = match (args.mmap, args.direct) {
        (true, _) => Some(ReadMethod::Mmap),
        (_, true) => Some(ReadMethod::Direct),
        _ => set.method,
    };
    IoOptions {
        threads: args.threads.map(|n| n as usize).or(set.threads),
        queue_depth: args.queue_depth.map(|n| n as usize).or(set.queue_depth),
        block_size: args.block_size.map(|size| usize::try_from(size.0).unwrap_or(usize::MAX)).or(set.block_size),
        method,
        readahead: args.readahead.or(set.readahead),
        drop_cache: args.drop_cache || set.drop_cache,
        force: args.force,
        ..set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the file says of one way and a flag of another: the flag wins, whichever it is.
    #[test]
    fn a_flag_wins_over_the_file() {
        let world = World::from_process(WorldFlags { rank: None, world_size: Some(1) }).unwrap();
        let method = |direct: bool, mmap: bool, file: (Option<bool>, Option<bool>)| {
            let mut io = IoSettings::default();
            (io.direct, io.mmap) = file;
            io_options(&IoArgs { direct, mmap, ..IoArgs::default() }, &io, &world).method
        };
        for file in [(None, None), (Some(true), None), (None, Some(true)), (Some(false), Some(true)), (Some(true), Some(false))] {
            assert_eq!(method(true, false, file), Some(ReadMethod::Direct), "--direct over {file:?}");
            assert_eq!(method(false, true, file), Some(ReadMethod::Mmap), "--mmap over {file:?}");
        }
        assert_eq!(method(false, false, (Some(true), Some(false))), Some(ReadMethod::Direct));
        assert_eq!(method(false, false, (Some(false), Some(true))), Some(ReadMethod::Mmap));
        assert_eq!(method(false, false, (Some(false), None)), Some(ReadMethod::Pread));
        assert_eq!(method(false, false, (None, None)), None);
    }
}
