//! Trees to types through serde, with errors that say where, at which key, what was expected and found, and the nearest right word.

use serde::{
    Deserializer,
    de::{
        self, DeserializeOwned, DeserializeSeed, EnumAccess, Error as _, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
        VariantAccess, Visitor,
    },
    forward_to_deserialize_any,
};

use super::node::{Entry, Node, Value};
use crate::{
    diagnostic::{Diagnostic, Location},
    suggest::nearest,
    text::short,
};

/// Entries of a section that are reported at once: each costs a copy of the section without it.
const MOST_ERRORS: usize = 32;

/// Reads a type out of a tree, and goes on after an entry that is wrong, so that what is wrong with a section is said at once, up to a point.
///
/// `path` is what the user calls the section, such as `dist_config`.
///
/// # Errors
/// Everything that is wrong; of very many errors the first.
pub fn from_node<T: DeserializeOwned>(node: &Node, path: &str) -> Result<T, Vec<Diagnostic>> {
    let mut errors = Vec::new();
    let mut node = std::borrow::Cow::Borrowed(node);
    loop {
        let error = match T::deserialize(&*node) {
            Ok(value) if errors.is_empty() => return Ok(value),
            Ok(_) => return Err(errors),
            Err(error) => error,
        };
        let path_to: Vec<String> = error.path.iter().rev().cloned().collect();
        errors.push(error.into_diagnostic(path));
        match pruned(&node, &path_to).filter(|_| errors.len() < MOST_ERRORS) {
            Some(rest) => node = std::borrow::Cow::Owned(rest),
            None => return Err(errors),
        }
    }
}

/// The name under which [`truth`] asks a tree for a value's truth.
const TRUTH: &str = "$truth";

/// For `deserialize_with`: a value by its truth in Python, [`Node::is_truthy`], where that is all that an engine asks for. Other formats than
/// trees must have a boolean there.
///
/// # Errors
/// A value that is not a boolean, if the deserializer is not that of a tree.
#[doc(hidden)]
pub fn truth<'de, D: Deserializer<'de>>(d: D) -> Result<bool, D::Error> {
    struct Truth;
    impl<'de> Visitor<'de> for Truth {
        type Value = bool;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a boolean")
        }
        fn visit_bool<E>(self, v: bool) -> Result<bool, E> {
            Ok(v)
        }
        fn visit_newtype_struct<D: Deserializer<'de>>(self, d: D) -> Result<bool, D::Error> {
            d.deserialize_bool(self)
        }
    }
    d.deserialize_newtype_struct(TRUTH, Truth)
}

/// The tree without the innermost entry that a path leads to.
fn pruned(node: &Node, path: &[String]) -> Option<Node> {
    let (first, rest) = path.split_first()?;
    let child = node.get(first)?;
    let Some(inner) = pruned(child, rest) else { return Some(node.without(first)) };
    let mut node = node.clone();
    node.set(first, child.at.clone(), inner);
    Some(node)
}

/// Why a tree is no value of a type; [`from_node`] makes it a diagnostic. The path is innermost first.
#[doc(hidden)]
#[derive(Debug)]
pub struct Error {
    code: &'static str,
    message: Box<str>,
    at: Option<Location>,
    path: Vec<String>,
    help: Option<Box<str>>,
    /// Whether the message is about the key at the path's end rather than its value.
    about_key: bool,
}

impl Error {
    fn new(code: &'static str, message: String) -> Self {
        Self { code, message: message.into(), at: None, path: Vec::new(), help: None, about_key: false }
    }

    fn at(mut self, at: &Location) -> Self {
        self.at.get_or_insert_with(|| at.clone());
        self
    }

    fn under(mut self, key: &str) -> Self {
        self.path.push(key.to_owned());
        self
    }

