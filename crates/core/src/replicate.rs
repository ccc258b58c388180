//! The strategy without sharding: every rank holds every parameter (DDP, DeepSpeed stages 0 to 2). Also the smallest example of one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    diagnostic::Diagnostic,
    placement::Placement,
    plan::{Reshard, ShardPlan},
    strategy::{PlanError, PlanInput, ShardStrategy, groups_by},
    strategy_config::{BuildContext, Built, StrategyConfig},
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
        plan.groups = groups_by(&plan.tensors, Reshard::Never, |_| "");
        Ok(plan)
    }
}

/// Its section, which has no keys: a YAML without a `dist_config` means the same.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ReplicateConfig {}

impl StrategyConfig for ReplicateConfig {
    const NAME: &'static str = REPLICATE;
    const SUMMARY: &'static str = "every parameter whole on every rank, as without a dist_config";

    fn build(self, _: &mut BuildContext<'_>) -> Result<Built, Diagnostic> {
        Ok(Built::new(Replicate))
    }
}

crate::register_strategy!(ReplicateConfig);
