//! Where a key belongs that its section does not have: it is looked for in all the others, so that a key in the wrong place is told the
//! right one, and a typo finds its word wherever that is known.

use serde_json::Value as Json;
use shardwright_core::{
    diagnostic::Diagnostic,
    registry::{Registry, StrategyEntry},
    strategy_config::Dialect,
    suggest::nearest,
};

use crate::{
    accelerate,
    keys::{EXTRA, FREEZE, KEYS, LORA, QUANT},
    settings::Settings,
};

/// Codes of findings about a key that is not known where it stands, which is the first thing in quotes that they say.
const UNKNOWN: &[&str] = &["config-unknown-key", "config-extra-key", "deepspeed-unknown-key", "deepspeed-unknown-top-level"];

/// What to look in.
pub(super) struct Scope<'a> {
    pub(super) dialect: Dialect,
    /// The name of the strategy that was chosen, whose keys come first.
    pub(super) strategy: Option<&'a str>,
    pub(super) registry: &'a Registry,
    /// The files that the config names.
    pub(super) files: Vec<&'a str>,
}

/// A key of some section.
struct Place {
    /// Its path in the file, with dots.
    path: String,
    /// The strategy that `dist_config` must be for, where that is another than the chosen one.
    only_with: Option<&'static str>,
}

impl Place {
    fn of(path: impl Into<String>) -> Self {
        Self { path: path.into(), only_with: None }
    }

    fn key(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or_default()
    }

    fn section(&self) -> Option<&str> {
        self.path.rsplit_once('.').map(|(section, _)| section)
    }
}

impl Scope<'_> {
    /// Adds to every finding about an unknown key where the key belongs, unless its own section has one that is spelled nearly so.
    pub(super) fn tell(&self, found: &mut [Diagnostic]) {
        let (mut in_yaml, mut in_files) = (None, None);
        for diagnostic in found.iter_mut().filter(|d| UNKNOWN.contains(&d.code)) {
            let Some(key) = diagnostic.message.split('\'').nth(1) else { continue };
            let is_file = diagnostic.at.as_ref().is_some_and(|at| self.files.contains(&&*at.file));
            let known =
                if is_file { in_files.get_or_insert_with(|| self.in_files()) } else { in_yaml.get_or_insert_with(|| self.in_yaml()) };
            if let Some(help) = belongs(key, known, diagnostic.help.as_deref()) {
                diagnostic.help = Some(help.into());
            }
        }
    }

    fn in_yaml(&self) -> Vec<Place> {
        let mut places = Vec::new();
        match self.dialect {
            Dialect::LlamaFactory => {
                places.extend(KEYS.iter().chain(EXTRA).map(|k| Place::of(k.name)));
                places.extend(self.strategies());
                places.extend([LORA, FREEZE].into_iter().flatten().map(|k| Place::of(format!("peft_config.{}", k.name))));
                places.extend(QUANT.iter().map(|k| Place::of(format!("quant_config.{}", k.name))));
            }
            Dialect::Accelerate => places.extend(accelerate::paths().map(Place::of)),
        }
        let mut settings = Vec::new();
        properties(schemars::schema_for!(Settings).as_value(), "shardwright.", &mut settings);
        places.extend(settings.into_iter().map(Place::of));
        places
    }

    /// Keys of the strategies' sections, the chosen one's first.
    fn strategies(&self) -> Vec<Place> {
        let (mut chosen, mut others) = (Vec::new(), Vec::new());
        for entry in self.registry.strategies() {
            let mut paths = Vec::new();
            properties(entry.schema().as_value(), "dist_config.", &mut paths);
            let only_with = self.strategy.filter(|name| *name != entry.name).map(|_| entry.name);
            let places = paths.into_iter().map(|path| Place { path, only_with });
            if only_with.is_none() { chosen.extend(places) } else { others.extend(places) }
        }
        chosen.append(&mut others);
        chosen
    }

    /// Keys of a DeepSpeed config: of whatever strategy takes one inline.
    fn in_files(&self) -> Vec<Place> {
        let schemas = self.registry.strategies().iter().map(StrategyEntry::schema);
        let Some(schema) = schemas.into_iter().find(|s| s.as_value()["properties"].get("zero_optimization").is_some()) else {
            return Vec::new();
        };
        let mut paths = Vec::new();
        properties(schema.as_value(), "", &mut paths);
        paths.into_iter().filter(|path| path != "other").map(Place::of).collect()
    }
}

fn belongs(key: &str, places: &[Place], help: Option<&str>) -> Option<String> {
    if let Some(place) = places.iter().find(|p| p.key() == key) {
        return Some(match (place.section(), place.only_with) {
            (Some(section), None) => format!("it is a key of {section}: write it there"),
            (Some(section), Some(name)) => format!("it is a key of {section} where dist_config.name is {name}"),
            (None, _) => "it is a key of the file itself: write it outside of all sections".to_owned(),
        });
    }
    if help.is_some_and(|h| h.starts_with("did you mean")) {
        return None;
    }
    let near = nearest(key, places.iter().map(Place::key))?;
    places.iter().find(|p| p.key() == near).map(|place| format!("did you mean {}?", place.path))
}

/// The paths of a schema's properties, those of a section after its own.
fn properties(schema: &Json, prefix: &str, paths: &mut Vec<String>) {
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{prefix}{key}");
        let under = format!("{path}.");
        paths.push(path);
        properties(inner, &under, paths);
    }
}
