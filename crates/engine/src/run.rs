//! The main job for a library's user: from a YAML to every rank's shards, in a few calls. Results are owned: nothing borrows the plan.
//!
//! What a step warns of is kept for whoever asks; nothing is printed.

mod error;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use shardwright_config::{IoSettings, Resolved};
use shardwright_core::{PlanInput, Region, ShardPlan, diagnostic::Diagnostic, document::Document, plan_checked, registry::Registry};

pub use self::error::Error;
use crate::{
    architecture::{ModelOptions, parse_architecture},
    checkpoint::Checkpoint,
    error::{EngineError, ErrorKind},
    load::{self, CancelToken, Destination, IoOptions, Item, LoadStats, Loaded, Loader, Part, RankShards, TensorView, all_ranks},
    save::{Saved, Saver},
    setup,
    source::ReadMethod,
    world::{World, WorldFlags},
};

/// A config, and who this process is. Nothing is read before [`Run::resolve`] or [`Run::plan`].
#[derive(Clone, Debug)]
#[must_use = "nothing is read before `plan`"]
pub struct Run {
    config: PathBuf,
    overrides: Vec<String>,
    world: WorldFlags,
    /// Instead of what the config says.
    io: Option<IoOptions>,
}

/// What a config says, with every value's reason.
#[derive(Debug)]
#[non_exhaustive]
pub struct Resolution {
    /// Every value with where it is from; serialises.
    pub document: Document,
    /// Warnings, with their places.
    pub warnings: Vec<Diagnostic>,
}

/// A validated plan over a checkpoint, and which of its ranks this process is.
#[derive(Debug)]
pub struct Plan {
    plan: Arc<ShardPlan>,
    checkpoint: Checkpoint,
    document: Document,
    ranks: Vec<u32>,
    io: IoOptions,
    warnings: Vec<String>,
}

/// Loaded shards of some ranks. They keep their plan and memory alive by themselves.
#[derive(Debug)]
pub struct Shards {
    plan: Arc<ShardPlan>,
    ranks: Vec<load::OwnedRank>,
    stats: LoadStats,
}

/// A part of a tensor that is about to be read: what [`Plan::load_into`] asks memory for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Wanted<'a> {
    /// The rank that holds it.
    pub rank: u32,
    /// As the plan has it: name, shape of the whole tensor, kind, dtypes.
    pub tensor: &'a shardwright_core::TensorPlan,
    /// Its shape, in elements; `None` for a flat partition.
    pub local_shape: Option<Vec<u64>>,
    /// Bytes in the storage dtype, padding included.
    pub bytes: u64,
}

impl Run {
    /// A run of the YAML at that path, LLaMA-Factory's or accelerate's. Rank and world size are a launcher's, where there is one, and the
    /// process stands for every rank otherwise.
    pub fn from_yaml(path: impl Into<PathBuf>) -> Self {
        let world = WorldFlags { rank: None, world_size: None };
        Self { config: path.into(), overrides: Vec::new(), world, io: None }
    }

    /// Sets a value over the file's: `set("training.micro_batch_size=2")`.
    pub fn set(mut self, assignment: impl Into<String>) -> Self {
        self.overrides.push(assignment.into());
        self
    }

    /// This process is that rank of so many.
    pub fn world(mut self, rank: u32, world_size: u32) -> Self {
        self.world = WorldFlags { rank: Some(rank), world_size: Some(world_size) };
        self
    }

    /// This process stands for all ranks of a world of that size.
    pub fn world_size(mut self, world_size: u32) -> Self {
        self.world = WorldFlags { rank: None, world_size: Some(world_size) };
        self
    }

    /// How files are read, instead of what the config's `io` says.
    pub fn io(mut self, io: IoOptions) -> Self {
        self.io = Some(io);
        self
    }

    /// Decides every value of the config; the model need not be there.
    ///
    /// # Errors
    /// With every finding that is an error, and its place.
    pub fn resolve(&self) -> Result<Resolution, Error> {
        let (resolved, warnings, _) = self.resolved()?;
        Ok(Resolution { document: resolved.0.document, warnings })
    }

    /// Resolves the config, reads the checkpoint's headers, and plans and validates the layout of every rank. No tensor is read.
    ///
    /// # Errors
    /// What [`Run::resolve`] finds, a checkpoint that is missing, malformed, or not the model that its `config.json` describes, a layout that
    /// the strategy refuses.
    pub fn plan(self) -> Result<Plan, Error> {
        let ((resolved, model), warnings, world) = self.resolved()?;
        let mut said: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        let checkpoint = model?.checkpoint()?;
        said.extend(checkpoint.warnings().iter().cloned());
        let checkpoint = with_model(checkpoint, &resolved, &mut |warning| said.push(warning.to_owned()))?;
        let undecided = resolved.undecided();
        if !undecided.is_empty() {
            return Err(Error::findings(undecided));
        }
        let (plan, odd) = plan(&resolved, &checkpoint)?;
        said.extend(odd.iter().map(ToString::to_string));
        let ranks = world.rank.map_or_else(|| all_ranks(plan.mesh.world_size()), |rank| Ok(vec![rank]))?;
        Ok(Plan {
            plan: Arc::new(plan),
            checkpoint,
            io: self.io.unwrap_or_else(|| io_options(&resolved.io, &world)),
            document: resolved.document,
            ranks,
            warnings: said,
        })
    }

