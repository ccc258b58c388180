//! Tied weights: several names of one parameter.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Assembler, Made, Reason, Unused};
use crate::{contract::Assembly, regex::Regex};

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
        for (path, line, _) in models.iter().filter(|(.., tie)| *tie) {
            let under = |n: &str| if path.is_empty() { n.to_owned() } else { format!("{path}.{n}") };
            for (target, source) in line["tied"].as_object().into_iter().flatten() {
                let Some(source) = source.as_str() else { continue };
                for (target, source) in self.tied_pairs(made, path, target, source) {
                    put_together(under(&target), under(&source));
                }
            }
        }
        for group in groups {
            let mut names: Vec<String> = group.into_iter().filter(|n| self.tree.find(n, &self.choices).is_some()).collect();
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

    /// Pairs of names under a sub-model that an entry of `_tied_weights_keys` ties: names, or patterns and modules.
    fn tied_pairs(&self, made: &BTreeMap<String, Made>, path: &str, target: &str, source: &str) -> Vec<(String, String)> {
        let plain = |s: &str| {
            s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.') && (s.ends_with("weight") || s.ends_with("bias"))
        };
        if plain(target) && plain(source) {
            return vec![(target.to_owned(), source.to_owned())];
        }
        let (Ok(targets), Ok(wanted)) = (Regex::new(&format!("^{target}")), Regex::new(&format!("^{source}"))) else { return Vec::new() };
        let within =
            |n: &'_ str| if path.is_empty() { Some(n.to_owned()) } else { n.strip_prefix(path)?.strip_prefix('.').map(str::to_owned) };
        let mut names: BTreeSet<String> = made.keys().filter_map(|n| within(n)).collect();
        // The other side need not be stored: modules that are tied have the same parameters.
        let swap = |name: &str, from: &str, to: &str| name.strip_prefix(from).map(|rest| format!("{to}{rest}"));
        let more: Vec<String> = names.iter().filter_map(|n| swap(n, source, target).or_else(|| swap(n, target, source))).collect();
        names.extend(more);
        let sources: Vec<&String> = names.iter().filter(|n| wanted.search(n).is_some()).collect();
        let found: Vec<&String> = names.iter().filter(|n| targets.search(n).is_some()).collect();
        if sources.is_empty() || !found.len().is_multiple_of(sources.len()) {
            return Vec::new();
        }
        found.iter().zip(sources.iter().cycle()).filter(|(t, s)| t != s).map(|(t, s)| ((*t).clone(), (*s).clone())).collect()
    }
}
