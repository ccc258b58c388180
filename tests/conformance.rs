//! The built-ins run the suite that an outsider's strategy and policy run: all of them, by name.

use shardwright::{
    core::registry::Registry,
    testkit::{PolicyKit, StrategyKit, policy, strategy},
};

fn replicate() -> StrategyKit<'static> {
    strategy("replicate")
}

fn fsdp2() -> StrategyKit<'static> {
    let kit = strategy("fsdp2").refuses("0-d parameters, as fully_shard does", |tensor, _| tensor.shape.is_empty());
    kit.section("reshard_after_forward: 2\noffload_params: true", |mesh| mesh.size_of("mp_shard").is_multiple_of(2))
}

fn zero3() -> StrategyKit<'static> {
    let kit = strategy("zero3");
    kit.section("zero_optimization: {stage: 3, stage3_param_persistence_threshold: 40}", |_| true)
}

/// It needs a file: without one it has no strategy. Stage 3 is `zero3`.
fn deepspeed() -> StrategyKit<'static> {
    let kit = strategy("deepspeed").default_on(|_| false).reports("zero3");
    kit.file("ds_zero3.json", include_str!("../examples/ds_zero3.json")).section("config_file: ds_zero3.json", |_| true)
}

/// Below stage 3 it is `replicate`.
fn deepspeed_below_stage_3() -> StrategyKit<'static> {
    let kit = strategy("deepspeed").default_on(|_| false).reports("replicate");
    let stage_2 = r#"{"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": true}, "zero_optimization": {"stage": 2}}"#;
    kit.file("stage_2.json", stage_2).section("config_file: stage_2.json", |_| true)
}

fn mixed() -> PolicyKit<'static> {
    policy("mixed").section("storage: bfloat16\nreduce: float32")
}

fn uniform() -> PolicyKit<'static> {
    policy("uniform").section("dtype: float16")
}

fn pins() -> PolicyKit<'static> {
    policy("pins").section("pins:\n  '*.norm.*': float32\n  '*.experts.*': {storage: bfloat16, compute: float32}")
}

type Kits<K> = &'static [(&'static str, fn() -> K)];

#[rustfmt::skip]
const STRATEGIES: Kits<StrategyKit<'static>> = &[
    ("deepspeed", deepspeed),
    ("deepspeed", deepspeed_below_stage_3),
    ("fsdp2", fsdp2),
    ("replicate", replicate),
    ("zero3", zero3),
];
const POLICIES: Kits<PolicyKit<'static>> = &[("mixed", mixed), ("pins", pins), ("uniform", uniform)];

#[test]
fn every_strategy_conforms() {
    for (name, kit) in STRATEGIES {
        let summary = kit().assert();
        assert!(summary.plans > 100 && summary.loads > 50, "{name}: {summary}");
    }
}

#[test]
fn every_policy_conforms() {
    POLICIES.iter().for_each(|(_, kit)| kit().assert());
}

#[test]
fn nothing_that_is_linked_is_left_out() {
    let registry = Registry::linked().unwrap();
    let mut tested: Vec<&str> = STRATEGIES.iter().map(|(name, _)| *name).collect();
    tested.dedup();
    assert_eq!(tested, registry.strategies().iter().map(|e| e.name).collect::<Vec<_>>());
    assert_eq!(POLICIES.iter().map(|(name, _)| *name).collect::<Vec<_>>(), registry.policies().iter().map(|e| e.name).collect::<Vec<_>>());
}
