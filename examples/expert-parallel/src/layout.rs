//! Where each tensor goes: experts to ranks of an `ep` group by index, everything else on dim 0 over the ranks that share one model.

use shardwright_core::{
    GroupAxis, Mesh, Placement, PlanError, PlanInput, Reshard, ShardPlan, ShardStrategy, TensorMeta,
    mesh::{MP_REPLICATE, MP_SHARD},
    strategy::{modules, units_by},
};

use crate::experts::{Role, counts, role};

/// The registered name.
pub const NAME: &str = "example/expert-parallel";

/// Expert parallelism.
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
        let (all, ep) = self.axes(input.mesh)?;
        let counts = counts(&input.model.tensors, &self.experts);
        let mut plan = input.plan_tensors(NAME, |tensor| {
            let placed = match role(tensor, &self.experts) {
                Role::One { list, index } => Ok(Placement::owned(ep, owner(index, counts[list], ep))),
                Role::All { .. } => Placement::chunked(ep, &tensor.shape, 0),
                Role::None if tensor.shape.is_empty() => Ok(Placement::replicated()),
                Role::None => Placement::chunked(all, &tensor.shape, 0),
            };
            placed.map_err(|reason| PlanError::tensor(tensor, reason))
        })?;
        let reshard = if self.reshard_after_forward { Reshard::ToShards } else { Reshard::Never };
        let units: Vec<&str> = input.model.tensors.iter().map(|tensor| self.unit(tensor, input)).collect();
        plan.units = units_by(&plan.tensors, reshard, |tensor| {
            input.model.tensors.binary_search_by(|meta| meta.name.cmp(&tensor.name)).map_or("", |at| units[at])
        });
        Ok(plan)
    }
}

impl ExpertParallel {
    /// The axis of the ranks that share one model, and inside it that of the ranks that share one set of experts.
    fn axes(&self, mesh: &Mesh) -> Result<(GroupAxis, GroupAxis), PlanError> {
        let (replicate, shard) = (mesh.size_of(MP_REPLICATE), mesh.size_of(MP_SHARD));
        let refused =
            || PlanError::Mesh(format!("ep_size is {}, expected a divisor of the {shard} ranks that share one model", self.ep_size));
        let groups = shard.checked_div(self.ep_size).filter(|groups| groups * self.ep_size == shard).ok_or_else(refused)?;
        let inner = Mesh::new([(MP_REPLICATE, replicate), ("ep_replicate", groups), ("ep", self.ep_size)]).map_err(PlanError::Mesh)?;
        let all = mesh.axis(MP_SHARD).unwrap_or_else(|| mesh.all_ranks());
        Ok((all, inner.axis("ep").unwrap_or_else(|| mesh.all_ranks())))
    }

    /// The module that gathers a parameter: a list of experts, else its layer, else the root; or what the user's globs say.
    fn unit<'n>(&self, tensor: &'n TensorMeta, input: &PlanInput<'_>) -> &'n str {
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
