//! What a load gives: each rank's arenas, and views of single tensors that copy nothing.

use std::sync::Arc;

use shardwright_core::{DType, Region, ShardPlan, TensorKind, TensorPlan};

use super::{
    layout::{RankLayout, Slot},
    pipeline::Done,
    stats::{LoadStats, RankStats},
};
use crate::{
    device::dlpack::{self, ManagedTensor},
    memory::Arena,
};

/// All loaded ranks.
#[derive(Debug)]
#[non_exhaustive]
pub struct Loaded<'p> {
    /// In the order in which they were asked for.
    pub ranks: Vec<RankShards<'p>>,
    /// Totals.
    pub stats: LoadStats,
}

/// The shards of one rank.
pub struct RankShards<'p> {
    plan: &'p ShardPlan,
    rank: u32,
    arenas: Vec<Arc<Arena>>,
    slots: Arc<[Slot]>,
    stats: RankStats,
}

/// The shards of one rank, without the plan.
#[derive(Debug)]
pub(crate) struct OwnedRank {
    rank: u32,
    arenas: Vec<Arc<Arena>>,
    slots: Arc<[Slot]>,
    stats: RankStats,
}

impl OwnedRank {
    /// With the plan that they were loaded for.
    pub(crate) fn shards<'p>(&self, plan: &'p ShardPlan) -> RankShards<'p> {
        RankShards { plan, rank: self.rank, arenas: self.arenas.clone(), slots: Arc::clone(&self.slots), stats: self.stats }
    }
}

/// What one rank holds of one tensor.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TensorView<'a> {
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
    /// The valid elements, row-major, little-endian.
    pub bytes: &'a [u8],
    /// The rank's whole buffer: the valid elements, then zeros.
    pub padded: &'a [u8],
    /// Which of the rank's arenas holds it, and from which byte on.
    pub arena: (usize, usize),
}

/// A Rust type whose values are a dtype's elements. The dtypes that Rust has no type for, such as float8 and bool, are seen as bytes.
pub trait Element: bytemuck::AnyBitPattern {
    /// That dtype.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($type:ty => $dtype:ident,)*) => { $(impl Element for $type { const DTYPE: DType = DType::$dtype; })* };
}

elements! {
    f64 => F64, f32 => F32, half::f16 => F16, half::bf16 => BF16,
    i64 => I64, i32 => I32, i16 => I16, i8 => I8, u64 => U64, u32 => U32, u16 => U16, u8 => U8,
    [f32; 2] => C64,
}

impl<'a> TensorView<'a> {
    /// The valid elements as what they are, copying nothing; `None` where the dtype is another.
    pub fn elements<T: Element>(&self) -> Option<&'a [T]> {
        // Tensors start at multiples of their elements' size, so the cast cannot fail.
        if T::DTYPE == self.dtype { bytemuck::try_cast_slice(self.bytes).ok() } else { None }
    }
}

impl<'p> Loaded<'p> {
    pub(crate) fn new(plan: &'p ShardPlan, layouts: Vec<RankLayout>, done: Done) -> Self {
        let Done { arenas, ranks, stats } = done;
        let shards = layouts.into_iter().zip(arenas).zip(ranks);
        let ranks = shards.map(|((layout, arenas), stats)| RankShards { plan, rank: layout.rank, arenas, slots: layout.slots, stats });
        Self { ranks: ranks.collect(), stats }
    }
}

impl std::fmt::Debug for RankShards<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RankShards").field("rank", &self.rank).field("stats", &self.stats).finish_non_exhaustive()
    }
}

impl<'p> RankShards<'p> {
    pub(crate) fn from_parts(plan: &'p ShardPlan, rank: u32, arenas: Vec<Arc<Arena>>, slots: Arc<[Slot]>, stats: RankStats) -> Self {
        Self { plan, rank, arenas, slots, stats }
    }

    pub(crate) fn into_owned(self) -> OwnedRank {
        OwnedRank { rank: self.rank, arenas: self.arenas, slots: self.slots, stats: self.stats }
    }

    /// The rank.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// What its load took.
    pub fn stats(&self) -> &RankStats {
        &self.stats
    }

    /// The plan that it was loaded for.
    pub fn plan(&self) -> &'p ShardPlan {
        self.plan
    }

    /// Number of tensors, as in the plan.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// True where the plan has no tensors.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The shard of the tensor that the plan has at that index.
    ///
    /// # Panics
    /// Where the plan has no such index.
    pub fn tensor(&self, index: usize) -> TensorView<'_> {
        let tensor: &TensorPlan = &self.plan.tensors[index];
        let slot = self.slots[index];
        let dtype = tensor.precision.storage;
        let region = tensor.region(self.rank);
        let size = |numel: u64| usize::try_from(dtype.bytes(numel).unwrap_or(0)).unwrap_or(0);
        let padded = &self.arenas[slot.arena()].bytes()[slot.offset()..][..size(tensor.padded_numel(self.rank))];
        let bytes = &padded[..size(region.numel(&tensor.shape))];
        let (local_shape, arena) = (region.local_shape(&tensor.shape), (slot.arena(), slot.offset()));
        TensorView { name: &tensor.name, kind: tensor.kind, dtype, local_shape, region, bytes, padded, arena }
    }

    /// The memory itself: an arena for each storage dtype, in which tensors lie in the order of the files, the gaps zero. Each starts at a multiple of
    /// 64 bytes or, where it is smaller, of the power of two that it fits into. See [`TensorView::arena`].
    pub fn arenas(&self) -> Vec<(DType, &[u8])> {
        let mut arenas: Vec<_> = self.arenas.iter().map(|a| (DType::U8, a.bytes())).collect();
        for (slot, tensor) in self.slots.iter().zip(&self.plan.tensors) {
            arenas[slot.arena()].0 = tensor.precision.storage;
        }
        arenas
    }

    /// The shard of the tensor of that name.
    pub fn by_name(&self, name: &str) -> Option<TensorView<'_>> {
        let index = self.plan.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok()?;
        Some(self.tensor(index))
    }

    /// The shard of the tensor at that index for another library, without a copy: one dim for a flat partition, else the local shape. It
    /// keeps its arena alive by itself. `None` where DLPack has no such dtype. Nobody may write to it while these shards live, whose views
    /// would see it; once they are dropped the tensor is its consumer's own.
    ///
    /// # Panics
    /// Where the plan has no such index.
    pub fn dlpack(&self, index: usize) -> Option<ManagedTensor> {
        let view = self.tensor(index);
        let dtype = dlpack::DataType::of(view.dtype)?;
        let shape = view.local_shape.unwrap_or_else(|| vec![view.region.numel(&self.plan.tensors[index].shape)]);
        let device = dlpack::Device { kind: dlpack::Device::CPU, id: 0 };
        let memory = Arc::clone(&self.arenas[view.arena.0]);
        // SAFETY: the view was cut out of the arena at that offset.
        let data = unsafe { memory.start().add(view.arena.1) };
        Some(ManagedTensor::new(data.as_ptr().cast(), device, dtype, &shape, memory))
    }

    /// All shards, in the plan's order.
    pub fn iter(&self) -> impl Iterator<Item = TensorView<'_>> {
        (0..self.len()).map(|i| self.tensor(i))
    }
}
