//! Where each tensor of a rank lies in the rank's arenas: one arena per storage dtype, tensors in file order. Most ranks of a world are laid
//! out alike, and share one table.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher},
    sync::Arc,
};

use shardwright_core::{DType, Placement, ShardPlan};

use crate::error::{EngineError, ErrorKind, Result};

/// Tensors start at multiples of this, a cache line; those that are smaller, at multiples of the power of two that they fit into, for on hundreds of
/// ranks a model may be nothing but such.
const TENSOR_ALIGNMENT: u64 = 64;

/// The arenas of one rank and the place of each tensor in them.
#[derive(Debug)]
pub(crate) struct RankLayout {
    pub(crate) rank: u32,
    /// Dtype and size in bytes of each arena.
    pub(crate) arenas: Vec<(DType, u64)>,
    /// By index of the tensor in the plan.
    pub(crate) slots: Arc<[Slot]>,
    /// Source bytes of the valid elements.
    pub(crate) needed_bytes: u64,
    /// Stored bytes of the valid elements.
    pub(crate) shard_bytes: u64,
    /// Stored bytes of padding inside tensors' buffers.
    pub(crate) padding_bytes: u64,
}

/// Arena number (8 bits) and byte offset (56 bits): plans have hundreds of thousands of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) struct Slot(u64);

/// Tables of slots, each kept once: 8,192 ranks of 100,000 tensors would have 6.5 GB of them.
#[derive(Debug, Default)]
pub(crate) struct Tables(HashMap<u64, Vec<Arc<[Slot]>>>);

impl Tables {
    fn shared(&mut self, slots: Vec<Slot>) -> Arc<[Slot]> {
        let alike = self.0.entry(BuildHasherDefault::<DefaultHasher>::default().hash_one(&slots)).or_default();
        if let Some(table) = alike.iter().find(|table| ***table == *slots) {
            return Arc::clone(table);
        }
        let table: Arc<[Slot]> = slots.into();
        alike.push(Arc::clone(&table));
        table
    }
}

/// Which tensors of a plan every rank has equally large parts of: those of the same shape and placement, of which a model has few.
#[derive(Debug)]
pub(crate) struct Alike {
    /// By index of the tensor in the plan.
    kinds: Vec<usize>,
    /// A tensor of each kind.
    examples: Vec<usize>,
}

impl Alike {
    pub(crate) fn new(plan: &ShardPlan) -> Self {
        let mut known: HashMap<(&[u64], &Placement), usize> = HashMap::new();
        let (mut kinds, mut examples) = (Vec::with_capacity(plan.tensors.len()), Vec::new());
        for (number, tensor) in plan.tensors.iter().enumerate() {
            let next = known.len();
            let kind = *known.entry((&tensor.shape, &tensor.placement)).or_insert(next);
            if kind == next {
                examples.push(number);
            }
            kinds.push(kind);
        }
        Self { kinds, examples }
    }

    /// Elements that a rank holds of each kind, and those of the buffer for them.
    fn sizes(&self, plan: &ShardPlan, rank: u32) -> Vec<(u64, u64)> {
        let of = |&example: &usize| &plan.tensors[example];
        self.examples.iter().map(of).map(|tensor| (tensor.valid_numel(rank), tensor.padded_numel(rank))).collect()
    }
}

impl Slot {
    fn new(arena: usize, offset: u64) -> Option<Self> {
        (arena < 256 && offset < 1 << 56).then_some(Self((arena as u64) << 56 | offset))
    }

    pub(crate) fn arena(self) -> usize {
        (self.0 >> 56) as usize
    }

    /// Below the arena's size, which is a `usize`.
    pub(crate) fn offset(self) -> usize {
        (self.0 & ((1 << 56) - 1)) as usize
    }
}

impl RankLayout {
    /// Lays one rank out. `order` has the plan's tensors in file order.
    pub(crate) fn new(plan: &ShardPlan, rank: u32, order: &[u32], alike: &Alike, tables: &mut Tables) -> Result<Self> {
        let mut layout = Self { rank, arenas: Vec::new(), slots: Arc::new([]), needed_bytes: 0, shard_bytes: 0, padding_bytes: 0 };
        let mut slots = vec![Slot::default(); plan.tensors.len()];
        let sizes = alike.sizes(plan, rank);
        for &t in order {
            let tensor = &plan.tensors[t as usize];
            slots[t as usize] = layout
                .place(tensor, sizes[alike.kinds[t as usize]])
                .ok_or_else(|| EngineError::new(ErrorKind::Plan, "the shard's size overflows").tensor(&tensor.name).rank(rank))?;
        }
        layout.slots = tables.shared(slots);
        Ok(layout)
    }

    /// `None` where a size overflows.
    fn place(&mut self, tensor: &shardwright_core::TensorPlan, (valid, padded): (u64, u64)) -> Option<Slot> {
        let dtype = tensor.precision.storage;
        let (stored, size) = (dtype.bytes(valid)?, dtype.bytes(padded)?);
        let arena = match self.arenas.iter().position(|a| a.0 == dtype) {
            Some(arena) => arena,
            None => {
                self.arenas.push((dtype, 0));
                self.arenas.len() - 1
            }
        };
        let end = &mut self.arenas[arena].1;
        let offset = start(*end, size)?;
        *end = offset.checked_add(size)?;
        let slot = Slot::new(arena, offset)?;
        self.needed_bytes = self.needed_bytes.checked_add(tensor.source.bytes(valid)?)?;
        self.shard_bytes = self.shard_bytes.checked_add(stored)?;
        self.padding_bytes = self.padding_bytes.checked_add(size.checked_sub(stored)?)?;
        Some(slot)
    }
}

/// Where a tensor of `size` bytes starts behind `end` bytes of others; `None` where that overflows.
fn start(end: u64, size: u64) -> Option<u64> {
    end.checked_next_multiple_of(size.min(TENSOR_ALIGNMENT).next_power_of_two())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_tensors_take_no_more_than_they_need() {
        let end = |sizes: &[u64]| sizes.iter().fold(0, |end, &size| start(end, size).unwrap() + size);
        assert_eq!(end(&[4; 100]), 400);
        assert_eq!(end(&[2, 8, 0, 1]), 17);
        assert_eq!(start(2, 24), Some(32));
        assert_eq!(start(100, 4096), Some(128));
        assert_eq!(start(u64::MAX, 4096), None);
    }

    #[test]
    fn equal_tables_are_kept_once() {
        let mut tables = Tables::default();
        let of = |offsets: &[u64]| offsets.iter().map(|&offset| Slot::new(0, offset).unwrap()).collect::<Vec<_>>();
        let (a, b, c) = (tables.shared(of(&[0, 64])), tables.shared(of(&[0, 128])), tables.shared(of(&[0, 64])));
        assert!(Arc::ptr_eq(&a, &c) && !Arc::ptr_eq(&a, &b));
    }
}