    #[expect(clippy::type_complexity, reason = "the pieces of one resolution")]
    fn resolved(&self) -> Result<((Resolved, Result<crate::ModelDir, EngineError>), Vec<Diagnostic>, World), Error> {
        let world = World::from_process(self.world)?;
        let registry = Registry::linked().map_err(|d| Error::findings(vec![d]))?;
        let setup = setup::resolve(&self.config, &self.overrides, &world, &registry)?;
        match setup.outcome.resolved {
            Some(resolved) => Ok(((resolved, setup.model), setup.outcome.diagnostics, world)),
            None => Err(Error::findings(setup.outcome.diagnostics)),
        }
    }
}

/// The checkpoint as the model's class has it, by what the config says of it. `warn` gets what is odd.
///
/// # Errors
/// As [`Checkpoint::find_model`].
pub fn with_model(checkpoint: Checkpoint, resolved: &Resolved, warn: &mut dyn FnMut(&str)) -> Result<Checkpoint, EngineError> {
    let own = resolved.architecture.as_ref().and_then(|text| parse_architecture(text).ok());
    let (checkpoint, warnings) = checkpoint.into_model(&ModelOptions::of(resolved, own.as_ref()))?;
    warnings.iter().for_each(|warning| warn(warning));
    resolved.lint(checkpoint.model()).iter().for_each(|odd| warn(odd));
    Ok(checkpoint)
}

/// The validated plan of a resolved config over a checkpoint, and what its precision policy finds odd.
///
/// # Errors
/// What the strategy refuses.
pub fn plan(resolved: &Resolved, checkpoint: &Checkpoint) -> Result<(ShardPlan, Vec<Diagnostic>), shardwright_core::PlanError> {
    let mut wanted = PlanInput::new(checkpoint.model(), &resolved.mesh, resolved.precision.as_ref());
    wanted.buffers = &resolved.buffers;
    wanted.units = &resolved.units;
    wanted.trainable = &resolved.trainable;
    let plan = plan_checked(resolved.strategy.as_ref(), &wanted)?;
    let parameters: Vec<_> = wanted.parameters().collect();
    let odd = resolved.precision.lint(&parameters);
    Ok((plan, odd))
}

/// How files are read by what a config says; what it does not say is the engine's choice. A config that resolves does not say both direct
/// and mapped.
pub fn io_options(set: &IoSettings, world: &World) -> IoOptions {
    let count = |set: Option<u32>| set.map(|n| n as usize);
    IoOptions {
        threads: count(set.threads),
        queue_depth: count(set.queue_depth),
        block_size: set.block_size.map(|size| usize::try_from(size.0).unwrap_or(usize::MAX)),
        method: match (set.mmap, set.direct) {
            (Some(true), _) => Some(ReadMethod::Mmap),
            (_, Some(true)) => Some(ReadMethod::Direct),
            (Some(false), _) | (_, Some(false)) => Some(ReadMethod::Pread),
            (None, None) => None,
        },
        readahead: set.readahead,
        drop_cache: set.drop_cache.unwrap_or(false),
        local_processes: world.local_size,
        ..IoOptions::default()
    }
}

impl Plan {
    /// Where every tensor lies, on every rank.
    pub fn layout(&self) -> &ShardPlan {
        &self.plan
    }

    /// The checkpoint that it is a plan for.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Every value of the config, with its reason.
    pub fn document(&self) -> &Document {
        &self.document
    }

    /// The ranks that this process is.
    pub fn ranks(&self) -> &[u32] {
        &self.ranks
    }

    /// How files are read: as the config says, or as [`Run::io`] does.
    pub fn io(&self) -> &IoOptions {
        &self.io
    }

    /// What is odd about config, checkpoint or model, and does not stop a load.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Loads the shards of this process's ranks into memory of their own.
    ///
    /// # Errors
    /// As [`Loader::load`].
    pub fn load(&self) -> Result<Shards, Error> {
        self.load_with(&CancelToken::new())
    }

    /// As [`Plan::load`], and stops where that token is cancelled.
    ///
    /// # Errors
    /// As [`Loader::load`].
    pub fn load_with(&self, cancel: &CancelToken) -> Result<Shards, Error> {
        let loaded = Loader::new(&self.plan, &self.checkpoint).ranks(&self.ranks).io(self.io.clone()).cancel(cancel).load()?;
        let Loaded { ranks, stats, .. } = loaded;
        Ok(Shards { plan: Arc::clone(&self.plan), ranks: ranks.into_iter().map(RankShards::into_owned).collect(), stats })
    }

