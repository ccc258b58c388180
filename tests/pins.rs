//! The built-in policy `pins`, from the YAML to the plan.

use std::collections::BTreeMap;

use shardwright::{
    config::{Draft, Input, Outcome, Supplied},
    core::{DType, ModelFacts, ModelMeta, PlanInput, ShardPlan, TensorMeta, diagnostic::Source, plan_checked, registry::Registry},
};

fn resolve(yaml: &str) -> Outcome {
    let registry = Registry::linked().unwrap();
    let input = Input { config: Source::new("train.yaml", yaml), overrides: Vec::new(), env: BTreeMap::new() };
    let supplied = Supplied { world_size: Some(2), ..Supplied::default() };
    Draft::parse(&input, &registry).resolve(&supplied, &registry)
}

fn plan(yaml: &str) -> ShardPlan {
    let outcome = resolve(yaml);
    let resolved = outcome.resolved.unwrap_or_else(|| panic!("{:#?}", outcome.diagnostics));
    let names = [
        "lm_head.weight",
        "model.layers.0.input_norm.weight",
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.mlp.up.weight",
        "model.norm.weight",
    ];
    let tensors = names.iter().map(|name| TensorMeta::new(*name, DType::BF16, [4, 2])).collect();
    let model = ModelMeta::new(tensors, ModelFacts::default()).unwrap();
    plan_checked(&*resolved.strategy, &PlanInput::new(&model, &resolved.mesh, &*resolved.precision)).unwrap()
}

/// `tensor: storage compute reduce` of every tensor.
fn dtypes(plan: &ShardPlan) -> Vec<String> {
    plan.tensors.iter().map(|t| format!("{}: {} {} {}", t.name, t.precision.storage, t.precision.compute, t.precision.reduce)).collect()
}

#[test]
fn the_first_glob_that_matches_decides_and_the_rest_follows_the_strategy() {
    let plan = plan(
        "dist_config: {name: fsdp2}
shardwright:
  inference: true
  precision:
    pins: {'*norm.weight': float32, '*.gate.weight': {compute: fp32}, 'model.*': float16, lm_head.weight: {storage: float32}}
    name: pins
",
    );
    assert_eq!(
        dtypes(&plan),
        [
            "lm_head.weight: float32 bfloat16 float32",
            "model.layers.0.input_norm.weight: float32 float32 float32",
            "model.layers.0.mlp.gate.weight: bfloat16 float32 float32",
            "model.layers.0.mlp.up.weight: float16 float16 float16",
            "model.norm.weight: float32 float32 float32",
        ]
    );
}

#[test]
fn a_unit_of_several_dtypes_is_gathered_in_a_group_a_dtype() {
    let plan = plan("dist_config: {name: fsdp2}\nshardwright: {precision: {name: pins, pins: {'*norm*': float32, '*.gate.*': float32}}}");
    let layer = plan.units.iter().find(|u| u.name == "model.layers.0").unwrap();
    let groups: Vec<(DType, Vec<&str>)> = plan
        .gather_groups(layer)
        .into_iter()
        .map(|(dtype, tensors)| (dtype, tensors.iter().map(|&t| plan.tensors[t].name.as_str()).collect()))
        .collect();
    assert_eq!(
        groups,
        [
            (DType::BF16, vec!["model.layers.0.mlp.up.weight"]),
            (DType::F32, vec!["model.layers.0.input_norm.weight", "model.layers.0.mlp.gate.weight"]),
        ]
    );
}

fn findings(yaml: &str) -> Vec<String> {
    let found = resolve(yaml).diagnostics;
    found
        .iter()
        .map(|d| {
            let at = d.at.as_ref().map_or_else(String::new, |at| format!("{}:{}: ", at.line, at.column));
            let help = d.help.as_deref().map_or_else(String::new, |help| format!(" [{help}]"));
            format!("{at}{}: {}{help}", d.code, d.message)
        })
        .collect()
}

#[test]
fn what_is_wrong_with_a_pin_is_said_at_its_line() {
    let pins = |pin: &str| {
        findings(&format!("dist_config: {{name: fsdp2}}\nshardwright:\n  precision:\n    name: pins\n    pins:\n      {pin}\ninit_config: {{name: init_on_meta}}\n"))
    };
    assert_eq!(
        pins("'*.gate.*': float31"),
        [
            "6:19: config-value: shardwright.precision.pins.*.gate.*: expected a dtype such as float32, or a mapping of storage, compute and reduce, found string \"float31\""
        ]
    );
    assert_eq!(pins("'*.gate.*': {storag: float32}"), ["6:20: config-unknown-key: unknown key 'storag' [did you mean 'storage'?]"]);
    assert_eq!(pins("'*.gate.*': int8"), ["6:19: pins-dtype: pins: '*.gate.*' is pinned to int8, expected a float dtype such as float32"]);
    assert_eq!(pins("'[*.gate.*': float32"), ["6:20: pins-glob: pins: '[*.gate.*' is no glob: unclosed character class; missing ']'"]);
    assert_eq!(
        findings("shardwright: {precision: {name: pin}}"),
        [
            "1:33: unknown-precision: unknown precision policy 'pin', linked are: mixed, pins, uniform [did you mean 'pins'? a third party's is linked by naming its crate in your binary: `use acme_strategy as _;`]"
        ]
    );
}

#[test]
fn a_mix_that_the_stock_engine_refuses_is_a_warning() {
    let pinned =
        |config: &str, pin: &str| findings(&format!("{config}\nshardwright: {{precision: {{name: pins, pins: {{'*norm*': {pin}}}}}}}"));
    let says = |found: &[String], what: &str| found.iter().any(|f| f.contains("pins-mixed-dtypes") && f.contains(what));
    let zero3 = "dist_config: {name: zero3, bf16: {enabled: true}}";
    assert!(says(&pinned(zero3, "float32"), "stock DeepSpeed refuses trainable parameters of mixed dtypes"));
    assert!(!says(&pinned(zero3, "bfloat16"), ""), "the same dtype is no mix");
    assert!(!says(&pinned(zero3, "{compute: float32}"), ""), "what is computed with is DeepSpeed's own business");
    let fsdp2 = "dist_config: {name: fsdp2}";
    assert!(says(&pinned(fsdp2, "bfloat16"), "stock FSDP2 refuses trainable parameters of mixed dtypes in one unit"));
    assert!(!says(&pinned(fsdp2, "float32"), ""), "full tuning keeps float32 anyway");
    assert!(!says(&pinned("dist_config: {name: fsdp2}\npeft_config: {name: lora}", "float32"), ""), "nothing of the model is trained");
}
