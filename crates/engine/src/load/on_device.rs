//! Loading to devices: does it fit, and then the same pipeline with another end. Parameters whose elements are rearranged come after the others:
//! the host puts them together, window by window.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use shardwright_core::{Assembly, DType, Region, ShardPlan, TensorPlan};

use super::{
    CancelToken, Destination, IoChoice, IoOptions, Item, LoadStats, Loader, Part, Parts, Progress, RankProgress, RankStats, fill,
    layout::RankLayout,
    pipeline::{Done, Extent, Job, Places, Target},
    schedule::{Schedule, order_of},
};
use crate::{
    checkpoint::Checkpoint,
    device::{
        DeviceLoaded, DeviceOptions, DeviceShards, Devices,
        driver::MORE_ROOM,
        memory::{Pinned, PinnedBlock},
        ring::Ring,
    },
    error::{EngineError, ErrorKind, Result},
    source::Opener,
};

/// Bytes of a shard that the host puts together at once.
const WINDOW: u64 = 32 << 20;

impl<'p> Loader<'p, '_> {
    /// Loads onto devices, one for each rank in the order of the ranks.
    ///
    /// # Errors
    /// As [`Loader::load`], and [`ErrorKind::Device`] where a device has too little memory or fails. Nothing of the shards remains there.
    pub fn load_to(self, devices: &Devices, options: DeviceOptions) -> Result<DeviceLoaded<'p>> {
        let started = Instant::now();
        let (choice, plan) = (self.explain()?, self.plan);
        let (layouts, schedule) = self.prepare()?;
        let load = DeviceLoad {
            plan,
            assemblies: &self.checkpoint.assembled().assemblies,
            checkpoint: self.checkpoint,
            ranks: &self.ranks,
            layouts: &layouts,
            io: self.io.clone(),
            cancel: self.cancel.clone(),
            progress: self.progress,
            opener: self.opener(&choice),
            started,
        };
        let (target, ranks, stats) = load.run((devices, options), choice, schedule, None)?;
        let shards = layouts.iter().zip(ranks).enumerate().map(|(i, (layout, stats))| DeviceShards {
            plan,
            rank: layout.rank,
            arenas: target.memory.arenas(i),
            slots: Arc::clone(&layout.slots),
            stats,
            stream: Arc::clone(&target.streams[target.devices.by_rank[i]][0]),
        });
        Ok(DeviceLoaded { ranks: shards.collect(), stats })
    }
}

/// A load to devices, about to start.
pub(super) struct DeviceLoad<'a> {
    pub(super) plan: &'a ShardPlan,
    /// Of the plan's tensors.
    pub(super) assemblies: &'a [Assembly],
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) ranks: &'a [u32],
    pub(super) layouts: &'a [RankLayout],
    pub(super) io: IoOptions,
    pub(super) cancel: CancelToken,
    pub(super) progress: Option<&'a (dyn Fn(&Progress<'_>) + Sync)>,
    pub(super) opener: Opener,
    pub(super) started: Instant,
}

impl DeviceLoad<'_> {
    /// Loads into memory of our own, or into the caller's. All has arrived when it returns.
    pub(super) fn run(
        self,
        (devices, options): (&Devices, DeviceOptions),
        mut choice: IoChoice,
        mut schedule: Schedule,
        callers: Option<Vec<Extent>>,
    ) -> Result<(Arc<Target>, Vec<RankStats>, LoadStats)> {
        let Self { plan, assemblies, checkpoint, ranks, layouts, io, cancel, progress, opener, started } = self;
        if devices.by_rank.len() != ranks.len() {
            let error = EngineError::new(ErrorKind::Device, "each rank needs a device");
            return Err(error.expected(ranks.len()).found(devices.by_rank.len()));
        }
        let by_host = schedule.needs_host();
        if !by_host.is_empty() {
            let mut order = order_of(assemblies, checkpoint);
            order.retain(|tensor| !by_host.contains(tensor));
            schedule = Schedule::of(plan, assemblies, checkpoint, ranks, &order, choice.block_size)?;
        }
        let ring = Ring::new(options.ring_bytes, choice.workers(), ranks.len(), schedule.total_bytes())?;
        (choice.block_size, choice.task_size) = (ring.block, choice.task_size.max(ring.block));
        let staging = ring.bytes(choice.workers());
        let kept = devices.pool.take(staging, options.ring_bytes);
        if !io.force {
            let allocated = if callers.is_some() { &[] } else { layouts };
            fits(devices, allocated, if kept.is_some() { 0 } else { staging })?;
        }
        let places = Places::OnDevices { outlive_workers: callers.is_none() };
        let target = Arc::new(Target::new(devices, (ring, choice.workers(), kept), (layouts, callers), plan, options.downcast)?);
        let windows = Windows { checkpoint, assemblies, io, cancel: cancel.clone(), target: &target };
        let later: u64 = layouts.iter().flat_map(|layout| by_host.iter().map(|&t| source_bytes(plan, t, layout.rank))).sum();
        let report = Report { to: progress, started, total: schedule.total_bytes().saturating_add(later) };
        let first = |p: &Progress<'_>| report.pass(p.ranks, p.read);
        let progress = progress.map(|_| &first as _);
        let job = Job { checkpoint, schedule, places, choice, opener, device: Some(Arc::clone(&target)), cancel, progress };
        let Done { mut ranks, mut stats, .. } = job.run(layouts, started)?;
        if !by_host.is_empty() {
            windows.copy_all(plan, &by_host, (layouts, &mut ranks), &report)?;
            stats.seconds = started.elapsed().as_secs_f64();
            stats.bytes_read = ranks.iter().map(|r| r.bytes_read).sum();
            ranks.iter_mut().for_each(|rank| rank.seconds = stats.seconds);
        }
        Ok((target, ranks, stats))
    }
}

