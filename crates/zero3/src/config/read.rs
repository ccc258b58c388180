//! Reads a section of a DeepSpeed config by its table of keys, as laxly as DeepSpeed's pydantic models do, and writes every key with its
//! value and origin down.

use serde_json::Value as Json;
use shardwright_core::{
    diagnostic::{Diagnostic, Location},
    document::{Document, Origin, pointer},
    strategy_config::DeepSpeed,
    suggest::nearest,
    tree::{Node, Value},
};

use super::keys::{Auto, Key, Kind};

/// What reading writes to.
pub(crate) struct Reader<'a> {
    pub(crate) document: &'a mut Document,
    pub(crate) diagnostics: &'a mut Vec<Diagnostic>,
    /// hidden_size, where it is known.
    pub(crate) hidden: Option<u64>,
    /// The version of DeepSpeed whose keys are read.
    pub(crate) version: DeepSpeed,
    /// Pointers of values that need hidden_size, with their place.
    pub(crate) unresolved: Vec<(String, Node)>,
}

impl Reader<'_> {
    /// Reads every key of a table from a section; `path` is where it stands in the file and in the document, under `deepspeed`.
    pub(crate) fn table(&mut self, section: Option<&Node>, keys: &[Key], path: &[&str]) {
        if let Some(section) = section {
            self.unknown(section, keys, path);
        }
        let version = self.version;
        for key in keys.iter().filter(|k| k.is_in(version)) {
            let entry = section.and_then(|s| self.entry(s, key, path));
            let at: Vec<&str> = ["deepspeed"].iter().chain(path).copied().chain([key.name]).collect();
            match (key.kind, entry) {
                (_, None) => self.default(key, &at),
                (Kind::Table(_), Some((_, node))) if node.is_null() => self.default(key, &at),
                (Kind::Table(keys), Some((_, node))) if node.is_map() => {
                    let path: Vec<&str> = path.iter().copied().chain([key.name]).collect();
                    self.table(Some(&node), keys, &path);
                }
                (_, Some((name, node))) if node.as_str() == Some("auto") => self.auto(key, &name, &at, &node),
                (_, Some((_, node))) => match read(key, &node) {
                    Ok(value) => self.document.set(&at, value, Origin::Written(node.at.clone())),
                    Err(expected) => {
                        let name = at[1..].join(".");
                        let message = format!("{name}: expected {expected}, found {}", node.describe());
                        let mut diagnostic = Diagnostic::error("deepspeed-type", message).at(node.at.clone());
                        if let Some(number) = node.as_str().and_then(exponent) {
                            diagnostic = diagnostic.help(format!("DeepSpeed takes no exponent in a string; write {number}"));
                        }
                        self.diagnostics.push(diagnostic);
                        self.default(key, &at);
                    }
                },
            }
        }
    }

    fn default(&mut self, key: &Key, at: &[&str]) {
        let value = serde_json::from_str(key.default_in(self.version)).unwrap_or(Json::Null);
        match (key.kind, &value) {
            (Kind::Table(keys), _) if key.name == "leaf_module" => {
                for inner in keys {
                    let at: Vec<&str> = at.iter().copied().chain([inner.name]).collect();
                    self.default(inner, &at);
                }
            }
            _ => self.document.set(at, value, Origin::Default),
        }
    }

    /// The value of a key under its name or its alias; both at once are an error, as one would silently win.
    fn entry(&mut self, section: &Node, key: &Key, path: &[&str]) -> Option<(String, Node)> {
        let named = section.entry(key.name);
        let aliased = key.alias.and_then(|alias| section.entry(alias));
        if let (Some(named), Some(aliased)) = (named, aliased) {
            let message = format!("{}: '{}' and '{}' are the same key, and both are given", path.join("."), aliased.key, named.key);
            self.diagnostics
                .push(Diagnostic::error("deepspeed-alias", message).at(aliased.at.clone()).and(named.at.clone(), "the other one"));
        }
        named.or(aliased).map(|e| (e.key.clone(), e.value.clone()))
    }

    fn unknown(&mut self, section: &Node, keys: &[Key], path: &[&str]) {
        let known: Vec<&str> = keys.iter().flat_map(|k| [Some(k.name), k.alias].into_iter().flatten()).collect();
        const MOST_SUGGESTED: usize = 32;
        let mut count = 0;
        for entry in section.entries() {
            if let Some(key) = keys.iter().find(|k| k.name == entry.key || k.alias == Some(&*entry.key)) {
                let name = || format!("{}.{}", path.join("."), entry.key);
                if key.until.is_some_and(|until| self.version >= until) {
                    self.diagnostics.push(removed(&name(), entry.at.clone(), "leave it out"));
                } else if self.version < key.since {
                    let message = format!("DeepSpeed {} has no key '{}' and refuses it", self.version.release(), name());
                    self.diagnostics.push(Diagnostic::error("deepspeed-newer-key", message).at(entry.at.clone()));
                }
                continue;
            }
            let message = format!("unknown key '{}' in {}, which DeepSpeed refuses", entry.key, path.join("."));
            let mut diagnostic = Diagnostic::error("deepspeed-unknown-key", message).at(entry.at.clone());
            count += 1;
            if let Some(near) = (count <= MOST_SUGGESTED).then(|| nearest(&entry.key, known.iter().copied())).flatten() {
                diagnostic = diagnostic.help(format!("did you mean '{near}'?"));
            }
            self.diagnostics.push(diagnostic);
        }
    }

    /// Checks the keys and types of a section that is passed through.
    pub(crate) fn strict(&mut self, section: &Node, keys: &[Key], path: &[&str]) {
        if !section.is_map() {
            let message = format!("{}: expected a mapping, found {}", path.join("."), section.describe());
            return self.diagnostics.push(Diagnostic::error("deepspeed-type", message).at(section.at.clone()));
        }
        self.unknown(section, keys, path);
        for key in keys {
            let Some((name, node)) = self.entry(section, key, path) else { continue };
            let path: Vec<&str> = path.iter().copied().chain([name.as_str()]).collect();
            match key.kind {
                Kind::Table(keys) => self.strict(&node, keys, &path),
                _ if node.as_str() == Some("auto") => {} // reported where it is passed on
                _ => {
                    if let Err(expected) = read(key, &node) {
                        let message = format!("{}: expected {expected}, found {}", path.join("."), node.describe());
                        self.diagnostics.push(Diagnostic::error("deepspeed-type", message).at(node.at.clone()));
                    }
                }
            }
        }
    }

    /// Fills an "auto", which accelerate does for a key's full name only; `name` is how the key is written.
    fn auto(&mut self, key: &Key, name: &str, at: &[&str], node: &Node) {
        const HIDDEN: &str = "/model/hidden_size";
        let by_hidden = |of: fn(u64) -> Option<u64>| self.hidden.and_then(of);
        let filled = if name == key.name { key.auto } else { Auto::Refused };
        let (rule, value) = match filled {
            Auto::Square => ("hidden_size * hidden_size", by_hidden(|h| h.checked_mul(h))),
            Auto::NineTenths => ("int(0.9 * hidden_size * hidden_size)", by_hidden(nine_tenths)),
            Auto::TenTimes => ("10 * hidden_size", by_hidden(|h| h.checked_mul(10))),
            Auto::Value(text) => {
                let value: Json = serde_json::from_str(text).unwrap_or(Json::Null);
                let rule = format!("auto: {value}, as accelerate fills it");
                return self.document.set(at, value, Origin::rule(rule, [] as [&str; 0]).asked_at(node.at.clone()));
            }
            Auto::Refused => {
                let path: Vec<&str> = at[1..at.len() - 1].iter().copied().chain([name]).collect();
                let mut refused = auto_left(&path, node);
                if name != key.name && key.auto != Auto::Refused {
                    refused = refused.help(format!("write {}, which is filled, or the value that is meant", key.name));
                }
                self.diagnostics.push(refused);
                return self.default(key, at);
            }
        };
        match value {
            Some(value) => self.document.set(at, value, Origin::rule(format!("auto: {rule}"), [HIDDEN]).asked_at(node.at.clone())),
            None => {
                let rule = format!("auto: {rule}, and hidden_size is not known");
                self.document.set(at, Json::Null, Origin::rule(rule, [HIDDEN]).asked_at(node.at.clone()));
                self.unresolved.push((pointer(at), node.clone()));
            }
        }
    }
}

