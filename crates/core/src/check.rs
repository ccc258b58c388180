//! The proof of a plan: every tensor planned once, every parameter tiled exactly once by each of its groups, every parameter in one unit.
//!
//! The rules are proven by arithmetic, in a few steps a tensor whatever the number of ranks; a test compares that with counting.

use crate::{
    mesh::GroupAxis,
    model::{ModelMeta, TensorKind},
    name::Name,
    plan::{Reshard, ShardPlan, TensorPlan},
    region::{Layout, Padding},
    text::shown,
};

/// What a plan violates.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The plan and the model disagree about a tensor.
    #[error("tensor '{}' is {what}", shown(tensor))]
    Tensor {
        /// Its name.
        tensor: Name,
        /// What is wrong.
        what: String,
    },
    /// A tensor is not tiled exactly once.
    #[error("tensor '{}' of shape {shape:?} on groups of {ranks} ranks: {what}", shown(tensor))]
    Tiling {
        /// Its name.
        tensor: Name,
        /// Its global shape.
        shape: Vec<u64>,
        /// Ranks in a group.
        ranks: u32,
        /// What is wrong.
        what: String,
    },
    /// The plan is for another number of ranks.
    #[error("it is for {planned} ranks, expected {given}")]
    World {
        /// In the plan.
        planned: u32,
        /// In the input.
        given: u32,
    },
    /// The units do not partition the parameters.
    #[error("unit '{}': {what}", shown(unit))]
    Unit {
        /// Its name.
        unit: String,
        /// What is wrong.
        what: String,
    },
}

impl ShardPlan {
    /// Proves this plan for `model`.
    ///
    /// # Errors
    /// The first violation, in the order of the tensors' names, then of the units.
    pub fn check(&self, model: &ModelMeta) -> Result<(), CheckError> {
        self.check_complete(model)?;
        for tensor in &self.tensors {
            check_tensor(tensor, self.mesh.world_size())?;
        }
        self.check_units()
    }

    fn check_complete(&self, model: &ModelMeta) -> Result<(), CheckError> {
        let wrong = |name: &str, what: String| Err(CheckError::Tensor { tensor: name.into(), what });
        let mut planned = self.tensors.iter();
        for meta in &model.tensors {
            match planned.next() {
                Some(t) if t.name == meta.name => {
                    if t.shape != meta.shape || t.source != meta.dtype {
                        return wrong(&meta.name, format!("planned as {} {:?}, but is {} {:?}", t.source, t.shape, meta.dtype, meta.shape));
                    }
                }
                Some(t) if t.name < meta.name => return wrong(&t.name, "planned, but not in the model, or planned twice".into()),
                _ => return wrong(&meta.name, "in the model, but not in its place in the plan".into()),
            }
        }
        planned.next().map_or(Ok(()), |t| wrong(&t.name, "planned, but not in the model, or planned twice".into()))
    }

    fn check_units(&self) -> Result<(), CheckError> {
        let mut seen = vec![false; self.tensors.len()];
        let mut names = std::collections::BTreeSet::new();
        for unit in &self.units {
            let wrong = |what: String| Err(CheckError::Unit { unit: unit.name.clone(), what });
            if !names.insert(&unit.name) {
                return wrong("there are two of that name".into());
            }
            if unit.reshard_after_forward == Reshard::ToRanks(0) {
                return wrong("resharded to groups of 0 ranks".into());
            }
            for &t in &unit.tensors {
                match self.tensors.get(t) {
                    None => return wrong(format!("holds tensor number {t} of {}", self.tensors.len())),
                    Some(tensor) if tensor.kind == TensorKind::Buffer => return wrong(format!("holds the buffer '{}'", tensor.name)),
                    Some(tensor) if seen[t] => return wrong(format!("holds '{}', which is in a unit already", tensor.name)),
                    Some(_) => seen[t] = true,
                }
            }
        }
        match self.tensors.iter().zip(seen).find(|(t, seen)| t.kind == TensorKind::Parameter && !seen) {
            Some((tensor, _)) => Err(CheckError::Tensor { tensor: tensor.name.clone(), what: "a parameter in no unit".into() }),
            None => Ok(()),
        }
    }
}

