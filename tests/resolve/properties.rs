//! What must hold for every input: no panic, and the same meaning however it is written.

use proptest::prelude::*;
use serde_json::Value as Json;
use shardwright_core::{
    diagnostic::Source,
    tree::{json, yaml},
};

use crate::{Case, values};

/// A key and a valid value, each key once.
fn flat_keys() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let word = |words: &'static [&'static str]| proptest::sample::select(words).prop_map(str::to_owned);
    let keys = (
        (word(&["true", "false", "yes", "off"]), 1u32..5, 1u32..4, word(&["1e-4", "2.0e-5", "0.001"])),
        (
            word(&["null", "{name: lora, r: '8'}", "{name: freeze, freeze_trainable_layers: -1}"]),
            word(&[
                "null",
                "{name: fsdp2}",
                "{offload_params: true, name: fsdp2}",
                "{name: zero3}",
                "{name: zero3, bf16: {enabled: false}, zero_optimization: {reduce_bucket_size: auto, sub_group_size: 5e8}}",
            ]),
        ),
        (
            word(&["null", "{name: init_on_rank0}"]),
            word(&["eager", "sdpa"]),
            word(&["null", "{storage_dtype: bf16, io: {threads: 2}}", "{precision: {name: uniform, dtype: half}}"]),
        ),
    );
    keys.prop_map(|((bf16, micro, factor, lr), (peft, dist), (init, attention, ours))| {
        vec![
            ("model", "m".into()),
            ("bf16", bf16),
            ("micro_batch_size", micro.to_string()),
            ("global_batch_size", (micro * factor * 4).to_string()),
            ("learning_rate", lr),
            ("peft_config", peft),
            ("dist_config", dist),
            ("init_config", init),
            ("flash_attn", attention),
            ("shardwright", ours),
        ]
    })
}

fn yaml_of(keys: &[(&str, String)]) -> String {
    keys.iter().map(|(key, value)| format!("{key}: {value}\n")).collect()
}

fn meaning(text: &str) -> Json {
    values(Case::new(text).world(4).document())
}

/// The meaning, or all that is wrong, wherever it stands.
fn said(case: &Case) -> Json {
    let outcome = case.outcome();
    let mut document = sorted(&values(outcome.to_json()));
    if outcome.has_errors() {
        let mut messages: Vec<String> =
            outcome.diagnostics.iter().filter(|d| d.code != "yaml-exponent").map(|d| d.message.to_string()).collect();
        messages.sort();
        document = messages.into();
    }
    document
}