    fn into_diagnostic(self, path: &str) -> Diagnostic {
        let mut full = path.to_owned();
        for part in self.path.iter().rev() {
            let index = part.starts_with('[');
            if !full.is_empty() && !index {
                full.push('.');
            }
            full.push_str(part);
        }
        let message = if self.about_key || full.is_empty() { self.message } else { format!("{full}: {}", self.message).into() };
        let diagnostic = Diagnostic::error(self.code, message).at(self.at);
        match self.help {
            Some(help) => diagnostic.help(help),
            None => diagnostic,
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::new("config-value", message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new("config-type", format!("expected {}, found {found}", in_words(expected)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new("config-value", format!("expected {}, found {found}", in_words(expected)))
    }

    fn unknown_variant(found: &str, expected: &'static [&'static str]) -> Self {
        let mut error = Self::new("config-value", format!("expected one of {}, found '{}'", expected.join(", "), short(found)));
        error.help = nearest(found, expected.iter().copied()).map(|word| format!("did you mean '{word}'?").into());
        error
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self { path: vec![field.to_owned()], ..unknown_key(field, expected) }
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new("config-missing", format!("the key '{field}' is missing"))
    }
}

/// What serde calls by Rust's names, in the user's words.
fn in_words(expected: &dyn Expected) -> String {
    let name = expected.to_string();
    let words = match name.as_str() {
        "u8" => "an integer from 0 to 255",
        "u16" => "an integer from 0 to 65535",
        "u32" => "an integer from 0 to 4294967295",
        "u64" | "usize" => "an integer of at least 0",
        "i8" | "i16" | "i32" | "i64" | "isize" => "an integer",
        "f32" | "f64" => "a number",
        _ => return name,
    };
    words.to_owned()
}

fn unknown_key(field: &str, expected: &[&str]) -> Error {
    let mut error = Error::new("config-unknown-key", format!("unknown key '{}'", short(field)));
    error.about_key = true;
    error.help = Some(
        match nearest(field, expected.iter().copied()) {
            Some(word) => format!("did you mean '{word}'?"),
            None if expected.is_empty() => "this section has no keys".to_owned(),
            None => format!("known keys: {}", expected.join(", ")),
        }
        .into_boxed_str(),
    );
    error
}

struct Wrong<'a>(&'a Node);

impl Wrong<'_> {
    /// A type error with the value as the user wrote it and, where quotes are all that is missing, that advice.
    fn expected(&self, what: &str) -> Error {
        let mut error = Error::new("config-type", format!("expected {what}, found {}", self.0.describe())).at(&self.0.at);
        if what.contains("string") && !matches!(self.0.value, Value::Seq(_) | Value::Map(_)) {
            error.help = Some("put it in quotes".into());
        }
        error
    }
}

fn visit_integer<'de, V: Visitor<'de>>(i: i128, visitor: V) -> Result<V::Value, Error> {
    match (i64::try_from(i), u64::try_from(i)) {
        (_, Ok(u)) => visitor.visit_u64(u),
        (Ok(i), _) => visitor.visit_i64(i),
        _ => visitor.visit_i128(i),
    }
}

macro_rules! integers {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.as_integer() {
                Some(i) => visit_integer(i, visitor).map_err(|e| e.at(&self.at)),
                None => Err(Wrong(self).expected("an integer")),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::Int(i) => visit_integer(*i, visitor),
            Value::Float(f) => visitor.visit_f64(*f),
            Value::Text { text, .. } => visitor.visit_borrowed_str(text),
            Value::Seq(items) => visitor.visit_seq(Items { items: items.iter().enumerate() }),
            Value::Map(entries) => visitor.visit_map(Entries { entries: entries.iter(), value: None }),
        }
        .map_err(|e| e.at(&self.at))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Bool(_) => self.deserialize_any(visitor),
            _ => Err(Wrong(self).expected("a boolean")),
        }
    }

    integers! { deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128 deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.value {
            Value::Int(_) | Value::Float(_) => self.deserialize_any(visitor),
            Value::Text { number: Some(f), .. } => visitor.visit_f64(*f).map_err(|e: Error| e.at(&self.at)),
            _ => Err(Wrong(self).expected("a number")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Text { .. } => self.deserialize_any(visitor),
            _ => Err(Wrong(self).expected("a string")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Seq(_) => self.deserialize_any(visitor),
            _ => Err(Wrong(self).expected("a list")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Map(_) => self.deserialize_any(visitor),
            _ => Err(Wrong(self).expected("a mapping")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(self, _: &'static str, _: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Error> {
        if name == TRUTH {
            return visitor.visit_bool(self.is_truthy());
        }
        visitor.visit_newtype_struct(self).map_err(|e: Error| e.at(&self.at))
    }

    fn deserialize_enum<V: Visitor<'de>>(self, _: &'static str, _: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        match &self.value {
            Value::Text { .. } => visitor.visit_enum(Variant { tag: self, value: None, text: self.as_str().unwrap_or_default() }),
            Value::Map(entries) if entries.len() == 1 => {
                visitor.visit_enum(Variant { tag: self, value: Some(&entries[0].value), text: &entries[0].key })
            }
            _ => Err(Wrong(self).expected("a string")),
        }
        .map_err(|e| e.at(&self.at))
    }

    forward_to_deserialize_any! { char bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any }
}

struct Items<'de> {
    items: std::iter::Enumerate<std::slice::Iter<'de, Node>>,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some((i, item)) = self.items.next() else { return Ok(None) };
        seed.deserialize(item).map(Some).map_err(|e| e.under(&format!("[{i}]")))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct Entries<'de> {
    entries: std::slice::Iter<'de, Entry>,
    value: Option<&'de Entry>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some(entry) = self.entries.next() else { return Ok(None) };
        self.value = Some(entry);
        let key: de::value::BorrowedStrDeserializer<'de, Error> = de::value::BorrowedStrDeserializer::new(&entry.key);
        seed.deserialize(key).map(Some).map_err(|e| e.at(&entry.at))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let entry = self.value.take().ok_or_else(|| Error::custom("a value was asked for before its key"))?;
        seed.deserialize(&entry.value).map_err(|e| e.under(&entry.key).at(&entry.value.at))
    }
}

struct Variant<'de> {
    tag: &'de Node,
    value: Option<&'de Node>,
    text: &'de str,
}

impl<'de> EnumAccess<'de> for Variant<'de> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let name: de::value::StrDeserializer<'de, Error> = self.text.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        if self.value.is_none() { Ok(()) } else { Err(Wrong(self.tag).expected("a string")) }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        match self.value {
            Some(value) => seed.deserialize(value).map_err(|e| e.under(self.text)),
            None => Err(Wrong(self.tag).expected(&format!("a mapping with the key '{}'", self.text))),
        }
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Some(value) => value.deserialize_seq(visitor),
            None => Err(Wrong(self.tag).expected("a list")),
        }
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Some(value) => value.deserialize_map(visitor),
            None => Err(Wrong(self.tag).expected("a mapping")),
        }
    }
}
