//! Where each rank's part of each tensor goes in this process's memory.

use std::sync::Arc;

use super::target::Extent;
use crate::{load::layout::Slot, memory::Arena};

/// Memory that is not ours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Foreign {
    pub(crate) start: *mut u8,
    pub(crate) bytes: usize,
}

impl Foreign {
    /// Host memory of the caller's.
    pub(crate) fn of(extent: Extent) -> Self {
        let dangling = std::ptr::NonNull::dangling().as_ptr();
        let start = if extent.bytes == 0 { dangling } else { std::ptr::with_exposed_provenance_mut(extent.address) };
        Self { start, bytes: extent.bytes }
    }
}

// SAFETY: an address; who hands one over promises that it may be written from any thread.
unsafe impl Send for Foreign {}
// SAFETY: as above.
unsafe impl Sync for Foreign {}

/// The memory of all ranks.
#[derive(Debug)]
pub(crate) enum Places {
    /// Our own: arenas by rank and dtype, slots by rank and tensor.
    Arenas { arenas: Vec<Vec<Arc<Arena>>>, slots: Vec<Arc<[Slot]>> },
    /// The caller's, for the one rank that there is: by tensor. Valid until the load returns, so that no worker may be left behind.
    Foreign(Vec<Foreign>),
    /// On devices: the load's target knows where.
    OnDevices {
        /// Whether it stays there as long as a worker that hangs.
        outlive_workers: bool,
    },
}

impl Places {
    /// The first byte of a rank's part of a tensor.
    pub(super) fn start(&self, rank: u32, tensor: u32) -> *mut u8 {
        match self {
            Self::Arenas { arenas, slots } => {
                let slot = slots[rank as usize][tensor as usize];
                // SAFETY: a slot lies inside its arena.
                unsafe { arenas[rank as usize][slot.arena()].start().as_ptr().add(slot.offset()) }
            }
            Self::Foreign(places) => places[tensor as usize].start,
            Self::OnDevices { .. } => unreachable!("the host writes to no device's memory"),
        }
    }

    /// Bytes of a rank's part of a tensor.
    ///
    /// # Safety
    /// No other slice that overlaps the range may exist at the same time.
    ///
    /// # Panics
    /// Where the range is not inside the memory.
    #[expect(clippy::mut_from_ref, reason = "disjoint parts are written by several threads; the caller ensures disjointness")]
    pub(super) unsafe fn slice(&self, rank: u32, tensor: u32, at: usize, bytes: usize) -> &mut [u8] {
        match self {
            Self::Arenas { arenas, slots } => {
                let slot = slots[rank as usize][tensor as usize];
                // SAFETY: as the caller promises.
                unsafe { arenas[rank as usize][slot.arena()].slice_mut(slot.offset() + at, bytes) }
            }
            Self::Foreign(places) => {
                let place = &places[tensor as usize];
                assert!(at <= place.bytes && bytes <= place.bytes - at, "bytes {at}+{bytes} of {}", place.bytes);
                // SAFETY: inside the memory by the assertion, which is valid as whoever gave it promised; not aliased as the caller promises.
                unsafe { std::slice::from_raw_parts_mut(place.start.add(at), bytes) }
            }
            Self::OnDevices { .. } => unreachable!("the host writes to no device's memory"),
        }
    }

    /// The arenas, which outlive the load.
    pub(super) fn arenas(&self) -> Vec<Vec<Arc<Arena>>> {
        match self {
            Self::Arenas { arenas, .. } => arenas.clone(),
            Self::Foreign(_) | Self::OnDevices { .. } => Vec::new(),
        }
    }

    /// Whether the memory stays as long as a worker that hangs.
    pub(super) fn outlive_workers(&self) -> bool {
        match self {
            Self::Arenas { .. } => true,
            Self::Foreign(_) => false,
            Self::OnDevices { outlive_workers } => *outlive_workers,
        }
    }
}
