//! Blocks on their way to a device: read into a slot of the pinned ring, and copied into place, or copied and cast or scattered there.
//!
//! A worker owns its slots and goes round them; before it fills one again it waits for that slot's event, and for nothing else. Short blocks
//! share a slot. What may still be under way when a transport or a target is dropped is waited for then.

use std::sync::Arc;

use super::{
    fault::FaultKind,
    shared::Shared,
    staging::{Staging, as_uninit, read_aligned},
    target::Target,
};
use crate::{
    device::{
        driver::Gpu,
        kernels::{Kernel, Tile},
        memory::{DeviceMemory, Event, Pinned, Stream},
        ring::{Crossing, SLOTS, STREAMS, tiles},
    },
    error::{EngineError, ErrorKind, Result},
    load::schedule::{Block, Conversion, Run, TensorRead},
    parallel::lock,
    source::{ByteSource, ReadAt},
};

/// Runs of at least so many bytes that need no cast go straight into place; shorter ones are scattered there by a kernel.
const STRAIGHT: u64 = 128 << 10;

/// A worker's way to the devices.
#[derive(Debug)]
pub(super) struct Transport {
    slots: Vec<Slot>,
    /// The slot at hand, and what it holds.
    at: usize,
    filled: Filled,
    /// For what is cast on the host; not touched where nothing is.
    staging: Staging,
    /// Of the block at hand: where each run lies in its slot.
    places: Vec<usize>,
    /// Dropped last, for it takes the slots' memory back.
    target: Arc<Target>,
}

/// What a slot holds: where its data end, and how many bytes and runs of blocks these are.
#[derive(Clone, Copy, Debug, Default)]
struct Filled {
    end: usize,
    bytes: usize,
    runs: usize,
}

/// Room for blocks, on the host and on each device.
#[derive(Debug)]
struct Slot {
    memory: Pinned,
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    gpu: Arc<Gpu>,
    /// The slot's counterpart.
    staged: u64,
    /// For what goes straight into place: the device's first one, which all slots share. An H200 took copies of 0.7 MiB from one stream at 43 GB/s, and
    /// at 33 GB/s from four.
    copies: Arc<Stream>,
    /// For what a kernel puts into place: one of several, so that the next copy need not wait for it.
    casts: Arc<Stream>,
    event: Event,
    busy: bool,
    /// Of the slot's data, what goes to this device.
    pieces: Vec<Piece>,
}

/// A run for one rank.
#[derive(Clone, Copy, Debug)]
struct Piece {
    kernel: Kernel,
    run: Tile,
}

impl Piece {
    /// Bytes that cross the bus.
    fn bytes(&self) -> u64 {
        self.run.count * self.kernel.element()
    }
}

impl Transport {
    pub(super) fn new(target: &Arc<Target>, staging: Staging) -> Result<Self> {
        let slots = (0..SLOTS).map(|_| Slot::new(target)).collect::<Result<Vec<_>>>()?;
        Ok(Self { slots, at: 0, filled: Filled::default(), staging, places: Vec::new(), target: Arc::clone(target) })
    }

    /// Brings one block from the file onto its way, or as far as a slot that more blocks will share. Answers with the bytes read.
    pub(super) fn move_block(&mut self, shared: &Shared, source: &ByteSource, block: &Block, runs: &[Run]) -> Result<u64, FaultKind> {
        if !self.has_room(source, block, runs) {
            self.send().map_err(FaultKind::Device)?;
        }
        if self.filled.runs == 0 {
            self.slots[self.at].wait().map_err(FaultKind::Device)?;
        }
        let read = self.fill(shared, source, block, runs)?;
        for (device, part) in self.slots[self.at].parts.iter_mut().enumerate() {
            self.target.pieces(device, shared, runs, &self.places, &mut part.pieces);
        }
        // Not half full: the next short block may come along.
        if self.filled.bytes > self.target.ring.block / 2 {
            self.send().map_err(FaultKind::Device)?;
        }
        Ok(read)
    }

    /// Sends what is left, and waits until all that was sent has arrived.
    pub(super) fn drain(&mut self) -> Result<()> {
        self.send()?;
        self.slots.iter_mut().try_for_each(Slot::wait)
    }

