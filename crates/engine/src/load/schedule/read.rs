//! One tensor as it is read: rows of the file, and the part of each row that a rank holds.

use shardwright_cast::{Caster, caster};
use shardwright_core::{DType, Layout, TensorPlan};

use crate::error::{EngineError, ErrorKind, Result};

/// How to read one tensor, seen as `rows` rows of `row` elements each, cut alike.
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
    pub(crate) cast: Option<Caster>,
    pub(super) rows: u64,
    pub(super) row: u64,
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
    pub(super) fn new(plan: &TensorPlan, tensor: u32, file: u32, at: u64, group: u32) -> Result<Self> {
        let shape = &plan.shape;
        let (from, to) = (plan.source, plan.precision.storage);
        let cast = if from == to { None } else { Some(caster(from, to).ok_or_else(|| no_cast(plan))?) };
        // Elements below a byte are never cut: they go as the bytes that they fill.
        let numel = if from.bits() < 8 { from.bytes(plan.numel()).unwrap_or(0) } else { plan.numel() };
        let inner = |dim: usize| shape[dim + 1..].iter().product::<u64>();
        let outer = |dim: usize| shape[..dim].iter().product::<u64>();
        let (rows, row, cut) = match &plan.placement.layout {
            Layout::Dim { dim, chunk } => (outer(*dim), shape[*dim] * inner(*dim), Cut::Step(chunk.saturating_mul(inner(*dim)))),
            Layout::Bounds { dim, bounds } => {
                (outer(*dim), shape[*dim] * inner(*dim), Cut::Bounds(bounds.iter().map(|b| b * inner(*dim)).collect()))
            }
            Layout::Flat { partition } => (1, numel, Cut::Step(*partition)),
            Layout::Replicated | Layout::Owner { .. } => (1, numel, Cut::Whole),
            other => {
                return Err(EngineError::new(ErrorKind::Plan, format!("the engine knows no layout {other:?}")).tensor(&plan.name));
            }
        };
        let size = |d: DType| (d.bits() / 8).max(1);
        Ok(Self { tensor, file, at, from: size(from), to: size(to), cast, rows, row, cut, group })
    }

    /// The part of each row that a coordinate holds.
    pub(super) fn cut(&self, coordinate: u32) -> (u64, u64) {
        match &self.cut {
            Cut::Whole => (0, self.row),
            Cut::Step(step) => {
                let start = u64::from(coordinate).saturating_mul(*step).min(self.row);
                (start, start.saturating_add(*step).min(self.row))
            }
            Cut::Bounds(bounds) => (bounds[coordinate as usize], bounds[coordinate as usize + 1]),
        }
    }
}

fn no_cast(plan: &TensorPlan) -> EngineError {
    EngineError::new(ErrorKind::Plan, format!("there is no cast from {} to {}", plan.source, plan.precision.storage)).tensor(&plan.name)
}
