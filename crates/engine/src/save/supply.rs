//! Where the bytes of a rank's file come from, in the order of the file: shards in memory, or the checkpoint itself, in windows.
//!
//! A window is a few MiB of consecutive bytes of the file. While one is written and digested, the next is read and cast, so that a save
//! of any size takes the memory of a few windows.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use shardwright_core::{Region, ShardPlan};

use super::bytes::{RankBytes, Supply, Take};
use crate::{
    checkpoint::Checkpoint,
    digest::{Hasher, Sha256, sha256},
    error::{EngineError, ErrorKind, Result},
    load::{self, CancelToken, Destination, IoOptions, Item, Parts},
    saved::entries::{Entries, Entry, Part},
};

type EntryIter<'a> = Box<dyn Iterator<Item = Entry> + Send + 'a>;

/// Shards that are in memory already.
pub(super) struct Loaded<'a> {
    pub(super) plan: &'a ShardPlan,
    pub(super) rank: &'a dyn RankBytes,
}

impl Supply for Loaded<'_> {
    fn supply(&self, entries: &Entries<'_>, take: &mut Take<'_>) -> Result<()> {
        for entry in entries.iter() {
            let (valid, expected) = (self.rank.valid(entry.tensor), entry.valid_bytes());
            if expected != Some(valid.len() as u64) {
                return Err(EngineError::new(ErrorKind::Plan, "the loaded shard is not what the plan says")
                    .tensor(&self.plan.tensors[entry.tensor].name)
                    .expected(format_args!("{} bytes", expected.unwrap_or(0)))
                    .found(valid.len()));
            }
            take(&entry, valid, true)?;
        }
        Ok(())
    }
}

/// Shards that are read from the checkpoint when they are written.
pub(super) struct Streamed<'a> {
    pub(super) plan: &'a ShardPlan,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) io: IoOptions,
    pub(super) cancel: &'a CancelToken,
    /// Bytes of a window.
    pub(super) window: usize,
    /// Memory of windows that ranks before have done with: an allocator that gives each thread its own would keep it for all of them.
    pub(super) spare: &'a Mutex<Vec<Vec<u8>>>,
    /// Bytes read from the checkpoint so far.
    pub(super) read: AtomicU64,
}

/// Consecutive bytes of one entry.
struct Stretch {
    entry: Entry,
    part: load::Part,
    bytes: usize,
    last: bool,
}

/// Consecutive stretches of a file, and the memory that they are read into.
struct Window {
    stretches: Vec<Stretch>,
    bytes: usize,
    memory: Vec<u8>,
}