    fn has_room(&self, source: &ByteSource, block: &Block, runs: &[Run]) -> bool {
        let (ring, alignment) = (&self.target.ring, address(source.alignment()));
        let (bytes, start) = (address(block.bytes), self.filled.end.next_multiple_of(alignment));
        let around = bytes + 2 * alignment; // a direct read begins and ends at multiples
        self.filled.bytes + bytes <= ring.block && self.filled.runs + runs.len() <= ring.runs && start + around <= ring.data()
    }

    /// Reads the block into the slot at hand, as it shall cross the bus. Answers with the bytes read.
    fn fill(&mut self, shared: &Shared, source: &ByteSource, block: &Block, runs: &[Run]) -> Result<u64, FaultKind> {
        self.places.clear();
        let start = self.filled.end.next_multiple_of(address(source.alignment()));
        let room = &mut self.slots[self.at].memory.bytes_mut()[start..self.target.ring.data()];
        let crossing = |run: &Run| self.target.crossings[shared.tensor(run)];
        let changes = |run: &Run| matches!(crossing(run), Crossing::CastHere | Crossing::RoundedHere(_));
        let (end, read) = if runs.iter().any(changes) {
            let (bytes, read, _) = self.staging.read(source, block)?;
            let mut used = 0;
            for run in runs {
                let from = &bytes[run.from..][..run.bytes];
                let read = &shared.schedule.tensors[run.tensor as usize];
                let to = &mut room[used..][..crossing(run).bytes(run, read)];
                match (crossing(run), read.cast) {
                    (Crossing::CastHere, Some(cast)) => cast.apply(from, as_uninit(to)),
                    (Crossing::RoundedHere(_), Some(Conversion::Rounded { first, .. })) => first(from, as_uninit(to)),
                    _ => to.copy_from_slice(from),
                }
                self.places.push(start + used);
                used += to.len();
            }
            (start + used, read)
        } else {
            let (skip, read) = read_aligned(source, block, room)?;
            self.places.extend(runs.iter().map(|r| start + skip + r.from));
            (start + skip + address(block.bytes), read)
        };
        self.filled = Filled { end, bytes: self.filled.bytes + address(block.bytes), runs: self.filled.runs + runs.len() };
        Ok(read)
    }

    /// Starts the copies and casts of what the slot at hand holds, and goes on to the next one.
    fn send(&mut self) -> Result<()> {
        let filled = std::mem::take(&mut self.filled);
        if filled.runs == 0 {
            return Ok(());
        }
        let Slot { memory, parts } = &mut self.slots[self.at];
        self.at = (self.at + 1) % SLOTS;
        let mut end = filled.end.next_multiple_of(16); // of what is written into the slot
        for part in parts.iter_mut().filter(|p| !p.pieces.is_empty()) {
            part.busy = true; // from the first call on, even if it fails
            let pieces = &part.pieces;
            let each = pieces.len() == 1 || pieces.iter().all(|p| p.bytes() >= STRAIGHT);
            let once = pieces.iter().map(Piece::bytes).sum::<u64>() <= filled.end as u64;
            if each && once && pieces.iter().all(|p| p.kernel == Kernel::COPY) {
                part.straight(memory.bytes())?;
                part.event.record(&part.copies)?;
            } else {
                end = part.staged(memory, end)?;
                part.event.record(&part.casts)?;
            }
            part.pieces.clear();
        }
        Ok(())
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        for part in self.slots.iter().flat_map(|s| &s.parts).filter(|p| p.busy) {
            let _ = part.copies.synchronize();
            let _ = part.casts.synchronize();
        }
    }
}

impl Target {
    /// Adds what of the runs goes to one device.
    fn pieces(&self, device: usize, shared: &Shared, runs: &[Run], places: &[usize], pieces: &mut Vec<Piece>) {
        for (run, &place) in runs.iter().zip(places) {
            let tensor = shared.tensor(run);
            let kernel = match self.crossings[tensor] {
                Crossing::Plain | Crossing::CastHere => Kernel::COPY,
                Crossing::CastThere(kernel) | Crossing::RoundedHere(kernel) => kernel,
            };
            let bytes = self.crossings[tensor].bytes(run, &shared.schedule.tensors[run.tensor as usize]);
            let count = bytes as u64 / kernel.element();
            for &rank in shared.schedule.destinations(run).iter().filter(|&&r| self.devices.by_rank[r as usize] == device) {
                let dst = self.memory.address(rank as usize, tensor) + run.to as u64;
                pieces.push(Piece { kernel, run: Tile { src: place as u64, dst, count } });
            }
        }
    }
}

