//! The strategy without sharding: every rank holds every parameter (DDP, DeepSpeed stages 0 to 2). Also the smallest example of one.

use crate::{
    plan::{Reshard, ShardPlan},
    region::Placement,
    strategy::{PlanError, PlanInput, ShardStrategy, units_by},
};

/// Every parameter whole on every rank.
#[derive(Clone, Copy, Debug, Default)]
pub struct Replicate;

/// The name under which [`Replicate`] reports itself.
pub const REPLICATE: &str = "replicate";

impl ShardStrategy for Replicate {
    fn name(&self) -> &str {
        REPLICATE
    }

    fn plan(&self, input: &PlanInput<'_>) -> Result<ShardPlan, PlanError> {
        let mut plan = input.plan_tensors(self.name(), |_| Ok(Placement::replicated()))?;
        plan.units = units_by(&plan.tensors, Reshard::Never, |_| "");
        Ok(plan)
    }
}