/// Keys of objects in alphabetical order: what is written may come in any.
fn sorted(value: &Json) -> Json {
    match value {
        Json::Object(map) => {
            let mut entries: Vec<_> = map.iter().map(|(k, v)| (k.clone(), sorted(v))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Json::Object(entries.into_iter().collect())
        }
        Json::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_panics(text in "\\PC{0,200}", json_text in "[-\\[\\]{}\",:0-9a-e.+ \\n/*#\\\\u]{0,80}") {
        drop(yaml::parse(&Source::new("a", text.as_str()), &mut Vec::new()));
        drop(json::parse(&Source::new("a", json_text.as_str()), &mut Vec::new()));
        drop(Case::new(text.as_str()).with(&text).outcome());
        drop(Case::new(crate::DEEPSPEED).deepspeed(json_text).outcome());
    }

    #[test]
    fn no_yaml_like_text_panics(text in "([a-z_]{1,12}|[-?:&*!|>%@`'\"\\[\\]{},#<\\n\\t ]|dist_config: |name|é|\u{feff}|0x|1:3|<<: ){0,40}") {
        drop(Case::new(text).world(3).outcome());
    }

    #[test]
    fn no_value_of_a_known_key_panics(key in proptest::sample::select(&["model", "dist_config", "peft_config", "shardwright", "micro_batch_size", "distributed_type", "fsdp_config", "deepspeed_config", "training", "zero_optimization"][..]),
        value in "(null|-1|0|1e400|99999999999999999999999999999999999999999|\\[\\]|\\{\\}|auto|\\{name: [a-z0-9]{1,6}\\}|\\{name: zero3, zero_optimization: \\{stage: [0-9-]{1,3}, reduce_bucket_size: (auto|-1|1e30)\\}\\}|'\\{\"name\": [^']{0,10}')", world in 0u32..5) {
        let mut case = Case::new(format!("{key}: {value}\n")).world(world);
        drop(case.outcome());
        case.yaml = format!("distributed_type: FSDP\n{key}: {value}\n");
        drop(case.outcome());
        drop(Case::new(crate::DEEPSPEED).deepspeed(format!("{{\"{key}\": {value}}}")).outcome());
    }

    #[test]
    fn order_and_comments_change_nothing_but_places(keys in flat_keys(), seed in any::<u64>()) {
        let mut shuffled = keys.clone();
        for i in (1..shuffled.len()).rev() {
            shuffled.swap(i, usize::try_from(seed.rotate_left(u32::try_from(i).unwrap() * 7) % (i as u64 + 1)).unwrap());
        }
        let commented: String = shuffled.iter().map(|(key, value)| format!("# {key}: of no meaning\n\n{key}: {value}   # nor this\n")).collect();
        prop_assert_eq!(sorted(&meaning(&yaml_of(&keys))), sorted(&meaning(&commented)));
    }

    #[test]
    fn an_override_equals_the_edited_file(keys in flat_keys(), other in flat_keys(), which in 1usize..10) {
        let (key, value) = other[which].clone();
        let mut edited = keys.clone();
        edited[which].1.clone_from(&value);
        // An override merges into a mapping; one that replaces it starts from nothing.
        let base: Vec<_> = keys.iter().filter(|(k, _)| *k != key || !value.starts_with('{')).cloned().collect();
        let overridden = Case::new(yaml_of(&base)).world(4).with(&format!("{key}={value}"));
        prop_assert_eq!(said(&overridden), said(&Case::new(yaml_of(&edited)).world(4)));
    }

    #[test]
    fn resolving_a_resolution_changes_nothing(keys in flat_keys()) {
        let first = meaning(&yaml_of(&keys));
        let as_json = Case { world: None, hidden_size: None, ..Case::new(first.to_string()) };
        prop_assert_eq!(&values(as_json.document()), &first);
    }
}

#[test]
fn a_key_that_deepspeed_does_not_know_is_no_error_when_its_resolution_is_resolved() {
    let case = Case::new(crate::DEEPSPEED).deepspeed(r#"{"zero_optimization": {"stage": 3}, "optimiser": {"type": "AdamW"}}"#);
    let first = case.document();
    let again = Case::new(values(first.clone()).to_string()).document();
    assert!(first["warnings"].as_array().unwrap().iter().any(|w| w["code"] == "deepspeed-unknown-top-level"), "{first}");
    assert_eq!(values(again), values(first));
}

#[test]
fn advice_about_quotes_is_given_where_quotes_are_at_fault() {
    let help = |text: &str| {
        let outcome = Case::new(text).outcome();
        outcome.diagnostics.iter().find(|d| d.code.starts_with("config-")).and_then(|d| d.help.as_ref().map(ToString::to_string))
    };
    for (text, want) in [
        ("bf16: 'Yes'\n", Some("write yes without quotes")),
        ("bf16: oFF\n", Some("write off")),
        ("bf16: flase\n", Some("write true or false")),
        ("model: 5\n", Some("put it in quotes")),
        ("model: [a]\n", None),
        ("model: {a: b}\n", None),
        ("a: 1\n", None),
    ] {
        assert_eq!(help(text).as_deref(), want, "{text}");
    }
}

#[test]
fn dotted_overrides_reach_into_sections_and_are_typed_as_omegaconf_types() {
    let case = Case::new("model: m\ndist_config: {name: zero3}\n");
    let document = case
        .with("dist_config.zero_optimization.sub_group_size=5e8")
        .with("learning_rate=1e-5")
        .with("bf16=no")
        .with("peft_config={name: lora, target_modules: [q_proj, v_proj]}")
        .with("peft_config.r=4")
        .with("eval_dataset=")
        .document();
    assert_eq!(document["deepspeed"]["zero_optimization"]["sub_group_size"], 500_000_000);
    assert_eq!(document["training"]["learning_rate"], 1e-5);
    assert_eq!(document["training"]["bf16"], false);
    assert_eq!(document["training"]["peft_config"]["r"], 4);
    assert_eq!(document["training"]["peft_config"]["target_modules"], serde_json::json!(["q_proj", "v_proj"]));
    let source = |pointer: &str| document["provenance"][pointer]["source"].clone();
    assert_eq!(source("/training/learning_rate"), "override");
    assert_eq!(source("/training/model"), "file");
    assert_eq!(source("/training/cutoff_len"), "default");
}

#[test]
fn extra_keys_are_an_error_unless_allowed() {
    let mut case = Case::new("model: m\nlearningrate: 3\n");
    assert_eq!(case.codes(), ["config-unknown-key"]);
    for (value, code) in [("1", "config-extra-key"), ("Yes", "config-extra-key"), ("0", "config-unknown-key"), ("no", "config-unknown-key")]
    {
        case.env.insert("ALLOW_EXTRA_KEYS".into(), value.into());
        assert_eq!(case.codes(), [code], "{value}");
    }
}

#[test]
fn yaml_as_pyyaml_users_write_it() {
    let text = "defaults: &d\n  name: fsdp2\n  reshard_after_forward: yes\ndist_config:\n  <<: *d\n  reshard_after_forward: off\nbf16: On\nlearning_rate: 1e-4\nseed: 010\nmicro_batch_size: 1:30\n";
    let mut case = Case::new(text);
    case.env.insert("ALLOW_EXTRA_KEYS".into(), "1".into());
    let document = case.document();
    assert_eq!(document["strategy"]["config"]["reshard_after_forward"], false, "a key of one's own wins over a merged one");
    assert_eq!(document["training"]["bf16"], true);
    assert_eq!(document["training"]["learning_rate"], 1e-4);
    assert_eq!(document["training"]["seed"], 8);
    assert_eq!(document["training"]["micro_batch_size"], 90);
    let warnings: Vec<(&str, u64)> =
        document["warnings"].as_array().unwrap().iter().map(|w| (w["code"].as_str().unwrap(), w["line"].as_u64().unwrap())).collect();
    assert_eq!(warnings, [("config-extra-key", 1), ("yaml-exponent", 8), ("yaml-octal", 9), ("yaml-sexagesimal", 10)]);
}

#[test]
fn lints() {
    let cases: &[(&str, &str, &str)] = &[
        ("init_config: {name: init_on_default}\ndist_config: {name: fsdp2}\n", "{}", "init-holds-model"),
        ("optim_config: {name: muon, lr: 0.1}\n", "{}", "optim-lr"),
        ("dist_config: {name: fsdp2, offload_params: true, pin_memory: false}\n", "{}", "offload-unpinned"),
        ("bf16: true\n", "{}", "bf16-without-dist"),
        (
            "shardwright: {precision: {name: uniform}}\ndist_config: {name: deepspeed, config_file: ds.json}\n",
            r#"{"zero_optimization": {"stage": 3, "allgather_bucket_size": 1}}"#,
            "deepspeed-ignored-key",
        ),
        (
            "dist_config: {name: deepspeed, config_file: ds.json}\n",
            r#"{"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 1e9}}"#,
            "deepspeed-persistence",
        ),
        (
            "dist_config: {name: deepspeed, config_file: ds.json}\ninit_config: {name: init_on_rank0}\n",
            r#"{"zero_optimization": {"stage": 3}}"#,
            "init-under-deepspeed",
        ),
        (
            "dist_config: {name: deepspeed, config_file: ds.json}\nmax_grad_norm: 2.0\n",
            r#"{"zero_optimization": {"stage": 3}}"#,
            "deepspeed-clipping",
        ),
        ("distributed_type: FSDP\nfsdp_config: {fsdp_version: 2}\n", "{}", "reduce-dtype-version"),
        ("distributed_type: NO\nnum_processes: 1\n", "{}", "yaml-bool-word"),
    ];
    for (yaml, deepspeed, code) in cases {
        let case = Case::new(*yaml).deepspeed(*deepspeed);
        assert!(!case.outcome().has_errors(), "{yaml}");
        assert!(case.codes().contains(code), "{yaml}: {:?}", case.codes());
    }
    let quiet = Case::new("model: m\ninit_config: {name: init_on_meta}\nbf16: true\ndist_config: {name: fsdp2}\n");
    assert_eq!(quiet.codes(), [""; 0], "nothing is said where nothing is odd");
}

/// Each was started with DeepSpeed 0.19.8 under LLaMA-Factory 0.9.5.
#[test]
fn sections_that_deepspeed_reads_loosely_fail_where_it_does() {
    for (more, runs) in [
        (r#""flops_profiler": {"enabled": true}"#, true),
        (r#""flops_profiler": {"enabled": false, "nope": 1}"#, true),
        (r#""flops_profiler": {"enabled": "yes"}"#, false),
        (r#""flops_profiler": null"#, false),
        (r#""comms_logger": {"enabled": false, "prof_ops": ["a"]}"#, true),
        (r#""comms_logger": {"enabled": false, "prof_ops": "a"}"#, false),
        (r#""aio": null"#, true),
        (r#""aio": []"#, false),
        (r#""checkpoint": {"tag_validation": "Warn"}"#, true),
        (r#""checkpoint": {"tag_validation": "nope"}"#, false),
        (r#""wall_clock_breakdown": "x""#, false),
        (r#""prescale_gradients": true"#, false),
        (r#""gradient_predivide_factor": 2"#, false),
        (r#""gradient_clipping": 0.5, "gradient_clipping": 1.0"#, true),
    ] {
        let file = format!(r#"{{"zero_optimization": {{"stage": 3}}, {more}}}"#);
        let outcome = Case::new(crate::DEEPSPEED).deepspeed(file).outcome();
        assert_eq!(!outcome.has_errors(), runs, "{more}: {:?}", outcome.diagnostics);
    }
}

#[test]
fn fp16_needs_the_opt_in() {
    let ds = r#"{"zero_optimization": {"stage": 3}, "fp16": {"enabled": true}}"#;
    let document = Case::new(format!("{}shardwright: {{zero3_fp16: true}}\n", crate::DEEPSPEED)).deepspeed(ds).document();
    assert_eq!(document["precision"]["storage"], "float16");
    assert_eq!(document["precision"]["rule"], "deepspeed.fp16");
}

#[test]
fn both_spellings_of_dtype_and_every_spelling_of_its_values() {
    for key in ["dtype", "torch_dtype"] {
        for (text, want) in [
            ("bf16", "bfloat16"),
            ("torch.bfloat16", "bfloat16"),
            ("half", "float16"),
            ("float", "float32"),
            ("fp32", "float32"),
            ("auto", "checkpoint"),
        ] {
            let yaml = format!("model: m\n{key}: {text}\npeft_config: {{name: lora}}\ndist_config: {{name: fsdp2}}\n");
            assert_eq!(Case::new(yaml).document()["precision"]["storage"], want, "{key}: {text}");
        }
    }
}

/// Whatever a section holds, errors are reported up to a point.
#[test]
fn sections_of_thousands_of_unknown_keys_are_refused_at_once() {
    let keys: String = (0..20_000).map(|i| format!(", k{i}_offload: 1")).collect();
    for section in ["dist_config: {name: zero3", "shardwright: {storage_dtype: bf16"] {
        let outcome = Case::new(format!("model: m\n{section}{keys}}}\n")).outcome();
        assert!(outcome.has_errors() && outcome.diagnostics.len() < 300, "{section}: {}", outcome.diagnostics.len());
    }
}

/// What LLaMA-Factory runs and what dies in it, beyond the types of its arguments.
#[test]
fn shares_of_epochs_and_of_dropout_are_as_llamafactory_runs_them() {
    let run =
        |more: &str| Case::new(format!("model: m\ndist_config: {{name: fsdp2}}\ninit_config: {{name: init_on_rank0}}\n{more}\n")).outcome();
    for (yaml, key, want) in [
        ("num_train_epochs: 0.5", "num_train_epochs", 0.5.into()),
        ("num_train_epochs: 3", "num_train_epochs", 3.into()),
        ("num_train_epochs: 3.0", "num_train_epochs", 3.into()),
        ("save_steps: 0", "save_steps", serde_json::Value::from(0)),
    ] {
        let outcome = run(yaml);
        assert!(!outcome.has_errors(), "{yaml}: {:?}", outcome.diagnostics);
        assert_eq!(outcome.to_json()["training"][key], want, "{yaml}");
    }
    for yaml in ["num_train_epochs: -1", "save_steps: -1"] {
        let outcome = run(yaml);
        assert!(!outcome.has_errors() && outcome.diagnostics.iter().any(|d| d.code == "config-unchecked"), "{yaml}");
    }
    for yaml in ["peft_config: {name: lora, lora_dropout: 1.5}", "peft_config: {name: lora, target_modules: 'q_proj,v_proj'}"] {
        assert!(run(yaml).has_errors(), "{yaml}");
    }
}