/// An "auto" that accelerate has no value for: it raises an error when it hands the config to DeepSpeed.
pub(crate) fn auto_left(path: &[&str], node: &Node) -> Diagnostic {
    let message = format!("{}: nothing fills this auto, and accelerate refuses to start", path.join("."));
    Diagnostic::error("deepspeed-auto-left", message).at(node.at.clone()).help("write the value that is meant, or leave the key out")
}

/// A key of an earlier DeepSpeed.
pub(crate) fn removed(key: &str, at: Location, today: &str) -> Diagnostic {
    let message = format!("DeepSpeed 0.19.8 refuses '{key}', which was removed in 0.19");
    let help = format!("{today}; for a run with DeepSpeed 0.18, shardwright.engines: {{deepspeed: \"0.18\"}}");
    Diagnostic::error("deepspeed-removed", message).at(at).help(help)
}

/// Python's `int(0.9 * h * h)`, in floats from left to right.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as Python computes it")]
fn nine_tenths(h: u64) -> Option<u64> {
    let value = 0.9 * h as f64 * h as f64;
    (value < 9e18).then_some(value as u64)
}

fn exponent(text: &str) -> Option<f64> {
    text.contains(['e', 'E']).then(|| text.parse().ok()).flatten()
}

/// A value as pydantic would take it, or what was expected.
pub(crate) fn read(key: &Key, node: &Node) -> Result<Json, String> {
    match key.kind {
        Kind::Any => Ok(node.to_json()),
        _ if node.is_null() && key.default == "null" => Ok(Json::Null),
        Kind::Bool => boolean(node).map(Json::Bool).ok_or_else(|| "a boolean".into()),
        Kind::Int(least) => integer(node).filter(|i| *i >= least).map(Json::from).ok_or_else(|| match least {
            i64::MIN => "an integer".into(),
            _ => format!("an integer of at least {least}"),
        }),
        Kind::Float(least, most) => float(node).filter(|f| (least..=most).contains(f)).map(Json::from).ok_or_else(|| match most {
            f64::MAX => format!("a number of at least {least}"),
            _ => format!("a number from {least} to {most}"),
        }),
        Kind::StrictInt => {
            let fraction = node.as_str().is_some_and(|t| t.contains('.'));
            let value = integer(node).filter(|_| node.as_bool().is_none() && !fraction);
            value.map(Json::from).ok_or_else(|| "an integer".into())
        }
        Kind::StrictFloat => {
            let value = float(node).filter(|f| *f >= 0.0 && node.as_bool().is_none());
            value.map(Json::from).ok_or_else(|| "a number of at least 0".into())
        }
        Kind::Text => node.as_str().map(Json::from).ok_or_else(|| "a string".into()),
        Kind::Choice(choices) => match node.as_str() {
            Some(text) if choices.contains(&text) => Ok(text.into()),
            _ => Err(format!("one of {}", choices.join(", "))),
        },
        Kind::List => match &node.value {
            Value::Text { text, .. } => Ok(Json::from(vec![text.clone()])),
            Value::Seq(items) if items.iter().all(|i| i.as_str().is_some()) => Ok(node.to_json()),
            _ => Err("a list of strings".into()),
        },
        Kind::Table(_) => Err("a mapping".into()),
    }
}

