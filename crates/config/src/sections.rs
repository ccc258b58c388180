//! Plugin sections as LLaMA-Factory takes them: `{name, …}`, or the same as a JSON string, with strings inside that look like booleans
//! and numbers made so.

use shardwright_core::{
    diagnostic::{Diagnostic, Location, Source},
    text::short,
    tree::{Node, Value, json},
};

use crate::overrides::{moved, settle};

/// A plugin section, its name taken out.
#[derive(Clone, Debug)]
pub(super) struct Section {
    /// What `name` says.
    pub(super) name: String,
    /// Where.
    pub(super) name_at: Location,
    /// The rest.
    pub(super) body: Node,
}

/// Reads a section; `None` where it is absent or null.
///
/// # Errors
/// A section that is no mapping, or that has no name.
pub(super) fn read(
    node: Option<&Node>,
    path: &str,
    sources: &[Source],
    warnings: &mut Vec<Diagnostic>,
) -> Result<Option<Section>, Diagnostic> {
    let Some(node) = node.filter(|n| !n.is_null()) else { return Ok(None) };
    let mut node = match node.as_str() {
        Some(text) if text.starts_with('{') => from_string(node, text, sources, warnings)?,
        _ => node.clone(),
    };
    if !node.is_map() {
        let message = format!("{path}: expected a mapping with a name, or the same as a JSON string, found {}", node.describe());
        return Err(Diagnostic::error("config-type", message).at(node.at));
    }
    coerce_entries(&mut node);
    let Some(name) = node.get("name") else {
        let message = format!("{path}: the key 'name' is missing");
        return Err(Diagnostic::error("config-missing", message).at(node.at.clone()).help("it says which plugin the section is for"));
    };
    let Some(text) = name.as_str() else {
        let message = format!("{path}.name: expected a string, found {}", name.describe());
        return Err(Diagnostic::error("config-type", message).at(name.at.clone()));
    };
    Ok(Some(Section { name: text.to_owned(), name_at: name.at.clone(), body: node.without("name") }))
}

/// The mapping that a section's JSON string is, or `None` where it is none.
pub(super) fn unfolded(node: &Node, sources: &[Source]) -> Option<Node> {
    let text = node.as_str().filter(|text| text.starts_with('{'))?;
    from_string(node, text, sources, &mut Vec::new()).ok().filter(Node::is_map)
}

/// Parses a JSON string. Places point into it where the string stands in the file as it is, and at the whole string where not.
fn from_string(node: &Node, text: &str, sources: &[Source], warnings: &mut Vec<Diagnostic>) -> Result<Node, Diagnostic> {
    let outer = sources.iter().find(|s| s.name == node.at.file);
    let verbatim = outer.and_then(|s| Some((s, s.text.get(node.at.span.clone())?.find(text)?)));
    let shift = |at: &Location| match verbatim {
        Some((source, offset)) => {
            let from = node.at.span.start + offset;
            source.at(from + at.span.start..from + at.span.end)
        }
        None => node.at.clone(),
    };
    let said = |mut d: Diagnostic| {
        d.message = format!("in this JSON string, {}", short(&d.message)).into();
        if d.code == "json-comment" {
            // No DeepSpeed file: nothing reads comments here.
            d.message = "in this JSON string, a comment stands where JSON has none".into();
            (d.code, d.help) = ("json-syntax", None);
        }
        moved(d, &shift)
    };
    let mut found = Vec::new();
    let mut inner = json::parse(&Source::new(node.at.file.clone(), text), &mut found).map_err(said)?;
    warnings.extend(found.into_iter().map(said));
    inner.relocate(&shift);
    Ok(inner)
}

/// LLaMA-Factory's `_convert_str_dict`: strings that are values of mappings, not items of lists.
fn coerce_entries(node: &mut Node) {
    let Value::Map(entries) = &mut node.value else { return };
    entries.iter_mut().for_each(|entry| coerce(&mut entry.value));
}

/// The same of one such value.
pub(super) fn coerce(node: &mut Node) {
    coerce_entries(node);
    settle(node);
    let Some(text) = node.as_str() else { return };
    if let Some(value) = coerced(text) {
        node.written = Some(format!("'{text}'").into());
        node.value = value;
    }
}

fn coerced(text: &str) -> Option<Value> {
    let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
    match text.to_ascii_lowercase().as_str() {
        "true" => Some(Value::Bool(true)),
        "false" => Some(Value::Bool(false)),
        _ if digits(text) => text.parse().ok().map(Value::Int),
        _ if digits(&text.replacen('.', "", 1)) => text.parse().ok().map(Value::Float),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_in_sections_become_what_llamafactory_makes_of_them() {
        for (text, want) in [
            ("TRUE", Value::Bool(true)),
            ("8", Value::Int(8)),
            ("0.05", Value::Float(0.05)),
            (".5", Value::Float(0.5)),
            ("5.", Value::Float(5.0)),
        ] {
            assert_eq!(coerced(text), Some(want), "{text}");
        }
        for text in ["", ".", "-1", "1e4", "1.2.3", "yes", "all"] {
            assert_eq!(coerced(text), None, "{text}");
        }
    }
}
