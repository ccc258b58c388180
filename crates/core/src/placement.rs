//! The rules that give each rank its part of a tensor: an ordered list of cuts.
//!
//! A [`Layout`] is a rule, not a table: a plan for 1,024 ranks is no larger than a plan for two.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{mesh::GroupAxis, model::numel, region::Region};

/// The rule that gives each coordinate along an axis its part of what the cuts before left.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Layout {
    /// Equal steps along one dim: coordinate c holds indices `[c·chunk, min((c+1)·chunk, d))`, the last ones maybe nothing.
    Dim {
        /// The dim that is cut.
        dim: usize,
        /// Indices per coordinate.
        chunk: u64,
    },
    /// `torch.chunk` of one dim: [`Layout::Dim`] with ⌈d / ranks⌉ indices per coordinate, d being what the cuts before left of the dim.
    Chunk {
        /// The dim that is cut.
        dim: usize,
    },
    /// Row-major flat elements `[c·partition, min((c+1)·partition, numel))`.
    Flat {
        /// Elements per coordinate, padding included.
        partition: u64,
    },
    /// [`Layout::Flat`] with ⌈numel / ranks⌉ elements per coordinate, numel being what the cuts before left.
    Partition,
    /// Everything on one coordinate, nothing on the others (an expert's own rank).
    Owner {
        /// The coordinate that holds it.
        coordinate: u32,
    },
    /// One dim cut at the given indices: coordinate c holds `[bounds[c], bounds[c+1])`.
    Bounds {
        /// The dim that is cut.
        dim: usize,
        /// One more than there are coordinates, ascending, from 0 to the size that the cuts before left of the dim.
        bounds: Vec<u64>,
    },
}

/// Whether every rank's buffer has the same size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// A rank's buffer holds its region and nothing else.
    None,
    /// Every rank's buffer is as large as that of coordinate 0 of the last cut; what is left over behind the region is zeros. A shard
    /// without elements has an empty range on the dim of the last cut.
    ToFirst,
}

/// One cut of a tensor over the ranks along an axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cut {
    /// The ranks that share what the cuts before left.
    pub axis: GroupAxis,
    /// Which of them holds which part.
    pub layout: Layout,
}

/// Where a tensor lies: cuts in their order, each applied to what the one before left. Along the axes that no cut names, ranks hold the same.
///
/// FSDP, HSDP and ZeRO-3 are one cut; tensor parallelism under FSDP is two, first over the `tp` axis, then over the `fsdp` axis, on
/// another dim or on the same one (torch's `_StridedShard`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Placement {
    /// The cuts, the first one applied first; none for a tensor that is whole on every rank.
    pub cuts: Vec<Cut>,
    /// Whether buffers are padded to one size.
    pub padding: Padding,
}

/// A [`Placement`] as JSON has it: a single cut without a list.
#[derive(Serialize, Deserialize)]
struct Written {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    axis: Option<GroupAxis>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layout: Option<WrittenLayout>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    cuts: Vec<Cut>,
    padding: Padding,
}

/// A [`Layout`], or the word for no cut.
enum WrittenLayout {
    Cut(Layout),
    Replicated,
}

/// The word for no cut.
const REPLICATED: &str = "replicated";
/// The axis that is written where there is no cut.
const NO_AXIS: GroupAxis = GroupAxis { stride: 1, size: 1 };

impl Serialize for WrittenLayout {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Cut(layout) => layout.serialize(serializer),
            Self::Replicated => serializer.serialize_str(REPLICATED),
        }
    }
}

