//! What a class has under a config, whatever a checkpoint holds.

use super::{Child, Choices, Kind, Place, Presence, Switched, Tree, Variant};
use crate::stored::Stored;

impl Tree<'_> {
    /// Names of parameters and saved buffers that the class has under every config, with their shapes; at most `most`. What not every config has, as a
    /// bias, an element of a list has where others do; a list of unknown length has the elements that are stored.
    pub fn expected(&self, choices: &Choices, most: usize, stored: &Stored<'_>) -> Vec<(String, Kind, Option<Vec<u64>>)> {
        let mut out = Vec::new();
        self.expected_in(self.root, "", (choices, stored), most, &mut out);
        out.retain(|(name, ..)| !self.is_absent(name));
        out
    }

    fn expected_in(
        &self,
        at: Place,
        path: &str,
        (choices, stored): (&Choices, &Stored<'_>),
        most: usize,
        out: &mut Vec<(String, Kind, Option<Vec<u64>>)>,
    ) {
        let module = &self.modules[at.module];
        let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        let elsewhere = |name: &str| stored.all_others_have(&join(name), choices);
        let switches = self.switches(at);
        let has = |presence: &Presence, switch: Option<&Switched>, name: &str| match switch {
            Some((on, _)) => *on,
            None => presence.is_always() || elsewhere(name),
        };
        for (i, entry) in module.entries.iter().enumerate() {
            if entry.kind == Kind::Fleeting || !has(&entry.presence, switches.and_then(|s| s.entries[i].as_ref()), &entry.name) {
                continue;
            }
            let sizes = entry.shape.as_ref().map(|s| s.iter().map(|size| self.size(at.scope, size).map(|(n, _)| n)).collect());
            out.push((join(&entry.name), entry.kind, sizes.flatten()));
        }
        let in_list = path.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
        for (c, (child, places)) in self.children(at).enumerate() {
            let decided = || if in_list { self.has_part(at, child, &join(&child.name)).map(|(has, _)| has) } else { None };
            let switch = switches.and_then(|s| s.children[c].as_ref());
            let given = || switch.is_none() && self.is_given(at, child);
            if !child.presence.is_always() && !decided().unwrap_or_else(|| given() || has(&child.presence, switch, &child.name)) {
                continue;
            }
            let names: Vec<String> = if child.name == "*" {
                match self.size(at.scope, &child.length) {
                    Some((length, _)) => (0..length.min(most as u64)).map(|i| i.to_string()).collect(),
                    None => stored.elements(path).iter().chain(&*stored.elements_of_others(path)).map(u64::to_string).collect(),
                }
            } else {
                vec![child.name.clone()]
            };
            for name in names {
                if out.len() > most {
                    return;
                }
                let path = join(&name);
                let place = match places {
                    [only] => Some(only),
                    several => {
                        let decided = || Some(self.by_rule(at, c, several, &path)?.0);
                        let chosen = choices.get(&path).copied().or_else(decided).or_else(|| stored.variant_of_others(&path, choices));
                        if chosen.is_none() && child.name == "*" && !stored.has(&path) {
                            out.append(&mut self.common(several, &path, (choices, stored), most));
                        }
                        chosen.and_then(|i| several.get(i))
                    }
                };
                if let Some(&place) = place {
                    self.expected_in(place, &path, (choices, stored), most, out);
                }
            }
        }
    }

    /// What all variants have: an element that config.json counts and the checkpoint lacks may be any of them.
    fn common(&self, variants: &[Place], path: &str, among: (&Choices, &Stored<'_>), most: usize) -> Vec<(String, Kind, Option<Vec<u64>>)> {
        let mut each = variants.iter().map(|&place| {
            let mut out = Vec::new();
            self.expected_in(place, path, among, most, &mut out);
            out
        });
        let mut common = each.next().unwrap_or_default();
        for other in each {
            common.retain_mut(|(name, _, shape)| {
                let found = other.iter().find(|(n, ..)| n == name);
                if found.is_some_and(|(.., s)| s != shape) {
                    *shape = None;
                }
                found.is_some()
            });
        }
        common
    }

    /// Whether a part that not every such model has is one that config.json describes.
    fn is_given(&self, at: Place, child: &Child) -> bool {
        let key = |variant: &Variant| {
            if let Variant::Model { key, .. } = variant { !key.is_empty() && self.scopes[at.scope].config[key].is_object() } else { false }
        };
        child.variants.iter().all(key)
    }
}
