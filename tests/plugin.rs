//! A third party's fault is reported as its own: where a section cannot be built, and where a plan cannot be made.

use std::collections::BTreeMap;

use shardwright::{
    config::{Draft, Input, Outcome, Supplied},
    core::{
        DType, ModelFacts, ModelMeta, PlanError, PlanInput, ShardPlan, ShardStrategy, TensorMeta,
        diagnostic::{Diagnostic, Source},
        plan_checked, register_strategy,
        registry::Registry,
        schemars, serde,
        strategy_config::{BuildContext, Built, StrategyConfig},
    },
};

#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(crate = "shardwright::core::serde", default, deny_unknown_fields)]
#[schemars(crate = "shardwright::core::schemars")]
struct FaultyConfig {
    /// Whether already `build` panics.
    at_once: bool,
}

impl StrategyConfig for FaultyConfig {
    const NAME: &'static str = "test/faulty";
    const SUMMARY: &'static str = "panics";

    fn build(self, _: &mut BuildContext<'_>) -> Result<Built, Diagnostic> {
        assert!(!self.at_once, "there are no {} experts", 7);
        Ok(Built::new(Faulty))
    }
}

register_strategy!(FaultyConfig);

#[derive(Debug)]
struct Faulty;

impl ShardStrategy for Faulty {
    fn name(&self) -> &'static str {
        FaultyConfig::NAME
    }

    fn plan(&self, _: &PlanInput<'_>) -> Result<ShardPlan, PlanError> {
        panic!("index out of bounds")
    }
}

fn resolve(yaml: &str) -> Outcome {
    let registry = Registry::linked().unwrap();
    let input = Input { config: Source::new("train.yaml", yaml), overrides: Vec::new(), env: BTreeMap::new() };
    let supplied = Supplied { world_size: Some(2), ..Supplied::default() };
    Draft::parse(&input, &registry).resolve(&supplied, &registry)
}

#[test]
fn a_panic_in_build_is_a_located_error() {
    let outcome = resolve("model: m\ndist_config:\n  name: test/faulty\n  at_once: true\n");
    assert!(outcome.resolved.is_none());
    let reported = outcome.diagnostics.iter().find(|d| d.code == "plugin-panicked").unwrap();
    assert!(reported.message.contains("'test/faulty' panicked") && reported.message.contains("there are no 7 experts"), "{reported:?}");
    assert_eq!(reported.at.as_ref().map(|at| at.line), Some(3));
}

#[test]
fn a_panic_in_plan_is_the_strategys_error() {
    let resolved = resolve("model: m\ndist_config: {name: test/faulty}\n").resolved.unwrap();
    let model = ModelMeta::new(vec![TensorMeta::new("w", DType::BF16, [4, 2])], ModelFacts::default()).unwrap();
    let error = plan_checked(&*resolved.strategy, &PlanInput::new(&model, &resolved.mesh, &*resolved.precision)).unwrap_err();
    assert_eq!(error.to_string(), "strategy 'test/faulty' panicked while it planned: index out of bounds");
}