impl<'de> Deserialize<'de> for WrittenLayout {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = WrittenLayout;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a layout")
            }

            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<WrittenLayout, E> {
                if word == REPLICATED {
                    return Ok(WrittenLayout::Replicated);
                }
                Layout::deserialize(serde::de::value::StrDeserializer::new(word)).map(WrittenLayout::Cut)
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<WrittenLayout, A::Error> {
                Layout::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(WrittenLayout::Cut)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl From<Placement> for Written {
    fn from(Placement { mut cuts, padding }: Placement) -> Self {
        if cuts.len() > 1 {
            return Self { axis: None, layout: None, cuts, padding };
        }
        let (axis, layout) = match cuts.pop() {
            Some(Cut { axis, layout }) => (axis, WrittenLayout::Cut(layout)),
            None => (NO_AXIS, WrittenLayout::Replicated),
        };
        Self { axis: Some(axis), layout: Some(layout), cuts, padding }
    }
}

impl TryFrom<Written> for Placement {
    type Error = String;

    fn try_from(Written { axis, layout, cuts, padding }: Written) -> Result<Self, String> {
        match (axis, layout) {
            (Some(axis), Some(WrittenLayout::Cut(layout))) if cuts.is_empty() => Ok(Self::one(axis, layout, padding)),
            (Some(axis), Some(WrittenLayout::Replicated)) if cuts.is_empty() && axis.size == 1 => Ok(Self { cuts, padding }),
            (None, None) if !cuts.is_empty() => Ok(Self { cuts, padding }),
            _ => Err("a placement has either an axis and a layout, or cuts; a replicated one has groups of one rank".into()),
        }
    }
}

impl Cut {
    /// `torch.chunk` of one dim of what the cuts before left.
    pub fn chunk(axis: GroupAxis, dim: usize) -> Self {
        Self { axis, layout: Layout::Chunk { dim } }
    }

    /// Equal runs of the row-major elements that the cuts before left.
    pub fn flat(axis: GroupAxis) -> Self {
        Self { axis, layout: Layout::Partition }
    }

    /// Everything on one coordinate of the axis, nothing on the others.
    pub fn owner(axis: GroupAxis, coordinate: u32) -> Self {
        Self { axis, layout: Layout::Owner { coordinate } }
    }

    /// The part of `left` that a coordinate holds.
    fn apply(&self, left: Region, shape: &[u64], coordinate: u32) -> Region {
        let ranks = u64::from(self.axis.size.max(1));
        match &self.layout {
            Layout::Owner { coordinate: owner } if *owner == coordinate => left,
            Layout::Owner { .. } => Region::Empty,
            Layout::Dim { dim, .. } | Layout::Chunk { dim } | Layout::Bounds { dim, .. } => {
                let Some(range) = left.along(shape, *dim) else { return Region::Empty };
                let size = range.end.saturating_sub(range.start);
                let part = match &self.layout {
                    Layout::Dim { chunk, .. } => step(size, *chunk, coordinate),
                    Layout::Bounds { bounds, .. } => bounds[coordinate as usize]..bounds[coordinate as usize + 1],
                    _ => step(size, size.div_ceil(ranks), coordinate),
                };
                left.with(shape, *dim, range.start.saturating_add(part.start)..range.start.saturating_add(part.end))
            }
            Layout::Flat { .. } | Layout::Partition => {
                if left == Region::Empty {
                    return left;
                }
                let Some(run) = left.as_run(shape) else { return Region::Empty };
                let size = run.end.saturating_sub(run.start);
                let partition = if let Layout::Flat { partition } = self.layout { partition } else { size.div_ceil(ranks) };
                let part = step(size, partition, coordinate);
                Region::Flat { range: run.start + part.start..run.start + part.end }
            }
        }
    }
}

/// Step number `coordinate` of `size` indices.
fn step(size: u64, step: u64, coordinate: u32) -> Range<u64> {
    let start = u64::from(coordinate).saturating_mul(step).min(size);
    start..start.saturating_add(step).min(size)
}

impl Layout {
    /// The dim that it cuts.
    pub fn dim(&self) -> Option<usize> {
        match self {
            Self::Dim { dim, .. } | Self::Chunk { dim } | Self::Bounds { dim, .. } => Some(*dim),
            Self::Flat { .. } | Self::Partition | Self::Owner { .. } => None,
        }
    }

    /// Whether it cuts flat elements.
    pub fn is_flat(&self) -> bool {
        matches!(self, Self::Flat { .. } | Self::Partition)
    }
}

impl Placement {
    /// Whole on every rank of any world.
    pub const fn replicated() -> Self {
        Self { cuts: Vec::new(), padding: Padding::None }
    }

    /// These cuts, the first one applied first; buffers hold their regions and nothing else.
    pub fn of(cuts: impl IntoIterator<Item = Cut>) -> Self {
        Self { cuts: cuts.into_iter().collect(), padding: Padding::None }
    }

    /// One cut.
    pub fn one(axis: GroupAxis, layout: Layout, padding: Padding) -> Self {
        Self { cuts: vec![Cut { axis, layout }], padding }
    }

    /// One dim cut as `torch.chunk` cuts it, buffers padded to the first.
    ///
    /// # Errors
    /// The tensor has no such dim.
    pub fn chunked(axis: GroupAxis, shape: &[u64], dim: usize) -> Result<Self, String> {
        let size = shape.get(dim).ok_or_else(|| format!("it has {} dims, so there is no dim {dim} to cut", shape.len()))?;
        Ok(Self::one(axis, Layout::Dim { dim, chunk: size.div_ceil(u64::from(axis.size)) }, Padding::ToFirst))
    }

    /// Equal runs of row-major flat elements, buffers padded to one size.
    ///
    /// # Errors
    /// The number of elements overflows.
    pub fn flat(axis: GroupAxis, shape: &[u64]) -> Result<Self, String> {
        let numel = numel(shape).ok_or_else(|| format!("has more elements than a u64 counts: shape {shape:?}"))?;
        Ok(Self::one(axis, Layout::Flat { partition: numel.div_ceil(u64::from(axis.size)) }, Padding::ToFirst))
    }

    /// Whole on one coordinate of each group, nothing on the others.
    pub fn owned(axis: GroupAxis, coordinate: u32) -> Self {
        Self::of([Cut::owner(axis, coordinate)])
    }

    /// The same with one cut more, applied last.
    #[must_use]
    pub fn then(mut self, cut: Cut) -> Self {
        self.cuts.push(cut);
        self
    }

    /// The same with buffers padded to coordinate 0's of the last cut, as `fully_shard` does.
    #[must_use]
    pub fn padded(self) -> Self {
        Self { padding: Padding::ToFirst, ..self }
    }

    /// True where every rank holds all of it.
    pub fn is_replicated(&self) -> bool {
        self.cuts.is_empty()
    }

    /// Whether ranks hold runs of flat elements.
    pub fn is_flat(&self) -> bool {
        self.cuts.iter().any(|cut| cut.layout.is_flat())
    }

    /// Ranks in a group: those that together hold the tensor once.
    pub fn group_size(&self) -> u32 {
        self.cuts.iter().map(|cut| cut.axis.size).fold(1, u32::saturating_mul)
    }

    /// A rank's coordinate in its group: its coordinates along the axes of the cuts as one number, the first cut's being the outermost.
    pub fn coordinate(&self, rank: u32) -> u32 {
        self.cuts.iter().fold(0, |at, cut| at.saturating_mul(cut.axis.size).saturating_add(cut.axis.coordinate(rank)))
    }

    /// True where no lower rank holds the same part because of the axes that no cut names.
    pub fn is_first_replica(&self, rank: u32) -> bool {
        let first = |at: u32, cut: &Cut| at.checked_add(cut.axis.stride.checked_mul(cut.axis.coordinate(rank))?);
        self.cuts.iter().try_fold(0, first) == Some(rank)
    }

    /// The region of one rank.
    pub fn region(&self, shape: &[u64], rank: u32) -> Region {
        self.region_by(shape, |cut| cut.axis.coordinate(rank))
    }

    /// The region of one coordinate of a group, see [`Placement::coordinate`].
    pub fn region_at(&self, shape: &[u64], coordinate: u32) -> Region {
        let mut inner = self.group_size();
        self.region_by(shape, |cut| {
            inner = (inner / cut.axis.size.max(1)).max(1);
            coordinate / inner % cut.axis.size.max(1)
        })
    }

    fn region_by(&self, shape: &[u64], mut coordinate: impl FnMut(&Cut) -> u32) -> Region {
        let region = self.cuts.iter().fold(Region::Whole, |left, cut| cut.apply(left, shape, coordinate(cut)));
        let padded = self.padding == Padding::ToFirst;
        let Some(dim) = self.cuts.last().and_then(|cut| cut.layout.dim()).filter(|_| padded) else { return region };
        if region.numel(shape) > 0 {
            return region;
        }
        let start = region.along(shape, dim).map_or(0, |range| range.start);
        region.with(shape, dim, start..start)
    }

    /// Elements of a rank's buffer, padding included.
    pub fn padded_numel(&self, shape: &[u64], rank: u32) -> u64 {
        let Some((last, before)) = self.cuts.split_last().filter(|_| self.padding == Padding::ToFirst) else {
            return self.region(shape, rank).numel(shape);
        };
        let left = before.iter().fold(Region::Whole, |left, cut| cut.apply(left, shape, cut.axis.coordinate(rank)));
        match last.layout {
            Layout::Flat { partition } if left != Region::Empty => partition,
            _ => last.apply(left, shape, 0).numel(shape),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(size: u32) -> GroupAxis {
        GroupAxis { stride: 1, size }
    }

    fn dim0(rows: u64, n: u32) -> Vec<u64> {
        let p = Placement::chunked(over(n), &[rows], 0).unwrap();
        (0..n).map(|r| p.region(&[rows], r).numel(&[rows])).collect()
    }

    /// torch 2.15 `fully_shard`, ran: 5, 9 and 1 rows on 4 ranks.
    #[test]
    fn chunks_are_torchs() {
        assert_eq!(dim0(5, 4), [2, 2, 1, 0]);
        assert_eq!(dim0(9, 4), [3, 3, 3, 0]);
        assert_eq!(dim0(1, 4), [1, 0, 0, 0]);
    }

    /// deepspeed 0.19.8: 9 elements on 8 ranks give partitions of 2; rank 4 has one element, ranks 5 to 7 none.
    #[test]
    fn flat_padding_can_span_ranks() {
        let p = Placement::flat(over(8), &[9]).unwrap();
        let valid: Vec<u64> = (0..8).map(|r| p.region(&[9], r).numel(&[9])).collect();
        assert_eq!(valid, [2, 2, 2, 2, 1, 0, 0, 0]);
        assert_eq!(p.padded_numel(&[9], 7), 2);
    }

    /// Rows over `tp`, then what is left of the rows over `fsdp`: rank 2·fsdp + tp.
    #[test]
    fn two_cuts_of_one_dim_are_consecutive_in_the_order_of_the_cuts() {
        let (tp, fsdp) = (GroupAxis { stride: 1, size: 2 }, GroupAxis { stride: 2, size: 2 });
        let p = Placement::of([Cut::chunk(tp, 0), Cut::chunk(fsdp, 0)]).padded();
        let rows = |rank| p.region(&[7, 3], rank);
        let dim = |range| Region::Dim { dim: 0, range };
        assert_eq!([0, 1, 2, 3].map(rows), [dim(0..2), dim(4..6), dim(2..4), dim(6..7)]);
        assert_eq!([0, 1, 2, 3].map(|rank| p.padded_numel(&[7, 3], rank)), [6; 4]);
        assert_eq!([0, 1, 2, 3].map(|rank| p.coordinate(rank)), [0, 2, 1, 3]);
        assert!((0..4).all(|rank| p.region(&[7, 3], rank) == p.region_at(&[7, 3], p.coordinate(rank))));
    }

    #[test]
    fn replicas_are_known_by_the_axes_that_no_cut_names() {
        let cut = |stride, size| Cut::chunk(GroupAxis { stride, size }, 0);
        let first = |p: &Placement| (0..8).filter(|&rank| p.is_first_replica(rank)).collect::<Vec<_>>();
        assert_eq!(first(&Placement::replicated()), [0]);
        assert_eq!(first(&Placement::of([cut(1, 2)])), [0, 1]);
        assert_eq!(first(&Placement::of([cut(1, 2), cut(4, 2)])), [0, 1, 4, 5]);
    }

    /// Plans and manifests of one cut are read as they were written before there were several.
    #[test]
    fn one_cut_is_written_without_a_list() {
        let one = Placement::chunked(over(2), &[4], 0).unwrap();
        let json = serde_json::json!({"axis": {"stride": 1, "size": 2}, "layout": {"dim": {"dim": 0, "chunk": 2}}, "padding": "to_first"});
        assert_eq!(serde_json::to_value(&one).unwrap(), json);
        let whole = serde_json::json!({"axis": {"stride": 1, "size": 1}, "layout": "replicated", "padding": "none"});
        assert_eq!(serde_json::to_value(Placement::replicated()).unwrap(), whole);
        let two = one.clone().then(Cut::flat(GroupAxis { stride: 2, size: 2 }));
        for placement in [one, Placement::replicated(), two] {
            let text = serde_json::to_string(&placement).unwrap();
            assert_eq!(serde_json::from_str::<Placement>(&text).unwrap(), placement, "{text}");
        }
        let mut over_a_group = whole;
        over_a_group["axis"]["size"] = 2.into();
        assert!(serde_json::from_value::<Placement>(over_a_group).is_err());
    }
}