impl Supply for Streamed<'_> {
    fn supply(&self, entries: &Entries<'_>, take: &mut Take<'_>) -> Result<()> {
        let windows = Windows::new(Box::new(entries.iter()), self.window);
        let (filled, to_write) = sync_channel(1);
        let (written, to_fill) = sync_channel(2);
        thread::scope(|scope| {
            let read_ahead = move || self.read_ahead(windows, &filled, &to_fill);
            let reader = thread::Builder::new().name("save-read".into()).spawn_scoped(scope, read_ahead);
            let result = match &reader {
                Ok(_) => self.write_all(&to_write, &written, take),
                Err(_) => Ok(()), // no thread to be had: read and write in turn, below
            };
            // Whoever stops first closes its ends, which stops the other.
            drop((to_write, written));
            reader.ok().map_or(Ok(false), |reader| match reader.join() {
                Ok(read) => result.and(read).map(|()| true),
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
        .and_then(|done| if done { Ok(()) } else { self.in_turn(Box::new(entries.iter()), take) })
    }
}

impl Streamed<'_> {
    /// The same for one rank, whose bytes are counted apart.
    pub(super) fn of_rank(&self) -> Self {
        Self { io: self.io.clone(), read: AtomicU64::new(0), ..*self }
    }

    pub(super) fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Memory for a window that another has done with, or none yet.
    fn memory(&self) -> Vec<u8> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn spare(&self, memory: impl IntoIterator<Item = Vec<u8>>) {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).extend(memory.into_iter().filter(|m| m.capacity() > 0));
    }

    fn read_ahead(&self, mut windows: Windows<'_>, filled: &SyncSender<Window>, to_fill: &Receiver<Vec<u8>>) -> Result<()> {
        let mut made = 0;
        loop {
            // Three in all: one being read, one waiting, one being written.
            let memory = if made < 3 {
                made += 1;
                self.memory()
            } else {
                let Ok(memory) = to_fill.recv() else { return Ok(()) };
                memory
            };
            let mut window = match windows.next(memory)? {
                Ok(window) => window,
                Err(unused) => {
                    self.spare(to_fill.try_iter().chain([unused]));
                    return Ok(());
                }
            };
            self.fill(&mut window)?;
            if filled.send(window).is_err() {
                return Ok(());
            }
        }
    }

    fn in_turn(&self, entries: EntryIter<'_>, take: &mut Take<'_>) -> Result<()> {
        let mut windows = Windows::new(entries, self.window);
        let mut memory = self.memory();
        loop {
            let mut window = match windows.next(memory)? {
                Ok(window) => window,
                Err(unused) => {
                    self.spare([unused]);
                    return Ok(());
                }
            };
            self.fill(&mut window)?;
            memory = window.write(take)?;
        }
    }

    fn write_all(&self, filled: &Receiver<Window>, written: &SyncSender<Vec<u8>>, take: &mut Take<'_>) -> Result<()> {
        while let Ok(window) = filled.recv() {
            let memory = window.write(take)?;
            if let Err(unwanted) = written.send(memory) {
                self.spare([unwanted.0]); // the last window has been read
            }
        }
        Ok(())
    }

    fn fill(&self, window: &mut Window) -> Result<()> {
        window.memory.resize(window.bytes, 0);
        let assemblies = &self.checkpoint.assembled().assemblies;
        let mut items = Vec::with_capacity(window.stretches.len());
        let mut rest = window.memory.as_mut_slice();
        for stretch in window.stretches.iter().filter(|s| s.bytes > 0) {
            let (here, behind) = std::mem::take(&mut rest).split_at_mut(stretch.bytes);
            rest = behind;
            let (entry, planned) = (&stretch.entry, &self.plan.tensors[stretch.entry.tensor]);
            items.push(Item {
                name: entry.name.clone(),
                shape: planned.shape.clone(),
                assembly: assemblies[entry.tensor].clone(),
                rounded: planned.rounded,
                part: stretch.part.clone(),
                to: Destination { address: here.as_mut_ptr().expose_provenance(), bytes: here.len() as u64, dtype: entry.dtype },
            });
        }
        // SAFETY: the destinations are disjoint parts of the window's memory, which nothing else touches until the call returns.
        let stats = unsafe { load::fill(self.checkpoint, &items, &self.io, None, self.cancel) }.map_err(|e| match e.kind() {
            ErrorKind::Cancelled => EngineError::new(ErrorKind::Cancelled, "the save was stopped"),
            _ => e,
        })?;
        self.read.fetch_add(stats.bytes_read, Ordering::Relaxed);
        Ok(())
    }

    /// The digest of what `rank` holds of a tensor, which is in no file that it writes.
    pub(super) fn digest(&self, tensor: usize, rank: u32) -> Result<Sha256> {
        let planned = &self.plan.tensors[tensor];
        let region = planned.region(rank);
        let (shape, part) = match &region {
            Region::Flat { range } => {
                let valid = range.end - range.start;
                (vec![valid], Part::Flat { start: range.start, valid, padding: 0 })
            }
            Region::Dim { .. } | Region::Box { .. } | Region::Whole => {
                let (local, offsets) = (region.local_shape(&planned.shape), region.offsets(&planned.shape));
                (local.unwrap_or_default(), Part::SavedOffsets(offsets.unwrap_or_default()))
            }
            Region::Empty => return Ok(sha256(&[])),
        };
        let dtype = planned.precision.storage;
        let bytes = shardwright_core::model::numel(&shape).and_then(|n| dtype.bytes(n));
        let bytes = bytes.ok_or_else(|| EngineError::new(ErrorKind::Plan, "the shard's size overflows").tensor(&planned.name))?;
        let entry = Entry { name: planned.name.clone(), tensor, dtype, shape, bytes, part };
        let mut digest = Hasher::default();
        self.in_turn(Box::new(std::iter::once(entry)), &mut |_, bytes, _| {
            digest.update(bytes);
            Ok(())
        })?;
        Ok(digest.finish())
    }
}

impl Window {
    /// Hands the bytes on, and gives the memory back.
    fn write(self, take: &mut Take<'_>) -> Result<Vec<u8>> {
        let mut at = 0;
        for stretch in &self.stretches {
            take(&stretch.entry, &self.memory[at..at + stretch.bytes], stretch.last)?;
            at += stretch.bytes;
        }
        Ok(self.memory)
    }
}

/// Stretches by the window.
struct Windows<'a> {
    stretches: Stretches<'a>,
    /// The first of the next window.
    next: Option<Stretch>,
    window: usize,
}

