//! The pipeline: workers take tasks off one queue, read block by block, cast, and place. The calling thread watches them.
//!
//! Each worker owns one staging buffer of one block; beside the arenas nothing else is held. Workers are not joined when they hang: a
//! read that never comes back must not keep an error from being told, so all that they touch is counted by reference.

pub(crate) mod to_device;
mod watch;

use std::{
    io,
    mem::MaybeUninit,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use super::{
    layout::{RankLayout, Slot},
    options::IoChoice,
    schedule::{Block, Run, Schedule, Task},
    stats::{CancelToken, Counters, LoadStats, Progress, RankStats},
};
use crate::{
    checkpoint::{Checkpoint, CheckpointFile, unchanged},
    error::{EngineError, Result},
    memory::Arena,
    source::{ByteSource, Opener, ReadAt, ReadMethod},
};

/// How long a block and its list of runs may become.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockLimits {
    /// Bytes that go through the staging buffer at once.
    pub(crate) block: u64,
    /// From this many bytes on, what is not cast is read straight into place.
    pub(crate) in_place: usize,
    /// Runs.
    pub(crate) runs: usize,
}

/// Reads shorter than this are cheaper gathered and copied.
const IN_PLACE: usize = 16 << 10;
const MAX_RUNS: usize = 4096;

/// One load, about to start.
pub(crate) struct Job<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) schedule: Schedule,
    /// By rank, then by dtype.
    pub(crate) arenas: Vec<Vec<Arc<Arena>>>,
    pub(crate) choice: IoChoice,
    pub(crate) opener: Opener,
    /// Where the shards go instead of the arenas, if to devices.
    pub(crate) device: Option<Arc<to_device::Target>>,
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

/// What the workers share.
struct Shared {
    schedule: Schedule,
    files: Vec<FileState>,
    arenas: Vec<Vec<Arc<Arena>>>,
    slots: Vec<Vec<Slot>>,
    choice: IoChoice,
    opener: Opener,
    device: Option<Arc<to_device::Target>>,
    limits: BlockLimits,
    task_size: u64,
    counters: Counters,
    stop: AtomicBool,
    fault: Mutex<Option<Fault>>,
    /// By worker: the read that it is in, for the message when it hangs.
    under_way: Vec<Mutex<Option<Place>>>,
}

/// A file while it is needed: opened at its first task, closed after its last byte.
struct FileState {
    file: CheckpointFile,
    open: Mutex<Option<Arc<ByteSource>>>,
    left: AtomicU64,
}

/// Where a worker is.
#[derive(Clone, Copy, Debug)]
struct Place {
    file: u32,
    offset: u64,
    /// Index in the plan; `None` where a file is opened.
    tensor: Option<u32>,
    /// Index of the first rank that it is for.
    rank: Option<u32>,
}

/// What went wrong first, and where.
#[derive(Debug)]
struct Fault {
    at: Place,
    error: FaultKind,
}

#[derive(Debug)]
enum FaultKind {
    Read(io::Error),
    /// The file ended so many bytes too early.
    Short(u64),
    /// A device's; the place is added.
    Device(EngineError),
    /// A complete error already.
    Other(EngineError),
}

/// A worker's own memory.
struct Worker {
    number: usize,
    shared: Arc<Shared>,
    lane: Lane,
    runs: Vec<Run>,
}

/// A worker's way from a file into place.
enum Lane {
    Host(Staging),
    Device(to_device::Lane),
}

impl Worker {
    /// Until the queue is empty or someone failed.
    fn work(&mut self) {
        let shared = Arc::clone(&self.shared);
        while let Some(task) = shared.schedule.next_task(shared.task_size) {
            shared.announce(&mut self.runs);
            if let Err(fault) = self.do_task(&shared, task) {
                lock(&shared.fault).get_or_insert(fault); // the first one is told
                shared.stop.store(true, Ordering::Relaxed);
            }
            if shared.stop.load(Ordering::Relaxed) {
                return;
            }
        }
        if let Lane::Device(lane) = &mut self.lane
            && let Err(error) = lane.drain()
        {
            let at = Place { file: 0, offset: 0, tensor: None, rank: None };
            lock(&shared.fault).get_or_insert(Fault { at, error: FaultKind::Other(error) });
        }
    }

