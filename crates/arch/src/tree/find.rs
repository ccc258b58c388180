//! Looking names up in a tree.

use std::collections::BTreeMap;

use super::{Choices, Kind, Place, Switched, Tree};

/// A name that was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// What it stands for.
    pub kind: Kind,
    /// Made in float32 by the class.
    pub fp32: bool,
    /// Its sizes, as far as config.json gives them, with what each follows from.
    pub shape: Option<Vec<Option<(u64, String)>>>,
    /// Modules that it is in, outermost first: end of the module's path in the name, and place.
    pub modules: Vec<(usize, Place)>,
    /// An index that its list does not have: the list's path, the index, the length.
    pub beyond: Option<(String, u64, u64)>,
    /// Whether the class has it, where a key of config.json decides it, and what that says.
    pub switch: Option<Switched>,
}

impl Found {
    /// Whether the class lacks it, as config.json has it.
    pub fn is_off(&self) -> bool {
        self.switch.as_ref().is_some_and(|(on, _)| !on)
    }
}

impl Tree<'_> {
    /// Finds a name of the model.
    pub fn find(&self, name: &str, choices: &Choices) -> Option<Found> {
        if self.is_absent(name) {
            return None;
        }
        self.find_in(self.root, name, 0, (choices, None), &mut vec![(0, self.root)], (None, None))
    }

    /// Finds a name of the model among all variants, as a tensor of that many dims: where variants have the same names, as a normalisation and a
    /// convolution in one list, it is their dims that tell them apart.
    pub fn find_of_rank(&self, name: &str, dims: usize) -> Option<Found> {
        if self.is_absent(name) {
            return None;
        }
        self.find_in(self.root, name, 0, (&Choices::new(), Some(dims)), &mut vec![(0, self.root)], (None, None))
    }

    fn find_in(
        &self,
        at: Place,
        name: &str,
        start: usize,
        (choices, dims): (&Choices, Option<usize>),
        modules: &mut Vec<(usize, Place)>,
        (beyond, within): (Option<(String, u64, u64)>, Option<&Switched>),
    ) -> Option<Found> {
        let module = &self.modules[at.module];
        let switches = self.switches(at);
        let rest = &name[start..];
        if module.open {
            // Nothing tells but the name.
            let of_a_norm = ["running_mean", "running_var", "num_batches_tracked"];
            let kind = if of_a_norm.iter().any(|n| rest.ends_with(n)) && !self.is_open() { Kind::Buffer } else { Kind::Parameter };
            return Some(Found { kind, fp32: false, shape: None, modules: modules.clone(), beyond, switch: within.cloned() });
        }
        if let Some((i, entry)) = module.entries.iter().enumerate().find(|(_, e)| e.name == rest) {
            if dims.is_some_and(|dims| entry.shape.as_ref().is_some_and(|s| s.len() != dims)) {
                return None;
            }
            let shape = entry.shape.as_ref().map(|s| s.iter().map(|size| self.size(at.scope, size)).collect());
            let switch = stronger(within, switches.and_then(|s| s.entries[i].as_ref())).cloned();
            return Some(Found { kind: entry.kind, fp32: entry.fp32, shape, modules: modules.clone(), beyond, switch });
        }
        let (segment, _) = rest.split_once('.')?;
        let end = start + segment.len();
        let (mut off, depth) = (None, modules.len());
        for (c, (child, places)) in self.children(at).enumerate() {
            let mut beyond = beyond.clone();
            if child.name == "*" {
                let Ok(index) = segment.parse::<u64>() else { continue };
                if let Some((length, _)) = self.size(at.scope, &child.length)
                    && index >= length
                    && beyond.is_none()
                {
                    beyond = Some((name[..start.saturating_sub(1)].to_owned(), index, length));
                }
            } else if child.name != segment {
                continue;
            }
            let chosen = if child.variants.len() > 1 || !child.presence.is_always() { choices.get(&name[..end]).copied() } else { None };
            let within = stronger(within, switches.and_then(|s| s.children[c].as_ref()));
            let first = switches.and_then(|s| s.firsts[c].as_ref());
            for (i, &next) in places.iter().enumerate() {
                if chosen.is_some_and(|c| c != i) {
                    continue;
                }
                modules.push((end, next));
                let variant = first.map(|(first, says)| ((i == 0) == *first, says.clone()));
                let within = stronger(within, variant.as_ref());
                match self.find_in(next, name, end + 1, (choices, dims), modules, (beyond.clone(), within)) {
                    // Another variant may have it.
                    Some(found) if found.is_off() && places.len() > 1 => off = off.or(Some(found)),
                    Some(found) => return Some(found),
                    None => {}
                }
                modules.truncate(depth);
            }
        }
        off
    }

    /// The place of a name in the order of the class's parameters.
    pub fn order(&self, name: &str) -> Vec<u64> {
        let mut out = Vec::new();
        self.order_in(self.root, name, &mut out);
        out
    }

    fn order_in(&self, at: Place, rest: &str, out: &mut Vec<u64>) -> bool {
        if let Some(i) = self.modules[at.module].entries.iter().position(|e| e.name == rest) {
            out.extend([0, i as u64]);
            return true;
        }
        let Some((segment, rest)) = rest.split_once('.') else { return false };
        for (i, (child, places)) in self.children(at).enumerate() {
            let index = if child.name == "*" { segment.parse().ok() } else { (child.name == segment).then_some(0) };
            let Some(index) = index else { continue };
            for &place in places {
                let before = out.len();
                out.extend([1, i as u64, index]);
                if self.order_in(place, rest, out) {
                    return true;
                }
                out.truncate(before);
            }
        }
        false
    }

    /// Adds `count` votes for each variant, at each place that has several, under which the name is one of the model's. Beside the votes stands
    /// how many parameters the variant has at least.
    pub fn vote(&self, name: &str, count: u32, votes: &mut BTreeMap<String, Vec<(u32, usize)>>) {
        self.vote_in(self.root, name, 0, count, votes);
    }

    fn vote_in(&self, at: Place, name: &str, start: usize, count: u32, votes: &mut BTreeMap<String, Vec<(u32, usize)>>) -> bool {
        let module = &self.modules[at.module];
        let rest = &name[start..];
        if module.open || module.entries.iter().any(|e| e.name == rest) {
            return true;
        }
        let Some((segment, _)) = rest.split_once('.') else { return false };
        let end = start + segment.len();
        let mut found = false;
        let number = !segment.is_empty() && segment.bytes().all(|b| b.is_ascii_digit());
        for (child, places) in self.children(at).filter(|(c, _)| c.name == segment || c.name == "*" && number) {
            for (i, &next) in places.iter().enumerate() {
                if self.vote_in(next, name, end + 1, count, votes) {
                    found = true;
                    if child.variants.len() > 1 {
                        let least = || places.iter().map(|&place| (0, self.least(place))).collect();
                        // A path may lead through modules whose variants there are not the same.
                        let of = votes.entry(name[..end].to_owned()).or_insert_with(least);
                        if of.len() < places.len() {
                            of.extend(least().into_iter().skip(of.len()));
                        }
                        of[i].0 += count;
                    }
                }
            }
        }
        found
    }

    /// How many parameters a module has at least, lists aside.
    fn least(&self, at: Place) -> usize {
        let own = self.modules[at.module].entries.iter().filter(|e| e.presence.is_always() && e.kind != Kind::Fleeting).count();
        let children = self.children(at).filter(|(c, _)| c.presence.is_always() && c.name != "*");
        own + children.filter_map(|(_, places)| places.first()).map(|&place| self.least(place)).sum::<usize>()
    }
}

/// Of what two keys say of a part and of what it is in, that which leaves it out; else that of the part.
fn stronger<'s>(outer: Option<&'s Switched>, own: Option<&'s Switched>) -> Option<&'s Switched> {
    outer.filter(|(on, _)| !on).or(own).or(outer)
}
