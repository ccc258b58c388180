//! The validation of a plan: every tensor planned once, every parameter tiled exactly once by each of its shard
//! groups, every parameter in one parameter group.
//!
//! The rules are validated by arithmetic, in a few steps a tensor whatever the number of ranks; a test compares that with counting.

use crate::{
    mesh::GroupAxis,
    model::{ModelMeta, TensorKind, numel},
    name::Name,
    placement::{Cut, Layout, Padding},
    plan::{Reshard, ShardPlan, TensorPlan},
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
    /// The parameter groups do not partition the parameters.
    #[error("parameter group '{}': {what}", shown(group))]
    ParamGroup {
        /// Its name.
        group: String,
        /// What is wrong.
        what: String,
    },
}

impl ShardPlan {
    /// Proves this plan for `model`.
    ///
    /// # Errors
    /// The first violation, in the order of the tensors' names, then of the parameter groups.
    pub fn check(&self, model: &ModelMeta) -> Result<(), CheckError> {
        self.check_complete(model)?;
        for tensor in &self.tensors {
            check_tensor(tensor, self.mesh.world_size())?;
        }
        self.check_groups()
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

    fn check_groups(&self) -> Result<(), CheckError> {
        let mut seen = vec![false; self.tensors.len()];
        let mut names = std::collections::BTreeSet::new();
        for group in &self.groups {
            let wrong = |what: String| Err(CheckError::ParamGroup { group: group.name.clone(), what });
            if !names.insert(&group.name) {
                return wrong("there are two of that name".into());
            }
            if group.reshard_after_forward == Reshard::ToRanks(0) {
                return wrong("resharded to groups of 0 ranks".into());
            }
            for &t in &group.tensors {
                match self.tensors.get(t) {
                    None => return wrong(format!("holds tensor number {t} of {}", self.tensors.len())),
                    Some(tensor) if tensor.kind == TensorKind::Buffer => return wrong(format!("holds the buffer '{}'", tensor.name)),
                    Some(tensor) if seen[t] => return wrong(format!("holds '{}', which is in a parameter group already", tensor.name)),
                    Some(_) => seen[t] = true,
                }
            }
        }
        match self.tensors.iter().zip(seen).find(|(t, seen)| t.kind == TensorKind::Parameter && !seen) {
            Some((tensor, _)) => Err(CheckError::Tensor { tensor: tensor.name.clone(), what: "a parameter in no parameter group".into() }),
            None => Ok(()),
        }
    }
}

fn check_tensor(tensor: &TensorPlan, world_size: u32) -> Result<(), CheckError> {
    let wrong = |what: String| Err(CheckError::Tensor { tensor: tensor.name.clone(), what });
    if tensor.kind == TensorKind::Buffer && !tensor.placement.is_replicated() {
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
    let tiling = axes_are_apart(&tensor.placement.cuts, world_size).and_then(|()| tiles(tensor));
    let ranks = tensor.placement.group_size();
    tiling.map_err(|what| CheckError::Tiling { tensor: tensor.name.clone(), shape: tensor.shape.clone(), ranks, what })
}

/// Proves that the axes of the cuts divide the world evenly, and that a coordinate along one says nothing about those along the others.
fn axes_are_apart(cuts: &[Cut], world_size: u32) -> Result<(), String> {
    if let Some(GroupAxis { size, stride }) = cuts.iter().map(|cut| cut.axis).find(|axis| !axis.divides(world_size)) {
        return Err(format!("groups of {size} ranks at stride {stride} do not divide {world_size} ranks"));
    }
    let mut axes: Vec<GroupAxis> = cuts.iter().map(|cut| cut.axis).filter(|axis| axis.size > 1).collect();
    axes.sort_unstable_by_key(|axis| axis.stride);
    match axes.windows(2).find(|pair| !pair[1].stride.is_multiple_of(pair[0].stride.saturating_mul(pair[0].size))) {
        Some(pair) => Err(format!(
            "it is cut over {} ranks at stride {} and over {} ranks at stride {}, which are not different axes of one mesh",
            pair[0].size, pair[0].stride, pair[1].size, pair[1].stride
        )),
        None => Ok(()),
    }
}

/// What cuts leave of a dim or of the flat elements, over all coordinates.
#[derive(Clone, Copy)]
struct Left {
    largest: u64,
    /// Whether every coordinate has the largest.
    even: bool,
}

impl Left {
    /// In steps; the largest is the first coordinate's.
    fn in_steps(self, step: u64, ranks: u64) -> Self {
        Self { largest: self.largest.min(step), even: self.even && step.checked_mul(ranks) == Some(self.largest) }
    }
}

/// Proves that the coordinates of a group tile the tensor exactly once, and that every region fits its buffer. Each cut tiles what the one
/// before left, so it is the cuts that are validated, one by one, at the largest part that the cuts before leave.
fn tiles(tensor: &TensorPlan) -> Result<(), String> {
    let shape = &tensor.shape;
    let numel = numel(shape).ok_or("its number of elements overflows")?;
    let placement = &tensor.placement;
    let bits = (tensor.source.bits(), tensor.precision.storage.bits());
    if bits.0 < 8 && !placement.cuts.iter().all(|cut| matches!(cut.layout, Layout::Owner { .. })) {
        return Err(format!("elements of {} bits cannot be cut", bits.0));
    }
    let mut dims: Vec<Left> = shape.iter().map(|&size| Left { largest: size, even: true }).collect();
    let mut flat: Option<Left> = None;
    for cut in &placement.cuts {
        tiles_cut(cut, shape, &mut dims, &mut flat)?;
    }
    let largest_first = match placement.cuts.last().map(|cut| &cut.layout) {
        Some(Layout::Bounds { bounds, .. }) => bounds.windows(2).all(|w| w[1] - w[0] <= bounds[1] - bounds[0]),
        Some(Layout::Owner { coordinate }) => *coordinate == 0,
        _ => true,
    };
    if placement.padding == Padding::ToFirst && !largest_first {
        return Err("buffers are as large as coordinate 0's, but another region is larger".into());
    }
    // Padding is at most a partition; without any, a buffer is at most the tensor.
    let partition = if let Some(Layout::Flat { partition }) = placement.cuts.last().map(|cut| &cut.layout) { *partition } else { 0 };
    match bits.1.checked_mul(partition.max(numel)) {
        Some(_) => Ok(()),
        None => Err(format!("its size in {} overflows", tensor.precision.storage)),
    }
}

fn tiles_cut(cut: &Cut, shape: &[u64], dims: &mut [Left], flat: &mut Option<Left>) -> Result<(), String> {
    let ranks = u64::from(cut.axis.size);
    // Regions [c·step, (c+1)·step) clamped to the size are disjoint and ascending: only their reach is in question.
    let covers = |step: u64, size: u64, what: &str| {
        let reach = step.saturating_mul(ranks);
        if reach >= size { Ok(()) } else { Err(format!("{what} {reach} of {size} are in no region")) }
    };
    match &cut.layout {
        Layout::Owner { coordinate } if *coordinate < cut.axis.size => {}
        Layout::Owner { coordinate } => return Err(format!("its owner is coordinate {coordinate}, which no group has")),
        Layout::Dim { dim, .. } | Layout::Chunk { dim } | Layout::Bounds { dim, .. } => {
            let left = dims.get_mut(*dim).ok_or_else(|| format!("it has no dim {dim}"))?;
            if flat.is_some() {
                return Err(format!("dim {dim} is cut after the flat elements are"));
            }
            *left = match &cut.layout {
                Layout::Bounds { .. } if !left.even => return Err(format!("bounds of dim {dim} after a cut that leaves uneven parts")),
                Layout::Bounds { bounds, .. } => {
                    check_bounds(bounds, left.largest, cut.axis.size)?;
                    let sizes = || bounds.windows(2).map(|w| w[1] - w[0]);
                    Left { largest: sizes().max().unwrap_or(0), even: sizes().max() == sizes().min() }
                }
                Layout::Dim { chunk, .. } => {
                    // Without elements there is nothing to cover.
                    if !shape.contains(&0) {
                        covers(*chunk, left.largest, "indices from")?;
                    }
                    left.in_steps(*chunk, ranks)
                }
                _ => left.in_steps(left.largest.div_ceil(ranks), ranks),
            };
        }
        Layout::Flat { .. } | Layout::Partition => {
            let left = match flat {
                Some(left) => *left,
                None => flat_of(shape, dims)?,
            };
            let step = if let Layout::Flat { partition } = cut.layout { partition } else { left.largest.div_ceil(ranks) };
            covers(step, left.largest, "elements from")?;
            *flat = Some(left.in_steps(step, ranks));
        }
    }
    Ok(())
}

/// The flat elements of what cuts left, where that is one run on every rank: all cuts so far are on one dim, and those outside it have
/// one index.
fn flat_of(shape: &[u64], dims: &[Left]) -> Result<Left, String> {
    let cut = |d: &usize| dims[*d].largest != shape[*d] || !dims[*d].even;
    let mut cuts = (0..shape.len()).filter(cut);
    let dim = cuts.next().unwrap_or(0);
    if cuts.next().is_some() || numel(&shape[..dim.min(shape.len())]).is_none_or(|outer| outer > 1) {
        return Err("flat elements are cut after a cut that leaves more than one run of them".into());
    }
    let inner = shape.get(dim + 1..).and_then(numel).unwrap_or(1);
    let left = dims.get(dim).copied().unwrap_or(Left { largest: 1, even: true });
    Ok(Left { largest: left.largest.saturating_mul(inner), even: left.even })
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
