//! Which tensors a rank's file holds, in which shapes: a pure function of the plan, shared by the writer and the verifier.
//!
//! Every distinct part of a tensor is written once, by the lowest rank that holds it: replicas (HSDP, buffers) are not repeated, as in
//! torch's own deduplicated saves.

use serde::{Deserialize, Serialize};
use shardwright_core::{DType, Name, Region, ShardPlan, TensorPlan};

use super::aliases::Alias;

/// One tensor in one rank's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name in the file: the tensor's, or a second one.
    pub name: Name,
    /// The tensor's index in the plan.
    pub tensor: usize,
    /// Its element type.
    pub dtype: DType,
    /// Its shape in the file: the local shape of a box, `[partition]` of a flat part.
    pub shape: Vec<u64>,
    /// Bytes in the file, padding included.
    pub bytes: u64,
    /// Which part of the whole tensor it is.
    pub part: Part,
}

impl Entry {
    /// Bytes in the file, padding left out; `None` where there is more padding than bytes.
    pub(crate) fn valid_bytes(&self) -> Option<u64> {
        match self.part {
            Part::Flat { padding, .. } => self.bytes.checked_sub(self.dtype.bytes(padding)?),
            Part::SavedOffsets(_) => Some(self.bytes),
        }
    }
}

/// The part of the whole tensor that an entry holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The box that starts at these indices and has the entry's shape.
    SavedOffsets(Vec<u64>),
    /// `valid` row-major elements from `start`, then `padding` zeros.
    Flat {
        /// First element, of the whole tensor.
        start: u64,
        /// Elements of the tensor.
        valid: u64,
        /// Zeros behind them.
        padding: u64,
    },
}

/// The entries of one rank's file, each made when it is asked for: there may be a million.
#[derive(Debug)]
pub struct Entries<'a> {
    plan: &'a ShardPlan,
    aliases: &'a [Alias],
    rank: u32,
    /// Indices of tensors, then of aliases, in the order of the bytes.
    order: Vec<u32>,
}

/// The entries of `rank`'s file in the order of its bytes: wide dtypes first, so that each is aligned, then by name. A tensor is there once
/// more under each alias.
///
/// # Errors
/// The name of a tensor whose size overflows.
pub fn entries<'a>(plan: &'a ShardPlan, aliases: &'a [Alias], rank: u32) -> Result<Entries<'a>, String> {
    let count = u32::try_from(plan.tensors.len() + aliases.len()).map_err(|_| "the plan has too many tensors".to_owned())?;
    let mut entries = Entries { plan, aliases, rank, order: Vec::new() };
    for index in 0..count {
        let (name, tensor) = entries.named(index);
        if let Some((shape, _)) = part(&plan.tensors[tensor], rank) {
            let dtype = plan.tensors[tensor].precision.storage;
            bytes(dtype, &shape).ok_or_else(|| format!("tensor '{name}': the size of {dtype} {shape:?} overflows"))?;
            entries.order.push(index);
        }
    }
    let mut order = std::mem::take(&mut entries.order);
    let key = |index: u32| {
        let (name, tensor) = entries.named(index);
        (std::cmp::Reverse(plan.tensors[tensor].precision.storage.bits()), name)
    };
    order.sort_by(|a, b| key(*a).cmp(&key(*b)));
    Ok(Entries { order, ..entries })
}

impl<'a> Entries<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// True where the rank keeps nothing.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// In the order of the bytes.
    pub fn iter(&self) -> impl Iterator<Item = Entry> {
        self.range(0..self.len())
    }

    /// Those at these places of the order.
    pub fn range(&self, range: std::ops::Range<usize>) -> impl Iterator<Item = Entry> {
        self.order[range].iter().filter_map(|&index| self.at(index))
    }

    /// Their names, in the order of the bytes.
    pub(crate) fn names(&self) -> impl Iterator<Item = &Name> {
        self.order.iter().map(|&index| self.named(index).0)
    }

    /// The entry of that name, if the rank keeps one.
    pub(crate) fn entry(&self, name: &str) -> Option<Entry> {
        let tensors = &self.plan.tensors;
        let index = match tensors.binary_search_by(|t| t.name.as_str().cmp(name)) {
            Ok(index) => index,
            Err(_) => tensors.len() + self.aliases.binary_search_by(|a| a.name.as_str().cmp(name)).ok()?,
        };
        self.at(u32::try_from(index).ok()?)
    }

    fn at(&self, index: u32) -> Option<Entry> {
        let (name, tensor) = self.named(index);
        let (shape, part) = part(&self.plan.tensors[tensor], self.rank)?;
        let dtype = self.plan.tensors[tensor].precision.storage;
        Some(Entry { name: name.clone(), tensor, dtype, bytes: bytes(dtype, &shape)?, shape, part })
    }

    fn named(&self, index: u32) -> (&'a Name, usize) {
        let index = index as usize;
        match self.plan.tensors.get(index) {
            Some(tensor) => (&tensor.name, index),
            None => {
                let alias = &self.aliases[index - self.plan.tensors.len()];
                (&alias.name, alias.tensor)
            }
        }
    }
}

