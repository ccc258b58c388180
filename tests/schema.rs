//! The JSON Schema against every config that the tests resolve: what is valid is valid, and a fault in the shape of a config is one here too.

use std::{fs, path::Path};

use serde_json::Value as Json;
use shardwright::{
    config::schema::schema,
    core::{
        diagnostic::Source,
        registry::Registry,
        tree::{Node, Value, yaml},
    },
};

/// Why a value does not fit a schema, by JSON pointer. Knows the keywords that our schema uses, and no others: one that it does not know
/// fails the test, so that nothing passes unread.
fn faults(root: &Json, schema: &Json, value: &Json, at: &str, found: &mut Vec<String>) {
    let Some(schema) = schema.as_object() else {
        if schema == &Json::Bool(false) {
            found.push(format!("{at}: must not be there"));
        }
        return;
    };
    let fits = |schema: &Json| {
        let mut found = Vec::new();
        faults(root, schema, value, at, &mut found);
        found.is_empty()
    };
    let mut wrong = |what: String| found.push(format!("{at}: {what}"));
    let mut inner: Vec<(&Json, &Json, String)> = Vec::new();
    for (keyword, says) in schema {
        match keyword.as_str() {
            "$schema" | "$defs" | "title" | "description" | "default" | "examples" | "deprecated" | "format" | "then" | "else" => {}
            "type" => {
                let one = says.as_str().map(|t| vec![t]);
                let types = one.unwrap_or_else(|| says.as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect());
                if !types.iter().any(|t| is_of(value, t)) {
                    wrong(format!("expected {types:?}, found {value}"));
                }
            }
            "const" if says != value => wrong(format!("expected {says}, found {value}")),
            "enum" if !says.as_array().unwrap().contains(value) => wrong(format!("expected one of {says}, found {value}")),
            "const" | "enum" => {}
            "anyOf" if !says.as_array().unwrap().iter().any(fits) => wrong(format!("fits none of the alternatives: {value}")),
            "oneOf" if says.as_array().unwrap().iter().filter(|s| fits(s)).count() != 1 => wrong(format!("fits not one: {value}")),
            "anyOf" | "oneOf" => {}
            "not" if fits(says) => wrong("fits what it must not".to_owned()),
            "not" => {}
            "if" => {
                let branch = if fits(says) { schema.get("then") } else { schema.get("else") };
                inner.extend(branch.map(|branch| (branch, value, at.to_owned())));
            }
            "$ref" => {
                let name = says.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                inner.push((&root["$defs"][name], value, at.to_owned()));
            }
            "minimum" if value.as_f64().is_some_and(|v| v < says.as_f64().unwrap()) => wrong(format!("{value} is below {says}")),
            "maximum" if value.as_f64().is_some_and(|v| v > says.as_f64().unwrap()) => wrong(format!("{value} is above {says}")),
            "minimum" | "maximum" => {}
            "pattern" => {
                if value.as_str().is_some_and(|text| !matches_pattern(says.as_str().unwrap(), text)) {
                    wrong(format!("{value} does not match {says}"));
                }
            }
            "required" => {
                for key in says.as_array().unwrap().iter().filter(|_| value.is_object()) {
                    if value.get(key.as_str().unwrap()).is_none() {
                        wrong(format!("{key} is missing"));
                    }
                }
            }
            "properties" => {
                for (key, schema) in says.as_object().unwrap() {
                    inner.extend(value.get(key).map(|value| (schema, value, format!("{at}/{key}"))));
                }
            }
            "additionalProperties" => {
                let known = |key: &str| schema.get("properties").is_some_and(|p| p.get(key).is_some());
                for (key, value) in value.as_object().into_iter().flatten().filter(|(key, _)| !known(key)) {
                    inner.push((says, value, format!("{at}/{key}")));
                }
            }
            "items" => inner.extend(value.as_array().into_iter().flatten().map(|item| (says, item, format!("{at}/-")))),
            other => panic!("{at}: the schema says '{other}', which is not read here"),
        }
    }
    inner.into_iter().for_each(|(schema, value, at)| faults(root, schema, value, &at, found));
}

fn is_of(value: &Json, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.as_f64().is_some_and(|v| v.fract() == 0.0),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no type is called {other}"),
    }
}

/// As an editor reads it: `1e-4` is a number.
fn json(node: &Node) -> Json {
    match &node.value {
        Value::Text { number: Some(number), .. } => (*number).into(),
        Value::Seq(items) => items.iter().map(json).collect(),
        Value::Map(entries) => Json::Object(entries.iter().map(|e| (e.key.clone(), json(&e.value))).collect()),
        _ => node.to_json(),
    }
}

fn read(text: &str) -> Option<Json> {
    yaml::parse(&Source::new("a.yaml", text), &mut Vec::new()).ok().map(|node| json(&node))
}

fn check(text: &str) -> Vec<String> {
    let schema = schema(&Registry::linked().unwrap());
    let mut found = Vec::new();
    faults(&schema, &schema, &read(text).unwrap(), "", &mut found);
    found
}

/// Name and text of every YAML in a folder, by name.
fn configs(folder: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let names = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".yaml")).collect();
    names.sort();
    names.into_iter().map(|name| (name.trim_end_matches(".yaml").to_owned(), fs::read_to_string(folder.join(name)).unwrap())).collect()
}

#[test]
fn every_valid_config_fits() {
    // Each for a reason that the resolver has too: FSDP version 1, tensor parallelism, a strategy that is not linked.
    let refused = ["accelerate_fsdp1", "accelerate_tp", "fsdpturbo"];
    let all = [configs("examples"), configs("tests/resolve/examples")].concat();
    assert!(all.len() > 30, "{}", all.len());
    for (name, text) in all {
        let found = check(&text);
        assert_eq!(!found.is_empty(), refused.contains(&name.as_str()), "{name}: {found:#?}");
    }
}

