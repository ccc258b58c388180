//! What a resolution looks like outside: the JSON document, the explanation of a value, the lock and its comparison. Text layout for
//! terminals is the command line's.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use shardwright_core::{
    diagnostic::{Diagnostic, Severity},
    document::{Document, Origin},
    suggest::nearest,
};

use crate::{
    elsewhere::settings,
    keys::{EXTRA, FREEZE, KEYS, LORA, QUANT},
    resolve::{Outcome, Resolved},
};

impl Outcome {
    /// The whole resolution as one JSON document; where there are errors, those and the warnings.
    pub fn to_json(&self) -> Json {
        let listed = |severity| self.diagnostics.iter().filter(|d| d.severity == severity).map(flat).collect::<Vec<_>>();
        let warnings = listed(Severity::Warning);
        match &self.resolved {
            None => json!({ "errors": listed(Severity::Error), "warnings": warnings }),
            Some(resolved) => {
                let mut tree = resolved.document.tree().clone();
                tree.insert("unresolved".into(), serde_json::to_value(&resolved.unresolved).unwrap_or(Json::Null));
                tree.insert("warnings".into(), warnings.into());
                tree.insert("provenance".into(), provenance(&resolved.document));
                Json::Object(tree)
            }
        }
    }
}

/// `/provenance`: pointer → where from.
fn provenance(document: &Document) -> Json {
    Json::Object(document.leaves().into_iter().map(|(pointer, _, origin)| (pointer, origin_to_json(origin))).collect())
}

fn origin_to_json(origin: &Origin) -> Json {
    let source = origin.source();
    match origin {
        Origin::Written(at) => json!({"source": source, "file": *at.file, "line": at.line, "column": at.column}),
        Origin::Default => json!({"source": source}),
        Origin::Rule { rule, from, at: None } => json!({"source": source, "rule": rule, "from": from}),
        Origin::Rule { rule, from, at: Some(at) } => {
            json!({"source": source, "file": *at.file, "line": at.line, "column": at.column, "rule": rule, "from": from})
        }
    }
}

/// A diagnostic as one flat object: code, message, file, line, column, and where there are any, help and other places.
pub fn flat(diagnostic: &Diagnostic) -> Json {
    let mut map = Map::new();
    map.insert("code".into(), diagnostic.code.into());
    map.insert("message".into(), (*diagnostic.message).into());
    let at = diagnostic.at.as_ref();
    map.insert("file".into(), at.map(|a| a.file.to_string()).into());
    map.insert("line".into(), at.map(|a| a.line).into());
    map.insert("column".into(), at.map(|a| a.column).into());
    if let Some(help) = &diagnostic.help {
        map.insert("help".into(), (**help).into());
    }
    if !diagnostic.also.is_empty() {
        let also =
            diagnostic.also.iter().map(|(at, what)| json!({"message": what, "file": *at.file, "line": at.line, "column": at.column}));
        map.insert("also".into(), also.collect());
    }
    Json::Object(map)
}

/// Where a value is from, short enough for a column: `train.yaml:3:7`, `override bf16=false`, `default`, `fsdp2.full.bf16`.
pub fn origin_in_short(origin: &Origin) -> String {
    match (origin, origin.source()) {
        (Origin::Written(at), "file") => format!("{}:{}:{}", at.file, at.line, at.column),
        (Origin::Written(_), "override") => "command line".into(),
        (Origin::Written(_), _) => "environment".into(),
        (Origin::Rule { rule, at: None, .. }, _) => rule.clone(),
        (Origin::Rule { rule, at: Some(at), .. }, _) => format!("{rule} ({}:{})", at.file, at.line),
        (Origin::Default, _) => "default".into(),
    }
}

/// The pointer that a user means by `precision.compute` or `/precision/compute`.
pub fn pointer_of(key: &str) -> String {
    if key.starts_with('/') { key.to_owned() } else { format!("/{}", key.replace('.', "/")) }
}

