//! The ring's memory, kept from one load to the next: it is pinned once, not for each.

use std::sync::{Arc, Mutex, PoisonError};

use super::{
    driver::Gpu,
    memory::{DeviceMemory, Pinned, PinnedBlock},
};
use crate::error::{EngineError, ErrorKind, Result};

/// Page-locked memory and its counterpart on each device.
#[derive(Debug)]
pub(crate) struct RingMemory {
    block: PinnedBlock,
    staged: Vec<DeviceMemory>,
}

impl RingMemory {
    pub(crate) fn new(gpus: &[Arc<Gpu>], bytes: usize) -> Result<Self> {
        let first = gpus.first().ok_or_else(|| EngineError::new(ErrorKind::Device, "a load of no ranks has no device"))?;
        let block = PinnedBlock::new(first, bytes)?;
        Ok(Self { block, staged: gpus.iter().map(|gpu| DeviceMemory::new(gpu, bytes)).collect::<Result<_>>()? })
    }

    /// Takes it apart into slots, which it must have room for.
    pub(crate) fn lend(self, count: usize, slot: usize) -> (Vec<Pinned>, Lent) {
        let block = Arc::new(self.block);
        (Pinned::parts(&block, count, slot), Lent { block, staged: self.staged })
    }
}

/// A ring whose slots are in use.
#[derive(Debug)]
pub(crate) struct Lent {
    block: Arc<PinnedBlock>,
    /// By device.
    pub(crate) staged: Vec<DeviceMemory>,
}

impl Lent {
    /// The ring, if none of its slots is left.
    pub(crate) fn back(self) -> Option<RingMemory> {
        Some(RingMemory { block: Arc::try_unwrap(self.block).ok()?, staged: self.staged })
    }
}

/// At most one ring that nothing uses.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Option<RingMemory>>);

impl Pool {
    /// The ring that lies here, if it has so many bytes and not more than `most`; another is let go of.
    pub(crate) fn take(&self, bytes: usize, most: usize) -> Option<RingMemory> {
        let ring = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        ring.filter(|r| (bytes..=most).contains(&r.block.len))
    }

    pub(crate) fn clear(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    pub(crate) fn put(&self, ring: RingMemory) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(ring);
    }
}
