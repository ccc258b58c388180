//! Where a key belongs that its section does not have: it is looked for in all the others, so that a key in the wrong place gets the
//! right one, and a typo finds its word wherever that is known.

use std::sync::OnceLock;

use shardwright_core::{
    diagnostic::Diagnostic,
    registry::{Registry, property_paths},
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
#[derive(Clone, Copy)]
struct Place<'a> {
    /// What stands before `path` in the file.
    within: &'static str,
    /// Its path from there, with dots.
    path: &'a str,
    /// The strategy that `dist_config` must be for, where that is another than the chosen one.
    only_with: Option<&'static str>,
}

impl<'a> Place<'a> {
    fn of(path: &'a str) -> Self {
        Self::within("", path)
    }

    fn within(within: &'static str, path: &'a str) -> Self {
        Self { within, path, only_with: None }
    }

    fn key(&self) -> &'a str {
        self.path.rsplit('.').next().unwrap_or_default()
    }

    /// The path of its section, where it is in one.
    fn section(&self) -> Option<String> {
        let path = self.to_string();
        path.rsplit_once('.').map(|(section, _)| section.to_owned())
    }
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.within, self.path)
    }
}

/// Findings whose key is looked for among misspelled words too; of more than that, none is a misspelling.
const MOST_SUGGESTED: usize = 64;

impl Scope<'_> {
    /// Adds to every finding about an unknown key where the key belongs, unless its own section has one that is spelled nearly so.
    pub(super) fn tell(&self, found: &mut [Diagnostic]) {
        let (mut in_yaml, mut in_files) = (None, None);
        for (count, diagnostic) in found.iter_mut().filter(|d| UNKNOWN.contains(&d.code)).enumerate() {
            let Some(key) = diagnostic.message.split('\'').nth(1) else { continue };
            let is_file = diagnostic.at.as_ref().is_some_and(|at| self.files.contains(&&*at.file));
            let known: &Known<'_> = if is_file {
                in_files.get_or_insert_with(|| Known::new(self.in_files()))
            } else {
                in_yaml.get_or_insert_with(|| Known::new(self.in_yaml()))
            };
            if let Some(help) = known.belongs(key, diagnostic.help.as_deref(), count < MOST_SUGGESTED) {
                diagnostic.help = Some(help.into());
            }
        }
    }

    fn in_yaml(&self) -> Vec<Place<'_>> {
        let mut places = Vec::new();
        match self.dialect {
            Dialect::LlamaFactory => {
                places.extend(KEYS.iter().chain(EXTRA).map(|k| Place::of(k.name)));
                places.extend(self.strategies());
                places.extend([LORA, FREEZE].into_iter().flatten().map(|k| Place::within("peft_config.", k.name)));
                places.extend(QUANT.iter().map(|k| Place::within("quant_config.", k.name)));
            }
            Dialect::Accelerate => places.extend(accelerate::paths().iter().map(|path| Place::of(path))),
        }
        places.extend(settings().iter().map(|path| Place::of(path)));
        places
    }

    /// Keys of the strategies' sections, the chosen one's first.
    fn strategies(&self) -> Vec<Place<'_>> {
        let (mut chosen, mut others) = (Vec::new(), Vec::new());
        for keys in self.registry.section_keys() {
            let only_with = self.strategy.filter(|name| *name != keys.strategy).map(|_| keys.strategy);
            let places = keys.paths.iter().map(|path| Place { only_with, ..Place::within("dist_config.", path) });
            if only_with.is_none() { chosen.extend(places) } else { others.extend(places) }
        }
        chosen.append(&mut others);
        chosen
    }

    /// Keys of a DeepSpeed config: of whatever strategy takes one inline.
    fn in_files(&self) -> Vec<Place<'_>> {
        let inline = self.registry.section_keys().iter().find(|keys| keys.paths.iter().any(|path| path == "zero_optimization"));
        inline.into_iter().flat_map(|keys| &keys.paths).filter(|path| *path != "other").map(|path| Place::of(path)).collect()
    }
}

/// The keys of `shardwright`.
pub(super) fn settings() -> &'static [String] {
    static PATHS: OnceLock<Vec<String>> = OnceLock::new();
    PATHS.get_or_init(|| {
        let mut paths = Vec::new();
        property_paths(schemars::schema_for!(Settings).as_value(), "shardwright.", &mut paths);
        paths
    })
}

/// Places with their keys; of those of the same key the first counts. Nothing is copied: this is made for every config with an unknown key.
struct Known<'a>(Vec<(&'a str, Place<'a>)>);

impl<'a> Known<'a> {
    fn new(places: Vec<Place<'a>>) -> Self {
        Self(places.into_iter().map(|place| (place.key(), place)).collect())
    }

    fn find(&self, key: &str) -> Option<Place<'a>> {
        self.0.iter().find(|(known, _)| *known == key).map(|(_, place)| *place)
    }

    fn belongs(&self, key: &str, help: Option<&str>, may_be_misspelled: bool) -> Option<String> {
        if let Some(place) = self.find(key) {
            return Some(match (place.section(), place.only_with) {
                (Some(section), None) => format!("it is a key of {section}: write it there"),
                (Some(section), Some(name)) => format!("it is a key of {section} where dist_config.name is {name}"),
                (None, _) => "it is a top-level key: write it outside all sections".to_owned(),
            });
        }
        if !may_be_misspelled || help.is_some_and(|h| h.starts_with("did you mean")) {
            return None;
        }
        let near = nearest(key, self.0.iter().map(|(known, _)| *known))?;
        self.find(near).map(|place| format!("did you mean {place}?"))
    }
}
