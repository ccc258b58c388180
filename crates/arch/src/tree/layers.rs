//! What config.json decides of single layers: of which class they are, and which parts they have.

use super::{Child, Place, Tree};
use crate::kinds;

impl Tree<'_> {
    /// Which of several variants stands at a path, where config.json decides it, and by which keys: the engine makes that one, whatever the checkpoint has.
    pub fn decided(&self, path: &str) -> Option<(usize, String)> {
        self.decided_in(self.root, path, 0).flatten()
    }

    /// `None` where the path leads nowhere from here.
    pub(super) fn decided_in(&self, at: Place, path: &str, start: usize) -> Option<Option<(usize, String)>> {
        let segment = path[start..].split('.').next()?;
        let end = start + segment.len();
        let number = !segment.is_empty() && segment.bytes().all(|b| b.is_ascii_digit());
        let mut children = self.children(at).enumerate().filter(|(_, (c, _))| c.name == segment || c.name == "*" && number);
        children.find_map(|(c, (_, places))| match end == path.len() {
            true => (places.len() > 1).then(|| self.by_rule(at, c, places, path)),
            false => places.iter().find_map(|&next| self.decided_in(next, path, end + 1)),
        })
    }

    /// The variant of a module's child at a path, where layers' rules or a switch say it, and by which keys.
    pub(super) fn by_rule(&self, at: Place, child: usize, places: &[Place], path: &str) -> Option<(usize, String)> {
        let switch = || self.switches(at)?.firsts[child].as_ref().map(|(first, says)| (usize::from(!first), says.clone()));
        self.by_layer(at.scope, places, path).or_else(switch)
    }

    pub(super) fn by_layer(&self, scope: usize, places: &[Place], path: &str) -> Option<(usize, String)> {
        let classes: Vec<&str> = places.iter().map(|&place| self.class(place)).collect();
        if let [one, other] = classes[..] {
            let (first, keys) = self.first_stands(scope, one, other, path)?;
            return Some((usize::from(!first), keys));
        }
        // Each of several has a rule of its own.
        classes
            .iter()
            .enumerate()
            .find_map(|(i, class)| self.first_stands(scope, class, "", path).filter(|(stands, _)| *stands).map(|(_, keys)| (i, keys)))
    }

    /// The part of a layer that a name is in, where config.json decides whether the layer has it: whether it has, and by which keys.
    pub fn part<'n>(&self, name: &'n str) -> Option<(&'n str, bool, String)> {
        self.part_in(self.root, name, 0)
    }

    pub(super) fn part_in<'n>(&self, at: Place, name: &'n str, start: usize) -> Option<(&'n str, bool, String)> {
        let (segment, _) = name[start..].split_once('.')?;
        let end = start + segment.len();
        let number = segment.bytes().all(|b| b.is_ascii_digit());
        self.children(at).filter(|(c, _)| c.name == segment || c.name == "*" && number).find_map(|(child, places)| {
            let decided = if child.presence.is_always() { None } else { self.has_part(at, child, &name[..end]) };
            match decided {
                Some((has, keys)) => Some((&name[..end], has, keys)),
                None => places.iter().find_map(|&next| self.part_in(next, name, end + 1)),
            }
        })
    }

    /// Whether a layer has a part that not all layers of its class have, where config.json decides it, and by which keys.
    pub(super) fn has_part(&self, at: Place, child: &Child, path: &str) -> Option<(bool, String)> {
        let part = format!("{}.{}", self.class(at), child.name);
        self.first_stands(at.scope, &format!("+{part}"), &format!("-{part}"), path)
    }

    /// Whether the first of two kinds of what is at a path in a list stands there, and the keys of config.json that say so.
    pub(super) fn first_stands(&self, scope: usize, one: &str, other: &str, path: &str) -> Option<(bool, String)> {
        let layer = path.rsplit('.').find_map(|part| part.parse().ok())?;
        let given =
            |key: &str| self.names(scope, key).into_iter().find_map(|name| self.scopes[scope].config.get(name).filter(|v| !v.is_null()));
        let rules = &self.scopes[scope].line["kinds"];
        let of = |first: &str, second: &str| rules[format!("{first}/{second}")].as_array();
        let (first, keys) = kinds::first_stands([of(one, other), of(other, one)], layer, given)?;
        let named = |key| self.names(scope, key).into_iter().find(|name| self.scopes[scope].config.get(name).is_some());
        Some((first, keys.into_iter().filter_map(named).collect::<Vec<_>>().join(", ")))
    }
}
