//! Where a key belongs that its section does not have: it is looked for in all the others, so that a key in the wrong place is told the
//! right one, and a typo finds its word wherever that is known.

use std::ops::Range;

use serde_json::Value as Json;
use shardwright_core::{
    diagnostic::{Diagnostic, Source},
    registry::Registry,
    strategy_config::Dialect,
    suggest::nearest,
};

use crate::{
    accelerate,
    keys::{EXTRA, FREEZE, KEYS, LORA, QUANT},
    settings::Settings,
};

/// Codes of findings about a key that is not known where it stands.
const UNKNOWN: &[&str] = &["config-unknown-key", "config-extra-key", "deepspeed-unknown-key", "deepspeed-unknown-top-level"];

/// Adds to every finding about an unknown key where the key belongs, unless its own section has one that is spelled nearly so. `strategy` is
/// the chosen strategy's name, whose keys come first; `config` is the YAML, all other sources are files that it names.
pub(super) fn tell(
    found: &mut [Diagnostic],
    sources: &[Source],
    config: &str,
    dialect: Dialect,
    strategy: Option<&str>,
    registry: &Registry,
) {
    let mut known: Option<[Vec<String>; 2]> = None;
    for diagnostic in found.iter_mut().filter(|d| UNKNOWN.contains(&d.code)) {
        let Some(key) = diagnostic.at.as_ref().and_then(|at| key(sources, &at.file, &at.span)) else { continue };
        let [in_yaml, in_files] = known.get_or_insert_with(|| {
            let mut strategies = sections(strategy, registry);
            let in_files = strategies.iter().filter(|p| p.contains('.')).cloned().collect();
            strategies.iter_mut().for_each(|path| path.insert_str(0, "dist_config."));
            [paths(dialect, strategies), in_files]
        });
        let is_file =
            diagnostic.at.as_ref().is_some_and(|at| &*at.file != config && sources.iter().skip(FIRST_FILE).any(|s| s.name == at.file));
        let paths: &[String] = if is_file { in_files } else { in_yaml };
        if let Some(help) = belongs(&key, paths, diagnostic.help.as_deref()) {
            diagnostic.help = Some(help.into());
        }
    }
}

/// Sources before the files that a config names: the config, the command line, the environment.
const FIRST_FILE: usize = 3;

fn belongs(key: &str, paths: &[String], help: Option<&str>) -> Option<String> {
    let last = |path: &String| path.rsplit('.').next().unwrap_or_default().to_owned();
    if let Some(path) = paths.iter().find(|p| last(p) == key) {
        return Some(match path.rsplit_once('.') {
            Some((section, _)) => format!("it is a key of {section}: write it there, {path}"),
            None => format!("it is a key of the file itself: write {path} outside of all sections"),
        });
    }
    if help.is_some_and(|h| h.starts_with("did you mean")) {
        return None;
    }
    let words: Vec<String> = paths.iter().map(last).collect();
    let near = nearest(key, words.iter().map(String::as_str))?;
    let path = paths.iter().find(|p| last(p) == near)?;
    Some(format!("did you mean {path}?"))
}

/// The key that stands there.
fn key(sources: &[Source], file: &str, span: &Range<usize>) -> Option<String> {
    let text = sources.iter().find(|s| &*s.name == file)?.text.get(span.clone())?;
    let word = text.rsplit('.').next().unwrap_or(text).trim_matches(['"', '\'']);
    (!word.is_empty()).then(|| word.to_owned())
}

fn paths(dialect: Dialect, strategies: Vec<String>) -> Vec<String> {
    let mut paths: Vec<String> = Vec::new();
    match dialect {
        Dialect::LlamaFactory => {
            paths.extend(KEYS.iter().chain(EXTRA).map(|k| k.name.to_owned()));
            paths.extend(strategies);
            paths.extend([LORA, FREEZE].into_iter().flatten().map(|k| format!("peft_config.{}", k.name)));
            paths.extend(QUANT.iter().map(|k| format!("quant_config.{}", k.name)));
        }
        Dialect::Accelerate => paths.extend(accelerate::paths()),
    }
    properties(schemars::schema_for!(Settings).as_value(), "shardwright.", &mut paths);
    paths
}

/// Keys of the strategies' sections, the chosen one's first.
fn sections(strategy: Option<&str>, registry: &Registry) -> Vec<String> {
    let mut paths = Vec::new();
    let is_chosen = |name: &str| Some(name) == strategy;
    for entry in
        registry.strategies().iter().filter(|e| is_chosen(e.name)).chain(registry.strategies().iter().filter(|e| !is_chosen(e.name)))
    {
        properties(entry.schema().as_value(), "", &mut paths);
    }
    paths
}

fn properties(schema: &Json, prefix: &str, paths: &mut Vec<String>) {
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{prefix}{key}");
        properties(inner, &format!("{path}."), paths);
        paths.push(path);
    }
}