fn check_tensor(tensor: &TensorPlan, world_size: u32) -> Result<(), CheckError> {
    let wrong = |what: String| Err(CheckError::Tensor { tensor: tensor.name.clone(), what });
    if tensor.kind == TensorKind::Buffer && tensor.placement.layout != Layout::Replicated {
        return wrong("a buffer, but not whole on every rank".into());
    }
    if let Some(rounded) = tensor.rounded
        && !(tensor.source.casts_to(rounded) && rounded.casts_to(tensor.precision.storage))
    {
        return wrong(format!(
            "rounded through {rounded}, to which there is no cast from {}, or none from it to {}",
            tensor.source, tensor.precision.storage
        ));
    }
    if !tensor.source.casts_to(tensor.precision.storage) {
        return wrong(format!("stored as {}, to which there is no cast from {}", tensor.precision.storage, tensor.source));
    }
    let axis = tensor.placement.axis;
    let tiling = if axis.divides(world_size) {
        tiles(tensor, axis)
    } else {
        Err(format!("groups of {} ranks at stride {} do not divide {world_size} ranks", axis.size, axis.stride))
    };
    tiling.map_err(|what| CheckError::Tiling { tensor: tensor.name.clone(), shape: tensor.shape.clone(), ranks: axis.size, what })
}

/// Proves that the coordinates of a group tile the tensor exactly once, and that every region fits its buffer.
fn tiles(tensor: &TensorPlan, axis: GroupAxis) -> Result<(), String> {
    let shape = &tensor.shape;
    let numel = crate::model::numel(shape).ok_or("its number of elements overflows")?;
    let placement = &tensor.placement;
    let covers = |step: u64, size: u64, what: &str| {
        let reach = step.saturating_mul(u64::from(axis.size));
        if reach >= size { Ok(()) } else { Err(format!("{what} {reach} of {size} are in no region")) }
    };
    let dim_size = |dim: usize| shape.get(dim).copied().ok_or_else(|| format!("it has no dim {dim}"));
    let bits = (tensor.source.bits(), tensor.precision.storage.bits());
    if bits.0 < 8 && !matches!(placement.layout, Layout::Replicated | Layout::Owner { .. }) {
        return Err(format!("elements of {} bits cannot be cut", bits.0));
    }
    match &placement.layout {
        Layout::Replicated if axis.size == 1 => {}
        Layout::Replicated => return Err("it is whole on every rank, so its groups are of one rank each".into()),
        // Regions [c·step, (c+1)·step) clamped to the size are disjoint and ascending: only their reach is in question.
        // Without elements there is nothing to cover.
        Layout::Dim { dim, .. } if numel == 0 => dim_size(*dim).map(drop)?,
        Layout::Dim { dim, chunk } => covers(*chunk, dim_size(*dim)?, "indices from")?,
        Layout::Flat { partition } => covers(*partition, numel, "elements from")?,
        Layout::Owner { coordinate } if *coordinate < axis.size => {}
        Layout::Owner { coordinate } => return Err(format!("its owner is coordinate {coordinate}, which no group has")),
        Layout::Bounds { dim, bounds } => check_bounds(bounds, dim_size(*dim)?, axis.size)?,
    }
    let largest_first = match &placement.layout {
        Layout::Bounds { bounds, .. } => bounds.windows(2).all(|w| w[1] - w[0] <= bounds[1] - bounds[0]),
        Layout::Owner { coordinate } => *coordinate == 0,
        _ => true,
    };
    if placement.padding == Padding::ToFirst && !largest_first {
        return Err("buffers are as large as coordinate 0's, but another region is larger".into());
    }
    // Coordinate 0's is the largest buffer where all are padded to it; where none is, a buffer is at most the tensor.
    let largest = placement.padded_numel(shape, 0).max(numel);
    match tensor.precision.storage.bits().checked_mul(largest) {
        Some(_) => Ok(()),
        None => Err(format!("its size in {} overflows", tensor.precision.storage)),
    }
}

fn check_bounds(bounds: &[u64], size: u64, ranks: u32) -> Result<(), String> {
    if bounds.len() != ranks as usize + 1 {
        return Err(format!("{} bounds, expected {}", bounds.len(), u64::from(ranks) + 1));
    }
    if bounds.first() != Some(&0) || bounds.last() != Some(&size) {
        return Err(format!("bounds run from {:?} to {:?}, expected 0 to {size}", bounds[0], bounds[bounds.len() - 1]));
    }
    match bounds.windows(2).find(|w| w[0] > w[1]) {
        Some(w) => Err(format!("bounds fall from {} to {}", w[0], w[1])),
        None => Ok(()),
    }
}
