//! `KEY=VALUE` and `a.b=VALUE` on the command line, typed and merged as OmegaConf does, each value located in the argument.

use shardwright_core::{
    diagnostic::{COMMAND_LINE, Diagnostic, Location, Source},
    text::short,
    tree::{MAX_DEPTH, Node, TAB, Value, yaml},
};

/// The source that all overrides together are: one a line.
pub(super) fn source(overrides: &[String]) -> Source {
    let lines: Vec<String> = overrides.iter().map(|o| o.replace(['\n', '\r'], " ")).collect();
    Source::new(COMMAND_LINE, lines.join("\n"))
}

/// Merges overrides into a tree, later ones win.
pub(super) fn apply(root: &mut Node, source: &Source, diagnostics: &mut Vec<Diagnostic>) {
    let mut start = 0;
    for line in source.text.split('\n') {
        let span = start..start + line.len();
        start = span.end + 1;
        if line.is_empty() {
            continue;
        }
        match one(source, line, span.start) {
            Ok((path, key_at, value, warnings)) => {
                diagnostics.extend(warnings);
                set(root, &path, &key_at, value);
            }
            Err(diagnostic) => diagnostics.push(diagnostic),
        }
    }
}

type Override = (Vec<String>, Location, Node, Vec<Diagnostic>);

fn one(source: &Source, line: &str, start: usize) -> Result<Override, Diagnostic> {
    let whole = source.at(start..start + line.len());
    let Some(equals) = line.find('=') else {
        let message = format!("'{}' is not an override, expected KEY=VALUE", short(line));
        return Err(Diagnostic::error("override-syntax", message).at(whole));
    };
    let key = line[..equals].trim_start_matches("--");
    let path: Vec<String> = key.replace('[', ".").replace(']', "").split('.').map(str::to_owned).collect();
    if path.iter().any(String::is_empty) || path.len() > MAX_DEPTH {
        let message = format!("'{}' is not a key path, expected names with dots between", short(key));
        return Err(Diagnostic::error("override-syntax", message).at(whole));
    }
    let from = start + equals + 1;
    let inner = Source::new(COMMAND_LINE, &line[equals + 1..]);
    let mut warnings = Vec::new();
    let shift = |at: &Location| source.at(from + at.span.start..from + at.span.end);
    let mut value = if inner.text.trim().is_empty() {
        Node::new(Value::Null, source.at(from..from))
    } else {
        yaml::parse_value(&inner, &mut warnings).map_err(|d| moved(d, &shift))?
    };
    value.relocate(&shift);
    settle(&mut value);
    // OmegaConf reads an exponent without a dot as a number; nothing to warn of.
    warnings.retain(|w| w.code != "yaml-exponent" && w.code != TAB);
    let warnings = warnings.into_iter().map(|w| moved(w, &shift)).collect();
    Ok((path, source.at(start..start + equals), value, warnings))
}

/// A finding about a text that stands inside of another.
pub(super) fn moved(mut found: Diagnostic, shift: &dyn Fn(&Location) -> Location) -> Diagnostic {
    found.at = found.at.as_ref().map(shift);
    found.also.iter_mut().for_each(|(at, _)| *at = shift(at));
    found
}

/// Makes numbers of the texts that OmegaConf reads as such.
pub(super) fn settle(node: &mut Node) {
    match &mut node.value {
        Value::Text { number: Some(number), text } if text.contains(['e', 'E']) => {
            (node.written, node.value) = (Some(text.as_str().into()), Value::Float(*number));
        }
        Value::Seq(items) => items.iter_mut().for_each(settle),
        Value::Map(entries) => entries.iter_mut().for_each(|e| settle(&mut e.value)),
        _ => {}
    }
}

fn set(node: &mut Node, path: &[String], key_at: &Location, value: Node) {
    let Some((first, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        let value = match node.get(first) {
            Some(old) if old.is_map() && value.is_map() => merged(old.clone(), &value),
            _ => value,
        };
        node.set(first, key_at.clone(), value);
        return;
    }
    let mut child = match node.get(first) {
        Some(child) if child.is_map() => child.clone(),
        _ => Node::map(Vec::new(), key_at.clone()),
    };
    let at = node.entry(first).map_or_else(|| key_at.clone(), |e| e.at.clone());
    set(&mut child, rest, key_at, value);
    node.set(first, at, child);
}

fn merged(mut old: Node, new: &Node) -> Node {
    for entry in new.entries() {
        let value = match old.get(&entry.key) {
            Some(inner) if inner.is_map() && entry.value.is_map() => merged(inner.clone(), &entry.value),
            _ => entry.value.clone(),
        };
        old.set(&entry.key, entry.at.clone(), value);
    }
    old
}