    /// Loads into memory of the caller's: `memory` gives each part its destination, or `None` to leave it out. A part fills its destination
    /// from the start, row-major; what is left over, padding included, is set to zero. Everything is validated before the first byte is written.
    ///
    /// # Errors
    /// As [`load::fill`].
    ///
    /// # Safety
    /// Every destination is memory of its size that may be written from any thread, that no other destination overlaps, and that nothing else
    /// reads or writes until the call returns.
    pub unsafe fn load_into(&self, mut memory: impl FnMut(&Wanted<'_>) -> Option<Destination>) -> Result<LoadStats, Error> {
        let mut total = LoadStats::default();
        for &rank in &self.ranks {
            let mut items = Vec::new();
            for (tensor, assembly) in self.plan.tensors.iter().zip(&self.checkpoint.assembled().assemblies) {
                let region = tensor.region(rank);
                let bytes = tensor.precision.storage.bytes(tensor.padded_numel(rank)).unwrap_or(u64::MAX);
                let wanted = Wanted { rank, tensor, local_shape: region.local_shape(&tensor.shape), bytes };
                let Some(to) = memory(&wanted) else { continue };
                items.push(Item {
                    name: tensor.name.clone(),
                    shape: tensor.shape.clone(),
                    assembly: assembly.clone(),
                    rounded: tensor.rounded,
                    part: part(&region, &tensor.shape),
                    to,
                });
            }
            // SAFETY: the caller's promise.
            let stats = unsafe { load::fill(&self.checkpoint, &items, &self.io, None, &CancelToken::new()) }.map_err(|e| e.rank(rank))?;
            total.bytes_needed += stats.bytes_needed;
            total.bytes_read += stats.bytes_read;
            total.shard_bytes += stats.shard_bytes;
            total.padding_bytes += stats.padding_bytes;
            total.seconds += stats.seconds;
            total.threads = total.threads.max(stats.threads);
        }
        Ok(total)
    }

    /// Writes the shards of this process's ranks into a directory, straight from the checkpoint, in bounded memory. See [`Saver::stream`].
    ///
    /// # Errors
    /// As there.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<Saved, Error> {
        let saver = Saver::new(&self.plan, &self.checkpoint, dir.as_ref());
        Ok(saver.stream(&self.ranks, &self.io, false)?.saved)
    }
}

/// A headline, then a line a parameter group.
impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plan = &self.plan;
        let (ranks, tensors) = (plan.mesh.world_size(), plan.tensors.len());
        write!(f, "{} on {ranks} ranks: {tensors} tensors in {} parameter groups", plan.strategy, plan.groups.len())?;
        for group in &plan.groups {
            let elements: u64 = group.tensors.iter().map(|&t| plan.tensors[t].numel()).sum();
            let name = if group.name.is_empty() { "(root)" } else { &group.name };
            write!(f, "\n  {name}: {} parameters, {elements} elements", group.tensors.len())?;
        }
        Ok(())
    }
}

fn part(region: &Region, shape: &[u64]) -> Part {
    match region {
        Region::Flat { range } => Part::Flat(range.clone()),
        Region::Dim { dim, range } => Part::Box((0..).zip(shape).map(|(d, &n)| if d == *dim { range.clone() } else { 0..n }).collect()),
        Region::Whole => Part::Box(shape.iter().map(|&n| 0..n).collect()),
        Region::Box { ranges } => Part::Box(ranges.clone()),
        Region::Empty => Part::Flat(0..0),
    }
}

impl Shards {
    /// The plan that they were loaded for.
    pub fn layout(&self) -> &ShardPlan {
        &self.plan
    }

    /// Each loaded rank.
    pub fn ranks(&self) -> impl Iterator<Item = RankShards<'_>> {
        self.ranks.iter().map(|rank| rank.shards(&self.plan))
    }

    /// The shards of that rank; `None` where it is not loaded here.
    pub fn rank(&self, rank: u32) -> Option<RankShards<'_>> {
        self.ranks().find(|shards| shards.rank() == rank)
    }

    /// Calls `each` for every tensor of every loaded rank, in the plan's order.
    pub fn for_each(&self, mut each: impl FnMut(u32, TensorView<'_>)) {
        for shards in self.ranks() {
            for view in shards.iter() {
                each(shards.rank(), view);
            }
        }
    }

    /// What the load took.
    pub fn stats(&self) -> &LoadStats {
        &self.stats
    }
}

/// Compares a saved directory with its manifest and, where a model is given, every element with that source.
///
/// # Errors
/// [`ErrorKind::Mismatch`] with the first difference; else where verification itself fails.
pub fn verify(dir: impl Into<PathBuf>, against: Option<&Path>) -> Result<(), Error> {
    let mut verifier = crate::verify::Verifier::open(dir)?;
    let source = against.map(|model| Checkpoint::open(model)?.with_recorded_model(verifier.manifest().model.as_ref())).transpose()?;
    if let Some(source) = &source {
        verifier = verifier.against(source);
    }
    let found = verifier.run()?;
    match found.problems.into_iter().next() {
        Some(first) => Err(first.into()),
        None if found.more_problems > 0 => Err(EngineError::new(ErrorKind::Mismatch, "the save differs").into()),
        None => Ok(()),
    }
}
