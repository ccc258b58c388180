//! What LLaMA-Factory's own function, DeepSpeed's own batch check and transformers' own formulas answered, row by row.

use serde_json::{Value as Json, json};
use shardwright_zero3::config::batch;

use crate::{Case, DEEPSPEED};

fn rows(kind: &str) -> Vec<Json> {
    let text = include_str!("../oracle/config/llamafactory_deepspeed.json");
    serde_json::from_str::<Json>(text).unwrap()[kind].as_array().unwrap().clone()
}

#[test]
fn precision_is_llamafactorys() {
    for row in rows("precision") {
        let case = Case::new(DEEPSPEED).deepspeed(row["ds_config"].to_string());
        if row.get("error").is_some() {
            let outcome = case.outcome();
            assert!(outcome.resolved.is_none() && outcome.diagnostics[0].code == "deepspeed-fp16", "{row}");
            assert_eq!(*outcome.diagnostics[0].message, *row["error"].as_str().unwrap());
            continue;
        }
        let dtype = if row["mixed_precision"] == "bf16" { "bfloat16" } else { "float32" };
        let document = case.document();
        assert_eq!([&document["precision"]["storage"], &document["precision"]["compute"]], [dtype, dtype], "{row}");
        assert_eq!(document["deepspeed"]["bf16"]["enabled"], dtype == "bfloat16", "{row}");
    }
}

/// Values beyond the oracle's: LLaMA-Factory compares with `is True` and `is False`, so a 1 or a null is neither and counts as left open.
#[test]
fn odd_switches_are_left_open_as_in_python() {
    for odd in [json!(1), json!(0), Json::Null, json!("yes"), json!("bf16"), json!([]), json!(" true")] {
        for (ds, dtype) in [
            (json!({"bf16": {"enabled": odd}}), "bfloat16"),
            (json!({"bf16": {"enabled": odd}, "fp16": {"enabled": "FALSE"}}), "float32"),
            (json!({"fp16": {"enabled": odd}}), "bfloat16"),
        ] {
            let mut ds = ds;
            ds["zero_optimization"] = json!({"stage": 3});
            let document = Case::new(DEEPSPEED).deepspeed(ds.to_string()).document();
            assert_eq!(document["precision"]["compute"], dtype, "{ds}");
        }
    }
}

#[test]
fn the_batch_triple_is_deepspeeds() {
    for row in rows("batch") {
        let number = |key: &str| row[key].as_u64();
        let ours = batch::infer(
            number("train_batch_size"),
            number("train_micro_batch_size_per_gpu"),
            number("gradient_accumulation_steps"),
            number("world_size").unwrap(),
        );
        let ours = ours.ok().map(|b| json!([b.train, b.micro, b.accumulation]));
        assert_eq!(ours.as_ref(), row.get("resolved"), "{row}");
    }
}

#[test]
fn auto_sizes_follow_from_the_hidden_size() {
    for row in rows("buckets") {
        let sizes: Vec<&str> = row.as_object().unwrap().keys().map(String::as_str).filter(|k| *k != "hidden_size").collect();
        let mut zero = json!({"stage": 3});
        for key in &sizes {
            zero[*key] = "auto".into();
        }
        let mut case = Case::new(DEEPSPEED).deepspeed(json!({"zero_optimization": zero}).to_string());
        case.hidden_size = row["hidden_size"].as_u64();
        let document = case.document();
        for key in sizes {
            assert_eq!(document["deepspeed"]["zero_optimization"][key], row[key], "{row}");
        }
    }
}

#[test]
fn without_config_json_what_depends_on_it_is_named() {
    let mut case = Case::new(DEEPSPEED).deepspeed(r#"{"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}}"#);
    case.hidden_size = None;
    let document = case.document();
    assert_eq!(document["unresolved"][0]["pointer"], "/deepspeed/zero_optimization/reduce_bucket_size");
    assert_eq!(document["unresolved"][0]["at"]["line"], 1);
    assert_eq!(document["deepspeed"]["zero_optimization"]["reduce_bucket_size"], Json::Null);
}
