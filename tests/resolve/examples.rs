//! Configs of the shapes that LLaMA-Factory's and accelerate's public examples have, written anew from their field names, resolve as those
//! engines run them.

use std::{fs, path::Path};

use serde_json::{Value as Json, json};

use crate::{Case, values};

fn example(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/resolve/examples").join(name)).unwrap()
}

/// File, DeepSpeed file, world, and what must come out.
#[test]
fn examples_resolve_as_their_engines_run_them() {
    let cases: &[(&str, Option<&str>, Json)] = &[
        (
            "full_fsdp2.yaml",
            None,
            json!({"/strategy/name": "fsdp2", "/precision/storage": "float32", "/precision/compute": "bfloat16", "/precision/reduce": "float32", "/batch/global": 8, "/strategy/config/dcp_path": null}),
        ),
        (
            "full_deepspeed.yaml",
            Some("ds_z3.json"),
            json!({"/strategy/name": "zero3", "/precision/storage": "bfloat16", "/deepspeed/zero_optimization/reduce_bucket_size": 4096, "/deepspeed/gradient_clipping": 1.0}),
        ),
        (
            "full_deepspeed.yaml",
            Some("ds_z3_offload.json"),
            json!({"/deepspeed/zero_optimization/offload_param/device": "cpu", "/deepspeed/zero_optimization/offload_optimizer/pin_memory": true}),
        ),
        (
            "full_deepspeed.yaml",
            Some("ds_z2.json"),
            json!({"/strategy/name": "replicate", "/precision/storage": "bfloat16", "/deepspeed/zero_optimization/stage": 2, "/deepspeed/zero_optimization/overlap_comm": false}),
        ),
        (
            "full_deepspeed.yaml",
            Some("ds_z0.json"),
            json!({"/strategy/name": "replicate", "/deepspeed/zero_optimization/round_robin_gradients": true}),
        ),
        (
            "lora_fsdp2.yaml",
            None,
            json!({"/precision/storage": "checkpoint", "/precision/compute": "bfloat16", "/training/peft_config/r": 16, "/training/peft_config/lora_dropout": 0.05}),
        ),
        (
            "freeze_fsdp2.yaml",
            None,
            json!({"/precision/storage": {"trainable": "float32", "frozen": "checkpoint"}, "/training/peft_config/freeze_extra_modules": null}),
        ),
        ("padding_free.yaml", None, json!({"/training/batching_strategy": "padding_free", "/training/flash_attn": "flash_attention_2"})),
        (
            "accelerate_fsdp2.yaml",
            None,
            json!({"/dialect": "accelerate", "/strategy/name": "fsdp2", "/precision/storage": {"trainable": "float32", "frozen": "checkpoint"}, "/precision/output": "bfloat16", "/precision/reduce": "bfloat16", "/mesh/world_size": 8}),
        ),
        (
            "accelerate_deepspeed.yaml",
            None,
            json!({"/strategy/name": "zero3", "/deepspeed/gradient_clipping": 1.0, "/batch/accumulation": 4, "/deepspeed/zero_optimization/offload_optimizer/device": "cpu", "/precision/storage": "bfloat16"}),
        ),
        (
            "accelerate_deepspeed_file.yaml",
            Some("ds_z3.json"),
            json!({"/strategy/name": "zero3", "/precision/rule": "accelerate.deepspeed.auto-bf16", "/batch/micro": null}),
        ),
    ];
    for (file, deepspeed, want) in cases {
        let mut case = Case::new(example(file));
        case.deepspeed = deepspeed.map(example);
        case.world = (!file.starts_with("accelerate")).then_some(8);
        let document = case.document();
        for (pointer, want) in want.as_object().unwrap() {
            assert_eq!(
                document.pointer(pointer).unwrap_or_else(|| panic!("{file}: no {pointer}")),
                want,
                "{file} {deepspeed:?}: {pointer}"
            );
        }
        let text = values(document.clone()).to_string();
        let again = values(Case { deepspeed: None, overrides: Vec::new(), ..Case { yaml: text, ..case.clone() } }.document());
        assert_eq!(again, values(document), "{file} {deepspeed:?}: resolved again");
    }
}

#[test]
fn every_example_is_used() {
    let used = fs::read_to_string(file!()).or_else(|_| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file!()))).unwrap();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/resolve/examples")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(used.contains(&format!("\"{name}\"")), "{name} is not resolved");
    }
}
