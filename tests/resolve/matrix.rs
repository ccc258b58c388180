//! Snapshots of what configs mean: a line a case over strategy × bf16 × peft × mesh × stage × dialect, and whole documents for a few.

use std::fmt::Write;

use serde_json::Value as Json;

use crate::{Case, values};

const STRATEGIES: [(&str, &str); 7] = [
    ("none", ""),
    ("fsdp2", "dist_config: {name: fsdp2}\n"),
    ("zero3", "dist_config: {name: zero3}\n"),
    ("stage 0", "dist_config: {name: zero3, zero_optimization: {stage: 0}}\n"),
    ("stage 1", "dist_config: {name: zero3, zero_optimization: {stage: 1}, bf16: {enabled: false}}\n"),
    ("stage 2", "dist_config: {name: zero3, zero_optimization: {stage: 2}}\n"),
    ("fsdp2 offload", "dist_config: {reshard_after_forward: false, offload_params: true, name: fsdp2}\n"),
];
const PEFT: [(&str, &str); 4] = [
    ("full", ""),
    ("lora", "peft_config: {name: lora}\n"),
    ("freeze", "peft_config: {name: freeze}\n"),
    ("freeze uncast", "peft_config: {name: freeze, cast_trainable_params_to_fp32: false}\n"),
];
const MESHES: [(&str, &str, u32); 3] = [("1x1", "", 1), ("1x4", "", 4), ("2x2", "mp_replicate_size: 2\n", 4)];

fn line(document: &Json) -> String {
    let p = &document["precision"];
    let text = |v: &Json| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let (mesh, batch) = (&document["mesh"], &document["batch"]);
    format!(
        "{} | {} {} {} -> {} | {} | {}x{} dp {} | {} {} {}",
        text(&document["strategy"]["name"]),
        text(&p["storage"]),
        text(&p["compute"]),
        text(&p["reduce"]),
        text(&p["output"]),
        text(&p["rule"]),
        mesh["mp_replicate"],
        mesh["mp_shard"],
        mesh["dp"],
        batch["micro"],
        batch["accumulation"],
        batch["global"],
    )
}

#[test]
fn llamafactory() {
    let mut all = String::new();
    for (strategy, dist) in STRATEGIES {
        for bf16 in [true, false] {
            for (peft, section) in PEFT {
                for (mesh, sizes, world) in MESHES {
                    let document = Case::new(format!("model: m\nbf16: {bf16}\n{dist}{section}{sizes}")).world(world).document();
                    writeln!(all, "{strategy}, bf16 {bf16}, {peft}, {mesh}: {}", line(&document)).unwrap();
                }
            }
        }
    }
    insta::assert_snapshot!(all);
}

#[test]
fn accelerate() {
    let mut all = String::new();
    let kinds = [
        ("fsdp2", "distributed_type: FSDP\nfsdp_config: {fsdp_version: 2}\n"),
        ("zero 3", "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 3, gradient_accumulation_steps: 2}\n"),
        ("zero 2", "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 2}\n"),
        ("zero 1", "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 1}\nmicro_batch_size: 2\n"),
        ("zero 0", "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 0}\n"),
        ("ddp", "distributed_type: MULTI_GPU\n"),
    ];
    for (kind, text) in kinds {
        for mixed in ["'no'", "bf16", "fp16", "fp8"] {
            let case = Case { world: None, ..Case::new(format!("{text}mixed_precision: {mixed}\nnum_processes: 4\n")) };
            writeln!(all, "{kind}, {mixed}: {}", line(&case.document())).unwrap();
        }
    }
    let hsdp = "distributed_type: FSDP\nfsdp_config: {fsdp_version: 2}\nnum_processes: 8\nparallelism_config: {parallelism_config_dp_replicate_size: 2, parallelism_config_dp_shard_size: 4}\n";
    writeln!(all, "hsdp: {}", line(&Case { world: None, ..Case::new(hsdp) }.document())).unwrap();
    insta::assert_snapshot!(all);
}

