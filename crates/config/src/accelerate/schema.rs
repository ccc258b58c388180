//! accelerate's dialect as a JSON Schema: the keys that are read here, with their types; what accelerate alone reads may be anything.

use serde_json::{Map, Value as Json, json};

use super::{DEEPSPEED, FSDP, FSDP1, KEYS, OURS, PARALLELISM, REPLICATED};

const PREFIX: &str = "parallelism_config_";

/// The JSON Schema of this dialect; `flat` has those of the keys that are ours. What accelerate alone reads may be anything.
pub(crate) fn schema(flat: &Json) -> Json {
    let table = |keys: &[&str], of: &dyn Fn(&str) -> Json| {
        let properties: Map<String, Json> = keys.iter().map(|key| ((*key).to_owned(), of(key))).collect();
        json!({ "type": ["object", "null"], "properties": properties, "additionalProperties": true })
    };
    // accelerate reads the text of a truth value, and the wizard writes some as such.
    let in_cases = |word: &str| {
        let capital = word.get(..1).unwrap_or_default().to_uppercase() + word.get(1..).unwrap_or_default();
        [json!(word), json!(capital), json!(word.to_uppercase())]
    };
    let or_null = |words: &[&str]| -> Json {
        let spellings: Vec<Json> = words.iter().flat_map(|word| in_cases(word)).chain([Json::Null]).collect();
        json!({ "enum": spellings })
    };
    let words = ["y", "yes", "t", "true", "on", "n", "no", "f", "false", "off"];
    let mut spellings = vec![json!(true), json!(false), json!(0), json!(1), json!("0"), json!("1")];
    for spelling in words.into_iter().flat_map(in_cases) {
        if !spellings.contains(&spelling) {
            spellings.push(spelling);
        }
    }
    let truths = |also: Option<Json>| {
        let spellings: Vec<Json> = spellings.iter().cloned().chain(also).collect();
        json!({ "enum": spellings })
    };
    let count = || json!({ "type": ["integer", "null"], "minimum": 0 });
    let mut fsdp = table(FSDP, &|key| match key {
        "fsdp_version" => json!({ "enum": [2, "2"] }),
        "fsdp_min_num_params" => json!({ "type": ["integer", "string"] }),
        "fsdp_auto_wrap_policy" | "fsdp_ignored_modules" | "fsdp_state_dict_type" | "fsdp_transformer_layer_cls_to_wrap" => json!({}),
        _ => truths(None),
    });
    for (key, today) in FSDP1 {
        fsdp["properties"][*key] = json!({ "deprecated": true, "description": format!("of FSDP version 1; {today}") });
    }
    // accelerate adds the prefix where a key of this section lacks it.
    let bare: Vec<(String, Json)> = fsdp["properties"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, schema)| Some((key.strip_prefix("fsdp_")?.to_owned(), schema.clone())))
        .collect();
    for (key, schema) in bare {
        fsdp["properties"][key] = schema;
    }
    let deepspeed = table(DEEPSPEED, &|key| match key {
        "zero_stage" => json!({ "enum": [0, 1, 2, 3, "0", "1", "2", "3", null] }),
        "zero3_init_flag" => truths(Some(Json::Null)),
        "zero3_save_16bit_model" => json!({ "type": ["boolean", "string", "integer", "null"] }),
        "offload_optimizer_device" | "offload_param_device" => or_null(&["none", "cpu", "nvme"]),
        "gradient_accumulation_steps" => json!({ "type": ["integer", "string", "null"] }),
        "gradient_clipping" => json!({ "type": ["number", "string", "null"] }),
        _ => json!({ "type": ["string", "null"] }),
    });
    let prefixed: Vec<String> = PARALLELISM.iter().map(|key| format!("{PREFIX}{key}")).collect();
    let prefixed: Vec<&str> = prefixed.iter().map(String::as_str).collect();
    let parallelism = table(&prefixed, &|key| match key.trim_start_matches(PREFIX) {
        "dp_replicate_size" | "dp_shard_size" => json!({ "type": ["integer", "string"], "minimum": 1 }),
        "cp_size" | "sp_size" => json!({ "type": "integer", "minimum": 1 }),
        "tp_size" => json!({ "enum": [1, "1"] }),
        "cp_backend" => json!({ "const": "torch" }),
        "sp_backend" => json!({ "const": "deepspeed" }),
        _ => json!({}),
    });
    let types: Vec<Json> = REPLICATED.iter().chain(&["FSDP", "DEEPSPEED"]).map(|t| json!(t)).chain([json!(false)]).collect();
    // A plain NO or no is false to PyYAML, and is taken for the word.
    let mut properties = table(KEYS, &|key| match key {
        "distributed_type" => json!({ "enum": types }),
        "compute_environment" => json!({ "const": "LOCAL_MACHINE" }),
        "gpu_ids" => json!({ "type": ["string", "null"] }),
        "mixed_precision" => or_null(&["no", "fp16", "bf16", "fp8"]),
        "num_processes" => json!({ "type": ["integer", "string"], "minimum": 1 }),
        "num_machines" => json!({ "type": ["integer", "number"], "minimum": 0 }),
        "machine_rank" | "main_process_port" => count(),
        "fsdp_config" => fsdp.clone(),
        "deepspeed_config" => deepspeed.clone(),
        "parallelism_config" => parallelism.clone(),
        _ => json!({}),
    })["properties"]
        .take();
    for key in OURS {
        properties[*key] = flat[*key].clone();
    }
    json!({
        "type": "object", "properties": properties, "required": ["distributed_type"], "additionalProperties": false,
        "if": { "properties": { "distributed_type": { "const": "FSDP" } }, "required": ["distributed_type"] },
        "then": { "required": ["fsdp_config"], "properties": {
            "fsdp_config": { "anyOf": [{ "required": ["fsdp_version"] }, { "required": ["version"] }] }
        } },
    })
}
