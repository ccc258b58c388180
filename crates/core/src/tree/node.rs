//! A document as a tree in which every key and every value knows its place. How texts become trees is in `yaml` and `json`.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::{diagnostic::Location, text::short};

/// A text larger than this is refused before it is parsed, in bytes.
pub(super) const MAX_TEXT: usize = 1 << 20;
/// Collections of YAML nested deeper than this are refused: about where OmegaConf reaches Python's own limit.
#[doc(hidden)]
pub const MAX_DEPTH: usize = 72;
/// The same of JSON: a little less than what is read again of a lock, in which a value lies deeper.
pub(super) const MAX_JSON_DEPTH: usize = 120;
/// A document of more nodes than this, aliases expanded, is refused.
pub(super) const MAX_NODES: usize = 100_000;
/// Values that the aliases of a text may stand for: a few hundred bytes of them can stand for billions.
pub(super) const MAX_ALIASED: usize = 2048;

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it is.
    pub value: Value,
    /// Where it stands.
    pub at: Location,
    /// How a plain YAML scalar was written where that is not its value's usual spelling: `off`, `0777`.
    pub written: Option<Box<str>>,
}

/// What a [`Node`] is.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// A boolean.
    Bool(bool),
    /// An integer of any sign.
    Int(i128),
    /// A number with a fraction or an exponent.
    Float(f64),
    /// A string.
    Text {
        /// All of it.
        text: String,
        /// The number that most readers take it for, and PyYAML does not: `5e8` without a dot.
        number: Option<f64>,
    },
    /// A list.
    Seq(Vec<Node>),
    /// A mapping, in the order of the document.
    Map(Vec<Entry>),
}

/// A key of a mapping and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key's text.
    pub key: String,
    /// Where the key stands.
    pub at: Location,
    /// Its value.
    pub value: Node,
}

impl Entry {
    /// Whether a place is in this entry: its key, its value, or anything inside of that, wherever it was written.
    #[doc(hidden)]
    pub fn holds(&self, at: &Location) -> bool {
        within(&self.at, at) || self.value.holds(at)
    }
}

fn within(outer: &Location, at: &Location) -> bool {
    outer.file == at.file && outer.span.start <= at.span.start && at.span.end <= outer.span.end
}

impl Node {
    /// Whether a place is in this value, or in anything inside of it, wherever that was written.
    #[doc(hidden)]
    pub fn holds(&self, at: &Location) -> bool {
        within(&self.at, at)
            || match &self.value {
                Value::Seq(items) => items.iter().any(|item| item.holds(at)),
                Value::Map(entries) => entries.iter().any(|e| e.holds(at)),
                _ => false,
            }
    }

    /// A value at a place.
    pub fn new(value: Value, at: Location) -> Self {
        Self { value, at, written: None }
    }

    /// A string at a place.
    pub fn text(text: impl Into<String>, at: Location) -> Self {
        Self::new(Value::Text { text: text.into(), number: None }, at)
    }

    /// A mapping at a place.
    pub fn map(entries: Vec<Entry>, at: Location) -> Self {
        Self::new(Value::Map(entries), at)
    }

