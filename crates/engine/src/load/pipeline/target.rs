//! The devices that a load ends on: their memory, and the pinned ring that blocks cross the bus in.

use std::sync::{Arc, Mutex};

use shardwright_core::ShardPlan;

use crate::{
    device::{
        Devices, Downcast,
        driver::Gpu,
        kernels::Kernel,
        memory::{DeviceMemory, Pinned, Stream},
        pool::{Lent, RingMemory},
        ring::{Crossing, Ring, SLOTS, STREAMS},
    },
    error::{EngineError, ErrorKind, Result},
    load::layout::{RankLayout, Slot},
    parallel::lock,
};

/// Where all transports of a load write.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) devices: Devices,
    pub(crate) ring: Ring,
    pub(crate) memory: Memory,
    /// By device.
    pub(crate) streams: Vec<Vec<Arc<Stream>>>,
    /// By index of the tensor in the plan.
    pub(super) crossings: Vec<Crossing>,
    /// The ring's memory, on the host and on each device, slot by slot; there from `new` to `drop`.
    pub(super) lent: Option<Lent>,
    /// The ring's slots that no transport has taken, by number.
    pub(super) free: Mutex<Vec<(usize, Pinned)>>,
}

/// Where each rank's part of each tensor goes on its device.
#[derive(Debug)]
pub(crate) enum Memory {
    /// Our own: arenas by rank and dtype, slots by rank and tensor.
    Arenas { arenas: Vec<Vec<Arc<DeviceMemory>>>, slots: Vec<Arc<[Slot]>> },
    /// The caller's, for the one rank that there is: by tensor.
    Callers(Vec<Extent>),
}

/// Memory of the caller's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) address: usize,
    pub(crate) bytes: usize,
}

impl Memory {
    /// The first byte of a rank's part of a tensor.
    pub(crate) fn address(&self, rank: usize, tensor: usize) -> u64 {
        match self {
            Self::Arenas { arenas, slots } => {
                let slot = slots[rank][tensor];
                arenas[rank][slot.arena()].address + slot.offset() as u64
            }
            Self::Callers(extents) => extents[tensor].address as u64,
        }
    }

    /// The arenas of a rank, which outlive the load.
    pub(crate) fn arenas(&self, rank: usize) -> Vec<Arc<DeviceMemory>> {
        match self {
            Self::Arenas { arenas, .. } => arenas[rank].clone(),
            Self::Callers(_) => Vec::new(),
        }
    }
}

impl Target {
    /// Allocates every rank's memory, zeroed for the padding's sake, unless it is the caller's, of which what no element fills is zeroed; and the ring of so
    /// many workers unless it is given; compiles the kernels that the plan needs. Nothing is allocated or freed later, while copies run: the driver might
    /// wait for all of them.
    pub(crate) fn new(
        devices: &Devices,
        (ring, workers, kept): (Ring, usize, Option<RingMemory>),
        (layouts, callers): (&[RankLayout], Option<Vec<Extent>>),
        plan: &ShardPlan,
        downcast: Downcast,
    ) -> Result<Self> {
        let crossings: Vec<_> = plan.tensors.iter().map(|t| Crossing::of(t.source, t.rounded, t.precision.storage, downcast)).collect();
        let several = |gpu: &Arc<Gpu>| (0..STREAMS).map(|_| Stream::new(gpu).map(Arc::new)).collect::<Result<Vec<_>>>();
        let streams = devices.gpus.iter().map(several).collect::<Result<Vec<_>>>()?;
        let memory = Memory::Arenas { arenas: Vec::new(), slots: layouts.iter().map(|l| Arc::clone(&l.slots)).collect() };
        let mut target = Self { devices: devices.clone(), ring, memory, streams, crossings, lent: None, free: Mutex::default() };
        match callers {
            Some(extents) => target.take(extents, plan)?,
            None => layouts.iter().enumerate().try_for_each(|(rank, layout)| target.allocate(rank, layout))?,
        }
        target.allocate_ring(SLOTS * workers, kept)?;
        for gpu in &target.devices.gpus {
            gpu.prepare(Kernel::COPY)?;
            for crossing in &target.crossings {
                if let Crossing::CastThere(kernel) | Crossing::RoundedHere(kernel) = crossing {
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
        let Memory::Arenas { arenas, .. } = &mut self.memory else { return Ok(()) };
        arenas.push(Vec::new());
        for &(dtype, bytes) in &layout.arenas {
            let too_large = |_| EngineError::new(ErrorKind::Device, format!("{bytes} bytes of {dtype} shards are beyond any device"));
            let memory = DeviceMemory::new(&self.devices.gpus[device], usize::try_from(bytes).map_err(too_large)?);
            let memory = Arc::new(memory.map_err(|e| e.rank(layout.rank))?);
            arenas[rank].push(Arc::clone(&memory)); // first, so that a later failure waits for the fill before it frees
            if memory.len > 0 {
                // SAFETY: the whole of a fresh allocation, which lives until the streams are waited for, by `new` or on drop.
                unsafe { memory.gpu.fill(memory.address, 0, memory.len, stream.raw) }?;
            }
        }
        Ok(())
    }

    /// Takes the caller's memory, of which a tensor fills the first bytes.
    fn take(&mut self, extents: Vec<Extent>, plan: &ShardPlan) -> Result<()> {
        let (gpu, stream) = (&self.devices.gpus[0], &self.streams[0][0]);
        for (extent, tensor) in extents.iter().zip(&plan.tensors) {
            let outside = || EngineError::new(ErrorKind::Plan, format!("its memory is not on device {}", gpu.ordinal)).tensor(&tensor.name);
            if extent.bytes > 0 && !gpu.holds(extent.address as u64, extent.bytes)? {
                return Err(outside());
            }
            let used = tensor.precision.storage.bytes(tensor.numel()).and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
            if let Some(rest) = extent.bytes.checked_sub(used).filter(|&rest| rest > 0) {
                // SAFETY: the caller's memory behind the part, valid until the load returns, which waits for the stream.
                unsafe { gpu.fill((extent.address + used) as u64, 0, rest, stream.raw) }?;
            }
        }
        self.memory = Memory::Callers(extents);
        Ok(())
    }

    fn allocate_ring(&mut self, slots: usize, kept: Option<RingMemory>) -> Result<()> {
        let ring = kept.map_or_else(|| RingMemory::new(&self.devices.gpus, slots * self.ring.slot()), Ok)?;
        let (free, lent) = ring.lend(slots, self.ring.slot());
        self.free = Mutex::new(free.into_iter().enumerate().rev().collect());
        self.lent = Some(lent);
        Ok(())
    }

    pub(super) fn staged(&self) -> &[DeviceMemory] {
        self.lent.as_ref().map_or(&[], |l| &l.staged)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let finished = self.streams.iter().flatten().map(|s| s.synchronize()).fold(true, |all, one| all & one.is_ok());
        lock(&self.free).clear(); // the transports are gone, for each holds this
        if let (Some(ring), true) = (self.lent.take().and_then(Lent::back), finished) {
            self.devices.pool.put(ring);
        }
    }
}
