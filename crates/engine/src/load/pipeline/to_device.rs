//! Blocks on their way to a device: read into a slot of the pinned ring, copied on one of several streams, cast or scattered there.
//!
//! A worker owns its slots and goes round them; before it fills one again it waits for that slot's event, and for nothing else. What may
//! still be under way when a lane or a target is dropped is waited for then.

use std::sync::{Arc, Mutex};

use shardwright_core::ShardPlan;

use super::{FaultKind, RankLayout, Run, Shared, Staging, as_uninit, lock, read_aligned};
use crate::{
    device::{
        Devices, Narrow,
        driver::Gpu,
        kernels::{Kernel, Tile},
        memory::{DeviceMemory, Event, Pinned, Stream},
        ring::{Crossing, Ring, SLOTS, STREAMS, tiles},
    },
    error::{EngineError, ErrorKind, Result},
    load::schedule::Block,
    source::ByteSource,
};

/// Runs of at least so many bytes that need no cast go straight into place; shorter ones are scattered there by a kernel.
const STRAIGHT: u64 = 128 << 10;

/// Where all lanes of a load write.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) devices: Devices,
    pub(crate) ring: Ring,
    /// By rank, then by dtype.
    pub(crate) arenas: Vec<Vec<Arc<DeviceMemory>>>,
    /// By device.
    pub(crate) streams: Vec<Vec<Arc<Stream>>>,
    /// By index of the tensor in the plan.
    crossings: Vec<Crossing>,
    /// By device: the ring's counterpart, slot by slot.
    staged: Vec<Arc<DeviceMemory>>,
    /// The ring's slots that no lane has taken, by number.
    free: Mutex<Vec<(usize, Pinned)>>,
}

impl Target {
    /// Allocates every rank's memory, zeroed for the padding's sake, and the ring of so many workers; compiles the kernels that the plan
    /// needs. Nothing is allocated or freed later, while copies run: the driver might wait for all of them.
    pub(crate) fn new(
        devices: &Devices,
        (ring, workers): (Ring, usize),
        layouts: &[RankLayout],
        plan: &ShardPlan,
        narrow: Narrow,
    ) -> Result<Self> {
        let crossings: Vec<_> = plan.tensors.iter().map(|t| Crossing::of(t.source, t.precision.storage, narrow)).collect();
        let several = |gpu: &Arc<Gpu>| (0..STREAMS).map(|_| Stream::new(gpu).map(Arc::new)).collect::<Result<Vec<_>>>();
        let streams = devices.gpus.iter().map(several).collect::<Result<Vec<_>>>()?;
        let mut target =
            Self { devices: devices.clone(), ring, arenas: Vec::new(), streams, crossings, staged: Vec::new(), free: Mutex::default() };
        for (rank, layout) in layouts.iter().enumerate() {
            target.allocate(rank, layout)?;
        }
        target.allocate_ring(SLOTS * workers)?;
        for gpu in &target.devices.gpus {
            gpu.prepare(Kernel::COPY)?;
            for crossing in &target.crossings {
                if let Crossing::CastThere(kernel) = crossing {
                    gpu.prepare(*kernel)?;
                }
            }
        }
        target.streams.iter().flatten().try_for_each(|s| s.synchronize())?;
        Ok(target)
    }

    fn allocate(&mut self, rank: usize, layout: &RankLayout) -> Result<()> {
        let device = self.devices.by_rank[rank];
        let stream = &self.streams[device][0];
        self.arenas.push(Vec::new());
        for &(dtype, bytes) in &layout.arenas {
            let too_large = |_| EngineError::new(ErrorKind::Device, format!("{bytes} bytes of {dtype} shards are beyond any device"));
            let memory = DeviceMemory::new(&self.devices.gpus[device], usize::try_from(bytes).map_err(too_large)?);
            let memory = Arc::new(memory.map_err(|e| e.rank(layout.rank))?);
            self.arenas[rank].push(Arc::clone(&memory)); // first, so that a later failure waits for the fill before it frees
            if memory.len > 0 {
                // SAFETY: the whole of a fresh allocation, which lives until the streams are waited for, by `new` or on drop.
                unsafe { memory.gpu.fill(memory.address, 0, memory.len, stream.raw) }?;
            }
        }
        Ok(())
    }

