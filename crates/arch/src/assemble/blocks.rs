//! The modules that FSDP wraps.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Assembler, Made};
use crate::tree::Found;

impl Assembler<'_, '_> {
    /// LLaMA-Factory's rule: the class of element 0 of every list called `layers` or `blocks`, else `_no_split_modules`.
    pub(super) fn blocks(&mut self, made: &mut BTreeMap<String, Made>, models: &[(String, Value, bool)]) {
        if let Some(own) = self.options.own.filter(|own| self.tree.is_open() || !own.wrap.is_empty()) {
            for of in made.values_mut().filter(|_| !own.wrap.is_empty()) {
                of.block = Some(own.block(&of.name).to_owned());
                of.embedding = of.name.rsplit_once('.').is_some_and(|(module, _)| own.embeddings.matches(module));
            }
            return;
        }
        let found: BTreeMap<String, Found> = {
            let aliases = self.out.aliases.iter().map(|(alias, _)| alias);
            made.keys().chain(aliases).filter_map(|n| Some((n.clone(), self.tree.find(n, &self.choices)?))).collect()
        };
        let mut wrapped: BTreeSet<&str> = BTreeSet::new();
        for (name, found) in &found {
            for pair in found.modules.windows(2) {
                let ((list_end, list), (end, element)) = (pair[0], pair[1]);
                let called = name[..list_end].rsplit('.').next().unwrap_or_default();
                let first = end > list_end + 1 && &name[list_end + 1..end] == "0";
                if first && matches!(called, "layers" | "blocks") && self.tree.is_list(list) && self.tree.class(list) != "Sequential" {
                    wrapped.insert(self.tree.class(element));
                }
            }
        }
        if wrapped.is_empty() {
            // Since transformers 5 a model's `_no_split_modules` include those of its sub-models.
            let counts = |path: &str| path.is_empty() || self.options.transformers >= 5;
            let lines = models.iter().filter(|(path, ..)| counts(path));
            wrapped.extend(lines.filter_map(|(_, line, _)| line["split"].as_array()).flatten().filter_map(Value::as_str));
        }
        let block = |name: &str| -> (String, bool) {
            let Some(found) = found.get(name) else { return (String::new(), false) };
            let inner = found.modules.iter().rev().find(|(_, place)| wrapped.contains(self.tree.class(*place)));
            let embedding = found.modules.last().is_some_and(|(_, place)| self.tree.is_embedding(*place));
            (inner.map_or(String::new(), |(end, _)| name[..*end].to_owned()), embedding)
        };
        for of in made.values_mut() {
            let (module, embedding) = block(&of.name);
            (of.block, of.embedding) = (Some(module), embedding);
        }
        if !self.options.tied_in_each_group {
            return;
        }
        let ties = self.out.ties_embeddings;
        let unit = |name: &str| {
            let (module, embedding) = block(name);
            if embedding && !ties { name.rsplit_once('.').map_or(String::new(), |(m, _)| m.to_owned()) } else { module }
        };
        let mut units: BTreeSet<(String, String)> = BTreeSet::new();
        let mut kept = Vec::new();
        for (alias, first) in &self.out.aliases {
            units.insert((first.clone(), unit(first)));
            if units.insert((first.clone(), unit(alias)))
                && let Some(of) = made.get(first).cloned()
            {
                let (module, embedding) = block(alias);
                made.insert(alias.clone(), Made { name: alias.clone(), block: Some(module), embedding, ..of });
            } else {
                kept.push((alias.clone(), first.clone()));
            }
        }
        self.out.aliases = kept;
    }
}