    /// The hot loop: read a block, cast it, place it.
    fn do_task(&mut self, shared: &Shared, task: Task) -> Result<(), Fault> {
        let source = shared.open(task.file)?;
        let mut blocks = shared.schedule.blocks(task);
        while let Some(block) = blocks.next(&shared.limits, &mut self.runs) {
            if shared.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let at = shared.place(task.file, &block, &self.runs[0]);
            *lock(&shared.under_way[self.number]) = Some(at);
            let read = match &mut self.lane {
                Lane::Host(staging) => shared.move_block(&source, &block, &self.runs, staging),
                Lane::Device(lane) => lane.move_block(shared, &source, &block, &self.runs),
            };
            let bytes = read.map_err(|error| Fault { at, error })?;
            shared.count(&self.runs, bytes);
        }
        shared.finish(task, &source);
        *lock(&shared.under_way[self.number]) = None;
        Ok(())
    }
}

impl Shared {
    /// Brings one block from the file into every rank's memory. Answers with the bytes read.
    fn move_block(&self, source: &ByteSource, block: &Block, runs: &[Run], staging: &mut Staging) -> Result<u64, FaultKind> {
        if let [run] = runs
            && self.in_place(source, run)
        {
            return self.read_in_place(source, block, run);
        }
        let (bytes, read) = staging.read(source, block)?;
        for run in runs {
            let from = &bytes[run.from..][..run.bytes];
            for &rank in self.schedule.destinations(run) {
                self.convert(run, from, self.destination(rank, run));
            }
        }
        Ok(read)
    }

    fn in_place(&self, source: &ByteSource, run: &Run) -> bool {
        let plain = self.schedule.tensors[run.tensor as usize].cast.is_none() && run.bytes >= self.limits.in_place;
        plain && source.alignment() == 1 && self.choice.method != ReadMethod::Mmap
    }

    /// Reads into the first rank's memory and copies from there to the others'.
    fn read_in_place(&self, source: &ByteSource, block: &Block, run: &Run) -> Result<u64, FaultKind> {
        let ranks = self.schedule.destinations(run);
        let Some((&first, others)) = ranks.split_first() else { return Ok(0) };
        let whole = self.destination(first, run);
        let step = if others.is_empty() { whole.len() } else { self.choice.block_size };
        let (mut done, mut read) = (0, 0);
        for part in whole.chunks_mut(step.max(1)) {
            read += read_exact(source, part, block.offset + done as u64, part.len())?;
            for &rank in others {
                self.destination(rank, run)[done..][..part.len()].copy_from_slice(part);
            }
            done += part.len();
        }
        Ok(read)
    }

    fn convert(&self, run: &Run, from: &[u8], to: &mut [u8]) {
        match self.schedule.tensors[run.tensor as usize].cast {
            Some(cast) => cast(from, as_uninit(to)),
            None => to.copy_from_slice(from),
        }
    }

    /// The memory that a run fills in one rank.
    #[expect(clippy::mut_from_ref, reason = "disjoint parts of arenas; see below")]
    fn destination(&self, rank: u32, run: &Run) -> &mut [u8] {
        let tensor = self.schedule.tensors[run.tensor as usize].tensor;
        let slot = self.slots[rank as usize][tensor as usize];
        let arena = &self.arenas[rank as usize][slot.arena()];
        // SAFETY: slots are disjoint by layout, the runs of a tensor are disjoint because the plan was proven to tile it and the queue gives
        // every element to one worker once; a worker holds one destination at a time, but for the copies, which go to other ranks' arenas.
        unsafe { arena.slice_mut(slot.offset() + run.to, run.stored) }
    }

