//! Loading: from a plan and a checkpoint to every loaded rank's shards in memory.
//!
//! `layout` gives each rank its arenas, `schedule` says which bytes go where, `pipeline` moves them, `stats` counts, `options` and
//! `preflight` decide how and whether. What the plan says is never second-guessed here.

mod into;
pub(crate) mod layout;
mod machine;
mod on_device;
mod options;
mod parts;
mod pipeline;
mod preflight;
mod schedule;
mod shards;
mod stats;

use std::sync::Arc;

use shardwright_core::ShardPlan;

use self::pipeline::{Job, Places};
pub use self::{
    into::{Destination, Item, Part, fill, fill_on_device},
    options::{IoChoice, IoOptions},
    preflight::Preflight,
    shards::{Element, Loaded, RankShards, TensorView},
    stats::{CancelToken, LoadStats, Progress, RankProgress, RankStats},
};
pub(crate) use self::{parts::Parts, shards::OwnedRank};
use crate::{
    checkpoint::Checkpoint,
    error::{EngineError, ErrorKind, Result},
    memory::Arena,
    source::Opener,
};

/// Ranks that one process loads side by side at most. Each has mappings of its own, of which Linux grants a process 65,530; who wants a
/// larger world loads its ranks in processes of their own.
pub const MAX_SIDE_BY_SIDE: u32 = 16_384;

/// All ranks of a world, to load them side by side.
///
/// # Errors
/// [`ErrorKind::World`] for more than [`MAX_SIDE_BY_SIDE`].
pub fn all_ranks(world_size: u32) -> Result<Vec<u32>> {
    if world_size > MAX_SIDE_BY_SIDE {
        let what = "one process cannot load so many ranks side by side; give --rank to load one of them";
        return Err(EngineError::new(ErrorKind::World, what).expected(format_args!("at most {MAX_SIDE_BY_SIDE}")).found(world_size));
    }
    Ok((0..world_size).collect())
}

/// Loads shards: `Loader::new(&plan, &checkpoint).ranks(&[0]).load()`.
///
/// Every byte that the ranks need is read once, cast on its way and written once; nothing else is read, and no whole tensor exists.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use shardwright_core::{DType, Mesh, PlanInput, Precision, PrecisionPolicy, TensorMeta, plan_checked, replicate::Replicate};
/// use shardwright_engine::{Checkpoint, Loader};
///
/// #[derive(Debug)]
/// struct Float32;
/// impl PrecisionPolicy for Float32 {
///     fn decide(&self, _: &TensorMeta, _: bool) -> Precision {
///         Precision::uniform(DType::F32)
///     }
/// }
///
/// let checkpoint = Checkpoint::open("path/to/model".as_ref())?;
/// let mesh = Mesh::replicate_shard(1, 2)?;
/// let plan = plan_checked(&Replicate, &PlanInput::new(checkpoint.model(), &mesh, &Float32))?;
/// let loaded = Loader::new(&plan, &checkpoint).ranks(&[1]).progress(&|p| eprintln!("{} of {} bytes", p.read, p.total)).load()?;
/// for tensor in loaded.ranks[0].iter() {
///     let values: Option<&[f32]> = tensor.elements();
///     println!("{} {:?} {:?}", tensor.name, tensor.region, values.map(|v| &v[..4]));
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is read before `load`"]
pub struct Loader<'p, 'a> {
    plan: &'p ShardPlan,
    checkpoint: &'a Checkpoint,
    ranks: Vec<u32>,
    io: IoOptions,
    progress: Option<&'a (dyn Fn(&Progress<'_>) + Sync)>,
    cancel: CancelToken,
    #[cfg(test)]
    faults: Option<Arc<crate::source::faulty::Faults>>,
    #[cfg(test)]
    available: Option<crate::memory::Available>,
}

impl<'p, 'a> Loader<'p, 'a> {
    /// A loader of all ranks of the plan's world, with default options.
    pub fn new(plan: &'p ShardPlan, checkpoint: &'a Checkpoint) -> Self {
        // One more than is loaded is enough to refuse them all.
        let ranks = (0..plan.mesh.world_size().min(MAX_SIDE_BY_SIDE + 1)).collect();
        Self {
            plan,
            checkpoint,
            ranks,
            io: IoOptions::default(),
            progress: None,
            cancel: CancelToken::new(),
            #[cfg(test)]
            faults: None,
            #[cfg(test)]
            available: None,
        }
    }

    /// Loads these ranks only.
    pub fn ranks(mut self, ranks: &[u32]) -> Self {
        self.ranks = ranks.to_vec();
        self
    }

    /// How to read.
    pub fn io(mut self, io: IoOptions) -> Self {
        self.io = io;
        self
    }