/// Passes on how far both ways have come together.
struct Report<'a> {
    to: Option<&'a (dyn Fn(&Progress<'_>) + Sync)>,
    started: Instant,
    total: u64,
}

impl Report<'_> {
    fn pass(&self, ranks: &[RankProgress], read: u64) {
        if let Some(to) = self.to {
            to(&Progress { ranks, read, total: self.total, elapsed: self.started.elapsed() });
        }
    }
}

/// Source bytes of what a rank holds of a tensor.
fn source_bytes(plan: &ShardPlan, tensor: u32, rank: u32) -> u64 {
    let tensor = &plan.tensors[tensor as usize];
    tensor.source.bytes(tensor.valid_numel(rank)).unwrap_or(0)
}

/// What goes to the devices by way of the host.
struct Windows<'a> {
    checkpoint: &'a Checkpoint,
    assemblies: &'a [Assembly],
    io: IoOptions,
    cancel: CancelToken,
    target: &'a Target,
}

impl Windows<'_> {
    /// Copies those tensors' shards of all ranks, and counts the bytes that are read for each.
    fn copy_all(
        &self,
        plan: &ShardPlan,
        tensors: &BTreeSet<u32>,
        (layouts, ranks): (&[RankLayout], &mut [RankStats]),
        report: &Report<'_>,
    ) -> Result<()> {
        let later = |rank: u32| tensors.iter().map(|&t| source_bytes(plan, t, rank)).sum::<u64>();
        let progress =
            |l: &RankLayout| RankProgress { rank: l.rank, done: l.needed_bytes.saturating_sub(later(l.rank)), total: l.needed_bytes };
        let mut done: Vec<RankProgress> = layouts.iter().map(progress).collect();
        let mut placed = report.total - layouts.iter().map(|l| later(l.rank)).sum::<u64>();
        let sizes = |layout: &RankLayout| {
            let bytes = |&t: &u32| {
                let tensor = &plan.tensors[t as usize];
                tensor.precision.storage.bytes(tensor.valid_numel(layout.rank)).unwrap_or(WINDOW)
            };
            tensors.iter().map(bytes).max().unwrap_or(0)
        };
        let largest = layouts.iter().map(sizes).max().unwrap_or(0).clamp(1, WINDOW);
        let Some(gpu) = self.target.devices.gpus.first() else { return Ok(()) };
        let bytes = usize::try_from(largest).unwrap_or(usize::MAX);
        let block = Arc::new(PinnedBlock::new(gpu, bytes)?);
        let Some(mut window) = Pinned::parts(&block, 1, bytes).pop() else { return Ok(()) };
        for (index, (layout, rank)) in layouts.iter().zip(ranks).enumerate() {
            for &tensor in tensors {
                let planned = &plan.tensors[tensor as usize];
                let read = self.copy(&mut window, (tensor, planned), (layout, index));
                rank.bytes_read += read.map_err(|e| e.tensor(&planned.name).rank(layout.rank))?;
                let bytes = source_bytes(plan, tensor, layout.rank);
                (done[index].done, placed) = (done[index].done + bytes, placed + bytes);
                report.pass(&done, placed);
            }
        }
        Ok(())
    }

    /// Copies what a rank holds of a tensor into its place. Answers with the bytes read.
    fn copy(&self, window: &mut Pinned, (tensor, planned): (u32, &TensorPlan), (layout, index): (&RankLayout, usize)) -> Result<u64> {
        let (dtype, device) = (planned.precision.storage, self.target.devices.by_rank[index]);
        let (gpu, stream) = (&self.target.devices.gpus[device], &self.target.streams[device][0]);
        let most = dtype.bytes(1).map_or(u64::MAX, |size| WINDOW / size.max(1));
        let (mut at, mut read) = (self.target.memory.address(index, tensor as usize), 0);
        for (part, numel) in parts(planned, layout.rank, most) {
            let bytes = dtype.bytes(numel).and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
            let Some(bytes) = bytes else { continue };
            read += self.fill(&mut window.bytes_mut()[..bytes], tensor, planned, (part, dtype))?;
            // SAFETY: this part's own place, into which nothing else is copied any more; the stream is waited for before the window is
            // filled again or dropped.
            let copied = unsafe { gpu.copy_in(at, &window.bytes()[..bytes], stream.raw) };
            stream.synchronize().and(copied)?;
            at += bytes as u64;
        }
        Ok(read)
    }

    /// Reads a part of a tensor into the window.
    fn fill(&self, window: &mut [u8], tensor: u32, planned: &TensorPlan, (part, dtype): (Part, DType)) -> Result<u64> {
        let item = Item {
            name: planned.name.clone(),
            shape: planned.shape.clone(),
            assembly: self.assemblies[tensor as usize].clone(),
            rounded: planned.rounded,
            part,
            to: Destination { address: window.as_mut_ptr().expose_provenance(), bytes: window.len() as u64, dtype },
        };
        // SAFETY: the window is this thread's own until the call returns.
        unsafe { fill(self.checkpoint, &[item], &self.io, None, &self.cancel) }.map(|stats| stats.bytes_read)
    }
}

