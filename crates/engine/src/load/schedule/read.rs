//! One stretch of a source tensor as it is read: rows of the file, and the part of each row that a rank holds.

use shardwright_core::{DType, Layout, TensorPlan, model::numel};

use super::convert::Conversion;
use crate::error::{EngineError, ErrorKind, Result};

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
    cut: Cut,
    pub(super) group: u32,
}

/// The part of a row that a coordinate holds, in elements.
#[derive(Debug)]
enum Cut {
    Whole,
    Step(u64),
    Bounds(Box<[u64]>),
}

impl TensorRead {
    /// A parameter that is one source tensor, which starts at byte `at` of the file.
    pub(super) fn new(plan: &TensorPlan, tensor: u32, file: u32, at: u64, group: u32) -> Result<Self> {
        let shape = &plan.shape;
        let inner = |dim: usize| shape[dim + 1..].iter().product::<u64>();
        let outer = |dim: usize| shape[..dim].iter().product::<u64>();
        // Elements below a byte are never cut: they go as the bytes that they fill.
        let numel = if plan.source.bits() < 8 { plan.source.bytes(plan.numel()).unwrap_or(0) } else { plan.numel() };
        let (rows, row) = match &plan.placement.layout {
            Layout::Dim { dim, .. } | Layout::Bounds { dim, .. } => (outer(*dim), shape[*dim] * inner(*dim)),
            _ => (1, numel),
        };
        Self::read(plan, tensor, (file, at), (rows, row, 0), group)
    }

    /// A run of a source tensor, which starts at byte `at` of the file and fills elements `base..base + length` of the parameter. The parameter is
    /// not cut, or into consecutive runs: see [`cuts_into_runs`].
    pub(super) fn run(plan: &TensorPlan, tensor: u32, at: (u32, u64), (base, length): (u64, u64), group: u32) -> Result<Self> {
        Self::read(plan, tensor, at, (1, length, base), group)
    }

    fn read(plan: &TensorPlan, tensor: u32, (file, at): (u32, u64), (rows, row, base): (u64, u64, u64), group: u32) -> Result<Self> {
        let cast = Conversion::of(plan)?;
        let inner = |dim: usize| plan.shape[dim + 1..].iter().product::<u64>();
        let cut = match &plan.placement.layout {
            Layout::Dim { dim, chunk } => Cut::Step(chunk.saturating_mul(inner(*dim))),
            Layout::Bounds { dim, bounds } => Cut::Bounds(bounds.iter().map(|b| b * inner(*dim)).collect()),
            Layout::Flat { partition } => Cut::Step(*partition),
            Layout::Replicated | Layout::Owner { .. } => Cut::Whole,
            other => {
                return Err(EngineError::new(ErrorKind::Plan, format!("the engine knows no layout {other:?}")).tensor(&plan.name));
            }
        };
        let size = |d: DType| (d.bits() / 8).max(1);
        let (from, to) = (size(plan.source), size(plan.precision.storage));
        Ok(Self { tensor, file, at, from, to, cast, rows, row, base, cut, group })
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

    /// Elements of a row of the coordinate's own part, and how many of them come before the row's first element.
    pub(super) fn local_row(&self, coordinate: u32) -> (u64, u64) {
        let (lo, hi) = self.global_cut(coordinate);
        (hi - lo, self.base.saturating_sub(lo))
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
        }
    }
}

/// Whether each rank holds consecutive elements of the parameter.
pub(super) fn cuts_into_runs(plan: &TensorPlan) -> bool {
    match &plan.placement.layout {
        Layout::Dim { dim, .. } | Layout::Bounds { dim, .. } => numel(&plan.shape[..*dim]) == Some(1),
        _ => true,
    }
}
