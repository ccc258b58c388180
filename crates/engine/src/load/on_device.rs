//! Loading to devices: does it fit, and then the same pipeline with another end.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Loader,
    layout::RankLayout,
    pipeline::{Done, Places, Target},
};
use crate::{
    device::{DeviceLoaded, DeviceOptions, DeviceShards, Devices, driver::MORE_ROOM, ring::Ring},
    error::{EngineError, ErrorKind, Result},
};

impl<'p> Loader<'p, '_> {
    /// Loads onto devices, one for each rank in the order of the ranks.
    ///
    /// # Errors
    /// As [`Loader::load`], and [`ErrorKind::Device`] where a device has too little memory or fails. Nothing of the shards remains there.
    pub fn load_to(self, devices: &Devices, options: DeviceOptions) -> Result<DeviceLoaded<'p>> {
        let started = std::time::Instant::now();
        if devices.by_rank.len() != self.ranks.len() {
            let error = EngineError::new(ErrorKind::Device, "each rank needs a device");
            return Err(error.expected(self.ranks.len()).found(devices.by_rank.len()));
        }
        let mut choice = self.explain()?;
        let (layouts, schedule) = self.prepare()?;
        if let Some(tensor) = schedule.needs_host() {
            let what = "its elements are rearranged or rounded, which is not done on a device yet; load to the host";
            return Err(EngineError::new(ErrorKind::Device, what).tensor(&self.plan.tensors[tensor as usize].name));
        }
        let ring = Ring::new(options.ring_bytes, choice.workers(), self.ranks.len(), schedule.total_bytes())?;
        (choice.block_size, choice.task_size) = (ring.block, choice.task_size.max(ring.block));
        let staging = ring.bytes(choice.workers());
        let kept = devices.pool.take(staging, options.ring_bytes);
        if !self.io.force {
            fits(devices, &layouts, if kept.is_some() { 0 } else { staging })?;
        }
        let target = Arc::new(Target::new(devices, (ring, choice.workers(), kept), &layouts, self.plan, options.downcast)?);
        let plan = self.plan;
        let places = Places::Arenas { arenas: Vec::new(), slots: layouts.iter().map(|l| Arc::clone(&l.slots)).collect() };
        let Done { ranks, stats, .. } = self.job(choice, schedule, places, Some(Arc::clone(&target))).run(&layouts, started)?;
        let shards = layouts.into_iter().zip(ranks).enumerate().map(|(i, (layout, stats))| DeviceShards {
            plan,
            rank: layout.rank,
            arenas: target.arenas[i].clone(),
            slots: layout.slots,
            stats,
            stream: Arc::clone(&target.streams[target.devices.by_rank[i]][0]),
        });
        Ok(DeviceLoaded { ranks: shards.collect(), stats })
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
