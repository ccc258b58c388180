//! A model's `config.json` as Python reads and writes it.

use std::borrow::Cow;

use serde_json::Value;
use shardwright_core::ModelFacts;

/// The text with `null` for `NaN`, `Infinity` and `-Infinity`, which Python's `json` writes and JSON does not know. No fact is one.
pub(super) fn without_constants(text: &str) -> Cow<'_, str> {
    const CONSTANTS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    if !CONSTANTS.iter().any(|c| text.contains(c)) {
        return Cow::Borrowed(text);
    }
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(c) = rest.chars().next() {
        let constant = CONSTANTS.iter().find(|c| rest.starts_with(**c));
        let end = match c {
            '"' => string_end(rest),
            _ => constant.map_or(c.len_utf8(), |c| c.len()),
        };
        out.push_str(if constant.is_some() { "null" } else { &rest[..end] });
        rest = &rest[end..];
    }
    Cow::Owned(out)
}

/// What `config.json` says, by the names that the model type has for it: `n_embd` for `hidden_size`, a sub-config's where the model has one.
pub(super) fn facts(config: &Value) -> ModelFacts {
    let mut facts = ModelFacts::from_config(config);
    let inner = ["thinker_config", "text_config", "llm_config", "language_config", "decoder"];
    let number = |config: &Value, name: &str| {
        let own = shardwright_arch::attribute(config["model_type"].as_str()?, name)?;
        config[own.as_str()].as_u64()
    };
    let find = |name: &str| {
        let mut at = config;
        for _ in 0..4 {
            if let Some(found) = at[name].as_u64().or_else(|| number(at, name)) {
                return Some(found);
            }
            at = inner.iter().find_map(|key| at.get(key).filter(|v| v.is_object()))?;
        }
        None
    };
    facts.hidden_size = facts.hidden_size.or_else(|| find("hidden_size"));
    facts.num_layers = facts.num_layers.or_else(|| find("num_hidden_layers"));
    facts
}

/// One past the quote that ends a string, or all there is.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The first fact of the wrong type: its key, what was expected, what was found. Absent and `null` are no facts.
pub(super) fn wrong_type(config: &Value) -> Option<(&'static str, &'static str, Cow<'static, str>)> {
    type Check = fn(&Value) -> bool;
    const FACTS: [(&str, &str, Check); 11] = [
        ("architectures", "a list of names", |v| v.as_array().is_some_and(|a| a.iter().all(Value::is_string))),
        ("model_type", "a name", Value::is_string),
        ("hidden_size", "a whole number", Value::is_u64),
        ("hidden_sizes", "a list", Value::is_array),
        ("num_hidden_layers", "a whole number", Value::is_u64),
        ("num_layers", "a whole number", Value::is_u64),
        ("n_layer", "a whole number", Value::is_u64),
        ("tie_word_embeddings", "true or false", Value::is_boolean),
        ("dtype", "a dtype's name", |v| v.is_string() || v.is_object()),
        ("torch_dtype", "a dtype's name", |v| v.is_string() || v.is_object()),
        ("text_config", "an object", Value::is_object),
    ];
    FACTS.into_iter().find_map(|(key, expected, check)| {
        let value = config.get(key).filter(|v| !v.is_null())?;
        (!check(value)).then(|| (key, expected, kind(value)))
    })
}

/// What a value is, in a word or as it is written.
pub(super) fn kind(value: &Value) -> Cow<'static, str> {
    match value {
        Value::Object(_) => "an object".into(),
        Value::Array(_) => "a list".into(),
        Value::String(text) => format!("'{}'", shardwright_core::text::shown(text)).into(),
        other => other.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pythons_constants_are_read_outside_of_strings() {
        let text = r#"{"a": [0.0, Infinity, -Infinity], "NaN \" Infinity": NaN, "b": "-Infinity"}"#;
        let read: Value = serde_json::from_str(&without_constants(text)).unwrap();
        assert_eq!(read, json!({"a": [0.0, null, null], "NaN \" Infinity": null, "b": "-Infinity"}));
        assert!(matches!(without_constants("{}"), Cow::Borrowed(_)));
        assert_eq!(without_constants("\"é NaN"), "\"é NaN");
    }

    #[test]
    fn a_fact_of_the_wrong_type_is_reported() {
        assert_eq!(wrong_type(&json!({"hidden_size": 8, "model_type": null, "else": []})), None);
        let reported = |config| wrong_type(&config).map(|(key, _, found)| format!("{key} {found}")).unwrap();
        assert_eq!(reported(json!({"hidden_size": "x"})), "hidden_size 'x'");
        assert_eq!(reported(json!({"num_hidden_layers": -1})), "num_hidden_layers -1");
        assert_eq!(reported(json!({"architectures": "x"})), "architectures 'x'");
    }
}
