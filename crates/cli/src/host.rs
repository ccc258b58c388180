//! What the commands decide, for hosts in other languages: the same steps as `resolve` and `load`, without printing.

use std::{cell::RefCell, path::Path};

use shardwright_config::Outcome;
use shardwright_core::{ShardPlan, registry::Registry};
use shardwright_engine::{Checkpoint, IoOptions, World, WorldFlags, setup};

use crate::{
    args::IoArgs,
    exit::{Exit, Failure},
    input::{self, Note, Refused},
    load, render,
};

/// Why a host's call ends early: the command line's exit code, and plain text.
#[derive(Debug)]
pub struct Stopped {
    /// As the command line would exit.
    pub code: u8,
    /// What was expected, what was found, and where.
    pub text: String,
}

/// A config that is decided, an open checkpoint and the validated plan.
#[derive(Debug)]
pub struct Prepared {
    /// What `load` loads.
    pub plan: ShardPlan,
    /// As the model's class has it.
    pub checkpoint: Checkpoint,
    /// Who this process is.
    pub world: World,
    /// How files are read.
    pub io: IoOptions,
    /// What stops nothing.
    pub notes: Vec<String>,
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        let text = failure.text.strip_prefix("error: ").unwrap_or(&failure.text).to_owned();
        Self { code: failure.exit as u8, text }
    }
}

impl From<Refused> for Stopped {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Findings(diagnostics, sources) => Self { code: Exit::Config as u8, text: render::plain(&diagnostics, &sources) },
            Refused::Failure(failure) => failure.into(),
        }
    }
}

/// Resolves a config. What is wrong in it is in the outcome; the text is what the command would print of it.
///
/// # Errors
/// The config cannot be read, or ranks and world size are contradictory.
pub fn resolve(path: &Path, overrides: &[String], flags: WorldFlags, registry: &Registry) -> Result<(Outcome, String), Stopped> {
    let world = World::from_process(flags).map_err(Failure::from)?;
    let outcome = setup::resolve(path, overrides, &world, registry).map_err(Failure::from)?.outcome;
    let text = render::plain(&outcome.diagnostics, &outcome.sources);
    Ok((outcome, text))
}

/// Everything that comes before a load.
///
/// # Errors
/// As `shardwright load`.
pub fn prepare(path: &Path, overrides: &[String], flags: WorldFlags, registry: &Registry) -> Result<Prepared, Stopped> {
    let world = World::from_process(flags).map_err(Failure::from)?;
    let notes = RefCell::new(Vec::new());
    notes.borrow_mut().extend(world.doubt.clone());
    let note = |note: Note<'_>| match note {
        Note::Findings([], _) => {}
        Note::Findings(diagnostics, sources) => notes.borrow_mut().push(render::plain(diagnostics, sources)),
        Note::Warning(text) => notes.borrow_mut().push(text.to_owned()),
    };
    let input = input::gather(path, overrides, world, registry, &IoArgs::default(), &note)?;
    let (plan, odd) = load::plan_of(&input)?;
    if !odd.is_empty() {
        note(Note::Findings(&odd, &input.sources));
    }
    Ok(Prepared { plan, checkpoint: input.checkpoint, world: input.world, io: input.io, notes: notes.into_inner() })
}