impl Crossing {
    /// Bytes of a run that cross the bus.
    fn bytes(self, run: &Run, read: &TensorRead) -> usize {
        match self {
            Self::Plain | Self::CastThere(_) => run.bytes,
            Self::CastHere => run.stored,
            Self::RoundedHere(kernel) => run.bytes / address(read.sizes().0 as u64) * address(kernel.element()),
        }
    }
}

impl Slot {
    /// One that no other transport has.
    fn new(target: &Target) -> Result<Self> {
        let none_left = || EngineError::new(ErrorKind::Device, "the ring has no slot left");
        let (number, memory) = lock(&target.free).pop().ok_or_else(none_left)?;
        let part = |(staged, streams): (&DeviceMemory, &Vec<Arc<Stream>>)| {
            let (copies, casts) = (Arc::clone(&streams[0]), Arc::clone(&streams[number % STREAMS]));
            let (gpu, staged) = (Arc::clone(&staged.gpu), staged.address + (number * target.ring.slot()) as u64);
            Ok(Part { event: Event::new(&gpu)?, gpu, staged, copies, casts, busy: false, pieces: Vec::new() })
        };
        let parts = target.staged().iter().zip(&target.streams).map(part).collect::<Result<Vec<_>>>()?;
        Ok(Self { memory, parts })
    }

    /// Waits until the slot may be filled again.
    fn wait(&mut self) -> Result<()> {
        for part in self.parts.iter_mut().filter(|p| p.busy) {
            part.event.wait()?;
            part.busy = false;
        }
        Ok(())
    }
}

impl Part {
    /// Copies each piece to its place.
    fn straight(&self, slot: &[u8]) -> Result<()> {
        for piece in &self.pieces {
            let from = &slot[address(piece.run.src)..][..address(piece.bytes())];
            // SAFETY: the destination is the run's own part of its tensor's memory (see `Shared::destination`); the slot is not touched before
            // the event is waited for, and both outlive it.
            unsafe { self.gpu.copy_in(piece.run.dst, from, self.copies.raw) }?;
        }
        Ok(())
    }

    /// Copies the pieces' part of the slot and their tiles, from `end` on, and starts a kernel for each kind. Answers with the new end.
    fn staged(&mut self, slot: &mut Pinned, end: usize) -> Result<usize> {
        self.pieces.sort_by_key(|p| p.kernel); // stable, so in file order
        let mut at = end;
        let mut launches = Vec::new();
        for same in self.pieces.chunk_by(|a, b| a.kernel == b.kernel) {
            let (kernel, first) = (same[0].kernel, at);
            for tile in same.iter().flat_map(|p| tiles(p.run, kernel, kernel.to.bits() / 8)) {
                slot.bytes_mut()[at..][..Tile::BYTES].copy_from_slice(&tile.to_bytes());
                at += Tile::BYTES;
            }
            launches.push((kernel, first, (at - first) / Tile::BYTES));
        }
        // Other devices' data and tiles stay here. Kernels read whole 16 bytes.
        let from = address(self.pieces.iter().map(|p| p.run.src).min().unwrap_or(0)) / 16 * 16;
        let to = address(self.pieces.iter().map(|p| p.run.src + p.bytes()).max().unwrap_or(0)).next_multiple_of(16);
        let ranges = if to == end { [from..at, at..at] } else { [from..to, end..at] };
        let block = self.staged;
        for range in ranges.into_iter().filter(|r| !r.is_empty()) {
            // SAFETY: the slot's counterpart has its size and is used by this slot alone; the slot as in `straight`.
            unsafe { self.gpu.copy_in(block + range.start as u64, &slot.bytes()[range], self.casts.raw) }?;
        }
        for (kernel, first, count) in launches.into_iter().filter(|l| l.2 > 0) {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            // SAFETY: the tiles' sources lie in the block, whose data ends at a multiple of 16; their destinations are as in `straight`, and
            // the stream is the copy's.
            unsafe { self.gpu.launch(kernel, block, block + first as u64, count, self.casts.raw) }?;
        }
        Ok(at)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "an offset in a slot, whose size is a usize")]
fn address(offset: u64) -> usize {
    offset as usize
}
