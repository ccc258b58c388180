//! The part of a tensor that a rank holds, and the rules that give each rank its part.
//!
//! A [`Layout`] is a rule, not a table: a plan for 1,024 ranks is no larger than a plan for two.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{mesh::GroupAxis, model::numel};

/// The part of one tensor that one rank holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Region {
    /// Nothing.
    Empty,
    /// All of it.
    Whole,
    /// A range of indices of one dim; an empty range keeps its place (torch's empty shard of shape `(0, d1, …)`).
    Dim {
        /// The dim that is cut, 0 the outermost.
        dim: usize,
        /// Indices along it.
        range: Range<u64>,
    },
    /// A range of row-major flat elements.
    Flat {
        /// Elements.
        range: Range<u64>,
    },
}

impl Region {
    /// Number of elements of a tensor of that (valid) shape inside the region.
    pub fn numel(&self, shape: &[u64]) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Whole => numel(shape).unwrap_or(u64::MAX),
            Self::Dim { dim, range } => outer(shape, *dim).saturating_mul(inner(shape, *dim)).saturating_mul(len(range)),
            Self::Flat { range } => len(range),
        }
    }

    /// The shape of the part, for parts that have one: `None` for flat parts.
    pub fn local_shape(&self, shape: &[u64]) -> Option<Vec<u64>> {
        let mut local = shape.to_vec();
        match self {
            Self::Whole => {}
            Self::Empty => local.first_mut().into_iter().for_each(|d| *d = 0),
            Self::Dim { dim, range } => local[*dim] = len(range),
            Self::Flat { .. } => return None,
        }
        Some(local)
    }

    /// The region as contiguous runs of row-major flat elements, ascending. A dim-0 part is one run.
    pub fn runs(&self, shape: &[u64]) -> Runs {
        match self {
            Self::Empty => Runs { next: 0, step: 0, length: 0, left: 0 },
            Self::Whole => Runs::one(0, numel(shape).unwrap_or(0)),
            Self::Flat { range } => Runs::one(range.start, len(range)),
            Self::Dim { dim, range } => {
                let (inner, outer) = (inner(shape, *dim), outer(shape, *dim));
                let length = inner.saturating_mul(len(range));
                let left = if length == 0 { 0 } else { outer };
                Runs { next: range.start.saturating_mul(inner), step: inner.saturating_mul(shape[*dim]), length, left }
            }
        }
    }
}

/// A range that ends before it starts is empty, as everywhere in Rust.
fn len(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

/// Elements under one index of `dim`; saturates on shapes that [`numel`] has no answer for.
fn inner(shape: &[u64], dim: usize) -> u64 {
    numel(&shape[dim + 1..]).unwrap_or(u64::MAX)
}

/// Index combinations above `dim`.
fn outer(shape: &[u64], dim: usize) -> u64 {
    numel(&shape[..dim]).unwrap_or(u64::MAX)
}

/// Iterator over `(first element, number of elements)`; see [`Region::runs`].
#[derive(Clone, Debug)]
pub struct Runs {
    next: u64,
    step: u64,
    length: u64,
    left: u64,
}

impl Runs {
    fn one(start: u64, length: u64) -> Self {
        Self { next: start, step: 0, length, left: u64::from(length > 0) }
    }
}

impl Iterator for Runs {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        self.left = self.left.checked_sub(1)?;
        let start = self.next;
        self.next = start.saturating_add(self.step);
        Some(start..start + self.length)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let n = usize::try_from(self.left).unwrap_or(usize::MAX);
        (n, Some(n))
    }
}

/// The rule that gives each coordinate of a group its region of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Layout {
    /// Whole on every rank.
    Replicated,
    /// `torch.chunk` on one dim: coordinate c holds indices `[c·chunk, min((c+1)·chunk, d))`, the last ones maybe nothing.
    Dim {
        /// The dim that is cut.
        dim: usize,
        /// Indices per coordinate.
        chunk: u64,
    },
    /// Row-major flat elements `[c·partition, min((c+1)·partition, numel))`.
    Flat {
        /// Elements per coordinate, padding included.
        partition: u64,
    },
    /// Whole on one coordinate of the group, nothing on the others (an expert's own rank).
    Owner {
        /// The coordinate that holds it.
        coordinate: u32,
    },
    /// One dim cut at the given indices: coordinate c holds `[bounds[c], bounds[c+1])`.
    Bounds {
        /// The dim that is cut.
        dim: usize,
        /// One more than there are coordinates, ascending, from 0 to the dim's size.
        bounds: Vec<u64>,
    },
}

/// Whether every rank's buffer has the same size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// A rank's buffer holds its region and nothing else.
    None,
    /// Every rank's buffer is as large as coordinate 0's; what is left over behind the region is zeros.
    ToFirst,
}

/// Where a tensor lies: over which groups it is cut, by which rule, padded how.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Placement {
    /// The groups that share the tensor.
    pub axis: GroupAxis,
    /// The rule inside a group.
    pub layout: Layout,
    /// Whether buffers are padded to one size.
    pub padding: Padding,
}

