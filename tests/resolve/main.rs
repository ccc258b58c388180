//! Config resolution, from texts to documents: against the oracle, over a matrix, with invalid files, and by properties.

mod engines_matrix;
mod examples;
mod invalid;
mod io;
mod matrix;
mod modules;
mod oracle;
mod properties;
mod readers;
mod terminal;

use std::collections::BTreeMap;

use serde_json::Value as Json;
use shardwright_config::{Draft, Input, Outcome, Supplied};
use shardwright_core::{ModelFacts, diagnostic::Source, registry::Registry};
// Linked for what they register.
use {shardwright_fsdp2 as _, shardwright_precision as _, shardwright_zero3 as _};

/// What a resolution is made of; everything but the YAML has a default.
#[derive(Clone, Debug, Default)]
struct Case {
    yaml: String,
    overrides: Vec<String>,
    env: BTreeMap<String, String>,
    /// The file `ds.json`.
    deepspeed: Option<String>,
    hidden_size: Option<u64>,
    world: Option<u32>,
}

impl Case {
    fn new(yaml: impl Into<String>) -> Self {
        Self { yaml: yaml.into(), hidden_size: Some(64), world: Some(1), ..Self::default() }
    }

    fn deepspeed(mut self, json: impl Into<String>) -> Self {
        self.deepspeed = Some(json.into());
        self
    }

    fn world(mut self, world: u32) -> Self {
        self.world = Some(world);
        self
    }

    fn with(mut self, key_value: &str) -> Self {
        self.overrides.push(key_value.into());
        self
    }

    fn outcome(&self) -> Outcome {
        let registry = Registry::linked().unwrap();
        let config = Source::new("train.yaml", self.yaml.as_str());
        let draft = Draft::parse(&Input { config, overrides: self.overrides.clone(), env: self.env.clone() }, &registry);
        let mut supplied = Supplied::default();
        for name in draft.files() {
            let text = self.deepspeed.as_ref().map(|text| Source::new(name.as_str(), text.as_str())).ok_or("no such file".to_owned());
            supplied.files.insert(name, text);
        }
        let config_json = |h: u64| serde_json::json!({"hidden_size": h, "num_hidden_layers": 4, "model_type": "qwen3"});
        supplied.model = self.hidden_size.map(|h| ModelFacts::from_config(&config_json(h)));
        supplied.world_size = self.world;
        supplied.world_size_is_flag = true;
        draft.resolve(&supplied, &registry)
    }

    fn document(&self) -> Json {
        let outcome = self.outcome();
        assert!(!outcome.has_errors(), "{}\n{:#?}", self.yaml, outcome.diagnostics);
        outcome.to_json()
    }

    /// Codes of its findings, in order.
    fn codes(&self) -> Vec<&'static str> {
        self.outcome().diagnostics.iter().map(|d| d.code).collect()
    }
}

/// The values alone: what does not depend on where things stand.
fn values(mut document: Json) -> Json {
    for key in ["provenance", "warnings"] {
        document.as_object_mut().unwrap().remove(key);
    }
    document
}

const DEEPSPEED: &str = "model: m\ndist_config:\n  config_file: ds.json\n  name: deepspeed\n";
