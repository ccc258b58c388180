//! Planning a model of 70 billion parameters on 1,024 ranks, per strategy: the plan with its proof, then one rank's regions and every
//! rank's; and a plugin's strategy, found in the registry and called through `dyn`, against the same layout called directly.

use std::{collections::BTreeMap, hint::black_box};

use criterion::Criterion;
use shardwright::config::{Draft, Input, Resolved, Supplied};
use shardwright::core::{
    DType, Mesh, ModelFacts, ModelMeta, Placement, PlanError, PlanInput, PrecisionPolicy, Reshard, ShardPlan, ShardStrategy, TensorMeta,
    diagnostic::{Diagnostic, Source},
    plan_checked, register_strategy,
    registry::Registry,
    schemars, serde,
    strategy::{modules, units_by},
    strategy_config::{BuildContext, Built, StrategyConfig},
};

const RANKS: u32 = 1024;

/// LLaMA-70B's names and shapes: 723 tensors.
fn llama_70b() -> ModelMeta {
    let mut tensors = vec![
        TensorMeta::new("lm_head.weight", DType::BF16, [128_256, 8192]),
        TensorMeta::new("model.embed_tokens.weight", DType::BF16, [128_256, 8192]),
        TensorMeta::new("model.norm.weight", DType::BF16, [8192]),
    ];
    for layer in 0..80 {
        for (part, shape) in [
            ("input_layernorm.weight", &[8192][..]),
            ("mlp.down_proj.weight", &[8192, 28_672]),
            ("mlp.gate_proj.weight", &[28_672, 8192]),
            ("mlp.up_proj.weight", &[28_672, 8192]),
            ("post_attention_layernorm.weight", &[8192]),
            ("self_attn.k_proj.weight", &[1024, 8192]),
            ("self_attn.o_proj.weight", &[8192, 8192]),
            ("self_attn.q_proj.weight", &[8192, 8192]),
            ("self_attn.v_proj.weight", &[1024, 8192]),
        ] {
            tensors.push(TensorMeta::new(format!("model.layers.{layer}.{part}"), DType::BF16, shape));
        }
    }
    ModelMeta::new(tensors, ModelFacts::default()).expect("names are distinct")
}

/// The same layout twice: called directly, and registered as a plugin's is.
#[derive(Debug)]
struct Rows;

impl ShardStrategy for Rows {
    fn name(&self) -> &str {
        RowsConfig::NAME
    }

    #[inline(never)] // the same code for both callers: what is measured is the call
    fn plan(&self, input: &PlanInput<'_>) -> Result<ShardPlan, PlanError> {
        let axis = input.mesh.all_ranks();
        let place = |tensor: &TensorMeta| Placement::chunked(axis, &tensor.shape, 0).map_err(|reason| PlanError::tensor(tensor, reason));
        let mut plan = input.plan_tensors(self.name(), place)?;
        plan.units = units_by(&plan.tensors, Reshard::ToShards, |tensor| modules(&tensor.name).next().unwrap_or(""));
        Ok(plan)
    }
}

#[derive(Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(crate = "shardwright::core::serde", default, deny_unknown_fields)]
#[schemars(crate = "shardwright::core::schemars")]
struct RowsConfig {}

impl StrategyConfig for RowsConfig {
    const NAME: &'static str = "bench/rows";
    const SUMMARY: &'static str = "dim 0 over all ranks";

    fn build(self, _: &mut BuildContext<'_>) -> Result<Built, Diagnostic> {
        Ok(Built::new(Rows))
    }
}

register_strategy!(RowsConfig);

/// As a user's YAML selects it.
fn resolved(name: &str) -> Resolved {
    let registry = Registry::linked().expect("the registry is sound");
    let yaml = format!("dist_config: {{name: {name}}}");
    let input = Input { config: Source::new("bench.yaml", yaml), overrides: Vec::new(), env: BTreeMap::new() };
    let supplied = Supplied { world_size: Some(RANKS), ..Supplied::default() };
    let outcome = Draft::parse(&input, &registry).resolve(&supplied, &registry);
    outcome.resolved.unwrap_or_else(|| panic!("{:?}", outcome.diagnostics))
}

/// Elements that these ranks hold, from their regions.
fn held(plan: &ShardPlan, ranks: std::ops::Range<u32>) -> u64 {
    ranks.map(|rank| plan.tensors.iter().map(|tensor| tensor.valid_numel(rank)).sum::<u64>()).sum()
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let model = llama_70b();
    let mesh = Mesh::replicate_shard(1, RANKS).expect("a sound mesh");
    for name in ["replicate", "fsdp2", "zero3", RowsConfig::NAME] {
        let resolved = resolved(name);
        let input = PlanInput::new(&model, &mesh, &*resolved.precision);
        let mut group = criterion.benchmark_group(format!("plan/{name}"));
        group.bench_function("plan and proof", |b| b.iter(|| plan_checked(&*resolved.strategy, black_box(&input))));
        group.bench_function("one rank", |b| {
            b.iter(|| plan_checked(&*resolved.strategy, black_box(&input)).map(|plan| held(&plan, 1023..1024)));
        });
        group.bench_function("all ranks", |b| {
            b.iter(|| plan_checked(&*resolved.strategy, black_box(&input)).map(|plan| held(&plan, 0..RANKS)));
        });
        group.finish();
    }
    dispatch(&mut criterion, &model, &mesh);
    criterion.final_summary();
}

fn dispatch(criterion: &mut Criterion, model: &ModelMeta, mesh: &Mesh) {
    let plugin = resolved(RowsConfig::NAME);
    let policy: &dyn PrecisionPolicy = &*plugin.precision;
    let input = PlanInput::new(model, mesh, policy);
    let mut group = criterion.benchmark_group("dispatch");
    group.bench_function("direct", |b| b.iter(|| Rows.plan(black_box(&input))));
    group.bench_function("registered", |b| b.iter(|| plugin.strategy.plan(black_box(&input))));
    group.finish();
}
