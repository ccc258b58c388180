//! One stretch of a source tensor as it is read: rows of the file, and the part of each row that a rank holds.

use std::{collections::BTreeMap, ops::Range};

use shardwright_core::{DType, Layout, Region, TensorPlan, model::numel};

use super::{convert::Conversion, group::Member};
use crate::error::Result;

/// How to read one source tensor, or the run of it that fills a run of a parameter, seen as `rows` rows of `row` elements each, cut alike.
#[derive(Debug)]
pub(crate) struct TensorRead {
    /// Index in the plan.
    pub(crate) tensor: u32,
    pub(crate) file: u32,
    /// First byte in the file.
    pub(super) at: u64,
    /// Bytes of an element in the file and in memory.
    pub(super) from: u64,
    pub(super) to: u64,
    /// `None` where the bytes stay as they are.
    pub(crate) cast: Option<Conversion>,
    pub(super) rows: u64,
    pub(super) row: u64,
    /// The parameter's element that the first one of the row is; 0 where there are several rows.
    base: u64,
    /// Rows of a rank's part that come before the first one.
    rows_before: u64,
    cut: Cut,
    pub(super) group: u32,
}

/// The part of a row that a coordinate holds, in elements.
#[derive(Debug)]
enum Cut {
    Whole,
    Step(u64),
    Bounds(Box<[u64]>),
    /// Of several cuts: coordinates that are loaded, ascending, and the ends of their parts.
    Each(Box<[(u32, u64, u64)]>),
}

/// What cuts leave of the rows of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rows {
    /// Each rank holds consecutive elements of the tensor.
    Runs,
    /// Each rank holds the same part of every row, a row being the elements under one index of what is outside of this dim.
    Columns(usize),
    /// Ranks hold boxes that are cut along several dims.
    Boxes,
}

impl Rows {
    pub(super) fn of(plan: &TensorPlan) -> Self {
        let mut dims = plan.placement.cuts.iter().filter_map(|cut| cut.layout.dim());
        match dims.next() {
            _ if plan.placement.is_flat() => Self::Runs,
            Some(dim) if dims.any(|other| other != dim) => Self::Boxes,
            Some(dim) if numel(&plan.shape[..dim]) != Some(1) => Self::Columns(dim),
            _ => Self::Runs,
        }
    }
}

/// The ends of a box along each dim.
type Ends = Vec<(u64, u64)>;

/// The number of a group, and its members.
type Members<'a> = (u32, &'a [Member]);

impl TensorRead {
    /// A parameter that is one source tensor, which starts at byte `at` of the file, and is not cut along several dims.
    pub(super) fn new(plan: &TensorPlan, tensor: u32, file: u32, at: u64, group: Members<'_>) -> Result<Self> {
        // Elements below a byte are never cut: they go as the bytes that they fill.
        let numel = if plan.source.bits() < 8 { plan.source.bytes(plan.numel()).unwrap_or(0) } else { plan.numel() };
        let (rows, row) = match Rows::of(plan) {
            Rows::Columns(dim) => (plan.shape[..dim].iter().product(), plan.shape[dim..].iter().product()),
            Rows::Runs | Rows::Boxes => (1, numel),
        };
        Self::read(plan, tensor, (file, at), (rows, row, 0), (group.0, Cut::of(plan, group.1)))
    }

    /// A run of a source tensor, which starts at byte `at` of the file and fills elements `base..base + length` of the parameter, of which ranks
    /// hold [`Rows::Runs`].
    pub(super) fn run(plan: &TensorPlan, tensor: u32, at: (u32, u64), (base, length): (u64, u64), group: Members<'_>) -> Result<Self> {
        Self::read(plan, tensor, at, (1, length, base), (group.0, Cut::of(plan, group.1)))
    }

    /// A parameter that is one source tensor, which starts at byte `at` of the file, and is cut along several dims: what ranks hold of the dims
    /// outside of the innermost one that is cut are rows, read together by the ranks that hold the same. `None` where these are too many to list.
    pub(super) fn boxes(plan: &TensorPlan, tensor: u32, (file, at): (u32, u64), group: Members<'_>) -> Result<Option<Vec<Self>>> {
        let shape = &plan.shape;
        let Some(dim) = plan.placement.cuts.iter().filter_map(|cut| cut.layout.dim()).max() else { return Ok(None) };
        let inner: u64 = shape[dim + 1..].iter().product();
        let mut by_outer: BTreeMap<Ends, Vec<(usize, u64, u64)>> = BTreeMap::new();
        for (at, member) in group.1.iter().enumerate() {
            let region = plan.placement.region_at(shape, member.coordinate);
            let Region::Box { ranges } = &region else { continue };
            if region.numel(shape) > 0 {
                let outer = ranges[..dim].iter().map(|r| (r.start, r.end)).collect();
                by_outer.entry(outer).or_default().push((at, ranges[dim].start * inner, ranges[dim].end * inner));
            }
        }
        let mut reads = Vec::new();
        for (outer, held) in by_outer {
            // Members between them hold nothing, at the place where they are: ends ascend from member to member.
            let mut parts: Vec<(u32, u64, u64)> = Vec::with_capacity(held.len());
            let mut next = held[0].0;
            for (at, lo, hi) in held {
                parts.extend(group.1[next..at].iter().map(|between| (between.coordinate, lo, lo)));
                parts.push((group.1[at].coordinate, lo, hi));
                next = at + 1;
            }
            parts.sort_unstable();
            let Some(runs) = row_runs(&shape[..dim], &outer) else { return Ok(None) };
            let mut rows_before = 0;
            for rows in runs {
                let first = rows.start * shape[dim] * inner;
                let at = at + first * (plan.source.bits() / 8).max(1);
                let count = rows.end - rows.start;
                let cut = Cut::Each(parts.clone().into_boxed_slice());
                let read = Self::read(plan, tensor, (file, at), (count, shape[dim] * inner, 0), (group.0, cut))?;
                reads.push(Self { rows_before, ..read });
                rows_before += count;
            }
        }
        Ok(Some(reads))
    }

