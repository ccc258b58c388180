//! Modules as the data has them: their parameters and buffers, and their children.

use serde_json::Value;

use crate::size::Size;
use crate::switch::Switch;

/// What a name of the model stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A parameter.
    Parameter,
    /// A buffer that checkpoints hold.
    Buffer,
    /// A buffer that the class makes anew: a checkpoint's is not used.
    Fleeting,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// The class makes it in float32 whatever the model's dtype.
    pub(super) fp32: bool,
    pub(super) shape: Option<Vec<Size>>,
    pub(super) presence: Presence,
}

/// When a class has a part.
#[derive(Clone, Debug)]
pub(super) enum Presence {
    Always,
    /// Under some configs, or in some layers: the checkpoint's tensors tell.
    Sometimes,
    /// Where one key says so.
    If(Switch),
}

impl Presence {
    pub(super) fn is_always(&self) -> bool {
        matches!(self, Self::Always)
    }

    pub(super) fn switch(&self) -> Option<&Switch> {
        if let Self::If(switch) = self { Some(switch) } else { None }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Child {
    pub(super) name: String,
    pub(super) variants: Vec<Variant>,
    /// Of a list.
    pub(super) length: Size,
    pub(super) presence: Presence,
    /// Of two variants: when it is the first.
    pub(super) first: Option<Switch>,
}

#[derive(Clone, Debug)]
pub(super) enum Variant {
    /// A module of the same config.
    Module(String),
    /// A model, of a sub-config where one is named.
    Model { key: String, class: String },
}

#[derive(Clone, Debug)]
pub(super) struct Module {
    pub(super) class: String,
    pub(super) embedding: bool,
    pub(super) model: bool,
    pub(super) list: bool,
    /// Nothing is known of it: every name fits.
    pub(super) open: bool,
    /// Keys switch some of its parts on.
    pub(super) switches: bool,
    pub(super) entries: Vec<Entry>,
    pub(super) children: Vec<Child>,
}

pub(super) fn open(name: &str) -> Module {
    let class = name.to_owned();
    Module { class, embedding: false, model: false, list: false, open: true, switches: false, entries: Vec::new(), children: Vec::new() }
}

/// `[flags, [[name, kind, sizes, when]], [[name, variants, length, when, when it is the first of two]]]`. When it is there: a switch, 0 where more than
/// one key decides it; always where there is nothing, or 1.
pub(super) fn parse(name: &str, line: &Value) -> Module {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    pub(super) fn list(v: &Value) -> &[Value] {
        v.as_array().map(Vec::as_slice).unwrap_or_default()
    }
    let switch = |v: Option<&Value>| v.and_then(Value::as_str).map(Switch::parse);
    let presence = |when: Option<&Value>| match switch(when) {
        Some(switch) => Presence::If(switch),
        None if when.is_none_or(|when| when == 1) => Presence::Always,
        None => Presence::Sometimes,
    };
    let flags = text(&line[0]);
    let entries = list(&line[1]).iter().map(|row| {
        let (kind, fp32) = match row[1].as_str().unwrap_or_default() {
            "f" => (Kind::Parameter, true),
            "b" => (Kind::Buffer, false),
            "B" => (Kind::Buffer, true),
            "n" => (Kind::Fleeting, false),
            _ => (Kind::Parameter, false),
        };
        let shape = row[2].as_array().map(|sizes| sizes.iter().map(Size::of).collect());
        Entry { name: text(&row[0]), kind, fp32, shape, presence: presence(row.get(3)) }
    });
    let children = list(&line[2]).iter().map(|row| {
        let variants = list(&row[1]).iter().filter_map(Value::as_str).map(|v| match v.strip_prefix('@').and_then(|v| v.split_once(':')) {
            Some((key, class)) => Variant::Model { key: key.to_owned(), class: class.to_owned() },
            None => Variant::Module(v.to_owned()),
        });
        Child {
            name: text(&row[0]),
            variants: variants.collect(),
            length: Size::of(&row[2]),
            presence: presence(row.get(3)),
            first: switch(row.get(4)),
        }
    });
    let class = name.split('#').next().unwrap_or(name).to_owned();
    let (entries, children): (Vec<Entry>, Vec<Child>) = (entries.collect(), children.collect());
    let switched = |presence: &Presence| presence.switch().is_some();
    let switches = entries.iter().any(|e| switched(&e.presence)) || children.iter().any(|c| switched(&c.presence) || c.first.is_some());
    Module {
        class,
        embedding: flags.contains('E'),
        model: flags.contains('M'),
        list: flags.contains('L'),
        open: false,
        switches,
        entries,
        children,
    }
}
