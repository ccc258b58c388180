//! Which parameters the optimizer changes, as LLaMA-Factory's `freeze` decides it.

use shardwright_core::{
    Globs, Trainable,
    strategy_config::{Training, Tuning, Unresolved},
    tree::{Node, Value},
};

use super::Resolver;
use crate::draft::Draft;

impl Resolver<'_> {
    pub(super) fn trainable(&mut self, draft: &Draft, training: &Training) -> Trainable {
        match training.tuning.value {
            Tuning::Full => Trainable::All,
            Tuning::Lora | Tuning::Inference => Trainable::None,
            Tuning::Freeze { .. } => self.freeze(draft),
        }
    }

    /// The parameters that LLaMA-Factory's freeze leaves trainable, by name.
    pub(super) fn freeze(&mut self, draft: &Draft) -> Trainable {
        let Some(section) = draft.sections.get("peft_config") else { return Trainable::All };
        let body = &section.body;
        let list = |key: &str, default: &[&str]| -> Vec<String> {
            match body.get(key) {
                None => default.iter().map(|&s| s.to_owned()).collect(),
                Some(node) => match (&node.value, node.as_str()) {
                    (_, Some(text)) => text.split(',').map(|s| s.trim().to_owned()).collect(),
                    (Value::Seq(items), _) => items.iter().filter_map(|i| i.as_str().map(str::to_owned)).collect(),
                    _ => Vec::new(),
                },
            }
        };
        let count = body.get("freeze_trainable_layers").and_then(Node::as_integer).unwrap_or(2);
        let Some(layers) = self.supplied.model.as_ref().and_then(|m| m.num_layers) else {
            let needs = "num_hidden_layers of the model's config.json";
            let pointer = "/training/peft_config/freeze_trainable_layers".to_owned();
            self.unresolved.push(Unresolved::new(pointer, needs, section.name_at.clone()));
            return Trainable::None;
        };
        let total = i128::from(layers);
        let ids = if count > 0 { (total - count).max(0)..total } else { 0..(-count).min(total) };
        let mut patterns = Vec::new();
        for module in list("freeze_trainable_modules", &["all"]) {
            let rest = if module == "all" { "*".to_owned() } else { format!("{}*", escape(&module)) };
            patterns.extend(ids.clone().map(|id| format!("*.{id}.{rest}")));
        }
        patterns.extend(list("freeze_extra_modules", &[]).iter().filter(|m| !m.is_empty()).map(|m| format!("*{}*", escape(m))));
        match Globs::new(patterns) {
            Ok(globs) => Trainable::Matching(globs),
            Err(error) => {
                self.error("config-value", format!("peft_config: {error}"), Some(section.body.at.clone()));
                Trainable::None
            }
        }
    }
}

/// A module name as a glob that matches it alone.
fn escape(name: &str) -> String {
    name.chars().flat_map(|c| if "*?[]{}\\!".contains(c) { vec!['[', c, ']'] } else { vec![c] }).collect()
}
