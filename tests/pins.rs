//! The built-in policy `pins`, from the YAML to the plan.

mod support;

use std::collections::BTreeMap;

use shardwright::{
    config::{Draft, Input, Outcome, Resolved, Supplied},
    core::{
        DType, ModelFacts, ModelMeta, PlanInput, ShardPlan, TensorMeta,
        diagnostic::{Diagnostic, Source},
        plan_checked,
        registry::Registry,
    },
};

fn resolve(yaml: &str) -> Outcome {
    let registry = Registry::linked().unwrap();
    let input = Input { config: Source::new("train.yaml", yaml), overrides: Vec::new(), env: BTreeMap::new() };
    let supplied = Supplied { world_size: Some(2), ..Supplied::default() };
    Draft::parse(&input, &registry).resolve(&supplied, &registry)
}

fn model() -> ModelMeta {
    let names = [
        "lm_head.weight",
        "model.layers.0.input_norm.weight",
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.mlp.up.weight",
        "model.norm.weight",
    ];
    let tensors = names.iter().map(|name| TensorMeta::new(*name, DType::BF16, [4, 2])).collect();
    ModelMeta::new(tensors, ModelFacts::default()).unwrap()
}

fn resolved(yaml: &str) -> Resolved {
    let outcome = resolve(yaml);
    outcome.resolved.unwrap_or_else(|| panic!("{:#?}", outcome.diagnostics))
}

fn plan(yaml: &str) -> ShardPlan {
    let resolved = resolved(yaml);
    plan_checked(&*resolved.strategy, &PlanInput::new(&model(), &resolved.mesh, &*resolved.precision)).unwrap()
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
    let layer = plan.groups.iter().find(|u| u.name == "model.layers.0").unwrap();
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

/// The groups are in the report, for who runs the collectives.
#[test]
fn a_report_has_the_groups_of_each_unit() {
    let dir = tempfile::tempdir().unwrap();
    let model = support::checkpoint("tiny-qwen3-bf16");
    let yaml = format!(
        "model: {}\ndist_config: {{name: fsdp2}}\nshardwright: {{precision: {{name: pins, pins: {{'*norm*': float32}}}}}}\n",
        model.display()
    );
    let config = dir.path().join("train.yaml");
    std::fs::write(&config, yaml).unwrap();
    let output = support::shardwright().args(["load", "--world-size", "2", "--format", "json"]).arg(&config).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for group in report["units"].as_array().unwrap() {
        let names = |of: &serde_json::Value| of.as_array().unwrap().iter().map(|n| n.as_str().unwrap().to_owned()).collect::<Vec<_>>();
        let (normal, norms): (Vec<_>, Vec<_>) = names(&group["tensors"]).into_iter().partition(|name| !name.contains("norm"));
        let groups: Vec<(String, Vec<String>)> = group["gather_groups"]
            .as_array()
            .unwrap()
            .iter()
            .map(|g| (g["dtype"].as_str().unwrap().to_owned(), names(&g["tensors"])))
            .collect();
        let expected = [("bfloat16".to_owned(), normal), ("float32".to_owned(), norms)];
        assert_eq!(groups, expected.into_iter().filter(|(_, tensors)| !tensors.is_empty()).collect::<Vec<_>>(), "{}", group["name"]);
    }
    let mixed = report["units"].as_array().unwrap().iter().filter(|u| u["gather_groups"].as_array().unwrap().len() == 2).count();
    assert!(mixed >= 2, "a parameter group a layer has norms beside matrices: {report:#}");
}

/// A pin that decides nothing is said at its line, once the model is known.
#[test]
fn a_pin_that_decides_nothing_is_a_warning_with_the_nearest_name() {
    let lint = |pins: &str| -> Vec<String> {
        let yaml = format!("dist_config: {{name: fsdp2}}\nshardwright:\n  precision:\n    name: pins\n    pins:\n{pins}");
        let resolved = resolved(&yaml);
        let model = model();
        let input = PlanInput::new(&model, &resolved.mesh, &*resolved.precision);
        said(&resolved.precision.lint(&input.parameters().collect::<Vec<_>>()))
    };
    assert_eq!(lint("      '*norm*': float32\n      'lm_head.*': float32\n"), [""; 0]);
    assert_eq!(
        lint("      '*.mlp.gat.*': float32\n      '*.nrom.weight': float32\n      'model.*': float32\n      'model.norm.*': float32\n"),
        [
            "6:22: pins-unused: pins: '*.mlp.gat.*' matches no parameter of the model [the nearest parameter is 'model.layers.0.mlp.gate.weight']",
            "7:24: pins-unused: pins: '*.nrom.weight' matches no parameter of the model [the nearest parameter is 'model.norm.weight']",
            "9:23: pins-unused: pins: 'model.norm.*' decides for no parameter: an earlier glob matches whatever it matches [the first glob that matches a name decides; put 'model.norm.*' earlier, for 'model.norm.weight']",
        ]
    );
}

#[test]
fn a_load_says_which_pin_decides_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let model = support::checkpoint("tiny-qwen3-bf16");
    let pins = "shardwright:\n  precision:\n    name: pins\n    pins:\n      '*.nrom.*': float32\n";
    let config = dir.path().join("train.yaml");
    std::fs::write(&config, format!("model: {}\ndist_config: {{name: fsdp2}}\n{pins}", model.display())).unwrap();
    let output = support::shardwright().args(["load", "--world-size", "2"]).arg(&config).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{err}");
    let at = format!("{}:7:19", config.display());
    assert!(err.contains("pins-unused") && err.contains(&at) && err.contains("the nearest parameter is 'model.norm.weight'"), "{err}");
}

fn findings(yaml: &str) -> Vec<String> {
    said(&resolve(yaml).diagnostics)
}

fn said(found: &[Diagnostic]) -> Vec<String> {
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
        findings(&format!(
            "dist_config: {{name: fsdp2}}\nshardwright:\n  precision:\n    name: pins\n    pins:\n      {pin}\ninit_config: {{name: init_on_meta}}\n"
        ))
    };
    assert_eq!(
        pins("'*.gate.*': float31"),
        [
            "6:19: config-value: shardwright.precision.pins.*.gate.*: expected a dtype such as float32, or a mapping of storage, compute and reduce, found string \"float31\""
        ]
    );
    assert_eq!(pins("'*.gate.*': {storag: float32}"), ["6:20: config-unknown-key: unknown key 'storag' [did you mean 'storage'?]"]);
    assert_eq!(pins("'*.gate.*': int8"), ["6:19: pins-dtype: pins: '*.gate.*' is pinned to int8, expected a float dtype such as float32"]);
    assert_eq!(
        pins("'[*.gate.*': float32"),
        ["6:20: pins-glob: pins: '[*.gate.*' is not a valid glob: unclosed character class; missing ']'"]
    );
    assert_eq!(
        findings("shardwright: {precision: {name: pin}}"),
        [
            "1:33: unknown-precision: unknown precision policy 'pin', available: mixed, pins, uniform [did you mean 'pins'? a third party's is linked by naming its crate in your binary: `use acme_strategy as _;`]"
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
    assert!(says(&pinned(fsdp2, "bfloat16"), "stock FSDP2 refuses trainable parameters of mixed dtypes in one parameter group"));
    assert!(!says(&pinned(fsdp2, "float32"), ""), "full tuning keeps float32 anyway");
    assert!(!says(&pinned("dist_config: {name: fsdp2}\npeft_config: {name: lora}", "float32"), ""), "nothing of the model is trained");
}