    /// A source tensor whose parts are read by sweeps.
    pub(super) fn swept(plan: &TensorPlan, tensor: u32, file: u32, at: u64, group: u32) -> Result<Self> {
        Self::read(plan, tensor, (file, at), (1, plan.numel(), 0), (group, Cut::Whole))
    }

    fn read(
        plan: &TensorPlan,
        tensor: u32,
        (file, at): (u32, u64),
        (rows, row, base): (u64, u64, u64),
        (group, cut): (u32, Cut),
    ) -> Result<Self> {
        let cast = Conversion::of(plan)?;
        let size = |d: DType| (d.bits() / 8).max(1);
        let (from, to) = (size(plan.source), size(plan.precision.storage));
        Ok(Self { tensor, file, at, from, to, cast, rows, row, base, rows_before: 0, cut, group })
    }

    /// The part of each row that a coordinate holds.
    pub(super) fn cut(&self, coordinate: u32) -> (u64, u64) {
        let (lo, hi) = self.global_cut(coordinate);
        let local = |x: u64| x.saturating_sub(self.base).min(self.row);
        (local(lo), local(hi))
    }

    /// Bytes of an element in the file and in memory.
    #[expect(clippy::cast_possible_truncation, reason = "an element has a few bytes")]
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.from as usize, self.to as usize)
    }

    /// Elements of a row of the coordinate's own part, and how many of its elements come before the first row's first.
    pub(super) fn local_row(&self, coordinate: u32) -> (u64, u64) {
        let (lo, hi) = self.global_cut(coordinate);
        (hi - lo, self.rows_before * (hi - lo) + self.base.saturating_sub(lo))
    }

    fn global_cut(&self, coordinate: u32) -> (u64, u64) {
        match &self.cut {
            Cut::Whole => (0, self.base.saturating_add(self.row)),
            Cut::Step(step) => {
                let end = self.base.saturating_add(self.row);
                let start = u64::from(coordinate).saturating_mul(*step);
                if self.base == 0 { (start.min(end), start.saturating_add(*step).min(end)) } else { (start, start.saturating_add(*step)) }
            }
            Cut::Bounds(bounds) => (bounds[coordinate as usize], bounds[coordinate as usize + 1]),
            Cut::Each(parts) => {
                let at = parts.binary_search_by_key(&coordinate, |part| part.0).ok();
                at.map_or((0, 0), |at| (parts[at].1, parts[at].2))
            }
        }
    }
}

/// More runs of rows than this are not listed.
const MOST_RUNS: u64 = 1024;

/// The rows that a box of the outer dims holds, as consecutive ones, ascending.
fn row_runs(shape: &[u64], ranges: &[(u64, u64)]) -> Option<Vec<Range<u64>>> {
    let is_cut = |d: &usize| ranges[*d] != (0, shape[*d]);
    let Some(last) = (0..shape.len()).rev().find(is_cut) else { return Some(std::iter::once(0..shape.iter().product()).collect()) };
    if ranges[..last].iter().map(|(from, to)| to - from).try_fold(1u64, u64::checked_mul)? > MOST_RUNS {
        return None;
    }
    let mut under: u64 = shape[last + 1..].iter().product();
    let mut runs: Vec<Range<u64>> = std::iter::once(ranges[last].0 * under..ranges[last].1 * under).collect();
    for d in (0..last).rev() {
        under *= shape[d + 1];
        runs = (ranges[d].0..ranges[d].1).flat_map(|i| runs.iter().map(move |r| r.start + i * under..r.end + i * under)).collect();
    }
    Some(runs)
}

impl Cut {
    /// The cut of a tensor that is not cut along several dims, for these members.
    fn of(plan: &TensorPlan, members: &[Member]) -> Self {
        let inner = |dim: usize| plan.shape[dim + 1..].iter().product::<u64>();
        match plan.placement.cuts.as_slice() {
            [] => return Self::Whole,
            [only] => match &only.layout {
                Layout::Owner { .. } => return Self::Whole,
                Layout::Dim { dim, chunk } => return Self::Step(chunk.saturating_mul(inner(*dim))),
                Layout::Bounds { dim, bounds } => return Self::Bounds(bounds.iter().map(|b| b * inner(*dim)).collect()),
                Layout::Flat { partition } => return Self::Step(*partition),
                _ => {}
            },
            _ => {}
        }
        let part = |member: &Member| match plan.placement.region_at(&plan.shape, member.coordinate) {
            Region::Dim { dim, range } => (member.coordinate, range.start * inner(dim), range.end * inner(dim)),
            Region::Flat { range } => (member.coordinate, range.start, range.end),
            Region::Whole => (member.coordinate, 0, plan.numel()),
            _ => (member.coordinate, 0, 0),
        };
        let mut parts: Vec<_> = members.iter().map(part).collect();
        parts.sort_unstable();
        Self::Each(parts.into_boxed_slice())
    }
}
