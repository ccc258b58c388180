//! Which rows of a parameter each rank holds. Source: `torch/distributed/fsdp/_fully_shard/_fsdp_param.py`.

use shardwright_core::{
    Layout, Offload, Padding, Placement, PlanError, PlanInput, Reshard, ShardPlan, ShardStrategy, TensorMeta,
    mesh::{GroupAxis, MP_SHARD},
    strategy::groups_by,
};

use crate::{
    groups::GroupRules,
    wrap::{Wrap, Wrapped},
};

/// Dim-0 sharding over the mesh's `mp_shard` axis, replicated along `mp_replicate`.
#[derive(Clone, Debug)]
pub struct Fsdp2 {
    /// What happens to every parameter group after forward; LLaMA-Factory passes one value for all of them, the root included.
    pub reshard_after_forward: Reshard,
    /// Where shards are stored.
    pub offload: Offload,
    /// What accelerate wraps; `None` for what LLaMA-Factory wraps.
    pub wrap: Option<Wrap>,
}

impl Default for Fsdp2 {
    fn default() -> Self {
        Self { reshard_after_forward: Reshard::ToShards, offload: Offload::None, wrap: None }
    }
}

/// The registered name.
pub const NAME: &str = "fsdp2";

impl ShardStrategy for Fsdp2 {
    fn name(&self) -> &str {
        NAME
    }

    fn ties_per_group(&self) -> bool {
        true
    }

    fn plan(&self, input: &PlanInput<'_>) -> Result<ShardPlan, PlanError> {
        let axis = input.mesh.axis(MP_SHARD).unwrap_or_else(|| input.mesh.all_ranks());
        if let Reshard::ToRanks(k) = self.reshard_after_forward
            && (k == 0 || !axis.size.is_multiple_of(k))
        {
            return Err(PlanError::Mesh(format!("reshard_after_forward is {k}, expected a divisor of the shard size {}", axis.size)));
        }
        let mut plan = input.plan_tensors(NAME, |tensor| place(tensor, axis))?;
        // The user's own parameter groups come before every policy.
        if let Some(wrap) = self.wrap.as_ref().filter(|_| input.units.is_empty()) {
            let wrapped = Wrapped::new(wrap, input)?;
            plan.groups = groups_by(&plan.tensors, self.reshard_after_forward, |t| wrapped.group_of(&t.name));
            for group in &mut plan.groups {
                group.reshard_after_forward = wrapped.reshard(&group.name, self.reshard_after_forward);
            }
        } else {
            let rules = GroupRules::for_model(input);
            plan.groups = groups_by(&plan.tensors, self.reshard_after_forward, |t| rules.group_of(&t.name));
        }
        for tensor in plan.tensors.iter_mut().filter(|t| t.kind == shardwright_core::TensorKind::Parameter) {
            tensor.offload = self.offload;
        }
        Ok(plan)
    }
}

/// `torch.chunk` on dim 0, then empty chunks; every rank's buffer is padded with zeros to chunk 0's size. `fully_shard` makes every shard of a
/// tensor without elements one of 0 rows, `[5, 0]` too, where `torch.chunk` would give it rows.
fn place(tensor: &TensorMeta, axis: GroupAxis) -> Result<Placement, PlanError> {
    if tensor.shape.is_empty() {
        return Err(PlanError::tensor(
            tensor,
            "is 0-d, and fully_shard does not support scalar parameters; reshape it to 1-d, or name it under shardwright.buffers",
        ));
    }
    if tensor.shape.contains(&0) {
        return Ok(Placement::one(axis, Layout::Dim { dim: 0, chunk: 0 }, Padding::ToFirst));
    }
    Placement::chunked(axis, &tensor.shape, 0).map_err(|what| PlanError::tensor(tensor, what))
}