    /// Called on the loading thread, a few times a second and once at the end.
    pub fn progress(mut self, progress: &'a (dyn Fn(&Progress<'_>) + Sync)) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Stops the load when that token is cancelled.
    pub fn cancel(mut self, cancel: &CancelToken) -> Self {
        self.cancel = cancel.clone();
        self
    }

    /// How this load would read, and why.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for options out of range.
    pub fn explain(&self) -> Result<IoChoice> {
        self.io.choose_on(&machine::Machine::here(self.checkpoint.files().first().map(|f| f.path.as_path())))
    }

    /// The memory that this load would need, and what there is.
    ///
    /// # Errors
    /// As [`Loader::load`], before anything is allocated.
    pub fn preflight(&self) -> Result<Preflight> {
        let (layouts, _) = self.prepare()?;
        Ok(Preflight::of(&layouts, &self.explain()?))
    }

    /// What each rank holds, with the plan validated for this checkpoint; nothing is read, so neither bytes nor seconds are counted.
    pub(crate) fn sizes(&self) -> Result<Vec<RankStats>> {
        self.validate()?;
        let (order, alike) = (schedule::file_order(self.checkpoint), layout::Alike::new(self.plan));
        let sizes = |&rank: &u32| {
            let layout = layout::RankLayout::new(self.plan, rank, &order, &alike, &mut layout::Tables::default())?;
            let (bytes_needed, shard_bytes, padding_bytes) = (layout.needed_bytes, layout.shard_bytes, layout.padding_bytes);
            Ok(RankStats { rank, bytes_needed, shard_bytes, padding_bytes, ..RankStats::default() })
        };
        self.ranks.iter().map(sizes).collect()
    }

    /// Loads.
    ///
    /// # Errors
    /// [`ErrorKind::Plan`] where the plan does not fit checkpoint or ranks, [`ErrorKind::Memory`] where memory does not suffice,
    /// [`ErrorKind::Io`] where a read fails, [`ErrorKind::Checkpoint`] where a file changed meanwhile, [`ErrorKind::Cancelled`]. Each
    /// names tensor, file and offset where there are any. Nothing of the shards remains.
    pub fn load(self) -> Result<Loaded<'p>> {
        let started = std::time::Instant::now();
        let choice = self.explain()?;
        let (layouts, schedule) = self.prepare()?;
        let preflight = Preflight::of(&layouts, &choice);
        #[cfg(test)]
        let preflight = Preflight { bounds: self.available.clone().map_or(preflight.bounds, |a| vec![a]), ..preflight };
        if !self.io.force {
            preflight.check()?;
        }
        let arenas = layouts.iter().map(allocate).collect::<Result<Vec<_>>>()?;
        let plan = self.plan;
        let slots = layouts.iter().map(|l| Arc::clone(&l.slots)).collect();
        let opener = self.opener(&choice);
        let Self { checkpoint, cancel, progress, .. } = self;
        let job = Job { checkpoint, schedule, places: Places::Arenas { arenas, slots }, choice, opener, device: None, cancel, progress };
        let done = job.run(&layouts, started)?;
        Ok(Loaded::new(plan, layouts, done))
    }

    fn opener(&self, choice: &IoChoice) -> Opener {
        Opener {
            method: choice.method,
            #[cfg(test)]
            faults: self.faults.clone(),
        }
    }

    /// Validates plan and ranks for this checkpoint. Memory safety rests on it, so it is done for every load.
    fn validate(&self) -> Result<()> {
        let refused = |what: String| EngineError::new(ErrorKind::Plan, what);
        self.plan.check(self.checkpoint.model()).map_err(|e| refused(format!("the plan does not hold for this checkpoint: {e}")))?;
        let world = self.plan.mesh.world_size();
        if self.ranks.len() > MAX_SIDE_BY_SIDE as usize {
            all_ranks(world.max(MAX_SIDE_BY_SIDE + 1))?;
        }
        let mut ranks = self.ranks.clone();
        ranks.sort_unstable();
        if let Some(twice) = ranks.windows(2).find(|w| w[0] == w[1]) {
            return Err(refused("the rank is asked for twice".into()).rank(twice[0]));
        }
        if let Some(&rank) = ranks.iter().find(|&&r| r >= world) {
            return Err(refused("there is no such rank".into()).rank(rank).expected(format_args!("a rank below {world}")));
        }
        Ok(())
    }

    fn prepare(&self) -> Result<(Vec<layout::RankLayout>, schedule::Schedule)> {
        self.validate()?;
        let order = schedule::file_order(self.checkpoint);
        let layouts = self.layouts(&order)?;
        let schedule = schedule::Schedule::new(self.plan, self.checkpoint, &self.ranks, &order, self.explain()?.block_size)?;
        Ok((layouts, schedule))
    }

    fn layouts(&self, order: &[u32]) -> Result<Vec<layout::RankLayout>> {
        let mut tables = layout::Tables::default();
        let alike = layout::Alike::new(self.plan);
        let layout = |&rank: &u32| {
            if self.cancel.is_cancelled() {
                return Err(EngineError::new(ErrorKind::Cancelled, "the load was stopped before its first byte"));
            }
            layout::RankLayout::new(self.plan, rank, order, &alike, &mut tables)
        };
        self.ranks.iter().map(layout).collect()
    }
}

/// The arenas of one rank: mapped, not touched.
fn allocate(layout: &layout::RankLayout) -> Result<Vec<Arc<Arena>>> {
    let map = |&(dtype, bytes): &(shardwright_core::DType, u64)| {
        usize::try_from(bytes)
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::OutOfMemory))
            .and_then(Arena::new)
            .map(Arc::new)
            .map_err(|e| {
                EngineError::new(ErrorKind::Memory, format!("cannot map {bytes} bytes for {dtype} shards")).rank(layout.rank).cause(e)
            })
    };
    layout.arenas.iter().map(map).collect()
}

#[cfg(test)]
mod tests;