/// As pydantic's lax mode reads booleans.
pub(crate) fn boolean(node: &Node) -> Option<bool> {
    match &node.value {
        Value::Bool(b) => Some(*b),
        Value::Int(0) => Some(false),
        Value::Int(1) => Some(true),
        Value::Float(f) if *f == 0.0 => Some(false),
        Value::Float(f) if *f == 1.0 => Some(true),
        Value::Text { text, .. } => match text.to_lowercase().as_str() {
            "true" | "yes" | "on" | "t" | "y" | "1" => Some(true),
            "false" | "no" | "off" | "f" | "n" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// As pydantic's lax mode reads integers: `5e8` and `"500000000"` and `"1.0"` and true pass, `"5e8"` and 1.5 do not. A plain `5e8` in
/// YAML passes too, though PyYAML would make a string of it: the YAML reader has warned.
pub(crate) fn integer(node: &Node) -> Option<i64> {
    match &node.value {
        Value::Bool(b) => Some(i64::from(*b)),
        Value::Int(i) => i64::try_from(*i).ok(),
        Value::Float(f) => whole(*f),
        Value::Text { number: Some(f), .. } => whole(*f),
        Value::Text { text, .. } => {
            let text = text.trim();
            let zeros = |f: &str| !f.is_empty() && f.bytes().all(|b| b == b'0');
            let digits = text.split_once('.').filter(|(_, f)| zeros(f)).map_or(text, |(whole, _)| whole);
            digits.replace('_', "").parse().ok()
        }
        _ => None,
    }
}

fn whole(f: f64) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "bounded")]
    let i = (f.fract() == 0.0 && f.abs() < 9.2e18).then_some(f as i64);
    i
}

/// As pydantic's lax mode reads floats.
pub(crate) fn float(node: &Node) -> Option<f64> {
    match &node.value {
        Value::Bool(b) => Some(f64::from(u8::from(*b))),
        #[expect(clippy::cast_precision_loss, reason = "a float is asked for")]
        Value::Int(i) => Some(*i as f64),
        Value::Float(f) => Some(*f),
        Value::Text { number: Some(f), .. } => Some(*f),
        Value::Text { text, .. } => text.trim().replace('_', "").parse().ok(),
        _ => None,
    }
    .filter(|f| f.is_finite())
}
