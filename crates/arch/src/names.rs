//! Names of a checkpoint's tensors as the model has them, looked up once for all that differ only in their numbers.

use std::{borrow::Cow, collections::HashMap};

use shardwright_core::TensorMeta;

use crate::{
    rename::{Renamer, Taken, sort_naturally, with_prefix},
    tree::{Choices, Kind, Tree},
};

/// What a checkpoint's name becomes.
#[derive(Clone, Debug)]
struct Renamed {
    name: String,
    taken: Taken,
    found: bool,
}

/// What names that differ only in their numbers become: text, each followed by one of the numbers.
#[derive(Debug)]
struct Pattern {
    parts: Vec<(String, Option<usize>)>,
    taken: Taken,
}

impl Pattern {
    /// Of a name made with a [`marker`] for each of `count` numbers; `None` where a number occurs twice.
    fn new(name: &str, taken: Taken, count: usize) -> Option<Self> {
        let mut found = Vec::with_capacity(count);
        for number in 0..count {
            let marker = marker(number);
            let mut places = name.match_indices(&marker);
            found.extend(places.next().map(|(at, _)| (at, marker.len(), number)));
            if places.next().is_some() {
                return None;
            }
        }
        found.sort_unstable();
        let (mut parts, mut start) = (Vec::with_capacity(count + 1), 0);
        for (at, length, number) in found {
            parts.push((name[start..at].to_owned(), Some(number)));
            start = at + length;
        }
        parts.push((name[start..].to_owned(), None));
        Some(Self { parts, taken })
    }

    fn fill(&self, numbers: &[&str], name: &mut String) {
        name.clear();
        for (text, number) in &self.parts {
            name.push_str(text);
            name.push_str(number.and_then(|n| numbers.get(n)).copied().unwrap_or_default());
        }
    }
}

/// A name after renaming, with the checkpoint's tensors that have it.
#[derive(Debug)]
pub(crate) struct Target {
    /// In the model.
    pub(crate) name: String,
    /// The model has it.
    pub(crate) found: bool,
    /// Index of each tensor, in order, and the converter that takes it.
    pub(crate) from: Vec<(u32, Taken)>,
}

/// Targets, in the order of their first tensors.
#[derive(Debug, Default)]
struct Targets {
    all: Vec<Target>,
    by_name: HashMap<String, usize>,
}

impl Targets {
    fn add(&mut self, name: &str, found: bool, source: usize, taken: Taken) {
        let source = u32::try_from(source).unwrap_or(u32::MAX);
        if !found {
            // Nothing is made of it, so that it shares nothing with others of its name.
            self.all.push(Target { name: name.to_owned(), found, from: vec![(source, taken)] });
            return;
        }
        if let Some(&at) = self.by_name.get(name) {
            self.all[at].from.push((source, taken));
            return;
        }
        self.by_name.insert(name.to_owned(), self.all.len());
        self.all.push(Target { name: name.to_owned(), found, from: vec![(source, taken)] });
    }
}

/// The renames of a model, and its names.
#[derive(Debug)]
pub(crate) struct Naming<'a, 'c> {
    pub(crate) renamer: &'a mut Renamer,
    pub(crate) tree: &'a Tree<'c>,
    /// The prefix of the base model.
    pub(crate) base: &'a str,
}

impl Naming<'_, '_> {
    /// transformers' `rename_source_key`, and the original name where only that is one of the model's.
    fn rename(&mut self, name: &str) -> Renamed {
        let (renamed, taken) = self.renamer.rename(name);
        self.settle(name, renamed, taken)
    }

    /// Of a name and what the renames make of it, the one that the model has.
    fn settle(&self, name: &str, renamed: String, taken: Taken) -> Renamed {
        let any = Choices::new();
        let (tree, base) = (self.tree, self.base);
        let known = |n: &str| tree.find(n, &any).is_some_and(|f| f.kind != Kind::Fleeting);
        let renamed = if base.is_empty() { renamed } else { with_prefix(renamed, base, known) };
        if known(&renamed) {
            return Renamed { name: renamed, taken, found: true };
        }
        if known(name) {
            let name = if base.is_empty() { name.to_owned() } else { with_prefix(name.to_owned(), base, known) };
            return Renamed { name, taken: None, found: true };
        }
        Renamed { name: renamed, taken: None, found: false }
    }

    /// The names that tensors have in the model.
    pub(crate) fn targets(mut self, sources: &[TensorMeta]) -> Vec<Target> {
        let mut targets = Targets::default();
        if !self.renamer.is_plain() {
            // Some renames depend on the names before.
            let mut order: Vec<usize> = (0..sources.len()).collect();
            sort_naturally(&mut order, |&i| &sources[i].name);
            for i in order {
                let renamed = self.rename(&sources[i].name);
                targets.add(&renamed.name, renamed.found, i, renamed.taken);
            }
            targets.all.iter_mut().for_each(|target| target.from.sort_unstable_by_key(|&(source, _)| source));
            return targets.all;
        }
        let mut patterns: HashMap<String, Option<(Pattern, Option<bool>)>> = HashMap::new();
        let numbered = self.tree.has_numbered();
        let (mut key, mut numbers, mut name) = (String::new(), Vec::new(), String::new());
        for (i, source) in sources.iter().enumerate() {
            template(&source.name, &mut key, &mut numbers);
            if numbers.is_empty() {
                let renamed = self.rename(&source.name);
                targets.add(&renamed.name, renamed.found, i, renamed.taken);
                continue;
            }
            if !patterns.contains_key(&key) {
                let marked = fill(&key, numbers.len());
                let (renamed, taken) = self.renamer.rename(&marked);
                let by_renames = Pattern::new(&renamed, taken, numbers.len());
                let settled = self.settle(&marked, renamed, taken);
                let pattern = by_renames.and_then(|by_renames| {
                    // A number that picks a module of a sequence is not like any other: such names are looked up one by one.
                    let alike = settled.found || !numbered;
                    let pattern = if alike { Pattern::new(&settled.name, settled.taken, numbers.len())? } else { by_renames };
                    Some((pattern, alike.then_some(settled.found)))
                });
                patterns.insert(key.clone(), pattern);
            }
            match patterns.get(&key).and_then(Option::as_ref) {
                Some((pattern, found)) => {
                    pattern.fill(&numbers, &mut name);
                    if let Some(found) = *found {
                        targets.add(&name, found, i, pattern.taken);
                    } else {
                        let renamed = self.settle(&source.name, name.clone(), pattern.taken);
                        targets.add(&renamed.name, renamed.found, i, renamed.taken);
                    }
                }
                None => {
                    let renamed = self.rename(&source.name);
                    targets.add(&renamed.name, renamed.found, i, renamed.taken);
                }
            }
        }
        targets.all
    }
}

fn marker(index: usize) -> String {
    format!("{}", 900_000_017 + index)
}

/// A name with a mark for each part that is a number, and those numbers.
fn template<'n>(name: &'n str, key: &mut String, numbers: &mut Vec<&'n str>) {
    key.clear();
    numbers.clear();
    for (i, part) in name.split('.').enumerate() {
        if i > 0 {
            key.push('.');
        }
        if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) {
            numbers.push(part);
            key.push('\0');
        } else {
            key.push_str(part);
        }
    }
}

/// A template with the [`marker`]s of its numbers.
fn fill(template: &str, count: usize) -> String {
    let mut numbers = 0..count;
    let parts: Vec<Cow<'_, str>> = template
        .split('.')
        .map(|part| if part == "\0" { numbers.next().map_or(part.into(), |n| marker(n).into()) } else { part.into() })
        .collect();
    parts.join(".")
}
