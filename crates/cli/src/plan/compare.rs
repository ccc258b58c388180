//! The same run under other strategies and on other worlds.

use serde_json::{Value as Json, json};
use shardwright_config::Outcome;
use shardwright_core::diagnostic::Source;
use shardwright_engine::{World, WorldFlags, setup};
use shardwright_memory::{Budget, output};

use super::Case;

/// Worlds beside the asked one: quarters to fourfold.
const FACTORS: [(u32, u32); 5] = [(1, 4), (1, 2), (1, 1), (2, 1), (4, 1)];

impl Case<'_> {
    /// Every strategy of this binary, with its default section, and the config's own, on worlds from a quarter to four times the asked one.
    /// Beside them the names of what does not resolve or cannot be planned: a strategy that needs a file, a world that its mesh does not divide.
    pub(super) fn compare(&self, outcome: &Outcome, asked: u32, budget: &Budget) -> (Vec<output::World>, Vec<String>) {
        let (mut found, mut left_out) = (Vec::new(), Vec::new());
        let own = outcome.resolved.as_ref().map(|r| r.strategy.name().to_owned()).unwrap_or_default();
        let names = self.registry.strategies().iter().map(|s| s.name.to_owned()).filter(|name| *name != own);
        let sizes = FACTORS.iter().filter(|(_, d)| asked.is_multiple_of(*d)).map(|(n, d)| (asked / d).saturating_mul(*n));
        let sizes: Vec<u32> = sizes.collect();
        let document = outcome.to_json();
        for name in std::iter::once(own.clone()).chain(names) {
            for &size in &sizes {
                if name == own && size == asked {
                    continue;
                }
                let changed = (name != own).then_some(name.as_str());
                match self.variant(&document, changed, size, budget) {
                    Some(world) => found.push(world),
                    None => left_out.push(format!("{name} on {size}")),
                }
            }
        }
        (found, left_out)
    }

    /// The other strategies of this binary on the asked world.
    pub(super) fn other_strategies(&self, outcome: &Outcome, asked: u32, budget: &Budget) -> Vec<output::World> {
        let own = outcome.resolved.as_ref().map(|r| r.strategy.name().to_owned()).unwrap_or_default();
        let document = outcome.to_json();
        let names = self.registry.strategies().iter().map(|s| s.name).filter(|name| *name != own);
        names.filter_map(|name| self.variant(&document, Some(name), asked, budget)).collect()
    }

    fn variant(&self, document: &Json, strategy: Option<&str>, size: u32, budget: &Budget) -> Option<output::World> {
        let world = World::from_process(WorldFlags { rank: None, world_size: Some(size) }).ok()?;
        // First as it is written; then with sizes that follow from the world.
        let as_written = || setup::resolve(self.config, self.overrides, &world, self.registry).ok()?.outcome.resolved;
        let rewritten = || {
            let text = serde_json::to_string(&rewritten(document, strategy)).ok()?;
            let source = Source::new(self.config.display().to_string(), text);
            setup::resolve_source(source, self.config, &[], &world, self.registry).ok()?.outcome.resolved
        };
        let resolved = if strategy.is_none() { as_written().or_else(rewritten) } else { rewritten() }?;
        if !resolved.undecided().is_empty() {
            return None;
        }
        let planned = self.plan(&resolved, false).ok()?;
        let mut world = self.predict(&planned, budget);
        world.variant = match strategy {
            Some(name) => format!("dist_config.name: {name}"),
            None => format!("--world-size {size}"),
        };
        Some(world)
    }
}

/// The resolved document with another strategy, and without the sizes that belong to one world.
fn rewritten(document: &Json, strategy: Option<&str>) -> Json {
    let mut changed = document.clone();
    if let Some(training) = changed.get_mut("training").and_then(Json::as_object_mut) {
        for key in ["mp_shard_size", "dp_size", "global_batch_size"] {
            if training.contains_key(key) {
                training.insert(key.to_owned(), Json::Null);
            }
        }
    }
    if let (Some(name), Some(whole)) = (strategy, changed.as_object_mut()) {
        whole.insert("strategy".to_owned(), json!({ "name": name, "config": {} }));
        whole.remove("deepspeed");
        // Both belong to a model that is cut over dim 0.
        whole.get_mut("shardwright").and_then(Json::as_object_mut).map(|s| s.insert("units".to_owned(), json!([])));
    }
    changed
}