fn bytes(dtype: DType, shape: &[u64]) -> Option<u64> {
    shardwright_core::model::numel(shape).and_then(|n| dtype.bytes(n))
}

/// What `rank` writes of a tensor, if anything.
fn part(tensor: &TensorPlan, rank: u32) -> Option<(Vec<u64>, Part)> {
    let (placement, shape) = (&tensor.placement, &tensor.shape);
    if !placement.is_first_replica(rank) {
        return None; // a lower rank has the same
    }
    let region = tensor.region(rank);
    match &region {
        Region::Empty => return None,
        Region::Flat { range } => {
            let (partition, valid) = (tensor.padded_numel(rank), range.end - range.start);
            let part = Part::Flat { start: range.start, valid, padding: partition.checked_sub(valid)? };
            return Some((vec![partition], part));
        }
        _ => {}
    }
    // Of a tensor without elements one shard stands for all.
    if shape.contains(&0) {
        let first = placement.cuts.iter().all(|cut| cut.axis.coordinate(rank) == 0 || cut.layout.dim().is_none());
        return first.then(|| (shape.clone(), Part::SavedOffsets(vec![0; shape.len()])));
    }
    if region.numel(shape) == 0 {
        // torch keeps an empty shard behind the end of a tensor, once. One in the middle would hide the shard that starts there.
        let behind = matches!(&region, Region::Dim { dim, range } if range.start >= shape[*dim]);
        let coordinate = placement.coordinate(rank);
        let once = coordinate == 0 || placement.region_at(shape, coordinate - 1) != region;
        if !(behind && once && placement.cuts.len() == 1) {
            return None;
        }
    }
    Some((region.local_shape(shape)?, Part::SavedOffsets(region.offsets(shape)?)))
}

#[cfg(test)]
mod tests {
    use shardwright_core::{Cut, GroupAxis, Layout, Mesh, ModelFacts, ModelMeta, Padding, Placement, PlanInput, TensorMeta};

    use super::*;
    use crate::testing::AsStored;

    fn plan(shape: &[u64], axis: GroupAxis, layout: Layout, world_size: u32) -> ShardPlan {
        let model = ModelMeta::new(vec![TensorMeta::new("t", DType::F32, shape)], ModelFacts::default()).unwrap();
        let mesh = Mesh::replicate_shard(world_size / axis.size, axis.size).unwrap();
        let placement = Placement::one(axis, layout, Padding::ToFirst);
        PlanInput::new(&model, &mesh, &AsStored).plan_tensors("test", |_| Ok(placement.clone())).unwrap()
    }

    /// As [`plan`], with these cuts on 2 × 2 ranks, or none.
    fn of_cuts(shape: &[u64], cuts: &[Cut]) -> ShardPlan {
        let mut plan = plan(shape, GroupAxis { stride: 1, size: 1 }, Layout::Chunk { dim: 0 }, 4);
        plan.tensors[0].placement = Placement::of(cuts.iter().cloned()).padded();
        plan
    }

    /// Per rank: the offset and the rows of each entry.
    fn rows(plan: &ShardPlan) -> Vec<Vec<(u64, u64)>> {
        let of = |entry: Entry| match entry.part {
            Part::SavedOffsets(offsets) => (offsets[0], entry.shape[0]),
            Part::Flat { start, valid, .. } => (start, valid),
        };
        (0..plan.mesh.world_size()).map(|rank| entries(plan, &[], rank).unwrap().iter().map(of).collect()).collect()
    }