    fn allocate_ring(&mut self, slots: usize) -> Result<()> {
        let gpu = self.devices.gpus.first().ok_or_else(|| EngineError::new(ErrorKind::Device, "no rank, no device"))?;
        self.free = Mutex::new(Pinned::parts(gpu, slots, self.ring.slot())?.into_iter().enumerate().rev().collect());
        let staged = |gpu: &Arc<Gpu>| DeviceMemory::new(gpu, slots * self.ring.slot()).map(Arc::new);
        self.staged = self.devices.gpus.iter().map(staged).collect::<Result<_>>()?;
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        for stream in self.streams.iter().flatten() {
            let _ = stream.synchronize();
        }
    }
}

/// A worker's way to the devices.
#[derive(Debug)]
pub(super) struct Lane {
    target: Arc<Target>,
    slots: Vec<Slot>,
    next: usize,
    /// For what is cast on the host; not touched where nothing is.
    staging: Staging,
    /// Of the block at hand: where each run lies in its slot, and what goes to the device at hand.
    places: Vec<usize>,
    pieces: Vec<Piece>,
}

/// A block's room, on the host and on each device.
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
    stream: Arc<Stream>,
    event: Event,
    busy: bool,
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

impl Lane {
    pub(super) fn new(target: &Arc<Target>, staging: Staging) -> Result<Self> {
        let slots = (0..SLOTS).map(|_| Slot::new(target)).collect::<Result<Vec<_>>>()?;
        Ok(Self { target: Arc::clone(target), slots, next: 0, staging, places: Vec::new(), pieces: Vec::new() })
    }

    /// Brings one block from the file onto its way. Answers with the bytes read.
    pub(super) fn move_block(&mut self, shared: &Shared, source: &ByteSource, block: &Block, runs: &[Run]) -> Result<u64, FaultKind> {
        let number = self.next;
        self.next = (number + 1) % self.slots.len();
        self.slots[number].wait().map_err(FaultKind::Device)?;
        let (used, read) = self.fill(number, shared, source, block, runs)?;
        self.send(number, used, shared, runs).map_err(FaultKind::Device)?;
        Ok(read)
    }

    /// Waits until all that was sent has arrived.
    pub(super) fn drain(&mut self) -> Result<()> {
        self.slots.iter_mut().try_for_each(Slot::wait)
    }

    /// Reads the block into its slot, as it shall cross the bus. Answers with the bytes used there and the bytes read.
    fn fill(
        &mut self,
        number: usize,
        shared: &Shared,
        source: &ByteSource,
        block: &Block,
        runs: &[Run],
    ) -> Result<(usize, u64), FaultKind> {
        self.places.clear();
        let room = &mut self.slots[number].memory.bytes_mut()[..self.target.ring.data()];
        let cast_here = |run: &Run| matches!(self.target.crossings[shared.tensor(run)], Crossing::CastHere);
        if !runs.iter().any(cast_here) {
            let (skip, read) = read_aligned(source, block, room)?;
            self.places.extend(runs.iter().map(|r| skip + r.from));
            let end = runs.last().map_or(0, |r| r.from + r.bytes);
            return Ok((skip + end, read));
        }
        let (bytes, read) = self.staging.read(source, block)?;
        let mut used = 0;
        for run in runs {
            let from = &bytes[run.from..][..run.bytes];
            let to = &mut room[used..][..if cast_here(run) { run.stored } else { run.bytes }];
            match shared.schedule.tensors[run.tensor as usize].cast {
                Some(cast) if cast_here(run) => cast(from, as_uninit(to)),
                _ => to.copy_from_slice(from),
            }
            self.places.push(used);
            used += to.len();
        }
        Ok((used, read))
    }

    /// Starts the copies and casts of a filled slot.
    fn send(&mut self, number: usize, used: usize, shared: &Shared, runs: &[Run]) -> Result<()> {
        let Slot { memory, parts } = &mut self.slots[number];
        let mut end = used.next_multiple_of(16); // of what is written into the slot
        for (device, part) in parts.iter_mut().enumerate() {
            self.target.pieces(device, shared, runs, &self.places, &mut self.pieces);
            if self.pieces.is_empty() {
                continue;
            }
            part.busy = true; // from the first call on, even if it fails
            let each = self.pieces.len() == 1 || self.pieces.iter().all(|p| p.bytes() >= STRAIGHT);
            let once = self.pieces.iter().map(Piece::bytes).sum::<u64>() <= used as u64;
            if each && once && self.pieces.iter().all(|p| p.kernel == Kernel::COPY) {
                part.straight(memory.bytes(), &self.pieces)?;
            } else {
                end = part.staged(memory, end, &mut self.pieces)?;
            }
            part.event.record(&part.stream)?;
        }
        Ok(())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        for part in self.slots.iter().flat_map(|s| &s.parts).filter(|p| p.busy) {
            let _ = part.stream.synchronize();
        }
    }
}