impl<'a> Windows<'a> {
    /// Stretches of many small tensors that a window takes at most.
    const MOST: usize = 1024;

    fn new(entries: EntryIter<'a>, window: usize) -> Self {
        Self { stretches: Stretches { entries, current: None, most: window as u64 }, next: None, window }
    }

    /// The next window in this memory, or the memory back where there is none.
    fn next(&mut self, memory: Vec<u8>) -> Result<std::result::Result<Window, Vec<u8>>> {
        let (mut stretches, mut bytes) = (Vec::new(), 0);
        while let Some(stretch) = self.next.take().map_or_else(|| self.stretches.next().transpose(), |s| Ok(Some(s)))? {
            let full = bytes + stretch.bytes > self.window || stretches.len() == Self::MOST;
            // `fill` knows its items by name.
            let again = stretches.last().is_some_and(|s: &Stretch| s.entry.name == stretch.entry.name);
            if (full || again) && !stretches.is_empty() {
                self.next = Some(stretch);
                break;
            }
            bytes += stretch.bytes;
            stretches.push(stretch);
        }
        Ok(if stretches.is_empty() { Err(memory) } else { Ok(Window { stretches, bytes, memory }) })
    }
}

/// The entries of a file in parts of at most that many bytes.
struct Stretches<'a> {
    entries: EntryIter<'a>,
    /// The entry that is being given, and its parts that are still to come.
    current: Option<(Entry, Parts)>,
    most: u64,
}

impl Iterator for Stretches<'_> {
    type Item = Result<Stretch>;

    fn next(&mut self) -> Option<Self::Item> {
        let (entry, mut parts) = match self.current.take() {
            Some(current) => current,
            None => {
                let entry = self.entries.next()?;
                // Of dtypes below a byte, elements are not cut.
                let most = if entry.dtype.bits() < 8 { u64::MAX } else { (self.most * 8 / entry.dtype.bits()).max(1) };
                let parts = match &entry.part {
                    Part::SavedOffsets(offsets) => {
                        let range = |(&from, &size): (&u64, &u64)| from..from.saturating_add(size);
                        Parts::of_box(offsets.iter().zip(&entry.shape).map(range).collect(), most)
                    }
                    Part::Flat { start, valid, .. } => Parts::of_flat(*start..start.saturating_add(*valid), most),
                };
                (entry, parts)
            }
        };
        let (part, numel) = parts.next()?;
        let bytes = entry.dtype.bytes(numel).and_then(|n| usize::try_from(n).ok());
        let Some(bytes) = bytes else {
            return Some(Err(EngineError::new(ErrorKind::Plan, "the shard's size overflows").tensor(&entry.name)));
        };
        let last = parts.left() == 0;
        let stretch = Stretch { entry: entry.clone(), part, bytes, last };
        self.current = (!last).then_some((entry, parts));
        Some(Ok(stretch))
    }
}
