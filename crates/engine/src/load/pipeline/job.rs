//! One load from its parts to its end: starts the workers, has them watched, and checks the files once more.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Instant,
};

use super::{
    places::Places,
    shared::{FileState, MAX_RUNS, Shared},
    target::Target,
    watch,
};
use crate::{
    checkpoint::{Checkpoint, CheckpointFile},
    error::Result,
    load::{
        layout::RankLayout,
        options::IoChoice,
        schedule::{BlockLimits, Schedule},
        stats::{CancelToken, Counters, LoadStats, Progress, RankStats},
    },
    memory::Arena,
    source::{Opener, ReadMethod},
};

/// Reads shorter than this are cheaper gathered and copied.
const IN_PLACE: usize = 16 << 10;

/// One load, about to start.
pub(crate) struct Job<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) schedule: Schedule,
    pub(crate) places: Places,
    pub(crate) choice: IoChoice,
    pub(crate) opener: Opener,
    /// Where the shards go instead, if to devices.
    pub(crate) device: Option<Arc<Target>>,
    pub(crate) cancel: CancelToken,
    pub(crate) progress: Option<&'a (dyn Fn(&Progress<'_>) + Sync)>,
}

/// A load that went well.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) arenas: Vec<Vec<Arc<Arena>>>,
    pub(crate) ranks: Vec<RankStats>,
    pub(crate) stats: LoadStats,
}

impl Job<'_> {
    /// Starts the workers, watches them, and checks at the end that every file is still what it was.
    pub(crate) fn run(self, layouts: &[RankLayout], started: Instant) -> Result<Done> {
        let Self { checkpoint, schedule, places, choice, opener, device, cancel, progress } = self;
        let total = schedule.total_bytes();
        watch::not_cancelled(&cancel, 0, total)?;
        let counters = Counters::new(layouts, started);
        let shared = Arc::new(Shared::new(checkpoint, schedule, (places, device), (choice, opener), counters));
        let crew = watch::Crew::start(&shared, &cancel)?;
        let threads = crew.len();
        watch::Watch { checkpoint, shared: &shared, cancel: &cancel, progress, total }.until_done(crew)?;
        for (file, _) in shared.schedule.file_bytes.iter().enumerate().filter(|(_, bytes)| **bytes > 0) {
            checkpoint.check_unchanged(file)?;
        }
        let (ranks, stats) = shared.counters.finish(layouts, threads);
        Ok(Done { arenas: shared.places.arenas(), ranks, stats })
    }
}

impl Shared {
    fn new(
        checkpoint: &Checkpoint,
        schedule: Schedule,
        (places, device): (Places, Option<Arc<Target>>),
        (choice, opener): (IoChoice, Opener),
        counters: Counters,
    ) -> Self {
        let limits = device.as_ref().map(|d| BlockLimits { block: d.ring.block as u64, in_place: usize::MAX, runs: d.ring.runs });
        let in_place = if choice.method == ReadMethod::Pread { IN_PLACE } else { usize::MAX };
        let state =
            |(file, &bytes): (&CheckpointFile, &u64)| FileState { file: file.clone(), open: Mutex::new(None), left: AtomicU64::new(bytes) };
        Self {
            files: checkpoint.files().iter().zip(&schedule.file_bytes).map(state).collect(),
            limits: limits.unwrap_or(BlockLimits { block: choice.block_size as u64, in_place, runs: MAX_RUNS }),
            task_size: (schedule.total_bytes() / (8 * choice.workers() as u64)).clamp(choice.block_size as u64, choice.task_size as u64),
            under_way: (0..choice.workers()).map(|_| Mutex::new(None)).collect(),
            schedule,
            places,
            choice,
            opener,
            device,
            counters,
            stop: AtomicBool::new(false),
            fault: Mutex::new(None),
        }
    }
}