impl Resolved {
    /// Says why a value is what it is, a sentence a line, down to what was written. A section is explained value by value.
    ///
    /// # Errors
    /// A key that the resolution does not have, with the nearest.
    pub fn explain(&self, key: &str) -> Result<String, Diagnostic> {
        let pointer = pointer_of(key);
        let under = format!("{}/", pointer.trim_end_matches('/'));
        let leaves = self.document.leaves();
        let wanted: Vec<&str> = leaves.iter().map(|(p, _, _)| p.as_str()).filter(|p| *p == pointer || p.starts_with(&under)).collect();
        if wanted.is_empty() {
            let error = Diagnostic::error("explain-unknown-key", format!("the resolution has no key '{key}'"));
            return Err(match nearest(&pointer, leaves.iter().map(|(p, _, _)| p.as_str())) {
                Some(near) => error.help(format!("did you mean '{}'?", near[1..].replace('/', "."))),
                None => error,
            });
        }
        let mut lines = Vec::new();
        for pointer in wanted {
            sentences(&self.document, pointer, 0, &mut lines);
        }
        Ok(lines.join("\n") + "\n")
    }
}

fn sentences(document: &Document, pointer: &str, depth: usize, lines: &mut Vec<String>) {
    const MOST: usize = 8;
    let indent = "  ".repeat(depth);
    let name = pointer.trim_start_matches('/').replace('/', ".");
    // A plugin's section is named by its name.
    let named = format!("{pointer}/name");
    let pointer = if document.origin(pointer).is_none() && document.get(&named).is_some() { &named } else { pointer };
    let Some(value) = document.get(pointer) else {
        return lines.push(format!("{indent}{name} is not set."));
    };
    let (reason, from): (String, &[String]) = match document.origin(pointer) {
        Some(origin @ Origin::Written(at)) => match origin.source() {
            "override" => ("given on the command line".into(), &[]),
            "env" => ("set in the environment".into(), &[]),
            _ => (format!("written in {}, line {}, column {}", at.file, at.line, at.column), &[]),
        },
        Some(Origin::Rule { rule, from, at }) => {
            let asked = at.as_ref().map_or(String::new(), |at| format!(" (asked for in {}, line {})", at.file, at.line));
            match why(document, pointer) {
                Some(why) => (format!("by the rule {rule}{asked}: {why}"), from),
                None => (format!("by the rule{asked}: {rule}"), from),
            }
        }
        Some(Origin::Default) => ("the default".into(), &[]),
        None if value.is_object() => ("a section".into(), &[]),
        None => ("the default".into(), &[]),
    };
    let follows = if from.is_empty() || depth >= MOST { "." } else { ", which follows from:" };
    lines.push(format!("{indent}{name} is {}, {reason}{follows}", shown(value)));
    if depth < MOST {
        from.iter().for_each(|p| sentences(document, p, depth + 1, lines));
    }
}

/// The sentence of the precision rule stands with the rule itself.
fn why<'a>(document: &'a Document, pointer: &str) -> Option<&'a str> {
    if !pointer.starts_with("/precision/") || pointer == "/precision/rule" {
        return None;
    }
    match document.origin("/precision/rule") {
        Some(Origin::Rule { rule, .. }) => Some(rule),
        _ => None,
    }
}

fn shown(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        Json::Object(_) => value.to_string(),
        _ => value.to_string(),
    }
}

/// The version of the lock's own format.
const LOCK: u64 = 1;

/// What a resolution consists of, raised whenever it gains or loses values that no key of the YAML is: facts of the model, values of a strategy.
const REVISION: u64 = 2;