impl Target {
    /// What of the runs goes to one device.
    fn pieces(&self, device: usize, shared: &Shared, runs: &[Run], places: &[usize], pieces: &mut Vec<Piece>) {
        pieces.clear();
        for (run, &place) in runs.iter().zip(places) {
            let tensor = shared.tensor(run);
            let (kernel, bytes) = match self.crossings[tensor] {
                Crossing::Plain => (Kernel::COPY, run.bytes),
                Crossing::CastHere => (Kernel::COPY, run.stored),
                Crossing::CastThere(kernel) => (kernel, run.bytes),
            };
            let count = bytes as u64 / kernel.element();
            for &rank in shared.schedule.destinations(run).iter().filter(|&&r| self.devices.by_rank[r as usize] == device) {
                let slot = shared.slots[rank as usize][tensor];
                let dst = self.arenas[rank as usize][slot.arena()].address + (slot.offset() + run.to) as u64;
                pieces.push(Piece { kernel, run: Tile { src: place as u64, dst, count } });
            }
        }
    }
}

impl Slot {
    /// One that no other lane has.
    fn new(target: &Target) -> Result<Self> {
        let none_left = || EngineError::new(ErrorKind::Device, "the ring has no slot left");
        let (number, memory) = lock(&target.free).pop().ok_or_else(none_left)?;
        let part = |(staged, streams): (&Arc<DeviceMemory>, &Vec<Arc<Stream>>)| {
            let (gpu, stream) = (Arc::clone(&staged.gpu), Arc::clone(&streams[number % STREAMS]));
            let event = Event::new(&gpu)?;
            Ok(Part { gpu, staged: staged.address + (number * target.ring.slot()) as u64, stream, event, busy: false })
        };
        let parts = target.staged.iter().zip(&target.streams).map(part).collect::<Result<Vec<_>>>()?;
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
    fn straight(&self, slot: &[u8], pieces: &[Piece]) -> Result<()> {
        for piece in pieces {
            let from = &slot[address(piece.run.src)..][..address(piece.bytes())];
            // SAFETY: the destination is the run's own part of its rank's arena (see `Shared::destination`); the slot is not touched before
            // the event is waited for, and both outlive it.
            unsafe { self.gpu.copy_in(piece.run.dst, from, self.stream.raw) }?;
        }
        Ok(())
    }

    /// Copies the slot with the pieces' tiles behind it, from `end` on, and starts a kernel for each kind. Answers with the new end.
    fn staged(&self, slot: &mut Pinned, end: usize, pieces: &mut [Piece]) -> Result<usize> {
        pieces.sort_by_key(|p| p.kernel); // stable, so in file order
        let mut at = end;
        let mut launches = Vec::new();
        for same in pieces.chunk_by(|a, b| a.kernel == b.kernel) {
            let (kernel, first) = (same[0].kernel, at);
            for tile in same.iter().flat_map(|p| tiles(p.run, kernel, kernel.to.bits() / 8)) {
                slot.bytes_mut()[at..][..Tile::BYTES].copy_from_slice(&tile.to_bytes());
                at += Tile::BYTES;
            }
            launches.push((kernel, first, (at - first) / Tile::BYTES));
        }
        let block = self.staged;
        // SAFETY: the slot's counterpart has its size and is used by this slot alone; the slot as in `straight`.
        unsafe { self.gpu.copy_in(block, &slot.bytes()[..at], self.stream.raw) }?;
        for (kernel, first, count) in launches.into_iter().filter(|l| l.2 > 0) {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            // SAFETY: the tiles' sources lie in the block, whose data ends at a multiple of 16; their destinations are as in `straight`, and
            // the stream is the copy's.
            unsafe { self.gpu.launch(kernel, block, block + first as u64, count, self.stream.raw) }?;
        }
        Ok(at)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "an offset in a slot, whose size is a usize")]
fn address(offset: u64) -> usize {
    offset as usize
}
