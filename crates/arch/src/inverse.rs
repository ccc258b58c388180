//! The inverse of a rename in transformers' tables: from the name that it makes back to the name that it matched.

use crate::regex::Regex;

/// The inverse of one rename.
#[derive(Clone, Debug)]
pub(crate) struct Inverse {
    /// Matches what the rename puts there.
    regex: Regex,
    /// What the rename matched; groups are those of `regex`.
    parts: Vec<Part>,
    /// Whether the rename matches one text and nothing else.
    pub(crate) is_literal: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// A group's number, from 1.
    Group(usize),
}

impl Inverse {
    /// Of the rename from the pattern `source` to `target`. `None` where the target does not hold all that the pattern matched.
    pub(crate) fn new(source: &str, target: &str) -> Option<Self> {
        let (anchored, source) = source.strip_prefix('^').map_or((false, source), |rest| (true, rest));
        let (ended, source) = source.strip_suffix('$').map_or((false, source), |rest| (true, rest));
        let (parts, groups) = of_source(source)?;
        let (mut pattern, mut numbers) = (String::from(if anchored { "^" } else { "" }), Vec::new());
        let target = of_target(target);
        for part in &target {
            match part {
                Part::Text(text) => pattern.push_str(&escaped(text)),
                Part::Group(number) => {
                    pattern.push_str(&format!("({})", groups.get(number - 1)?));
                    numbers.push(*number);
                }
            }
        }
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        match target.last() {
            Some(_) if ended => pattern.push('$'),
            // As transformers compiles its patterns: the match does not end within a word.
            Some(Part::Text(text)) if text.ends_with(is_word) => pattern.push_str(r"(?!\w)"),
            Some(_) => {}
            None => return None,
        }
        // The target has to hold each group once.
        numbers.sort_unstable();
        if !numbers.iter().copied().eq(1..=groups.len()) {
            return None;
        }
        // `regex` has the groups in the target's order.
        let order = target.iter().filter(|part| matches!(part, Part::Group(_)));
        let place = |part: &Part| order.clone().position(|p| p == part).map(|at| Part::Group(at + 1));
        let parts = parts.into_iter().map(|part| if matches!(part, Part::Group(_)) { place(&part) } else { Some(part) });
        Some(Self { regex: Regex::new(&pattern).ok()?, parts: parts.collect::<Option<_>>()?, is_literal: groups.is_empty() })
    }

    /// The name that the rename made this one of; `None` where it made it of none.
    pub(crate) fn apply(&self, name: &str) -> Option<String> {
        let found = self.regex.search(name)?;
        let (start, end) = found.first().copied().flatten()?;
        let mut out = name[..start].to_owned();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Group(number) => {
                    let (from, to) = found.get(*number).copied().flatten()?;
                    out.push_str(&name[from..to]);
                }
            }
        }
        out.push_str(&name[end..]);
        Some(out)
    }
}

/// The text that a pattern stands for, if that is one alone.
pub(crate) fn literal(pattern: &str) -> Option<String> {
    match of_source(pattern)?.0.as_slice() {
        [Part::Text(text)] => Some(text.clone()),
        _ => None,
    }
}

/// The texts and groups of a pattern, and the pattern of each group; what looks ahead or behind is left out. A bare dot stands for itself,
/// as transformers' authors mean it.
fn of_source(pattern: &str) -> Option<(Vec<Part>, Vec<&str>)> {
    let (mut parts, mut groups, mut text) = (Vec::new(), Vec::new(), String::new());
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        match c {
            '\\' => {
                let escaped = rest[1..].chars().next().filter(|c| !c.is_ascii_alphanumeric())?;
                text.push(escaped);
                rest = &rest[1 + escaped.len_utf8()..];
            }
            '(' => {
                let end = closing(rest)?;
                let inner = &rest[1..end];
                match inner.starts_with('?') {
                    true if ["?!", "?=", "?<!", "?<="].iter().any(|look| inner.starts_with(look)) => {}
                    true => return None,
                    false => {
                        if inner.contains('(') {
                            return None;
                        }
                        if !text.is_empty() {
                            parts.push(Part::Text(std::mem::take(&mut text)));
                        }
                        groups.push(inner);
                        parts.push(Part::Group(groups.len()));
                    }
                }
                rest = &rest[end + 1..];
            }
            '*' | '+' | '?' | '[' | ']' | ')' | '{' | '}' | '|' | '^' | '$' => return None,
            c => {
                text.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
    Some((parts, groups))
}

/// Where the group that a text begins with ends.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut escaped) = (0usize, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '(' => depth += 1,
            ')' if depth == 1 => return Some(at),
            ')' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn of_target(target: &str) -> Vec<Part> {
    let (mut parts, mut text) = (Vec::new(), String::new());
    let mut chars = target.chars();
    while let Some(c) = chars.next() {
        let escaped = if c == '\\' { chars.next() } else { None };
        match escaped.map(|e| (e, e.to_digit(10).filter(|n| *n > 0))) {
            Some((_, Some(number))) => {
                if !text.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut text)));
                }
                parts.push(Part::Group(number as usize));
            }
            Some((other, None)) => text.push(other),
            None => text.push(c),
        }
    }
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
    parts
}

fn escaped(text: &str) -> String {
    text.chars().flat_map(|c| (!c.is_ascii_alphanumeric() && c != '_').then_some('\\').into_iter().chain([c])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_back() {
        for (source, target, name, before) in [
            (r"\.attn\.", ".self_attn.", "layers.0.self_attn.q_proj.weight", "layers.0.attn.q_proj.weight"),
            (r"^visual", "model.visual", "model.visual.blocks.0", "visual.blocks.0"),
            (r"^model(?!\.(language_model|visual))", "model.language_model", "model.language_model.norm.weight", "model.norm.weight"),
            (r"(^|model\.)layers\.", r"\1language_model.layers.", "model.language_model.layers.0.a", "model.layers.0.a"),
            (r"^vision_model\.(.+)", r"\1", "embeddings.weight", "vision_model.embeddings.weight"),
            (r"\.moe\.(experts|gate)\.", r".mlp.\1.", "layers.1.mlp.gate.weight", "layers.1.moe.gate.weight"),
            (r"blocks.(\d+).wo", r"blocks.\1.attn.proj", "blocks.12.attn.proj.weight", "blocks.12.wo.weight"),
            (r"(\d+)\.(w\d)", r"\2.of.\1", "w3.of.5.x", "5.w3.x"),
        ] {
            let inverse = Inverse::new(source, target).unwrap_or_else(|| panic!("{source}"));
            assert_eq!(inverse.apply(name).as_deref(), Some(before), "{source} -> {target}");
        }
    }

    #[test]
    fn a_rename_that_loses_something_has_no_inverse() {
        for (source, target) in [(r"layers\.\d+\.a", "a"), (r"(a|b)\.c", "c"), ("a.*b", "c"), ("a|b", "c"), ("((a)b)", r"\1\2"), ("a", "")]
        {
            assert!(Inverse::new(source, target).is_none(), "{source} -> {target}");
        }
        assert_eq!(Inverse::new("proj", "q_proj").unwrap().apply("q_projector"), None);
        assert_eq!((literal(r"\.a.b"), literal("a+")), (Some(".a.b".to_owned()), None));
    }
}
