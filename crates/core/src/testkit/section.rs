//! The rules about a registered section: it is documented, it survives being written and read, and it takes no key that it does not know.

use std::collections::BTreeSet;

use schemars::Schema;
use serde_json::{Map, Value as Json};

use super::violation::{Found, Rule};
use crate::{
    diagnostic::{Diagnostic, Source},
    registry::{PolicyEntry, StrategyEntry},
    tree::{Node, yaml},
};

/// What a strategy's entry and a policy's have in common.
pub(super) struct Section {
    summary: &'static str,
    schema: Schema,
    defaults: Json,
    parse: Box<Parse>,
}

/// A section read and written again.
type Parse = dyn Fn(&Node) -> Result<Json, Vec<Diagnostic>>;

impl From<StrategyEntry> for Section {
    fn from(entry: StrategyEntry) -> Self {
        let parse = move |node: &Node| entry.parse(node, "dist_config").map(|config| config.to_json());
        Self { summary: entry.summary, schema: entry.schema(), defaults: entry.defaults(), parse: Box::new(parse) }
    }
}

impl From<PolicyEntry> for Section {
    fn from(entry: PolicyEntry) -> Self {
        let parse = move |node: &Node| entry.parse(node, "shardwright.precision").map(|config| config.to_json());
        Self { summary: entry.summary, schema: entry.schema(), defaults: entry.defaults(), parse: Box::new(parse) }
    }
}

impl Section {
    /// Holds the section against every rule, its default and these others.
    pub(super) fn holds<'a>(&self, others: impl Iterator<Item = &'a str>) -> Result<(), Found> {
        self.documented()?;
        self.survives(&self.defaults)?;
        for yaml in others.filter(|yaml| !yaml.is_empty()) {
            let read = self.read(yaml).map_err(|e| (Rule::Config, format!("the section {{{}}} is refused: {e}", one_line(yaml))))?;
            self.survives(&read)?;
        }
        self.unknown_key()
    }

    /// The default section with every key spelled out, as YAML.
    pub(super) fn spelled_out(&self) -> String {
        yaml_of(self.defaults.as_object().unwrap_or(&Map::new()).iter())
    }

    fn read(&self, yaml: &str) -> Result<Json, String> {
        let mut warnings = Vec::new();
        let node = yaml::parse(&Source::new("section.yaml", yaml), &mut warnings).map_err(|e| e.message.to_string())?;
        (self.parse)(&node).map_err(|errors| errors.iter().map(|e| e.message.to_string()).collect::<Vec<_>>().join("; "))
    }

    fn documented(&self) -> Result<(), Found> {
        let broken = |what: String| Err((Rule::Documented, what));
        if self.summary.trim().is_empty() || self.summary.contains('\n') {
            return broken(format!("the summary is {:?}, expected one line", self.summary));
        }
        let schema = self.schema.as_value();
        let properties = schema["properties"].as_object().cloned().unwrap_or_default();
        for (key, property) in &properties {
            if property["description"].as_str().is_none_or(|text| text.trim().is_empty()) {
                return broken(format!("the key '{key}' has no description: its field has no doc comment"));
            }
            if !["type", "anyOf", "oneOf", "enum", "$ref", "allOf", "const"].iter().any(|word| property.get(word).is_some()) {
                return broken(format!("the key '{key}' has no type in the schema"));
            }
        }
        let described: BTreeSet<&str> = properties.keys().map(String::as_str).collect();
        let written: BTreeSet<&str> = self.defaults.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
        match described.symmetric_difference(&written).next() {
            Some(key) if described.contains(key) => {
                broken(format!("the key '{key}' is in the schema, but the default section does not have it"))
            }
            Some(key) => broken(format!("the key '{key}' is in the default section, but not in the schema")),
            None => Ok(()),
        }
    }

    fn survives(&self, section: &Json) -> Result<(), Found> {
        let Some(map) = section.as_object() else { return Err((Rule::Config, format!("the section is {section}, expected a mapping"))) };
        for (text, order) in [(yaml_of(map.iter()), "its order"), (yaml_of(map.iter().rev()), "the opposite order")] {
            match self.read(&text) {
                Ok(again) if again == *section => {}
                Ok(again) => return Err((Rule::Config, format!("{section}, written in {order} and read again, is {again}"))),
                Err(e) => return Err((Rule::Config, format!("{section}, written in {order}, cannot be read again: {e}"))),
            }
        }
        Ok(())
    }

    fn unknown_key(&self) -> Result<(), Found> {
        let broken = |what: String| Err((Rule::UnknownKey, what));
        let known = self.defaults.as_object().cloned().unwrap_or_default();
        let mistyped = known.keys().next().map(|key| format!("{key}x"));
        for key in ["no_such_key".to_owned()].into_iter().chain(mistyped).filter(|key| !known.contains_key(key)) {
            let text = format!("{}{key}: 1\n", self.spelled_out());
            let mut warnings = Vec::new();
            let node = yaml::parse(&Source::new("section.yaml", text), &mut warnings).map_err(|e| (Rule::Config, e.message.to_string()))?;
            match (self.parse)(&node) {
                Ok(_) => return broken(format!("the key '{key}' is taken without an error: is deny_unknown_fields missing?")),
                Err(errors) if !errors.iter().any(|e| e.message.contains(&key) && e.at.is_some()) => {
                    let all: Vec<_> = errors.iter().map(|e| &*e.message).collect();
                    return broken(format!("the key '{key}' is refused, but no error names it and its place: {}", all.join("; ")));
                }
                Err(_) => {}
            }
        }
        Ok(())
    }
}

/// A key a line, each value as JSON, which is YAML.
fn yaml_of<'a>(entries: impl Iterator<Item = (&'a String, &'a Json)>) -> String {
    entries.map(|(key, value)| format!("{}: {value}\n", Json::from(key.as_str()))).collect()
}

fn one_line(yaml: &str) -> String {
    yaml.trim().replace('\n', ", ")
}