/// What a rank holds of a tensor, in the order of its elements, in parts of at most `most` of them.
fn parts(planned: &TensorPlan, rank: u32, most: u64) -> Parts {
    let region = planned.region(rank);
    match &region {
        Region::Flat { range } => Parts::of_flat(range.clone(), most),
        Region::Empty => Parts::of_flat(0..0, most),
        Region::Dim { .. } | Region::Box { .. } | Region::Whole => {
            let (local, offsets) = (region.local_shape(&planned.shape), region.offsets(&planned.shape));
            let ranges = offsets.unwrap_or_default().into_iter().zip(local.unwrap_or_default()).map(|(from, size)| from..from + size);
            Parts::of_box(ranges.collect(), most)
        }
    }
}

/// Refuses what does not fit onto a device: the shards of all its ranks and the staging memory of all threads.
fn fits(devices: &Devices, layouts: &[RankLayout], staging: usize) -> Result<()> {
    let mut shards: BTreeMap<usize, u64> = BTreeMap::new();
    for (layout, &device) in layouts.iter().zip(&devices.by_rank) {
        let needed = shards.entry(device).or_default();
        *needed = layout.arenas.iter().fold(*needed, |sum, a| sum.saturating_add(granted(a.1)));
    }
    for (device, shards) in shards {
        let gpu = &devices.gpus[device];
        let (free, total) = gpu.memory()?;
        enough(gpu.ordinal, &gpu.name, (shards, granted(staging as u64)), (free, total))?;
    }
    Ok(())
}

/// What an allocation takes of a device, whose driver maps pages of this size.
fn granted(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(2 << 20).unwrap_or(u64::MAX)
}

fn enough(ordinal: u32, name: &str, (shards, staging): (u64, u64), (free, total): (u64, u64)) -> Result<()> {
    if shards.saturating_add(staging) <= free {
        return Ok(());
    }
    let mib = |bytes: u64| format!("{} MiB", bytes.div_ceil(1 << 20));
    let what = format!("the shards do not fit onto device {ordinal} ({name}); {MORE_ROOM} would help");
    Err(EngineError::new(ErrorKind::Device, what)
        .expected(format_args!("{} for shards and {} for staging", mib(shards), mib(staging)))
        .found(format_args!("{} free of {}", mib(free), mib(total))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_says_needed_free_and_what_would_help() {
        assert!(enough(0, "test", (3 << 20, 1 << 20), (4 << 20, 8 << 20)).is_ok());
        let error = enough(1, "Some Card", (3 << 20, 2 << 20), (4 << 20, 8 << 20)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device);
        let message = error.to_string();
        for needle in ["device 1 (Some Card)", "3 MiB for shards", "2 MiB for staging", "4 MiB free of 8 MiB", "more ranks"] {
            assert!(message.contains(needle), "'{needle}' is not in: {message}");
        }
        assert!(enough(0, "test", (u64::MAX, 1), (u64::MAX - 1, u64::MAX)).is_err());
    }
}
