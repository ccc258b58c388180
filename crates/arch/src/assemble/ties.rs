//! Tied weights: several names of one parameter.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Assembler, MOST, Made, Reason, Unused};
use crate::{contract::Assembly, regex::Regex, stored::Stored};

impl Assembler<'_, '_> {
    /// Tied weights: of the names of one parameter the first of the class stays, filled by whichever the checkpoint has.
    pub(super) fn tie(&mut self, made: &mut BTreeMap<String, Made>, models: &[(String, Value, bool)]) {
        let mut groups: Vec<BTreeSet<String>> = Vec::new();
        let mut put_together = |target: String, source: String| {
            let (mut same, rest): (Vec<_>, Vec<_>) =
                std::mem::take(&mut groups).into_iter().partition(|g| g.contains(&target) || g.contains(&source));
            groups = rest;
            let mut all: BTreeSet<String> = same.drain(..).flatten().collect();
            all.extend([target, source]);
            groups.push(all);
        };
        for (target, source) in self.options.own.iter().flat_map(|own| &own.tied) {
            put_together(target.clone(), source.clone());
        }
        let all = LazyCell::new(|| self.names_of_the_model(made));
        for (path, line, tie) in models {
            let under = |n: &str| if path.is_empty() { n.to_owned() } else { format!("{path}.{n}") };
            for (target, source) in line["tied"].as_object().into_iter().flatten().filter(|_| *tie) {
                let Some(source) = source.as_str() else { continue };
                let pairs = match is_name(target) && is_name(source) {
                    true => vec![(target.clone(), source.to_owned())],
                    false => Self::tied_pairs(&all, path, target, source),
                };
                for (target, source) in pairs {
                    put_together(under(&target), under(&source));
                }
            }
            // Before 5 they are one module, whatever config.json says.
            for (part, every) in line["shared"].as_object().into_iter().flatten().filter(|_| *tie || self.options.transformers < 5) {
                let every = self.tree.size_in(path, every).and_then(|n| usize::try_from(n).ok());
                for (target, source) in every.into_iter().flat_map(|every| shared_pairs(&all, &under(part), every)) {
                    put_together(target, source);
                }
            }
        }
        for group in groups {
            let mut names: Vec<String> =
                group.into_iter().filter(|n| self.tree.find(n, &self.choices).is_some_and(|found| !found.is_off())).collect();
            names.sort_by_cached_key(|n| (self.options.own.is_some_and(|own| own.tied.contains_key(n)), self.tree.order(n)));
            let Some(filled) = names.iter().find(|n| made.contains_key(*n)).cloned() else { continue };
            let Some(of) = made.get(&filled).cloned() else { continue };
            names.retain(|name| {
                let differs = *name != filled && made.get(name).is_some_and(|other| self.differ(&of, other));
                if differs {
                    self.out.untied.push((name.clone(), filled.clone()));
                }
                !differs
            });
            for name in &names {
                let stored = made.remove(name);
                if let Some(Made { assembly: Assembly::Whole(source), .. }) = stored
                    && *name != filled
                {
                    let kept = filled.clone();
                    self.out.unused.push(Unused { source, reason: Reason::TiedTo(kept) });
                }
            }
            self.out.aliases.extend(names.iter().skip(1).map(|n| (n.clone(), names[0].clone())));
            made.insert(names[0].clone(), Made { name: names[0].clone(), ..of });
        }
        self.out.aliases.sort();
    }

    /// Whether two names that config.json ties are stored with different values.
    fn differ(&self, one: &Made, other: &Made) -> bool {
        match (self.options.same, &one.assembly, &other.assembly) {
            (Some(same), Assembly::Whole(a), Assembly::Whole(b)) if a != b => !same.0(*a, *b),
            _ => false,
        }
    }

    /// Names that the checkpoint fills, and those that the class has anyway.
    fn names_of_the_model(&self, made: &BTreeMap<String, Made>) -> BTreeSet<String> {
        let expected = self.tree.expected(&self.choices, MOST, &Stored::new(made.keys())).into_iter().map(|(name, ..)| name);
        made.keys().cloned().chain(expected).collect()
    }