/// Stages by a file, in both dialects.
#[test]
fn stages_by_file() {
    let mut all = String::new();
    for stage in 0..4 {
        for (bf16, fp16) in [("true", "false"), ("false", "false"), (r#""auto""#, r#""auto""#), (r#""auto""#, "false")] {
            let file = format!(
                r#"{{"zero_optimization": {{"stage": {stage}}}, "bf16": {{"enabled": {bf16}}}, "fp16": {{"enabled": {fp16}}}, "train_micro_batch_size_per_gpu": "auto"}}"#
            );
            for (dialect, yaml) in [
                ("llamafactory", crate::DEEPSPEED),
                ("accelerate", "distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: ds.json}\n"),
            ] {
                let document = Case::new(yaml).deepspeed(file.clone()).world(4).document();
                writeln!(all, "{dialect}, stage {stage}, bf16 {bf16}, fp16 {fp16}: {}", line(&document)).unwrap();
            }
        }
    }
    insta::assert_snapshot!(all);
}

#[test]
fn a_whole_document_under_fsdp2() {
    let case = Case::new(
        "model: m\npeft_config:\n  freeze_trainable_layers: 1\n  name: freeze\ndist_config:\n  name: fsdp2\nglobal_batch_size: 8\n",
    );
    insta::assert_json_snapshot!(case.world(4).with("learning_rate=1e-5").document());
}

#[test]
fn a_whole_document_under_deepspeed() {
    let ds = r#"{
  "train_batch_size": "auto",
  "train_micro_batch_size_per_gpu": "auto",
  "gradient_accumulation_steps": "auto",
  "gradient_clipping": "auto",
  "zero_allow_untested_optimizer": true,
  "fp16": {"enabled": "auto", "loss_scale": 0},
  "bf16": {"enabled": "auto"},
  "zero_optimization": {
    "stage": 3, "overlap_comm": false, "sub_group_size": 1e9,
    "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto",
    "offload_optimizer": {"device": "cpu", "pin_memory": false}
  }
}"#;
    let yaml = "model: m\nbf16: false\nmicro_batch_size: 2\nglobal_batch_size: 16\nmax_grad_norm: 0.5\ndist_config:\n  config_file: ds.json\n  name: deepspeed\n";
    let document = Case::new(yaml).deepspeed(ds).world(4).document();
    insta::assert_json_snapshot!(document);
    insta::assert_yaml_snapshot!("deepspeed_yaml", values(document));
}

/// Every value says where it is from, and every reason is a value of the same document.
#[test]
fn provenance_is_complete_and_closed() {
    let deepspeed = r#"{"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}, "gradient_clipping": "auto"}"#;
    let mut cases: Vec<Case> =
        STRATEGIES.iter().flat_map(|(_, dist)| PEFT.iter().map(move |(_, peft)| Case::new(format!("{dist}{peft}")).world(4))).collect();
    cases.push(Case::new(crate::DEEPSPEED).deepspeed(deepspeed));
    cases.push(Case::new("distributed_type: FSDP\nfsdp_config: {fsdp_version: 2}\nmixed_precision: bf16\n"));
    cases.push(Case::new("shardwright: {inference: true, precision: {name: mixed, compute: bf16}}\ndist_config: {name: fsdp2}\n"));
    for case in cases {
        let document = case.document();
        let provenance = document["provenance"].as_object().unwrap();
        for (pointer, reason) in provenance {
            assert!(document.pointer(pointer).is_some(), "{}: {pointer} is no value", case.yaml);
            let source = reason["source"].as_str().unwrap();
            assert!(["file", "override", "env", "default", "rule"].contains(&source), "{pointer}: {source}");
            for from in reason["from"].as_array().into_iter().flatten() {
                assert!(
                    provenance.contains_key(from.as_str().unwrap()),
                    "{}: {pointer} follows from {from}, which is not there",
                    case.yaml
                );
            }
        }
        for (section, keys) in [
            ("precision", &["storage", "compute", "reduce", "output", "rule"][..]),
            ("mesh", &["world_size", "mp_replicate", "mp_shard", "dp", "cp"]),
            ("batch", &["micro", "accumulation", "global"]),
        ] {
            for key in keys {
                assert!(document[section].get(key).is_some(), "{}: no /{section}/{key}", case.yaml);
            }
        }
    }
}