impl Placement {
    /// Whole on every rank of any world.
    pub fn replicated() -> Self {
        Self { axis: GroupAxis { stride: 1, size: 1 }, layout: Layout::Replicated, padding: Padding::None }
    }

    /// One dim cut as `torch.chunk` cuts it, buffers padded to the first: the layout of FSDP2.
    ///
    /// # Errors
    /// The tensor has no such dim.
    pub fn chunked(axis: GroupAxis, shape: &[u64], dim: usize) -> Result<Self, String> {
        let size = shape.get(dim).ok_or_else(|| format!("it has {} dims, so there is no dim {dim} to cut", shape.len()))?;
        let layout = Layout::Dim { dim, chunk: size.div_ceil(u64::from(axis.size)) };
        Ok(Self { axis, layout, padding: Padding::ToFirst })
    }

    /// Equal runs of row-major flat elements, buffers padded to one size: the layout of ZeRO-3.
    ///
    /// # Errors
    /// The number of elements overflows.
    pub fn flat(axis: GroupAxis, shape: &[u64]) -> Result<Self, String> {
        let numel = numel(shape).ok_or("its number of elements overflows")?;
        Ok(Self { axis, layout: Layout::Flat { partition: numel.div_ceil(u64::from(axis.size)) }, padding: Padding::ToFirst })
    }

    /// Whole on one coordinate of each group, nothing on the others.
    pub fn owned(axis: GroupAxis, coordinate: u32) -> Self {
        Self { axis, layout: Layout::Owner { coordinate }, padding: Padding::None }
    }

    /// The region of one rank.
    pub fn region(&self, shape: &[u64], rank: u32) -> Region {
        self.region_at(shape, self.axis.coordinate(rank))
    }

    /// The region of one coordinate of a group.
    pub fn region_at(&self, shape: &[u64], coordinate: u32) -> Region {
        let cut = |size: u64, step: u64| {
            let start = u64::from(coordinate).saturating_mul(step).min(size);
            start..start.saturating_add(step).min(size)
        };
        match &self.layout {
            Layout::Replicated => Region::Whole,
            Layout::Dim { dim, chunk } => Region::Dim { dim: *dim, range: cut(shape[*dim], *chunk) },
            Layout::Flat { partition } => Region::Flat { range: cut(numel(shape).unwrap_or(0), *partition) },
            Layout::Owner { coordinate: owner } if *owner == coordinate => Region::Whole,
            Layout::Owner { .. } => Region::Empty,
            Layout::Bounds { dim, bounds } => {
                let at = coordinate as usize;
                Region::Dim { dim: *dim, range: bounds[at]..bounds[at + 1] }
            }
        }
    }

    /// Elements of a rank's buffer, padding included.
    pub fn padded_numel(&self, shape: &[u64], rank: u32) -> u64 {
        match (&self.layout, self.padding) {
            (Layout::Flat { partition }, Padding::ToFirst) => *partition,
            (_, Padding::ToFirst) => self.region_at(shape, 0).numel(shape),
            (_, Padding::None) => self.region(shape, rank).numel(shape),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dim0(rows: u64, n: u32) -> Vec<u64> {
        let p = Placement {
            axis: GroupAxis { stride: 1, size: n },
            layout: Layout::Dim { dim: 0, chunk: rows.div_ceil(u64::from(n)) },
            padding: Padding::ToFirst,
        };
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
        let p = Placement { axis: GroupAxis { stride: 1, size: 8 }, layout: Layout::Flat { partition: 2 }, padding: Padding::ToFirst };
        let valid: Vec<u64> = (0..8).map(|r| p.region(&[9], r).numel(&[9])).collect();
        assert_eq!(valid, [2, 2, 2, 2, 1, 0, 0, 0]);
        assert_eq!(p.padded_numel(&[9], 7), 2);
    }

    #[test]
    fn an_inner_dim_is_strided() {
        let shape = [2, 4, 3];
        let region = Region::Dim { dim: 1, range: 1..3 };
        assert_eq!(region.runs(&shape).collect::<Vec<_>>(), [3..9, 15..21]);
        assert_eq!(region.numel(&shape), 12);
        assert_eq!(region.local_shape(&shape), Some(vec![2, 2, 3]));
        assert_eq!(Region::Dim { dim: 0, range: 4..4 }.runs(&[4, 9]).count(), 0);
    }

    /// A zero wins over an overflow in a shape, so the parts of such a tensor are counted without one.
    #[test]
    fn an_empty_tensor_of_huge_dims_has_empty_parts() {
        let shape = [0, u64::MAX, u64::MAX];
        for dim in 0..3 {
            let region = Region::Dim { dim, range: 0..shape[dim] };
            assert_eq!(region.numel(&shape), 0);
            assert_eq!(region.runs(&shape).count(), 0);
        }
    }
}
