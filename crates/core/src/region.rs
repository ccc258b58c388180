//! The part of a tensor that a rank holds.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::model::numel;

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
    /// A range of indices of each dim: what is left after cuts on several dims.
    Box {
        /// One range per dim, 0 the outermost.
        ranges: Vec<Range<u64>>,
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
            Self::Box { ranges } => ranges.iter().map(len).try_fold(1u64, u64::checked_mul).unwrap_or_else(|| {
                let any_empty = ranges.iter().any(|r| len(r) == 0);
                if any_empty { 0 } else { u64::MAX }
            }),
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
            Self::Box { ranges } => local.iter_mut().zip(ranges).for_each(|(d, range)| *d = len(range)),
        }
        Some(local)
    }

    /// The indices that the part starts at, for parts that have a shape: `None` for flat parts.
    pub fn offsets(&self, shape: &[u64]) -> Option<Vec<u64>> {
        let mut offsets = vec![0; shape.len()];
        match self {
            Self::Whole | Self::Empty => {}
            Self::Dim { dim, range } => offsets[*dim] = range.start,
            Self::Flat { .. } => return None,
            Self::Box { ranges } => offsets.iter_mut().zip(ranges).for_each(|(at, range)| *at = range.start),
        }
        Some(offsets)
    }

    /// The range of indices of one dim; `None` for flat parts.
    pub(crate) fn along(&self, shape: &[u64], dim: usize) -> Option<Range<u64>> {
        match self {
            Self::Empty => Some(0..0),
            Self::Flat { .. } => None,
            Self::Dim { dim: cut, range } if *cut == dim => Some(range.clone()),
            Self::Whole | Self::Dim { .. } => shape.get(dim).map(|&size| 0..size),
            Self::Box { ranges } => ranges.get(dim).cloned(),
        }
    }

    /// The region with its range of one dim replaced.
    pub(crate) fn with(self, shape: &[u64], dim: usize, range: Range<u64>) -> Self {
        let mut ranges = match self {
            Self::Empty | Self::Flat { .. } => return Self::Empty,
            Self::Whole => return Self::Dim { dim, range },
            Self::Dim { dim: cut, .. } if cut == dim => return Self::Dim { dim, range },
            Self::Dim { dim: cut, range } => {
                let mut ranges: Vec<Range<u64>> = shape.iter().map(|&size| 0..size).collect();
                ranges[cut] = range;
                ranges
            }
            Self::Box { ranges } => ranges,
        };
        ranges[dim] = range;
        Self::Box { ranges }
    }

    /// The region as one run of row-major elements, where it is one whatever the sizes of its ranges.
    pub fn as_run(&self, shape: &[u64]) -> Option<Range<u64>> {
        let rows = |dim: usize, range: &Range<u64>| match outer(shape, dim) {
            _ if *range == (0..shape[dim]) => numel(shape).map(|n| 0..n),
            0 => Some(0..0),
            1 => Some(range.start.saturating_mul(inner(shape, dim))..range.end.saturating_mul(inner(shape, dim))),
            _ => None,
        };
        match self {
            Self::Empty => Some(0..0),
            Self::Whole => numel(shape).map(|n| 0..n),
            Self::Flat { range } => Some(range.clone()),
            Self::Dim { dim, range } => rows(*dim, range),
            Self::Box { ranges } => {
                let mut cut = ranges.iter().enumerate().filter(|(dim, range)| **range != (0..shape[*dim]));
                match (cut.next(), cut.next()) {
                    (None, _) => numel(shape).map(|n| 0..n),
                    (Some((dim, range)), None) => rows(dim, range),
                    _ => None,
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_has_a_size_a_shape_and_a_place() {
        let shape = [2, 4, 3];
        let columns = Region::Dim { dim: 1, range: 1..3 };
        assert_eq!((columns.numel(&shape), columns.local_shape(&shape)), (12, Some(vec![2, 2, 3])));
        assert_eq!(columns.offsets(&shape), Some(vec![0, 1, 0]));
        let part = columns.with(&shape, 2, 2..3);
        assert_eq!(part, Region::Box { ranges: vec![0..2, 1..3, 2..3] });
        assert_eq!((part.numel(&shape), part.local_shape(&shape), part.offsets(&shape)), (4, Some(vec![2, 2, 1]), Some(vec![0, 1, 2])));
        assert_eq!(Region::Flat { range: 3..9 }.local_shape(&shape), None);
    }

    #[test]
    fn rows_are_one_run_and_columns_are_not() {
        assert_eq!(Region::Dim { dim: 0, range: 1..3 }.as_run(&[4, 9]), Some(9..27));
        assert_eq!(Region::Dim { dim: 1, range: 1..3 }.as_run(&[1, 4, 9]), Some(9..27));
        assert_eq!(Region::Dim { dim: 1, range: 1..3 }.as_run(&[4, 9]), None);
    }

    /// A zero wins over an overflow in a shape, so the parts of such a tensor are counted without one.
    #[test]
    fn an_empty_tensor_of_huge_dims_has_empty_parts() {
        let shape = [0, u64::MAX, u64::MAX];
        for dim in 0..3 {
            let region = Region::Dim { dim, range: 0..shape[dim] };
            assert_eq!(region.numel(&shape), 0);
            assert_eq!(region.with(&shape, 1, 0..u64::MAX).numel(&shape), 0);
        }
    }
}