    /// The open file; opens it, and checks that it is still the one whose header was read.
    fn open(&self, file: u32) -> Result<Arc<ByteSource>, Fault> {
        let state = &self.files[file as usize];
        let mut open = lock(&state.open);
        if let Some(source) = &*open {
            return Ok(Arc::clone(source));
        }
        let path = &state.file.path;
        let source = self.opener.open(path).and_then(|s| Ok((s.stamp()?, s)));
        let checked = source
            .map_err(|e| EngineError::io("cannot open the file", path, e))
            .and_then(|(stamp, source)| unchanged(path, state.file.stamp, stamp).map(|()| source));
        let at = Place { file, offset: 0, tensor: None, rank: None };
        let source = Arc::new(checked.map_err(|e| Fault { at, error: FaultKind::Other(e) })?);
        *open = Some(Arc::clone(&source));
        Ok(source)
    }

    /// Tells the system what comes next, unless it has that already. Only a hint: what fails here fails again when it is read.
    fn announce(&self, runs: &mut Vec<Run>) {
        if !self.choice.readahead {
            return;
        }
        let limits = BlockLimits { block: self.task_size, in_place: usize::MAX, runs: MAX_RUNS };
        let lead = self.choice.queue_depth * self.choice.threads;
        while let Some(task) = self.schedule.next_announcement(self.task_size, lead) {
            let Ok(source) = self.open(task.file) else { return };
            let mut blocks = self.schedule.blocks(task);
            while let Some(block) = blocks.next(&limits, runs) {
                source.announce(block.offset, block.bytes);
            }
        }
    }

    /// Counts a task as done; the file's last one closes it.
    fn finish(&self, task: Task, source: &ByteSource) {
        let state = &self.files[task.file as usize];
        if state.left.fetch_sub(task.bytes, Ordering::AcqRel) == task.bytes {
            *lock(&state.open) = None;
            if self.choice.drop_cache {
                source.forget(0, 0); // to the end
            }
        }
    }

    /// The run's tensor, as an index in the plan.
    fn tensor(&self, run: &Run) -> usize {
        self.schedule.tensors[run.tensor as usize].tensor as usize
    }

    fn place(&self, file: u32, block: &Block, run: &Run) -> Place {
        let tensor = Some(self.schedule.tensors[run.tensor as usize].tensor);
        Place { file, offset: block.offset, tensor, rank: self.schedule.destinations(run).first().copied() }
    }

    fn count(&self, runs: &[Run], read: u64) {
        let mut extra = read;
        for run in runs {
            let ranks = self.schedule.destinations(run);
            self.counters.placed(ranks, run.bytes as u64);
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

/// A buffer of one block, aligned for direct reads.
#[derive(Debug)]
struct Staging {
    memory: Arena,
}

impl Staging {
    /// The block's bytes, and how many were read to get them.
    fn read<'a>(&'a mut self, source: &'a ByteSource, block: &Block) -> Result<(&'a [u8], u64), FaultKind> {
        let bytes = in_memory(block.bytes)?;
        if let Some(mapped) = source.mapped(block.offset, bytes) {
            return Ok((mapped, block.bytes));
        }
        let (skip, read) = read_aligned(source, block, self.memory.bytes_mut())?;
        Ok((&self.memory.bytes()[skip..skip + bytes], read))
    }
}

fn in_memory(bytes: u64) -> Result<usize, FaultKind> {
    usize::try_from(bytes).map_err(|_| FaultKind::Read(io::ErrorKind::OutOfMemory.into()))
}

/// Reads a block to the start of `buffer`, or as far behind it as the source's alignment wants. Answers with that distance and the bytes read.
fn read_aligned(source: &ByteSource, block: &Block, buffer: &mut [u8]) -> Result<(usize, u64), FaultKind> {
    let (bytes, alignment) = (in_memory(block.bytes)?, source.alignment());
    let skip = in_memory(block.offset % alignment)?;
    let buffer = &mut buffer[..(skip + bytes).next_multiple_of(in_memory(alignment)?)];
    let read = read_exact(source, buffer, block.offset - skip as u64, skip + bytes)?;
    Ok((skip, read))
}

/// Interrupted and would-block reads are tried again so often without a byte in between.
const MAX_RETRIES: u32 = 100;

/// Fills the buffer up to `needed` bytes at least, over short reads and interruptions. Answers with the bytes read.
fn read_exact(source: &ByteSource, buffer: &mut [u8], offset: u64, needed: usize) -> Result<u64, FaultKind> {
    let (mut done, mut retries) = (0, 0);
    while done < needed {
        match source.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => return Err(FaultKind::Short((needed - done) as u64)),
            Ok(n) => (done, retries) = (done + n, 0),
            Err(e) if is_transient(&e) && retries < MAX_RETRIES => {
                retries += 1;
                if e.kind() == io::ErrorKind::WouldBlock {
                    thread::sleep(std::time::Duration::from_micros(u64::from(retries) * 50));
                }
            }
            Err(e) => return Err(FaultKind::Read(e)),
        }
    }
    Ok(done as u64)
}

fn is_transient(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

fn as_uninit(bytes: &mut [u8]) -> &mut [MaybeUninit<u8>] {
    let len = bytes.len();
    // SAFETY: the same bytes under the same borrow; casts write initialised bytes only.
    unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), len) }
}