/// The patterns that the schema has, read by hand.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    match pattern {
        r"^\{" => text.starts_with('{'),
        r"^0\.1[89](\.[0-9]+)?$" => {
            let rest = text.strip_prefix("0.18").or_else(|| text.strip_prefix("0.19"));
            let digits = |d: &str| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit());
            rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix('.').is_some_and(digits))
        }
        r"^[45](\.[0-9]+)?(\.[0-9]+)?$" => {
            let parts: Vec<&str> = text.split('.').collect();
            parts.len() <= 3
                && ["4", "5"].contains(&parts[0])
                && parts.iter().all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
        }
        r"^\s*[0-9]+\s*([bB]|[kKmMgG]([iI][bB])?)?\s*$" => {
            let unit = text.trim().trim_start_matches(|c: char| c.is_ascii_digit());
            let number = text.trim().len() > unit.len();
            number && ["", "b", "k", "kib", "m", "mib", "g", "gib"].contains(&&*unit.trim().to_lowercase())
        }
        other => panic!("a pattern that is not read here: {other}"),
    }
}

/// Faults that no schema sees: in the text itself, in another file, in a JSON string, between values, on the command line.
#[rustfmt::skip]
const BEYOND: &[&str] = &[
    "accelerate_parallelism", "accumulation_null", "deepspeed_autocast", "alias_bomb", "batch", "broken_yaml", "deep", "deepspeed_auto", "deepspeed_bom", "deepspeed_cp",
    "deepspeed_removed", "deepspeed_strict", "deepspeed_duplicate", "deepspeed_keys", "deepspeed_missing_file",
    "deepspeed_no_file", "deepspeed_no_zero", "deepspeed_syntax", "duplicate_key", "dynamic_batching", "fp16", "hjson_no_braces",
    "hjson_no_comma", "hjson_no_quotes_key", "hjson_three_quotes", "hjson_trailing_comma", "hjson_unquoted", "io_two_ways",
    "io_two_ways_command_line", "json_string_broken", "json_string_comment", "json_string_unknown", "loading_batch", "mesh", "overrides", "recursive_alias",
    "tag", "wrong_place_deepspeed", "train_dataset_null", "lora_no_targets", "freeze_no_modules", "meta_without_fsdp2", "llamafactory_mixed",
    "deepspeed_on_meta", "zenflow", "lora_two_adapters", "deepspeed_made", "kernels", "accelerate_sequence", "unprintable", "zenflow_stage3", "dataset_description", "dataset_paths",
];

#[test]
fn every_fault_of_shape_is_refused() {
    let mut wrong = Vec::new();
    for (name, text) in configs("tests/resolve/invalid") {
        let found = read(&text).map(|_| check(&text)).unwrap_or_default();
        if found.is_empty() != BEYOND.contains(&name.as_str()) {
            wrong.push(format!("{name}: {found:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// One fault each, and where the schema finds it.
#[test]
fn unknown_keys_and_wrong_types_are_found_where_they_stand() {
    for (text, at) in [
        ("modle: a", "/modle"),
        ("bf16: maybe", "/bf16"),
        ("micro_batch_size: 0", "/micro_batch_size"),
        ("micro_batch_size: 1.5", "/micro_batch_size"),
        ("batching_strategy: normale", "/batching_strategy"),
        ("dist_config: {name: fsdp2, offload_parms: true}", "/dist_config"),
        ("dist_config: {name: fsdp2, offload_params: maybe}", "/dist_config"),
        ("dist_config: {name: zero3, zero_optimization: {stage: 3, sub_group_sizes: 1}}", "/dist_config"),
        ("dist_config: {offload_params: true}", "/dist_config"),
        ("dtype: bfloat17", "/dtype"),
        ("shardwright: {storage_dtype: int9}", "/shardwright"),
        ("dist_config: fsdp2", "/dist_config"),
        ("peft_config: {name: lora, rank: 8}", "/peft_config"),
        ("init_config: {name: init_on_mars}", "/init_config"),
        ("shardwright: {oi: {threads: 2}}", "/shardwright"),
        ("shardwright: {precision: {name: pins, pins: {'*': float31}}}", "/shardwright"),
        ("distributed_type: FSPD", "/distributed_type"),
        ("distributed_type: FSDP\nfsdp_config: {fsdp_version: 1}", "/fsdp_config/fsdp_version"),
        ("shardwright: {io: {block_size: 1TB}}", "/shardwright"),
        ("shardwright: {engines: {deepspeed: '0.17'}}", "/shardwright"),
        ("shardwright: {engines: {transformers: '3.5'}}", "/shardwright"),
        ("shardwright: {exclude: 3}", "/shardwright"),
        ("distributed_type: FSDP", ""),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 4}", "/deepspeed_config/zero_stage"),
        ("machine_rank: 0\nmixed_precision: bf16", ""),
    ] {
        let found = check(text);
        assert!(found.len() == 1 && found[0].starts_with(&format!("{at}: ")), "{text}: {found:#?}");
    }
    for text in [
        "shardwright: {io: {block_size: 4 MiB}, engines: {deepspeed: '0.18.9'}}",
        "shardwright: {engines: {transformers: '4.57.1'}, exclude: ['*.mtp.*'], architecture: model.yaml}",
        "shardwright: {engines: {transformers: 4.57}}",
        "",
        "dist_config: '{\"name\": \"fsdp2\"}'",
        "learning_rate: 1e-4",
        "dist_config: null",
        "distributed_type: NO",
    ] {
        assert_eq!(check(text), [""; 0], "{text}");
    }
}
