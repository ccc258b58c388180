//! What a load to a device gives: each rank's memory there, pointers to single tensors, and the way back to the host.

use std::{ffi::c_void, sync::Arc};

use shardwright_core::{DType, Region, ShardPlan, TensorKind};

use super::{
    dlpack::{self, ManagedTensor},
    memory::{DeviceMemory, Stream},
};
use crate::{
    error::{EngineError, ErrorKind, Result},
    load::{LoadStats, Loaded, RankShards, RankStats, layout::Slot},
    memory::Arena,
};

/// All loaded ranks, on their devices. Everything is in place: any stream may read it.
#[derive(Debug)]
#[non_exhaustive]
pub struct DeviceLoaded<'p> {
    /// In the order in which they were asked for.
    pub ranks: Vec<DeviceShards<'p>>,
    /// Totals.
    pub stats: LoadStats,
}

/// The shards of one rank. The memory lives for as long as this, or any tensor exported from it.
#[derive(Debug)]
pub struct DeviceShards<'p> {
    pub(crate) plan: &'p ShardPlan,
    pub(crate) rank: u32,
    pub(crate) arenas: Vec<Arc<DeviceMemory>>,
    pub(crate) slots: Arc<[Slot]>,
    pub(crate) stats: RankStats,
    pub(crate) stream: Arc<Stream>,
}

/// What one rank holds of one tensor, on its device.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeviceTensorView<'a> {
    /// Name in the checkpoint.
    pub name: &'a str,
    /// Parameter or buffer.
    pub kind: TensorKind,
    /// The storage dtype.
    pub dtype: DType,
    /// The part that the rank holds.
    pub region: Region,
    /// The shape of the part; `None` for flat partitions.
    pub local_shape: Option<Vec<u64>>,
    /// Device address of the first element; valid for as long as the shards live.
    pub pointer: u64,
    /// Bytes of the valid elements, row-major.
    pub bytes: usize,
    /// Bytes of the rank's whole buffer: the valid elements, then zeros.
    pub padded_bytes: usize,
}

impl<'p> DeviceShards<'p> {
    /// The rank.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// What its load took.
    pub fn stats(&self) -> &RankStats {
        &self.stats
    }

    /// Number of tensors, as in the plan.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// True where the plan has no tensors.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The device's number among those that this process sees.
    pub fn device(&self) -> u32 {
        self.stream.gpu.ordinal
    }

    /// The device's name.
    pub fn device_name(&self) -> &str {
        &self.stream.gpu.name
    }

    /// A `CUstream` of the device's primary context, idle, alive for as long as the shards: a place to queue work on them.
    pub fn stream(&self) -> *mut c_void {
        self.stream.raw.as_ptr()
    }

    /// The shard of the tensor that the plan has at that index.
    ///
    /// # Panics
    /// Where the plan has no such index.
    pub fn tensor(&self, index: usize) -> DeviceTensorView<'_> {
        let (tensor, slot) = (&self.plan.tensors[index], self.slots[index]);
        let dtype = tensor.precision.storage;
        let region = tensor.region(self.rank);
        let size = |numel: u64| usize::try_from(dtype.bytes(numel).unwrap_or(0)).unwrap_or(0);
        DeviceTensorView {
            name: &tensor.name,
            kind: tensor.kind,
            dtype,
            local_shape: region.local_shape(&tensor.shape),
            pointer: self.arenas[slot.arena()].address + slot.offset() as u64,
            bytes: size(region.numel(&tensor.shape)),
            padded_bytes: size(tensor.padded_numel(self.rank)),
            region,
        }
    }

    /// The shard of the tensor of that name.
    pub fn by_name(&self, name: &str) -> Option<DeviceTensorView<'_>> {
        let index = self.plan.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok()?;
        Some(self.tensor(index))
    }

    /// All shards, in the plan's order.
    pub fn iter(&self) -> impl Iterator<Item = DeviceTensorView<'_>> {
        (0..self.len()).map(|i| self.tensor(i))
    }

    /// The shard of the tensor at that index for another library, without a copy: one dim for a flat partition, else the local shape.
    /// `None` where DLPack has no such dtype.
    ///
    /// # Panics
    /// Where the plan has no such index.
    pub fn dlpack(&self, index: usize) -> Option<ManagedTensor> {
        let view = self.tensor(index);
        let dtype = dlpack::DataType::of(view.dtype)?;
        let shape = view.local_shape.unwrap_or_else(|| vec![view.region.numel(&self.plan.tensors[index].shape)]);
        let memory = Arc::clone(&self.arenas[self.slots[index].arena()]);
        let device = dlpack::Device { kind: dlpack::Device::CUDA, id: self.device().cast_signed() };
        Some(ManagedTensor::new(view.pointer as *mut c_void, device, dtype, &shape, memory))
    }

    /// Copies the whole rank to host memory.
    fn download(&self) -> Result<RankShards<'p>> {
        let arenas = self.arenas.iter().map(|a| self.download_arena(a)).collect::<Result<Vec<_>>>()?;
        Ok(RankShards::from_parts(self.plan, self.rank, arenas, Arc::clone(&self.slots), self.stats))
    }

    fn download_arena(&self, from: &DeviceMemory) -> Result<Arc<Arena>> {
        let no_memory = |e| EngineError::new(ErrorKind::Memory, format!("cannot map {} bytes", from.len)).rank(self.rank).cause(e);
        let mut arena = Arena::new(from.len).map_err(no_memory)?;
        if from.len > 0 {
            // SAFETY: both have `len` bytes, and live until the stream has come past the copy: waited for whether it was started or not.
            let copied = unsafe { from.gpu.copy_out(arena.bytes_mut(), from.address, self.stream.raw) };
            copied.and(self.stream.synchronize())?;
        }
        Ok(Arc::new(arena))
    }
}

impl<'p> DeviceLoaded<'p> {
    /// Copies all shards to host memory, where they look as if they had been loaded there: to digest, save or compare them.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`] where host memory does not suffice, [`ErrorKind::Device`] where a copy fails.
    pub fn download(&self) -> Result<Loaded<'p>> {
        let ranks = self.ranks.iter().map(DeviceShards::download).collect::<Result<Vec<_>>>()?;
        Ok(Loaded { ranks, stats: self.stats })
    }
}
