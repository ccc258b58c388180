//! What the workers of a load share.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU64},
};

use super::{
    fault::{Fault, Place},
    places::Places,
    target::Target,
};
use crate::{
    checkpoint::CheckpointFile,
    load::{
        options::IoChoice,
        schedule::{Block, BlockLimits, Run, Schedule},
        stats::Counters,
    },
    source::{ByteSource, Opener},
};

/// Runs of a block, at most.
pub(super) const MAX_RUNS: usize = 4096;

/// What the workers share.
pub(super) struct Shared {
    pub(super) schedule: Schedule,
    pub(super) files: Vec<FileState>,
    pub(super) places: Places,
    pub(super) choice: IoChoice,
    pub(super) opener: Opener,
    pub(super) device: Option<Arc<Target>>,
    pub(super) limits: BlockLimits,
    pub(super) task_size: u64,
    pub(super) counters: Counters,
    pub(super) stop: AtomicBool,
    pub(super) fault: Mutex<Option<Fault>>,
    /// By worker: the read that it is in, for the message when it hangs.
    pub(super) under_way: Vec<Mutex<Option<Place>>>,
}

/// A file while it is needed: opened at its first task, closed after its last byte.
pub(super) struct FileState {
    pub(super) file: CheckpointFile,
    pub(super) open: Mutex<Option<Arc<ByteSource>>>,
    pub(super) left: AtomicU64,
}

impl Shared {
    /// The memory that a run fills in one rank.
    #[expect(clippy::mut_from_ref, reason = "disjoint parts of arenas; see below")]
    pub(super) fn destination(&self, rank: u32, run: &Run) -> &mut [u8] {
        let tensor = self.schedule.tensors[run.tensor as usize].tensor;
        // SAFETY: the runs of a tensor lie inside its place and are disjoint because the plan was validated to tile it and the queue gives every
        // element to one worker once; a worker holds one destination at a time, but for the copies, which go to other ranks' memory.
        unsafe { self.places.slice(rank, tensor, run.to, run.stored) }
    }

    /// The run's tensor, as an index in the plan.
    pub(super) fn tensor(&self, run: &Run) -> usize {
        self.schedule.tensors[run.tensor as usize].tensor as usize
    }

    /// The place of a byte of a block: the run that it belongs to says whose it is.
    pub(super) fn place(&self, file: u32, block: &Block, runs: &[Run], offset: u64) -> Place {
        let offset = offset.max(block.offset); // a direct read starts before the block
        let behind = runs.partition_point(|r| block.offset + r.from as u64 <= offset);
        let run = &runs[behind.saturating_sub(1)];
        let tensor = Some(self.schedule.tensors[run.tensor as usize].tensor);
        Place { file, offset, tensor, rank: self.schedule.destinations(run).first().copied() }
    }

    pub(super) fn count(&self, runs: &[Run], read: u64) {
        let mut extra = read;
        for run in runs {
            let ranks = self.schedule.destinations(run);
            match run.tile {
                Some((sweep, tile)) => {
                    let size = self.schedule.tensors[run.tensor as usize].sizes().0 as u64;
                    let mut bytes = run.bytes as u64; // counted once, whoever gets a part of them
                    for part in self.schedule.sweep(sweep).parts(tile) {
                        self.counters.placed(self.schedule.destinations_of(run, &part), std::mem::take(&mut bytes), part.numel() * size);
                    }
                }
                None => self.counters.placed(ranks, run.bytes as u64, run.bytes as u64),
            }
            // What alignment added goes to the last run's rank.
            let share = (run.bytes as u64).min(extra);
            extra -= share;
            self.counters.read(ranks[0], share);
        }
        if let (Some(run), true) = (runs.last(), extra > 0) {
            self.counters.read(self.schedule.destinations(run)[0], extra);
        }
    }
}