/// Tells builds of one version apart by the keys that they know: a digest (FNV-1a) of those and of [`REVISION`].
fn build() -> String {
    let mut digest = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |text: &str| {
        for byte in text.bytes().chain([0]) {
            digest = (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    add(&REVISION.to_string());
    for key in [KEYS, EXTRA, LORA, FREEZE, QUANT].into_iter().flatten() {
        add(key.name);
        add(key.default);
    }
    settings().iter().for_each(|path| add(path));
    format!("{digest:016x}")
}

impl Resolved {
    /// The resolution as a lock: every value with the kind of its source, without lines and columns, so that comments do not change it.
    pub fn lock(&self) -> Json {
        let values: Map<String, Json> = self
            .document
            .leaves()
            .into_iter()
            .map(|(pointer, value, origin)| (pointer, json!({ "value": value, "from": locked(origin) })))
            .collect();
        json!({ "lock": LOCK, "shardwright": shardwright_core::VERSION, "build": build(), "values": values })
    }

    /// What differs from a lock, by pointer. Where the lock is of another version, a value that only this version has counts only if the config sets it,
    /// and a value that only the lock has counts only if it is not the default.
    ///
    /// # Errors
    /// A text that is no lock.
    pub fn compare(&self, lock: &str) -> Result<Comparison, String> {
        let lock: Json = serde_json::from_str(lock).map_err(|e| format!("not a lock: {e}"))?;
        if lock["lock"] != LOCK {
            return Err(format!("expected a lock of format {LOCK}, found {}", lock["lock"]));
        }
        let Some(then) = lock["values"].as_object() else { return Err("not a lock: it has no values".into()) };
        let mut pairs: BTreeMap<String, Difference> = BTreeMap::new();
        let empty = |pointer: &str| Difference { pointer: pointer.to_owned(), then: None, now: None };
        for (pointer, entry) in then {
            let from = entry["from"].as_str().unwrap_or_default().to_owned();
            pairs.entry(pointer.clone()).or_insert_with(|| empty(pointer)).then = Some((entry["value"].clone(), from));
        }
        for (pointer, value, origin) in self.document.leaves() {
            let new = Some((value.clone(), origin_in_short(origin)));
            pairs.entry(pointer.clone()).or_insert_with(|| empty(&pointer)).now = new;
        }
        let differs = |d: &Difference| d.then.as_ref().map(|t| &t.0) != d.now.as_ref().map(|n| &n.0);
        let mut differences: Vec<Difference> = pairs.into_values().filter(differs).collect();
        let other_version = other_version(&lock);
        if other_version.is_some() {
            let is_new = |d: &Difference| d.then.is_none() && self.document.origin(&d.pointer).is_none_or(|o| o.location().is_none());
            let is_gone = |d: &Difference| d.now.is_none() && d.then.as_ref().is_none_or(|(_, from)| from == "default");
            differences.retain(|d| !is_new(d) && !is_gone(d));
        }
        Ok(Comparison { other_version, differences })
    }
}

/// The version that made a lock, where it is not this one.
fn other_version(lock: &Json) -> Option<String> {
    const VERSION: &str = shardwright_core::VERSION;
    match (lock["shardwright"].as_str(), lock["build"].as_str()) {
        (None, _) => Some("an earlier build, which did not name itself".to_owned()),
        (Some(VERSION), None) => Some(format!("an earlier build of {VERSION}")),
        (Some(VERSION), Some(other)) => (other != build()).then(|| format!("another build of {VERSION}")),
        (Some(version), _) => Some(version.to_owned()),
    }
}

/// A resolution beside a lock.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Comparison {
    /// The version of shardwright that made the lock, where it is not this one.
    pub other_version: Option<String>,
    /// What differs, by pointer.
    pub differences: Vec<Difference>,
}

/// A value that is not what the lock says.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Its JSON pointer.
    pub pointer: String,
    /// The locked value and where it was from; `None` where the lock has none.
    pub then: Option<(Json, String)>,
    /// The value now and where it is from; `None` where there is none now.
    pub now: Option<(Json, String)>,
}

fn locked(origin: &Origin) -> String {
    match origin {
        Origin::Written(at) if origin.source() == "file" => at.file.rsplit(['/', '\\']).next().unwrap_or(&at.file).to_owned(),
        Origin::Rule { rule, .. } => rule.clone(),
        _ => origin_in_short(origin),
    }
}
