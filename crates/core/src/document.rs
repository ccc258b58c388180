//! The resolved document: values by JSON pointer, in a fixed order, each with where it is from.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::{Map, Value as Json};

use crate::{
    diagnostic::{COMMAND_LINE, ENVIRONMENT, Location},
    tree::{Node, Value},
};

/// Where a value is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Written in a file, on the command line or in the environment: the location's source says which.
    Written(Location),
    /// Not written anywhere.
    Default,
    /// Derived.
    Rule {
        /// The rule's name, such as `fsdp2.full.bf16`, or a sentence.
        rule: String,
        /// Pointers of what it was derived from.
        from: Vec<String>,
        /// Where it was asked for: the place of an "auto".
        at: Option<Location>,
    },
}

impl Origin {
    /// Derived by a rule from other values.
    pub fn rule<P: Into<String>>(rule: impl Into<String>, from: impl IntoIterator<Item = P>) -> Self {
        Self::Rule { rule: rule.into(), from: from.into_iter().map(Into::into).collect(), at: None }
    }

    /// With the place where a rule was asked for.
    #[must_use]
    pub fn asked_at(mut self, place: impl Into<Option<Location>>) -> Self {
        if let Self::Rule { at, .. } = &mut self {
            *at = place.into();
        }
        self
    }

    /// The place, if it is written somewhere or was asked for somewhere.
    pub fn location(&self) -> Option<&Location> {
        match self {
            Self::Written(at) => Some(at),
            Self::Rule { at, .. } => at.as_ref(),
            Self::Default => None,
        }
    }

    /// `file`, `override`, `env`, `default` or `rule`.
    pub fn source(&self) -> &'static str {
        match self {
            Self::Written(at) if &*at.file == COMMAND_LINE => "override",
            Self::Written(at) if &*at.file == ENVIRONMENT => "env",
            Self::Written(_) => "file",
            Self::Default => "default",
            Self::Rule { .. } => "rule",
        }
    }
}

/// A value with where it is from.
#[derive(Clone, Debug, PartialEq)]
pub struct Sourced<T> {
    /// The value.
    pub value: T,
    /// Where it is from.
    pub origin: Origin,
}

impl<T> Sourced<T> {
    /// A value that nobody wrote.
    pub fn default(value: T) -> Self {
        Self { value, origin: Origin::Default }
    }

    /// The place, if it is written somewhere.
    pub fn location(&self) -> Option<Location> {
        self.origin.location().cloned()
    }
}

/// A tree of values, each leaf with its origin.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Document {
    tree: Map<String, Json>,
    origins: BTreeMap<String, Origin>,
}

impl Document {
    /// Sets a value at a path of keys. What was there before is replaced, in its place.
    pub fn set(&mut self, path: &[&str], value: impl Into<Json>, origin: Origin) {
        let Some((last, parents)) = path.split_last() else { return };
        let mut at = &mut self.tree;
        for key in parents {
            if !at.get(*key).is_some_and(Json::is_object) {
                at.insert((*key).to_owned(), Json::Object(Map::new()));
            }
            let Some(Json::Object(map)) = at.get_mut(*key) else { return };
            at = map;
        }
        at.insert((*last).to_owned(), value.into());
        self.origins.insert(pointer(path), origin);
    }

    /// Empties a section, which keeps its place.
    #[doc(hidden)]
    pub fn remove(&mut self, path: &[&str]) {
        let under = format!("{}/", pointer(path));
        self.origins.retain(|p, _| !p.starts_with(&under));
        self.set(path, Json::Object(Map::new()), Origin::Default);
        self.origins.remove(&pointer(path));
    }

    /// Sets every leaf of a tree under a path; lists are leaves.
    pub fn set_node(&mut self, path: &[&str], node: &Node) {
        match &node.value {
            Value::Map(entries) if !entries.is_empty() => {
                for entry in entries {
                    let path: Vec<&str> = path.iter().copied().chain([entry.key.as_str()]).collect();
                    self.set_node(&path, &entry.value);
                }
            }
            _ => self.set(path, node.to_json(), Origin::Written(node.at.clone())),
        }
    }

    /// Sets every leaf of a value under a path: as written where `section` has that key, as default where not.
    pub fn set_section(&mut self, path: &[&str], value: &Json, section: Option<&Node>) {
        match value {
            Json::Object(map) if !map.is_empty() => {
                for (key, value) in map {
                    let path: Vec<&str> = path.iter().copied().chain([key.as_str()]).collect();
                    self.set_section(&path, value, section.and_then(|s| s.get(key)));
                }
            }
            _ => self.set(path, value.clone(), section.map_or(Origin::Default, |s| Origin::Written(s.at.clone()))),
        }
    }

    /// Takes everything of another document over, which wins where both have a value.
    #[doc(hidden)]
    pub fn merge(&mut self, mut other: Document) {
        fn merge(into: &mut Map<String, Json>, from: Map<String, Json>) {
            for (key, value) in from {
                match (into.get_mut(&key), value) {
                    (Some(Json::Object(into)), Json::Object(from)) if !from.is_empty() => merge(into, from),
                    (_, value) => drop(into.insert(key, value)),
                }
            }
        }
        merge(&mut self.tree, other.tree);
        self.origins.append(&mut other.origins);
    }

    /// The value at a JSON pointer.
    pub fn get(&self, pointer: &str) -> Option<&Json> {
        let mut keys = pointer.split('/').skip(1).map(unescape);
        let first = self.tree.get(&keys.next()?)?;
        keys.try_fold(first, |value, key| value.get(&key))
    }

    /// Where the value at a JSON pointer is from.
    pub fn origin(&self, pointer: &str) -> Option<&Origin> {
        self.origins.get(pointer)
    }

    /// The values.
    #[doc(hidden)]
    pub fn tree(&self) -> &Map<String, Json> {
        &self.tree
    }

    /// Every leaf: pointer, value, origin, in the document's order.
    #[doc(hidden)]
    pub fn leaves(&self) -> Vec<(String, &Json, &Origin)> {
        fn walk<'a>(prefix: &str, map: &'a Map<String, Json>, document: &'a Document, out: &mut Vec<(String, &'a Json, &'a Origin)>) {
            for (key, value) in map {
                let at = format!("{prefix}/{}", escape(key));
                match (value, document.origins.get(&at)) {
                    (Json::Object(map), _) if !map.is_empty() => walk(&at, map, document, out),
                    (value, origin) => out.push((at, value, origin.unwrap_or(&Origin::Default))),
                }
            }
        }
        let mut out = Vec::new();
        walk("", &self.tree, self, &mut out);
        out
    }
}

/// The JSON pointer of a path of keys.
pub fn pointer(path: &[&str]) -> String {
    let mut out = String::with_capacity(path.iter().map(|key| key.len() + 1).sum());
    for key in path {
        out.push('/');
        out.push_str(&escape(key));
    }
    out
}

fn escape(key: &str) -> Cow<'_, str> {
    if key.contains(['~', '/']) { Cow::Owned(key.replace('~', "~0").replace('/', "~1")) } else { Cow::Borrowed(key) }
}

fn unescape(key: &str) -> String {
    key.replace("~1", "/").replace("~0", "~")
}
