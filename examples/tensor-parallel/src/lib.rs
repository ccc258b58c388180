//! FSDP over tensor parallelism as a sharding strategy: modules are column- or row-parallel over a `tp` axis, and what that leaves of every
//! parameter is cut on dim 0 over an `fsdp` axis.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use shardwright_core::{
    Cut, Globs, GroupAxis, Mesh, Placement, PlanError, PlanInput, Reshard, ShardPlan, ShardStrategy, TensorMeta,
    diagnostic::Diagnostic,
    mesh::{MP_REPLICATE, MP_SHARD},
    register_strategy, schemars, serde,
    strategy::{modules, groups_by},
    strategy_config::{BuildContext, Built, StrategyConfig},
};

/// How a module is parallel, in the words of transformers' `tp_plan`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(crate = "shardwright_core::serde", rename_all = "lowercase")]
#[schemars(crate = "shardwright_core::schemars")]
pub enum Style {
    /// Weight and bias are cut on dim 0: ranks compute different outputs.
    Colwise,
    /// The weight is cut on dim 1, the bias is whole: ranks sum their outputs.
    Rowwise,
}

/// `dist_config: {name: example/tensor-parallel, …}`, its name left out.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(crate = "shardwright_core::serde", default, deny_unknown_fields)]
#[schemars(crate = "shardwright_core::schemars")]
pub struct TensorParallelConfig {
    /// Consecutive ranks that a module is parallel over, a divisor of mp_shard_size.
    pub tp_size: u32,
    /// Globs over modules, and how these are parallel; everything else is cut over the other ranks alone.
    pub tp_plan: BTreeMap<String, Style>,
}

impl Default for TensorParallelConfig {
    fn default() -> Self {
        Self { tp_size: 1, tp_plan: BTreeMap::new() }
    }
}

impl StrategyConfig for TensorParallelConfig {
    const NAME: &'static str = "example/tensor-parallel";
    const SUMMARY: &'static str = "modules column- or row-parallel over a tp axis, everything on dim 0 over an fsdp axis";

    fn build(self, cx: &mut BuildContext<'_>) -> Result<Built, Diagnostic> {
        let shard = cx.mesh.size_of(MP_SHARD);
        if self.tp_size == 0 || !shard.is_multiple_of(self.tp_size) {
            let message = format!("tp_size is {}, expected a divisor of the {shard} ranks that share one model", self.tp_size);
            return Err(Diagnostic::error("tp-size", message).at(cx.at("tp_size")));
        }
        let globs = |style| {
            let of_style = self.tp_plan.iter().filter(|(_, s)| **s == style).map(|(glob, _)| glob);
            Globs::new(of_style).map_err(|what| Diagnostic::error("tp-plan", what).at(cx.at("tp_plan")))
        };
        Ok(Built::new(TensorParallel { tp_size: self.tp_size, colwise: globs(Style::Colwise)?, rowwise: globs(Style::Rowwise)? }))
    }
}

register_strategy!(TensorParallelConfig);

/// FSDP over tensor parallelism.
#[derive(Clone, Debug)]
pub struct TensorParallel {
    tp_size: u32,
    colwise: Globs,
    rowwise: Globs,
}

impl TensorParallel {
    /// The layout: a cut over `tp` where the module is parallel, then one over `fsdp`.
    fn place(&self, tensor: &TensorMeta, tp: GroupAxis, fsdp: GroupAxis) -> Placement {
        let module = modules(&tensor.name).next().unwrap_or("");
        let dim = match tensor.shape.len() {
            0 => return Placement::replicated(),
            1.. if self.colwise.matches(module) => Some(0),
            2.. if self.rowwise.matches(module) => Some(1),
            _ => None,
        };
        Placement::of(dim.map(|dim| Cut::chunk(tp, dim)).into_iter().chain([Cut::chunk(fsdp, 0)])).padded()
    }

    /// The ranks that share one model as a mesh of `fsdp` × `tp`.
    fn axes(&self, mesh: &Mesh) -> Result<(GroupAxis, GroupAxis), PlanError> {
        let (replicate, shard) = (mesh.size_of(MP_REPLICATE), mesh.size_of(MP_SHARD));
        let refused = || PlanError::Mesh(format!("tp_size is {}, expected a divisor of {shard} ranks", self.tp_size));
        let fsdp = shard.checked_div(self.tp_size).filter(|fsdp| fsdp * self.tp_size == shard).ok_or_else(refused)?;
        let own = Mesh::new([(MP_REPLICATE, replicate), ("fsdp", fsdp), ("tp", self.tp_size)]).map_err(PlanError::Mesh)?;
        own.axis("tp").zip(own.axis("fsdp")).ok_or_else(refused)
    }
}

impl ShardStrategy for TensorParallel {
    fn name(&self) -> &str {
        TensorParallelConfig::NAME
    }

    fn plan(&self, input: &PlanInput<'_>) -> Result<ShardPlan, PlanError> {
        let (tp, fsdp) = self.axes(input.mesh)?;
        let mut plan = input.plan_tensors(self.name(), |tensor| Ok(self.place(tensor, tp, fsdp)))?;
        plan.groups = groups_by(&plan.tensors, Reshard::ToShards, |tensor| {
            modules(&tensor.name).find(|module| module.rsplit('.').next().is_some_and(|last| last.parse::<u32>().is_ok())).unwrap_or("")
        });
        Ok(plan)
    }
}
