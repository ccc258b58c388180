//! Where each tensor goes: experts to ranks of an `ep` axis by index and each of them cut over an `fsdp` axis, everything else cut on dim 0
//! over both.

use shardwright_core::{
    Cut, GroupAxis, Mesh, Placement, PlanError, PlanInput, Reshard, ShardPlan, ShardStrategy, TensorMeta,
    mesh::{MP_REPLICATE, MP_SHARD},
    strategy::{modules, groups_by},
};

use crate::experts::{Role, counts, role};

/// The registered name.
pub const NAME: &str = "example/expert-parallel";

/// Expert parallelism under FSDP.
#[derive(Clone, Debug)]
pub struct ExpertParallel {
    /// Consecutive ranks that share one set of experts.
    pub ep_size: u32,
    /// What lists of experts are called.
    pub experts: String,
    /// Whether gathered parameters are dropped after a forward pass.
    pub reshard_after_forward: bool,
}

impl ShardStrategy for ExpertParallel {
    fn name(&self) -> &str {
        NAME
    }

    fn plan(&self, input: &PlanInput<'_>) -> Result<ShardPlan, PlanError> {
        let Axes { all, ep, fsdp } = self.axes(input.mesh)?;
        let counts = counts(&input.model.tensors, &self.experts);
        let mut plan = input.plan_tensors(NAME, |tensor| {
            let placed = match role(tensor, &self.experts) {
                // One expert's dim 0 is dim 1 of all of them: both kinds of checkpoint put the same elements on the same rank.
                Role::One { .. } if tensor.shape.is_empty() => Ok(Placement::replicated()),
                Role::One { list, index } => {
                    Ok(Placement::of([Cut::owner(ep, owner(index, counts[list], ep)), Cut::chunk(fsdp, 0)]).padded())
                }
                Role::All { .. } => Ok(Placement::of([Cut::chunk(ep, 0), Cut::chunk(fsdp, 1)]).padded()),
                Role::None if tensor.shape.is_empty() => Ok(Placement::replicated()),
                Role::None => Placement::chunked(all, &tensor.shape, 0),
            };
            placed.map_err(|reason| PlanError::tensor(tensor, reason))
        })?;
        let reshard = if self.reshard_after_forward { Reshard::ToShards } else { Reshard::Never };
        let units: Vec<&str> = input.model.tensors.iter().map(|tensor| self.group(tensor, input)).collect();
        plan.groups = groups_by(&plan.tensors, reshard, |tensor| {
            input.model.tensors.binary_search_by(|meta| meta.name.cmp(&tensor.name)).map_or("", |at| units[at])
        });
        Ok(plan)
    }
}

/// The axes that tensors are cut over.
struct Axes {
    /// All ranks that share one model.
    all: GroupAxis,
    /// Of these, consecutive ones that hold different experts.
    ep: GroupAxis,
    /// Those that share an expert.
    fsdp: GroupAxis,
}

impl ExpertParallel {
    /// The ranks that share one model as a mesh of `fsdp` × `ep`.
    fn axes(&self, mesh: &Mesh) -> Result<Axes, PlanError> {
        let (replicate, shard) = (mesh.size_of(MP_REPLICATE), mesh.size_of(MP_SHARD));
        let refused =
            || PlanError::Mesh(format!("ep_size is {}, expected a divisor of the {shard} ranks that share one model", self.ep_size));
        let fsdp = shard.checked_div(self.ep_size).filter(|fsdp| fsdp * self.ep_size == shard).ok_or_else(refused)?;
        let inner = Mesh::new([(MP_REPLICATE, replicate), ("fsdp", fsdp), ("ep", self.ep_size)]).map_err(PlanError::Mesh)?;
        let axis = |mesh: &Mesh, name: &str| mesh.axis(name).unwrap_or_else(|| mesh.all_ranks());
        Ok(Axes { all: axis(mesh, MP_SHARD), ep: axis(&inner, "ep"), fsdp: axis(&inner, "fsdp") })
    }

    /// The module that gathers a parameter: a list of experts, else its layer, else the root; or what the user's globs say.
    fn group<'n>(&self, tensor: &'n TensorMeta, input: &PlanInput<'_>) -> &'n str {
        let name = tensor.name.as_str();
        if !input.units.is_empty() {
            return modules(name).find(|module| input.units.matches(module)).unwrap_or("");
        }
        match role(tensor, &self.experts) {
            Role::One { list, .. } | Role::All { list } => list,
            Role::None => modules(name).find(|module| is_layer(module)).unwrap_or(""),
        }
    }
}

/// Experts go to ranks in blocks of ⌈count / ranks⌉, as dim 0 of a tensor of all experts is cut: both kinds of checkpoint agree.
fn owner(index: u64, count: u64, ep: GroupAxis) -> u32 {
    let block = count.div_ceil(u64::from(ep.size)).max(1);
    u32::try_from(index / block).unwrap_or(0)
}

/// `model.layers.7`.
fn is_layer(module: &str) -> bool {
    let mut segments = module.rsplit('.');
    segments.next().is_some_and(|last| last.parse::<u32>().is_ok()) && segments.next() == Some("layers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_go_to_ranks_in_blocks() {
        let owners = |count: u64, size: u32| (0..count).map(|i| owner(i, count, GroupAxis { stride: 1, size })).collect::<Vec<_>>();
        assert_eq!(owners(8, 4), [0, 0, 1, 1, 2, 2, 3, 3]);
        assert_eq!(owners(5, 4), [0, 0, 1, 1, 2]);
        assert_eq!(owners(2, 4), [0, 1]);
    }
}
