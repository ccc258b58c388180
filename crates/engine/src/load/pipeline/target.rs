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
    load::layout::RankLayout,
    parallel::lock,
};

/// Where all transports of a load write.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) devices: Devices,
    pub(crate) ring: Ring,
    /// By rank, then by dtype.
    pub(crate) arenas: Vec<Vec<Arc<DeviceMemory>>>,
    /// By device.
    pub(crate) streams: Vec<Vec<Arc<Stream>>>,
    /// By index of the tensor in the plan.
    pub(super) crossings: Vec<Crossing>,
    /// The ring's memory, on the host and on each device, slot by slot; there from `new` to `drop`.
    pub(super) lent: Option<Lent>,
    /// The ring's slots that no transport has taken, by number.
    pub(super) free: Mutex<Vec<(usize, Pinned)>>,
}

impl Target {
    /// Allocates every rank's memory, zeroed for the padding's sake, and the ring of so many workers unless it is given; compiles the kernels that the plan
    /// needs. Nothing is allocated or freed later, while copies run: the driver might wait for all of them.
    pub(crate) fn new(
        devices: &Devices,
        (ring, workers, kept): (Ring, usize, Option<RingMemory>),
        layouts: &[RankLayout],
        plan: &ShardPlan,
        downcast: Downcast,
    ) -> Result<Self> {
        let crossings: Vec<_> = plan.tensors.iter().map(|t| Crossing::of(t.source, t.rounded, t.precision.storage, downcast)).collect();
        let several = |gpu: &Arc<Gpu>| (0..STREAMS).map(|_| Stream::new(gpu).map(Arc::new)).collect::<Result<Vec<_>>>();
        let streams = devices.gpus.iter().map(several).collect::<Result<Vec<_>>>()?;
        let mut target =
            Self { devices: devices.clone(), ring, arenas: Vec::new(), streams, crossings, lent: None, free: Mutex::default() };
        for (rank, layout) in layouts.iter().enumerate() {
            target.allocate(rank, layout)?;
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