/// A lock that a panicking worker cannot poison for the others.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Job<'_> {
    /// Starts the workers, watches them, and checks at the end that every file is still what it was.
    pub(crate) fn run(self, layouts: &[RankLayout], started: Instant) -> Result<Done> {
        let Self { checkpoint, schedule, arenas, choice, opener, device, cancel, progress } = self;
        let total = schedule.total_bytes();
        let counters = Counters::new(layouts, started);
        let shared = Arc::new(Shared::new(checkpoint, schedule, (arenas, device), (choice, opener), counters, layouts));
        let crew = watch::Crew::start(&shared)?;
        let threads = crew.len();
        watch::Watch { checkpoint, shared: &shared, cancel: &cancel, progress, total }.until_done(crew)?;
        for (file, _) in shared.schedule.file_bytes.iter().enumerate().filter(|(_, bytes)| **bytes > 0) {
            checkpoint.check_unchanged(file)?;
        }
        let (ranks, stats) = shared.counters.finish(layouts, threads);
        Ok(Done { arenas: shared.arenas.clone(), ranks, stats })
    }
}

impl Shared {
    fn new(
        checkpoint: &Checkpoint,
        schedule: Schedule,
        (arenas, device): (Vec<Vec<Arc<Arena>>>, Option<Arc<to_device::Target>>),
        (choice, opener): (IoChoice, Opener),
        counters: Counters,
        layouts: &[RankLayout],
    ) -> Self {
        let limits = device.as_ref().map(|d| BlockLimits { block: d.ring.block as u64, in_place: usize::MAX, runs: d.ring.runs });
        let in_place = if choice.method == ReadMethod::Pread { IN_PLACE } else { usize::MAX };
        let state =
            |(file, &bytes): (&CheckpointFile, &u64)| FileState { file: file.clone(), open: Mutex::new(None), left: AtomicU64::new(bytes) };
        Self {
            files: checkpoint.files().iter().zip(&schedule.file_bytes).map(state).collect(),
            slots: layouts.iter().map(|l| l.slots.clone()).collect(),
            limits: limits.unwrap_or(BlockLimits { block: choice.block_size as u64, in_place, runs: MAX_RUNS }),
            task_size: (schedule.total_bytes() / (8 * choice.workers() as u64)).clamp(choice.block_size as u64, choice.task_size as u64),
            under_way: (0..choice.workers()).map(|_| Mutex::new(None)).collect(),
            schedule,
            arenas,
            choice,
            opener,
            device,
            counters,
            stop: AtomicBool::new(false),
            fault: Mutex::new(None),
        }
    }
}