    /// Pairs of names under a sub-model that an entry of `_tied_weights_keys` ties by patterns or modules.
    fn tied_pairs(all: &BTreeSet<String>, path: &str, target: &str, source: &str) -> Vec<(String, String)> {
        let (Ok(targets), Ok(wanted)) = (Regex::new(&format!("^{target}")), Regex::new(&format!("^{source}"))) else { return Vec::new() };
        let within =
            |n: &'_ str| if path.is_empty() { Some(n.to_owned()) } else { n.strip_prefix(path)?.strip_prefix('.').map(str::to_owned) };
        let mut names: BTreeSet<String> = all.iter().filter_map(|n| within(n)).collect();
        // The other side need be neither stored nor in every such model: modules that are tied have the same parameters. Patterns that end alike differ
        // in where these modules are.
        let alike = target.bytes().rev().zip(source.bytes().rev()).take_while(|(a, b)| a == b).count();
        let (Some(to), Some(of)) = (target.get(..target.len() - alike), source.get(..source.len() - alike)) else { return Vec::new() };
        let swap = |name: &str, which: &Regex, from: &str, to: &str| {
            let is_plain = |head: &str| head.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.');
            let rest = name.strip_prefix(from).filter(|_| is_plain(to) && which.search(name).is_some())?;
            Some(format!("{to}{rest}"))
        };
        let more: Vec<String> = names.iter().filter_map(|n| swap(n, &wanted, of, to).or_else(|| swap(n, &targets, to, of))).collect();
        names.extend(more);
        let sources: Vec<&String> = names.iter().filter(|n| wanted.search(n).is_some()).collect();
        let found: Vec<&String> = names.iter().filter(|n| targets.search(n).is_some()).collect();
        if sources.is_empty() || !found.len().is_multiple_of(sources.len()) {
            return Vec::new();
        }
        found.iter().zip(sources.iter().cycle()).filter(|(t, s)| t != s).map(|(t, s)| ((*t).clone(), (*s).clone())).collect()
    }
}

/// Whether an entry of `_tied_weights_keys` is a name, as transformers tells it.
fn is_name(entry: &str) -> bool {
    entry.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.') && (entry.ends_with("weight") || entry.ends_with("bias"))
}

/// Pairs of names in a part of a list's elements, `layers.*.part`, that the elements which have it share in turn: `every` are different.
fn shared_pairs(all: &BTreeSet<String>, part: &str, every: usize) -> Vec<(String, String)> {
    let Some((list, child)) = part.split_once(".*.") else { return Vec::new() };
    let mut elements: BTreeSet<u64> = BTreeSet::new();
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for name in all {
        let rest = name.strip_prefix(list).and_then(|rest| rest.strip_prefix('.')?.split_once('.'));
        let Some((index, rest)) = rest.and_then(|(index, rest)| Some((index.parse().ok()?, rest))) else { continue };
        if let Some(rest) = rest.strip_prefix(child).and_then(|rest| rest.strip_prefix('.')) {
            elements.insert(index);
            names.insert(rest);
        }
    }
    let elements: Vec<u64> = elements.into_iter().collect();
    let sharing = elements.iter().enumerate().skip(every).filter_map(|(k, &index)| Some((index, elements[k.checked_rem(every)?])));
    let of = |index: u64, name: &str| format!("{list}.{index}.{child}.{name}");
    sharing.flat_map(|(index, first)| names.iter().map(move |name| (of(index, name), of(first, name)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As DiffusionGemma's, of which some layers lack `v_proj`: where one side alone is stored, the other has the same names.
    #[test]
    fn patterns_that_end_alike_tie_the_names_of_one_side_to_those_of_the_other() {
        let (target, source) = (r"encoder.text.layers\.(?:[^.]+\.)*weight", r"decoder.layers\.(?:[^.]+\.)*weight");
        let names = |names: &[&str]| names.iter().map(|n| format!("model.{n}")).collect::<BTreeSet<String>>();
        let stored = ["decoder.layers.0.q.weight", "decoder.layers.0.v.weight", "decoder.layers.1.q.weight"];
        let pairs = |all: &[&str]| Assembler::tied_pairs(&names(all), "model", target, source);
        let expected: Vec<_> = stored.map(|n| (n.replace("decoder", "encoder.text"), n.to_owned())).into();
        assert_eq!(pairs(&stored), expected);
        assert_eq!(pairs(&[&stored[..], &["encoder.text.layers.0.q.weight", "encoder.text.layers.1.q.weight"]].concat()), expected);
        assert_eq!(pairs(&["decoder.norm.weight"]), []);
    }
}
