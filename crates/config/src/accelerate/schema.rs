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
    // The wizard writes some booleans as strings.
    let boolean = || json!({ "enum": [true, false, "true", "false", "True", "False", null] });
    let count = || json!({ "type": ["integer", "null"], "minimum": 0 });
    let mut fsdp = table(FSDP, &|key| match key {
        "fsdp_version" => json!({ "enum": [2, "2"] }),
        "fsdp_min_num_params" => count(),
        "fsdp_auto_wrap_policy" | "fsdp_ignored_modules" | "fsdp_state_dict_type" | "fsdp_transformer_layer_cls_to_wrap" => json!({}),
        _ => boolean(),
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
        "zero3_init_flag" | "zero3_save_16bit_model" => boolean(),
        "offload_optimizer_device" | "offload_param_device" => json!({ "enum": ["none", "cpu", "nvme", null] }),
        "gradient_accumulation_steps" => json!({ "type": ["integer", "string", "null"] }),
        "gradient_clipping" => json!({ "type": ["number", "string", "null"] }),
        _ => json!({ "type": ["string", "null"] }),
    });
    let prefixed: Vec<String> = PARALLELISM.iter().map(|key| format!("{PREFIX}{key}")).collect();
    let prefixed: Vec<&str> = prefixed.iter().map(String::as_str).collect();
    let parallelism = table(&prefixed, &|key| match key.trim_start_matches(PREFIX) {
        "dp_replicate_size" | "dp_shard_size" => count(),
        "cp_size" | "sp_size" => count(),
        "tp_size" => json!({ "enum": [1, null] }),
        _ => json!({}),
    });
    let types: Vec<Json> = REPLICATED.iter().chain(&["FSDP", "DEEPSPEED"]).map(|t| json!(t)).chain([json!(false)]).collect();
    // A plain NO or no is false to PyYAML, and is taken for the word.
    let mut properties = table(KEYS, &|key| match key {
        "distributed_type" => json!({ "enum": types }),
        "mixed_precision" => json!({ "enum": ["no", "fp16", "bf16", "fp8", false, null] }),
        "num_processes" => json!({ "type": "integer", "minimum": 1 }),
        "num_machines" | "machine_rank" | "main_process_port" => count(),
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
