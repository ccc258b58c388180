//! The JSON Schema of the whole YAML, in either dialect, with a branch for every strategy and policy that is linked: what editors complete
//! by. What several values mean together, and what files say, is beyond a schema.

use schemars::Schema;
use serde_json::{Map, Value as Json, json};
use shardwright_core::{
    DType,
    registry::{Entry, Registry},
};

use crate::{
    Settings, accelerate,
    keys::{EXTRA, FREEZE, KEYS, Key, Kind, LORA, QUANT},
};

/// The schema. Its definitions `llamafactory` and `accelerate` are the dialects, distinguished by their keys as the program does.
pub fn schema(registry: &Registry) -> Json {
    let mut defs = Map::new();
    let llamafactory = llamafactory(registry, &mut defs);
    let accelerate = accelerate::schema::schema(&llamafactory["properties"]);
    let told_by: Vec<Json> = accelerate::TELLING.iter().map(|key| json!({ "required": [key] })).collect();
    defs.extend([("llamafactory".to_owned(), llamafactory), ("accelerate".to_owned(), accelerate)]);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "shardwright",
        "description": "a LLaMA-Factory v1 YAML, or what `accelerate config` writes, each with shardwright's own section",
        "type": "object",
        "if": { "anyOf": told_by, "not": { "required": ["dist_config"] } },
        "then": { "$ref": "#/$defs/accelerate" },
        "else": { "$ref": "#/$defs/llamafactory" },
        "$defs": defs,
    })
}

/// The flat keys, the sections, and what is linked.
fn llamafactory(registry: &Registry, defs: &mut Map<String, Json>) -> Json {
    let strategies: Vec<Json> = registry.strategies().iter().map(|e| branch(e, defs)).collect();
    let policies: Vec<Json> = registry.policies().iter().map(|e| branch(e, defs)).collect();
    let mut settings = renamed("shardwright", schemars::schema_for!(Settings), defs);
    settings["properties"]["precision"] =
        json!({ "description": "the precision policy; null for the strategy's own", "anyOf": one_of(policies) });
    let mut properties = Map::new();
    for key in KEYS.iter().chain(EXTRA) {
        let mut property = flat_schema(key);
        let branches = match key.name {
            "dist_config" => Some(one_of(strategies.clone())),
            "shardwright" => Some(json!([settings, { "type": "null" }])),
            _ => None,
        };
        property.extend(branches.map(|branches| ("anyOf".to_owned(), branches)));
        properties.insert(key.name.to_owned(), Json::Object(property));
    }
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}

/// One strategy or policy: its section, with its name.
fn branch<C: ?Sized>(entry: &Entry<C>, defs: &mut Map<String, Json>) -> Json {
    let Entry { name, summary, .. } = entry;
    let section = renamed(name, entry.schema(), defs);
    let mut properties = Map::from_iter([("name".to_owned(), json!({ "const": name }))]);
    properties.extend(section["properties"].as_object().cloned().unwrap_or_default());
    json!({
        "title": name, "description": summary, "type": "object",
        "properties": properties, "required": ["name"], "additionalProperties": false,
    })
}

/// These, null, or the same as a JSON string, which LLaMA-Factory takes for a section.
fn one_of(mut branches: Vec<Json>) -> Json {
    branches.extend([json!({ "type": "null" }), json!({ "type": "string", "pattern": r"^\{" })]);
    Json::Array(branches)
}

/// What a plugin section of LLaMA-Factory's takes: the keys of known plugins, and any others of unknown ones.
fn section(key: &str) -> Json {
    let named = |name: &str, keys: &[Key]| {
        let mut properties = Map::from_iter([("name".to_owned(), json!({ "const": name }))]);
        properties.extend(keys.iter().map(|key| (key.name.to_owned(), Json::Object(flat_schema(key)))));
        json!({ "title": name, "type": "object", "properties": properties, "required": ["name"], "additionalProperties": false })
    };
    let any = |name: Json| json!({ "type": "object", "properties": { "name": name }, "required": ["name"] });
    one_of(match key {
        "peft_config" => vec![named("lora", LORA), named("freeze", FREEZE)],
        "quant_config" => vec![named("bnb", QUANT), named("auto", QUANT)],
        "init_config" => vec![any(json!({ "enum": ["init_on_meta", "init_on_rank0", "init_on_default"] }))],
        _ => vec![any(json!({ "type": "string" }))],
    })
}

/// A schema whose definitions are moved among the others, under its name, so that two crates' types of one name stay apart.
fn renamed(name: &str, schema: Schema, defs: &mut Map<String, Json>) -> Json {
    let prefix = name.replace('/', ".");
    let mut schema = schema.to_value();
    let own = schema.as_object_mut().and_then(|s| s.remove("$defs"));
    redirect(&mut schema, &prefix);
    for (key, mut definition) in own.as_ref().and_then(Json::as_object).cloned().into_iter().flatten() {
        redirect(&mut definition, &prefix);
        defs.insert(format!("{prefix}.{key}"), definition);
    }
    schema
}

fn redirect(schema: &mut Json, prefix: &str) {
    match schema {
        Json::Object(map) => {
            for (key, value) in map.iter_mut() {
                match value.as_str().and_then(|text| text.strip_prefix("#/$defs/")).filter(|_| key == "$ref") {
                    Some(target) => *value = format!("#/$defs/{prefix}.{target}").into(),
                    None => redirect(value, prefix),
                }
            }
        }
        Json::Array(items) => items.iter_mut().for_each(|item| redirect(item, prefix)),
        _ => {}
    }
}

/// The schema of a flat key.
pub(crate) fn flat_schema(key: &Key) -> Map<String, Json> {
    let default: Json = serde_json::from_str(key.default).unwrap_or(Json::Null);
    let type_of = |name: &str| if default.is_null() { json!([name, "null"]) } else { json!(name) };
    let mut schema = Map::new();
    match key.kind {
        Kind::Bool => drop(schema.insert("type".into(), type_of("boolean"))),
        Kind::Int(least) => {
            schema.insert("type".into(), type_of("integer"));
            if least > i64::MIN {
                schema.insert("minimum".into(), least.into());
            }
        }
        Kind::Float(least) | Kind::Number(least) => {
            schema.insert("type".into(), type_of("number"));
            if least > f64::MIN {
                schema.insert("minimum".into(), least.into());
            }
        }
        Kind::Choice(choices) => drop(schema.insert("enum".into(), choices.into())),
        Kind::OpenChoice(choices) => {
            schema.insert("type".into(), "string".into());
            schema.insert("examples".into(), choices.into());
        }
        Kind::Names => {
            schema.insert("type".into(), json!(["string", "array", "null"]));
            schema.insert("items".into(), json!({ "type": "string" }));
        }
        Kind::Section => drop(schema.insert("anyOf".into(), section(key.name))),
        _ => drop(schema.insert("type".into(), type_of("string"))),
    }
    if key.name == "quantization_bit" {
        schema = Map::from_iter([("enum".to_owned(), json!([4, 8, null]))]);
    }
    if matches!(key.name, "dtype" | "torch_dtype") {
        let spellings = DType::spellings().into_iter().map(Json::from).chain([json!("auto"), Json::Null]).collect();
        schema = Map::from_iter([("enum".to_owned(), spellings)]);
    }
    schema.insert("description".into(), key.meaning.into());
    schema.insert("default".into(), default);
    schema
}
