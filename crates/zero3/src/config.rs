//! `dist_config: {name: deepspeed, config_file: …}`, and `{name: zero3, …}` with the same sections inline, for who needs no second file.
//! Both are the same strategy.

pub mod batch;
mod decide;
pub mod keys;
mod lints;
mod loose;
mod made;
mod read;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use shardwright_core::{
    diagnostic::Diagnostic,
    strategy_config::{BuildContext, Built, StrategyConfig},
    tree::{Node, Value, json},
};

use self::keys::{Key, Kind};

/// DeepSpeed by its own config file.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DeepSpeedConfig {
    /// The DeepSpeed config, JSON. Required.
    pub config_file: String,
}

impl StrategyConfig for DeepSpeedConfig {
    const NAME: &'static str = "deepspeed";
    const SUMMARY: &'static str = "DeepSpeed by its own config file: stage 3 is zero3, stages 0 to 2 replicate parameters";

    fn example() -> Self {
        Self { config_file: "ds_zero3.json".to_owned() }
    }

    fn files(&self) -> Vec<String> {
        if self.config_file.is_empty() { Vec::new() } else { vec![self.config_file.clone()] }
    }

    fn build(self, cx: &mut BuildContext<'_>) -> Result<Built, Diagnostic> {
        let Some(source) = cx.files.get(&self.config_file) else {
            let message = "dist_config.config_file is required: the path of a DeepSpeed config";
            return Err(Diagnostic::error("config-missing", message).at(cx.at("config_file")));
        };
        let root = json::parse(source, &mut cx.diagnostics)?;
        if !root.is_map() {
            let message = format!("expected a mapping of keys to values, found {}", root.describe());
            return Err(Diagnostic::error("deepspeed-type", message).at(root.at));
        }
        decide::build(&root, decide::ConfigIs::File, cx)
    }
}

shardwright_core::register_strategy!(DeepSpeedConfig);

/// DeepSpeed ZeRO-3, its sections inline.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Zero3Config {
    /// As in a DeepSpeed config; `stage` is 3 where it is not given.
    #[schemars(schema_with = "zero_schema")]
    pub zero_optimization: Map<String, Json>,
    /// As in a DeepSpeed config.
    #[schemars(schema_with = "bf16_schema")]
    pub bf16: Map<String, Json>,
    /// As in a DeepSpeed config.
    #[schemars(schema_with = "fp16_schema")]
    pub fp16: Map<String, Json>,
    /// Gradients are clipped to this norm; auto for `max_grad_norm`.
    #[schemars(schema_with = "number_or_auto")]
    pub gradient_clipping: Json,
    /// Samples of an optimizer step, or auto.
    #[schemars(schema_with = "integer_or_auto")]
    pub train_batch_size: Json,
    /// Samples of a forward pass of one rank, or auto.
    #[schemars(schema_with = "integer_or_auto")]
    pub train_micro_batch_size_per_gpu: Json,
    /// Forward passes of an optimizer step, or auto.
    #[schemars(schema_with = "integer_or_auto")]
    pub gradient_accumulation_steps: Json,
    /// Other keys of a DeepSpeed config, such as `optimizer` or `activation_checkpointing`; passed through.
    pub other: Map<String, Json>,
}

impl StrategyConfig for Zero3Config {
    const NAME: &'static str = crate::layout::NAME;
    const SUMMARY: &'static str = "DeepSpeed ZeRO-3: flat partitions, one dtype for storage and compute";

    fn build(self, cx: &mut BuildContext<'_>) -> Result<Built, Diagnostic> {
        // A key that is null is a key left out, so that the defaults can be spelled out.
        let nulls = cx.section.entries().iter().filter(|e| e.value.is_null());
        let mut root = nulls.fold(cx.section.clone(), |root, entry| root.without(&entry.key));
        let at = root.at.clone();
        let mut zero = root.get("zero_optimization").cloned().unwrap_or_else(|| Node::map(Vec::new(), at.clone()));
        if zero.get("stage").is_none() {
            zero.set("stage", at.clone(), Node::new(Value::Int(3), at.clone()));
        }
        root.set("zero_optimization", at, zero);
        let other = root.get("other").cloned();
        root = root.without("other");
        for entry in other.iter().flat_map(Node::entries) {
            root.set(&entry.key, entry.at.clone(), entry.value.clone());
        }
        let mut built = decide::build(&root, decide::ConfigIs::Inline, cx)?;
        built.shown = true;
        Ok(built)
    }
}

shardwright_core::register_strategy!(Zero3Config);

fn zero_schema(_: &mut SchemaGenerator) -> Schema {
    table_schema(keys::ZERO)
}

fn bf16_schema(_: &mut SchemaGenerator) -> Schema {
    table_schema(keys::BF16)
}

fn fp16_schema(_: &mut SchemaGenerator) -> Schema {
    table_schema(keys::FP16)
}

fn number_or_auto(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["number", "string", "null"], "minimum": 0 })
}

fn integer_or_auto(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["integer", "string", "null"], "minimum": 1 })
}

/// The JSON Schema of a table of keys.
pub fn table_schema(keys: &[Key]) -> Schema {
    let mut properties = Map::new();
    for key in keys {
        let mut schema = kind_schema(key.kind);
        let default: Json = serde_json::from_str(key.default).unwrap_or(Json::Null);
        schema.insert("description".into(), key.meaning.into());
        if default.is_null() && !schema.contains_key("properties") {
            schema.insert("default".into(), Json::Null);
        } else if !default.is_null() {
            schema.insert("default".into(), default);
        }
        for name in [Some(key.name), key.alias].into_iter().flatten() {
            properties.insert(name.to_owned(), Json::Object(schema.clone()));
        }
    }
    json_schema!({ "type": "object", "additionalProperties": false, "properties": properties })
}

fn kind_schema(kind: Kind) -> Map<String, Json> {
    let value = match kind {
        Kind::Bool => serde_json::json!({ "type": ["boolean", "string", "null"] }),
        Kind::Int(i64::MIN) => serde_json::json!({ "type": ["integer", "string"] }),
        Kind::StrictInt => serde_json::json!({ "type": ["integer", "string"] }),
        Kind::StrictFloat => serde_json::json!({ "type": ["number", "string"], "minimum": 0 }),
        Kind::Int(least) => serde_json::json!({ "type": ["integer", "string"], "minimum": least }),
        Kind::Float(least, f64::MAX) => serde_json::json!({ "type": ["number", "string"], "minimum": least }),
        Kind::Float(least, most) => serde_json::json!({ "type": ["number", "string"], "minimum": least, "maximum": most }),
        Kind::Choice(choices) => serde_json::json!({ "enum": choices }),
        Kind::Text => serde_json::json!({ "type": ["string", "null"] }),
        Kind::List => serde_json::json!({ "type": ["array", "string"], "items": { "type": "string" } }),
        Kind::Table(keys) => table_schema(keys).to_value(),
        Kind::Any => serde_json::json!({}),
    };
    match value {
        Json::Object(map) => map,
        _ => Map::new(),
    }
}