    /// The entries of a mapping; none for anything else.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The entry of that key.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|e| e.key == key)
    }

    /// The value of that key.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|e| &e.value)
    }

    /// The value at the end of a path of keys.
    pub fn find(&self, path: &[&str]) -> Option<&Node> {
        path.iter().try_fold(self, |node, key| node.get(key))
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::Text { text, .. } => Some(text),
            _ => None,
        }
    }

    /// The truth of a boolean.
    pub fn as_bool(&self) -> Option<bool> {
        match self.value {
            Value::Bool(b) => Some(b),
            _ => None,
        }
    }

    /// The integer that a value is: of an integer, of a float without a fraction, of a text like `5e8`.
    pub fn as_integer(&self) -> Option<i128> {
        let whole = |f: f64| {
            (f.fract() == 0.0 && f.abs() < 1e30).then(|| {
                #[expect(clippy::cast_possible_truncation, reason = "bounded above")]
                let i = f as i128;
                i
            })
        };
        match &self.value {
            Value::Int(i) => Some(*i),
            Value::Float(f) => whole(*f),
            Value::Text { number: Some(f), .. } => whole(*f),
            _ => None,
        }
    }

    /// The number that a value is.
    #[expect(clippy::cast_precision_loss, reason = "a float is asked for")]
    pub fn as_number(&self) -> Option<f64> {
        match &self.value {
            Value::Int(i) => Some(*i as f64),
            Value::Float(f) => Some(*f),
            Value::Text { number, .. } => *number,
            _ => None,
        }
    }

    /// Python's `bool(value)`.
    pub fn is_truthy(&self) -> bool {
        match &self.value {
            Value::Null => false,
            Value::Bool(b) => *b,
            Value::Int(i) => *i != 0,
            Value::Float(f) => *f != 0.0,
            Value::Text { text, .. } => !text.is_empty(),
            Value::Seq(items) => !items.is_empty(),
            Value::Map(entries) => !entries.is_empty(),
        }
    }

    /// True for `null`.
    pub fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    /// True for a mapping.
    pub fn is_map(&self) -> bool {
        matches!(self.value, Value::Map(_))
    }

    /// A mapping without one of its keys; anything else as it is.
    #[must_use]
    pub fn without(&self, key: &str) -> Node {
        let mut node = self.clone();
        if let Value::Map(entries) = &mut node.value {
            entries.retain(|e| e.key != key);
        }
        node
    }

    /// Sets a key of a mapping: in place where it exists, at the end where it does not. Anything else becomes a mapping of one entry.
    pub fn set(&mut self, key: &str, key_at: Location, value: Node) {
        if !self.is_map() {
            self.value = Value::Map(Vec::new());
        }
        let Value::Map(entries) = &mut self.value else { return };
        match entries.iter_mut().find(|e| e.key == key) {
            Some(entry) => (entry.at, entry.value) = (key_at, value),
            None => entries.push(Entry { key: key.to_owned(), at: key_at, value }),
        }
    }

    /// The value without its places. Integers beyond 64 bits become floats; a float that JSON has no word for becomes its name.
    pub fn to_json(&self) -> Json {
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(b) => Json::Bool(*b),
            Value::Int(i) => int_to_json(*i),
            Value::Float(f) => serde_json::Number::from_f64(*f).map_or_else(|| Json::String(f.to_string()), Json::Number),
            Value::Text { text, .. } => Json::String(text.clone()),
            Value::Seq(items) => Json::Array(items.iter().map(Node::to_json).collect()),
            Value::Map(entries) => Json::Object(entries.iter().map(|e| (e.key.clone(), e.value.to_json())).collect()),
        }
    }

    /// What it is and what it says, for messages: `the string 'maybe'`, `a list`.
    pub fn describe(&self) -> String {
        let written = |usual: String| self.written.as_deref().map_or(usual, str::to_owned);
        match &self.value {
            Value::Null => "null".into(),
            Value::Bool(b) => format!("the boolean {}", written(b.to_string())),
            Value::Int(i) => format!("the integer {}", written(i.to_string())),
            Value::Float(f) => format!("the number {}", written(f.to_string())),
            Value::Text { text, .. } => format!("the string '{}'", short(text)),
            Value::Seq(_) => "a list".into(),
            Value::Map(_) => "a mapping".into(),
        }
    }

    /// Moves every place of a tree: for a text that stands inside of another.
    #[doc(hidden)]
    pub fn relocate(&mut self, shift: &dyn Fn(&Location) -> Location) {
        self.at = shift(&self.at);
        match &mut self.value {
            Value::Seq(items) => items.iter_mut().for_each(|item| item.relocate(shift)),
            Value::Map(entries) => {
                for entry in entries {
                    entry.at = shift(&entry.at);
                    entry.value.relocate(shift);
                }
            }
            _ => {}
        }
    }

    /// Number of nodes in the tree, this one counted.
    pub(super) fn count(&self) -> usize {
        1 + match &self.value {
            Value::Seq(items) => items.iter().map(Node::count).sum(),
            Value::Map(entries) => entries.iter().map(|e| e.value.count()).sum(),
            _ => 0,
        }
    }
}

fn int_to_json(i: i128) -> Json {
    match (i64::try_from(i), u64::try_from(i)) {
        (Ok(i), _) => i.into(),
        (_, Ok(u)) => u.into(),
        #[expect(clippy::cast_precision_loss, reason = "beyond 64 bits JSON readers have no more precision either")]
        _ => serde_json::Number::from_f64(i as f64).map_or(Json::Null, Json::Number),
    }
}

/// Entries of a mapping while it is read, found by key without going through all of them.
#[derive(Debug, Default)]
pub(super) struct Entries {
    list: Vec<Entry>,
    /// Made once there are many: for a few, going through them is faster.
    index: BTreeMap<String, usize>,
}

impl Entries {
    const FEW: usize = 16;

    /// The entry of that key.
    pub(super) fn find(&self, key: &str) -> Option<&Entry> {
        if self.list.len() <= Self::FEW {
            return self.list.iter().find(|e| e.key == key);
        }
        self.index.get(key).and_then(|at| self.list.get(*at))
    }

    /// Adds an entry whose key is not there yet.
    pub(super) fn push(&mut self, entry: Entry) {
        self.list.push(entry);
        if self.list.len() > Self::FEW {
            let new = if self.index.is_empty() { 0 } else { self.list.len() - 1 };
            self.index.extend(self.list.iter().enumerate().skip(new).map(|(at, e)| (e.key.clone(), at)));
        }
    }

    /// Gives a key that is there another value; its place stays.
    pub(super) fn replace(&mut self, key: &str, value: Node) {
        let at = if self.list.len() <= Self::FEW { self.list.iter().position(|e| e.key == key) } else { self.index.get(key).copied() };
        if let Some(entry) = at.and_then(|at| self.list.get_mut(at)) {
            entry.value = value;
        }
    }

    pub(super) fn into_list(self) -> Vec<Entry> {
        self.list
    }
}
