//! Sizes under a config.

use serde_json::Value;

use super::{Scope, Tree};
use crate::size::{DEEPEST, Formula, Size};

impl Tree<'_> {
    /// A key's number in a scope's config, by any of its names, and what it was called. A key that config.json does not have has the class's default,
    /// where the config is there and nothing else decides the key, or is made of other keys as the class makes it.
    pub(super) fn number(&self, scope: usize, key: &str, depth: u32) -> Option<(u64, String)> {
        let Scope { config, line, model_type, per_layer, set } = &self.scopes[scope];
        if let Some(list) = key.strip_prefix('#') {
            let found = self.names(scope, list).into_iter().find_map(|name| Some((name, config.get(name).filter(|v| !v.is_null())?)));
            let (name, value) = found?;
            let length = value.as_array().map(Vec::len).or_else(|| value.as_str().map(|text| text.chars().count()))?;
            return Some((u64::try_from(length).ok()?, format!("the length of {name}")));
        }
        // One of a part, which is a model or not.
        if let Some((part, inner)) = key.split_once('.') {
            let of_model = self.by_key.get(&(scope, part.to_owned())).and_then(|&sub| self.number(sub, inner, depth + 1));
            let (value, _) = of_model.or_else(|| Some((config.get(part)?.get(inner)?.as_u64()?, String::new())))?;
            return Some((value, key.to_owned()));
        }
        let names = self.names(scope, key);
        // Layers may have a number of their own, and the whole model may set a part's.
        if names.iter().any(|name| per_layer.contains(*name) || set.contains(*name)) {
            return None;
        }
        let derived = names.iter().find_map(|name| line["derived"][name].as_str());
        let made = |formula: &str| {
            let formula = if depth < DEEPEST { Formula::parse(formula) } else { None };
            formula?.value(|key| self.number(scope, key, depth + 1))
        };
        let found = names.iter().find_map(|name| config.get(name));
        if let Some(found) = found.filter(|found| !found.is_null()) {
            let said = found.as_u64()?;
            // One that the class makes of others in any case is not heeded where it is another.
            let heeded =
                derived.and_then(|formula| formula.strip_prefix('=')).is_none_or(|formula| made(formula).is_some_and(|(n, _)| n == said));
            return heeded.then(|| (said, key.to_owned()));
        }
        if found.is_none()
            && config.is_object()
            && let Some(default) = names.iter().find_map(|name| line["defaults"][name].as_u64())
        {
            return Some((default, format!("{key} (not in config.json, the default of '{model_type}')")));
        }
        let (value, of) = made(derived?.trim_start_matches('='))?;
        Some((value, format!("{key} (not in config.json: {of})")))
    }

    pub(super) fn size(&self, scope: usize, size: &Size) -> Option<(u64, String)> {
        match size {
            Size::Unknown => None,
            Size::Formula(formula) => formula.value(|key| self.number(scope, key, 0)),
        }
    }

    /// A key of the root's config, or of a sub-config.
    pub fn config_number(&self, sub: Option<&str>, key: &str) -> Option<u64> {
        let scope = sub.and_then(|sub| self.by_key.get(&(0, sub.to_owned()))).copied().unwrap_or(0);
        self.number(scope, key, 0).map(|(n, _)| n)
    }

    /// What a number or a formula of the data comes to under the config of the module at a path.
    pub fn size_in(&self, path: &str, formula: &Value) -> Option<u64> {
        if let Some(number) = formula.as_u64() {
            return Some(number);
        }
        let mut at = self.root;
        for segment in path.split('.').filter(|segment| !segment.is_empty()) {
            let number = segment.bytes().all(|b| b.is_ascii_digit());
            at = *self.children(at).find(|(c, _)| c.name == segment || c.name == "*" && number)?.1.first()?;
        }
        self.size(at.scope, &Size::of(formula)).map(|(n, _)| n)
    }
}