    /// torch 2.15's writer, ran: one entry for all empty shards, its offset at the global size.
    #[test]
    fn an_empty_shard_is_kept_once() {
        let axis = GroupAxis { stride: 1, size: 6 };
        let chunk = |chunk| Layout::Dim { dim: 0, chunk };
        assert_eq!(rows(&plan(&[5, 2], axis, chunk(2), 6)), [vec![(0, 2)], vec![(2, 2)], vec![(4, 1)], vec![(5, 0)], vec![], vec![]]);
        assert_eq!(rows(&plan(&[0, 2], axis, chunk(0), 6)), [vec![(0, 0)], vec![], vec![], vec![], vec![], vec![]]);
    }

    #[test]
    fn an_empty_range_between_others_is_left_out() {
        let layout = Layout::Bounds { dim: 0, bounds: vec![0, 2, 2, 5] };
        assert_eq!(rows(&plan(&[5, 2], GroupAxis { stride: 1, size: 3 }, layout, 3)), [vec![(0, 2)], vec![], vec![(2, 3)]]);
    }

    #[test]
    fn replicas_are_kept_by_the_lowest_rank_that_holds_them() {
        let dim = Layout::Dim { dim: 0, chunk: 2 };
        let inner = GroupAxis { stride: 1, size: 2 };
        assert_eq!(rows(&plan(&[4], inner, dim.clone(), 4)), [vec![(0, 2)], vec![(2, 2)], vec![], vec![]]);
        let outer = GroupAxis { stride: 2, size: 2 };
        assert_eq!(rows(&plan(&[4], outer, dim, 4)), [vec![(0, 2)], vec![], vec![(2, 2)], vec![]]);
        assert_eq!(rows(&of_cuts(&[4], &[])), [vec![(0, 4)], vec![], vec![], vec![]]);
        assert_eq!(rows(&plan(&[4], inner, Layout::Owner { coordinate: 1 }, 4)), [vec![], vec![(0, 4)], vec![], vec![]]);
    }

    #[test]
    fn boxes_are_kept_with_their_offsets_and_empty_ones_are_not() {
        let (tp, fsdp) = (GroupAxis { stride: 1, size: 2 }, GroupAxis { stride: 2, size: 2 });
        let of = |shape: &[u64], cuts: &[Cut]| {
            let plan = of_cuts(shape, cuts);
            let part = |rank| entries(&plan, &[], rank).unwrap().iter().map(|e| (e.shape, e.part)).next();
            [0, 1, 2, 3].map(part)
        };
        let at = |shape: [u64; 2], offsets: [u64; 2]| Some((shape.to_vec(), Part::SavedOffsets(offsets.to_vec())));
        let grid = of(&[3, 5], &[Cut::chunk(tp, 1), Cut::chunk(fsdp, 0)]);
        assert_eq!(grid, [at([2, 3], [0, 0]), at([2, 2], [0, 3]), at([1, 3], [2, 0]), at([1, 2], [2, 3])]);
        let strided = of(&[7, 2], &[Cut::chunk(tp, 0), Cut::chunk(fsdp, 0)]);
        assert_eq!(strided, [at([2, 2], [0, 0]), at([2, 2], [4, 0]), at([2, 2], [2, 0]), at([1, 2], [6, 0])]);
        assert_eq!(of(&[1, 2], &[Cut::chunk(tp, 1), Cut::chunk(fsdp, 0)]), [at([1, 1], [0, 0]), at([1, 1], [0, 1]), None, None]);
        assert_eq!(of(&[5, 0], &[Cut::chunk(tp, 1), Cut::chunk(fsdp, 0)]), [at([5, 0], [0, 0]), None, None, None]);
        assert_eq!(of(&[4, 2], &[Cut::owner(tp, 1), Cut::chunk(fsdp, 0)]), [None, at([2, 2], [0, 0]), None, at([2, 2], [2, 0])]);
    }

    #[test]
    fn a_flat_part_has_its_padding() {
        let axis = GroupAxis { stride: 1, size: 8 };
        let plan = plan(&[9], axis, Layout::Flat { partition: 2 }, 8);
        let of = |rank| entries(&plan, &[], rank).unwrap().iter().next().unwrap();
        assert_eq!((of(4).shape, of(4).part), (vec![2], Part::Flat { start: 8, valid: 1, padding: 1 }));
        assert_eq!((of(7).shape, of(7).part), (vec![2], Part::Flat { start: 9, valid: 0, padding: 2 }));
    }
}
