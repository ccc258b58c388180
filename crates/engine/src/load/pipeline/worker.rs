//! A worker: takes tasks off the queue until it is empty, reads their blocks, and places them in memory or hands them to a device.

use std::sync::{Arc, atomic::Ordering};

use super::{
    fault::{Fault, FaultKind, Place},
    shared::Shared,
    staging::{Staging, as_uninit, read_exact},
    to_device,
};
use crate::{
    load::{
        schedule::{Block, Run, Task, TilePart, scatter, strips},
        stats::CancelToken,
    },
    memory::Arena,
    parallel::lock,
    source::{ByteSource, ReadAt, ReadMethod},
};

/// A worker's own memory.
pub(super) struct Worker {
    pub(super) number: usize,
    pub(super) shared: Arc<Shared>,
    pub(super) transport: Transport,
    pub(super) runs: Vec<Run>,
    /// What stops a worker that has its watcher's thread.
    pub(super) cancel: Option<CancelToken>,
}

/// A worker's way from a file into place.
pub(super) enum Transport {
    Host(Staging),
    Device(to_device::Transport),
}

impl Worker {
    /// Until the queue is empty or someone failed.
    pub(super) fn work(&mut self) {
        let shared = Arc::clone(&self.shared);
        while let Some(task) = shared.schedule.next_task(shared.task_size) {
            shared.announce(&mut self.runs);
            if let Err(fault) = self.do_task(&shared, task) {
                lock(&shared.fault).get_or_insert(fault); // the first one is reported
                shared.stop.store(true, Ordering::Relaxed);
                return; // an event that was not recorded cannot be waited for: the transport waits for its streams when it is dropped
            }
            if shared.stop.load(Ordering::Relaxed) || self.is_cancelled() {
                break;
            }
        }
        if let Transport::Device(transport) = &mut self.transport
            && let Err(error) = transport.drain()
        {
            let at = Place::of_file(0); // a device's error names no file
            lock(&shared.fault).get_or_insert(Fault { at, error: FaultKind::Other(error) });
        }
    }

    /// Whether a worker that nobody watches has to stop.
    fn is_cancelled(&self) -> bool {
        self.cancel.as_ref().is_some_and(CancelToken::is_cancelled)
    }

    /// The hot loop: read a block, cast it, place it.
    fn do_task(&mut self, shared: &Shared, task: Task) -> Result<(), Fault> {
        *lock(&shared.under_way[self.number]) = Some(Place::of_file(task.file));
        let source = shared.open(task.file)?;
        let mut blocks = shared.schedule.blocks(task);
        while let Some(block) = blocks.next(&shared.limits, &mut self.runs) {
            if shared.stop.load(Ordering::Relaxed) || self.is_cancelled() {
                return Ok(());
            }
            *lock(&shared.under_way[self.number]) = Some(shared.place(task.file, &block, &self.runs, block.offset));
            let read = match &mut self.transport {
                Transport::Host(staging) => shared.move_block(&source, &block, &self.runs, staging),
                Transport::Device(transport) => transport.move_block(shared, &source, &block, &self.runs),
            };
            let bytes = read.map_err(|error| {
                let offset = if let FaultKind::Read(failure) = &error { failure.offset() } else { block.offset };
                Fault { at: shared.place(task.file, &block, &self.runs, offset), error }
            })?;
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
        let (bytes, read, spare) = staging.read(source, block)?;
        if let [Run { tile: Some(tile), .. }] = runs {
            self.scatter(&runs[0], *tile, bytes, spare);
            return Ok(read);
        }
        for run in runs {
            let from = &bytes[run.from..][..run.bytes];
            for &rank in self.schedule.destinations(run) {
                self.convert(run, from, self.destination(rank, run));
            }
        }
        Ok(read)
    }

    fn in_place(&self, source: &ByteSource, run: &Run) -> bool {
        let plain = self.schedule.tensors[run.tensor as usize].cast.is_none() && run.tile.is_none() && run.bytes >= self.limits.in_place;
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
            Some(cast) => cast.apply(from, as_uninit(to)),
            None => to.copy_from_slice(from),
        }
    }

    /// Converts a tile of a sweep and puts its elements where they belong.
    fn scatter(&self, run: &Run, (sweep, tile): (u32, u64), bytes: &[u8], spare: &mut Arena) {
        let read = &self.schedule.tensors[run.tensor as usize];
        let (from, to) = read.sizes();
        let parts: Vec<TilePart> = self.schedule.sweep(sweep).parts(tile).collect();
        let Some(cast) = read.cast else {
            return self.put(run, &parts, 0, bytes, to);
        };
        for (elements, parts) in strips(parts, (bytes.len() / from) as u64, to) {
            let first = usize_of(elements.start);
            let source = &bytes[first * from..usize_of(elements.end) * from];
            let converted = &mut spare.bytes_mut()[..source.len() / from * to];
            cast.apply(source, as_uninit(converted));
            self.put(run, &parts, first, converted, to);
        }
    }

    /// Puts elements of `size` bytes where they belong; `first` is the number in the tile of the first of them.
    fn put(&self, run: &Run, parts: &[TilePart], first: usize, elements: &[u8], size: usize) {
        let tensor = self.schedule.tensors[run.tensor as usize].tensor;
        for part in parts {
            let from = &elements[(usize_of(part.from) - first) * size..];
            for &rank in self.schedule.destinations_of(run, part) {
                let start = self.places.start(rank, tensor);
                // SAFETY: the loops stay inside the rank's part of the tensor, whose pieces were validated to tile it, so that no two tiles share
                // an element of it; each tile is one worker's. The memory outlives the call.
                unsafe { scatter(from, start.add(usize_of(part.to)), size, &part.loops) };
            }
        }
    }
}

/// An offset inside of an arena, whose size is a `usize`.
fn usize_of(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
