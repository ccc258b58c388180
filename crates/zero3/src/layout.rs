//! Which flat elements of a parameter each rank holds. Source: `deepspeed/runtime/zero/partition_parameters.py` and `mics.py`.

use shardwright_core::{
    Offload, Placement, PlanError, PlanInput, Reshard, ShardPlan, ShardStrategy, TensorKind, TensorMeta, TensorPlan, mesh::GroupAxis,
    strategy::groups_by,
};

/// Flat partitions over all ranks, or over each MiCS group.
#[derive(Clone, Debug)]
pub struct Zero3 {
    /// `mics_shard_size`: ranks in a shard group; `None` for all ranks.
    pub mics_shard_size: Option<u32>,
    /// `zero_hpz_partition_size`: consecutive ranks that share a secondary copy; 1 for none.
    pub hpz_partition_size: u32,
    /// `stage3_param_persistence_threshold`, in elements, inclusive: parameters no larger stay gathered while training.
    pub param_persistence_threshold: u64,
    /// `stage3_model_persistence_threshold`, in elements: what all persistent parameters together may have.
    pub model_persistence_threshold: u64,
    /// `offload_param.device`.
    pub offload: Offload,
}

impl Default for Zero3 {
    fn default() -> Self {
        Self {
            mics_shard_size: None,
            hpz_partition_size: 1,
            param_persistence_threshold: 100_000,
            model_persistence_threshold: u64::MAX,
            offload: Offload::None,
        }
    }
}

/// The registered name.
pub const NAME: &str = "zero3";

impl ShardStrategy for Zero3 {
    fn name(&self) -> &str {
        NAME
    }

    fn compares_tied(&self) -> bool {
        false
    }

    fn plan(&self, input: &PlanInput<'_>) -> Result<ShardPlan, PlanError> {
        let axis = self.group(input.mesh.world_size())?;
        let mut plan = input.plan_tensors(NAME, |tensor| place(tensor, axis))?;
        self.mark(&mut plan.tensors);
        // ZeRO-3 has no fixed groups: its coordinator fetches per module, as traced. A module's own parameters are the parameter group.
        plan.groups = groups_by(&plan.tensors, Reshard::ToShards, |t| t.name.rsplit_once('.').map_or("", |(module, _)| module));
        Ok(plan)
    }
}

impl Zero3 {
    fn group(&self, world_size: u32) -> Result<GroupAxis, PlanError> {
        let divides = |what: &str, size: u32| {
            if size > 0 && world_size.is_multiple_of(size) {
                Ok(size)
            } else {
                Err(PlanError::Mesh(format!("{what} is {size}, expected a divisor of the world size {world_size}")))
            }
        };
        divides("zero_hpz_partition_size", self.hpz_partition_size)?;
        let size = self.mics_shard_size.map_or(Ok(world_size), |size| divides("mics_shard_size", size))?;
        Ok(GroupAxis { stride: 1, size })
    }

    /// Persistence is granted in the order of the parameters until the model's threshold is reached; it does not change the layout.
    fn mark(&self, tensors: &mut [TensorPlan]) {
        let mut held = 0u64;
        for tensor in tensors.iter_mut().filter(|t| t.kind == TensorKind::Parameter) {
            let total = held.saturating_add(tensor.numel());
            tensor.persistent = tensor.numel() <= self.param_persistence_threshold && total <= self.model_persistence_threshold;
            if tensor.persistent {
                held = total;
            }
            tensor.offload = self.offload;
        }
    }
}

/// Of n elements on W ranks, p = ceil(n / W): rank r owns `[r·p, min((r+1)·p, n))` and its partition always has p elements.
fn place(tensor: &TensorMeta, axis: GroupAxis) -> Result<Placement, PlanError> {
    Placement::flat(axis, &tensor.shape).map_err(|what| PlanError::tensor(tensor, what))
}
