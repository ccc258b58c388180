//! `dist_config: {name: example/expert-parallel, …}`.

use shardwright_core::{
    diagnostic::Diagnostic,
    mesh::MP_SHARD,
    register_strategy, schemars, serde,
    strategy_config::{BuildContext, Built, StrategyConfig},
};

use crate::layout::ExpertParallel;

/// The section, its name left out.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(crate = "shardwright_core::serde", default, deny_unknown_fields)]
#[schemars(crate = "shardwright_core::schemars")]
pub struct ExpertParallelConfig {
    /// Consecutive ranks that hold different experts, a divisor of mp_shard_size; null for all of these. Where there are more ranks, those
    /// that share an expert cut it among them.
    pub ep_size: Option<u32>,
    /// What the list of experts is called in tensor names: `mlp.experts.5.up_proj.weight`, `mlp.experts.gate_up_proj`.
    pub experts: String,
    /// Whether gathered parameters are dropped after a forward pass.
    pub reshard_after_forward: bool,
}

impl Default for ExpertParallelConfig {
    fn default() -> Self {
        Self { ep_size: None, experts: "experts".to_owned(), reshard_after_forward: true }
    }
}

impl StrategyConfig for ExpertParallelConfig {
    const NAME: &'static str = crate::layout::NAME;
    const SUMMARY: &'static str = "experts by index over an ep axis and cut over an fsdp axis, everything else on dim 0 over both";

    fn build(self, cx: &mut BuildContext<'_>) -> Result<Built, Diagnostic> {
        let shard = cx.mesh.size_of(MP_SHARD);
        let ep_size = self.ep_size.unwrap_or(shard);
        if ep_size == 0 || !shard.is_multiple_of(ep_size) {
            let message = format!("ep_size is {ep_size}, expected a divisor of the {shard} ranks that share one model");
            return Err(Diagnostic::error("ep-size", message).at(cx.at("ep_size")));
        }
        let Self { experts, reshard_after_forward, .. } = self;
        Ok(Built::new(ExpertParallel { ep_size, experts, reshard_after_forward }))
    }
}

register_strategy!(ExpertParallelConfig);
