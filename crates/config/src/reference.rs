//! What a section takes, as data: keys with types, defaults and meanings, and a YAML to paste. The program's listing and the reference pages
//! are made of it. The source is the config type itself.

use schemars::Schema;
use serde_json::Value as Json;

use shardwright_core::registry::{Entry, PolicyEntry, StrategyEntry};

use crate::{
    Settings,
    keys::{EXTRA, KEYS, Key},
    schema::flat_schema,
};

/// One key of a section.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct KeyReference {
    /// Dotted where it is inside another.
    pub path: String,
    /// Its type in words: `boolean`, `integer or null`, `sdpa | eager`.
    pub takes: String,
    /// Its default as YAML.
    pub default: String,
    /// What it means.
    pub meaning: String,
}

/// The reference of one section.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SectionReference {
    /// Its keys, in the order of the type.
    pub keys: Vec<KeyReference>,
    /// A section to paste, as YAML.
    pub paste: String,
}

/// The reference of a strategy's section.
pub fn of_strategy(entry: &StrategyEntry) -> SectionReference {
    of_section(entry, "dist_config:\n", 2)
}

/// The reference of a precision policy's section.
pub fn of_policy(entry: &PolicyEntry) -> SectionReference {
    of_section(entry, "shardwright:\n  precision:\n", 4)
}

fn of_section<C: ?Sized>(entry: &Entry<C>, under: &str, indent: usize) -> SectionReference {
    let schema = entry.schema();
    let section = paste(entry.name, &schema, &entry.example(), indent);
    SectionReference { keys: keys(&schema, &entry.defaults()), paste: format!("{under}{section}") }
}

/// The reference of the section `shardwright`, its `precision` left out.
pub fn settings() -> Vec<KeyReference> {
    keys(&schemars::schema_for!(Settings), &serde_json::to_value(Settings::default()).unwrap_or(Json::Null))
}

/// The reference of the flat keys of the YAML.
pub fn flat_keys() -> Vec<KeyReference> {
    let of = |key: &Key| KeyReference {
        path: key.name.to_owned(),
        takes: flat_type(key),
        default: key.default.trim_matches('"').to_owned(),
        meaning: key.meaning.to_owned(),
    };
    KEYS.iter().chain(EXTRA).map(of).collect()
}

fn flat_type(key: &Key) -> String {
    if matches!(key.name, "dtype" | "torch_dtype") {
        return "dtype or auto or null".to_owned();
    }
    let schema = Json::Object(flat_schema(key));
    takes(&schema, &Json::Null)
}

fn keys(schema: &Schema, defaults: &Json) -> Vec<KeyReference> {
    let mut all = Vec::new();
    let schema = schema.as_value();
    collect(&schema["properties"], defaults, &schema["$defs"], "", &mut all);
    all
}

fn collect(properties: &Json, defaults: &Json, defs: &Json, prefix: &str, all: &mut Vec<KeyReference>) {
    for (key, property) in properties.as_object().into_iter().flatten() {
        let inner = deref(property, defs);
        let default = if defaults.get(key).is_some() { &defaults[key] } else { &property["default"] };
        let path = format!("{prefix}{key}");
        let nested = &inner["properties"];
        let meaning = property["description"].as_str().or(inner["description"].as_str()).unwrap_or("");
        let default_text = if nested.is_object() || default.is_null() && property.get("default").is_none() && defaults.get(key).is_none() {
            String::new()
        } else {
            default.as_str().filter(|text| !text.is_empty()).map_or_else(|| default.to_string(), str::to_owned)
        };
        all.push(KeyReference {
            path: path.clone(),
            takes: takes(property, defs),
            default: default_text,
            meaning: meaning.replace('\n', " "),
        });
        if nested.is_object() {
            collect(nested, default, defs, &format!("{path}."), all);
        }
    }
}

/// Follows a `$ref` into the schema's own definitions.
fn deref<'s>(schema: &'s Json, defs: &'s Json) -> &'s Json {
    let target = schema["$ref"].as_str().and_then(|r| r.rsplit('/').next());
    target.map_or(schema, |name| &defs[name])
}

/// A schema's type in words.
fn takes(schema: &Json, defs: &Json) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|r| r.rsplit('/').next()) {
        // Its spellings are many.
        return if name == "DType" { "dtype".to_owned() } else { takes(deref(schema, defs), defs) };
    }
    if let Some(choices) = schema["enum"].as_array() {
        let words: Vec<String> = choices.iter().map(|c| c.as_str().map_or_else(|| c.to_string(), str::to_owned)).collect();
        return words.join(" | ");
    }
    if let Some(any) = schema["anyOf"].as_array().or(schema["oneOf"].as_array()) {
        let mut words: Vec<String> = any.iter().map(|s| takes(s, defs)).collect();
        words.dedup();
        return words.join(" or ");
    }
    if let Some(constant) = schema.get("const") {
        return constant.as_str().map_or_else(|| constant.to_string(), str::to_owned);
    }
    let types = match &schema["type"] {
        Json::Array(types) => types.iter().filter_map(Json::as_str).collect(),
        Json::String(one) => vec![one.as_str()],
        _ => vec!["anything"],
    };
    let word = |t: &&str| match *t {
        "array" => format!("list of {}", takes(&schema["items"], defs)),
        "object" if schema["additionalProperties"].is_object() => format!("mapping to {}", takes(&schema["additionalProperties"], defs)),
        "object" => "mapping".to_owned(),
        other => other.to_owned(),
    };
    types.iter().map(word).collect::<Vec<_>>().join(" or ")
}

/// A section to paste: the name, then every key with its meaning before it.
fn paste(name: &str, schema: &Schema, example: &Json, by: usize) -> String {
    let mut text = format!("{:by$}name: {name}\n", "");
    for (key, value) in example.as_object().into_iter().flatten() {
        let meaning = schema.as_value()["properties"][key]["description"].as_str().unwrap_or("");
        let meaning = meaning.replace('\n', " ");
        let first = meaning.split_once(". ").map_or(meaning.trim_end_matches('.'), |(first, _)| first);
        text.push_str(&format!("{:by$}# {first}\n{:by$}{key}: {}\n", "", "", yaml(value)));
    }
    text
}

/// JSON is YAML, but a bare word reads better.
fn yaml(value: &Json) -> String {
    match value.as_str() {
        Some(word)
            if !word.is_empty()
                && word.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c))
                && word.parse::<f64>().is_err() =>
        {
            word.to_owned()
        }
        _ => value.to_string(),
    }
}
