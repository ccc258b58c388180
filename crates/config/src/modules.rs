//! Names of modules in `peft_config`, against a model whose class is known: what peft and LLaMA-Factory fail on when they look for them.
//! Source: peft's `inject_adapter` and `_set_trainable`, and LLaMA-Factory's `plugins/model_plugins/peft.py`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;
use shardwright_core::{
    DType, TensorKind,
    diagnostic::{Diagnostic, Location, Severity},
    model::Modules,
    piece::Model,
    suggest::nearest,
    text::shown,
};

use crate::Resolved;

const CODE: &str = "peft-modules";

/// What peft puts into each module that gets an adapter, which its search for modules to copy finds too.
const ADAPTERS: [&str; 7] =
    ["lora_dropout", "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "lora_dropout.default"];

impl Resolved {
    /// What keeps a training of that model from starting, and what is odd about it. Empty where the model's class is not known, for its modules
    /// are not either.
    #[must_use]
    pub fn misfits(&self, model: &Model) -> Vec<Diagnostic> {
        let (Some(modules), Some(name)) = (&model.meta.modules, self.peft("name").and_then(|(name, _)| name.as_str())) else {
            return Vec::new();
        };
        match name {
            "lora" => self.lora(&Tree::of(model), modules),
            "freeze" => self.frozen(&parameters(model).map(|(name, _)| name).collect::<Vec<_>>()),
            _ => Vec::new(),
        }
    }

    fn peft(&self, key: &str) -> Option<(&Json, Option<Location>)> {
        let pointer = format!("/training/peft_config/{key}");
        let value = self.document.get(&pointer)?;
        Some((value, self.document.origin(&pointer).and_then(|origin| origin.location().cloned())))
    }

    /// The names that a key lists; none where it is null or `all`.
    fn names(&self, key: &str) -> Option<(Vec<&str>, Option<Location>)> {
        let (value, at) = self.peft(key)?;
        let names: Vec<&str> = match value {
            Json::String(all) if all == "all" => return None,
            Json::String(one) => vec![one],
            Json::Array(many) => many.iter().filter_map(Json::as_str).collect(),
            _ => return None,
        };
        Some((names, at))
    }

    fn lora(&self, tree: &Tree<'_>, modules: &Modules) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        let is_given =
            |value: &Json| !matches!(value, Json::Null) && value.as_str() != Some("") && value.as_array().is_none_or(|a| !a.is_empty());
        // An adapter that is continued has its own modules.
        if self.peft("adapter_name_or_path").is_some_and(|(path, _)| is_given(path)) {
            return found;
        }
        let (saved, saved_at) = match self.peft("modules_to_save") {
            // A string is gone through letter by letter.
            Some((Json::String(text), at)) => (text.char_indices().map(|(i, c)| &text[i..i + c.len_utf8()]).collect(), at),
            Some((Json::Array(names), at)) => (names.iter().filter_map(Json::as_str).collect(), at),
            _ => (Vec::new(), None),
        };
        let names = self.names("target_modules").filter(|(names, _)| !names.is_empty());
        let is_fsdp2 = self.strategy.name() == "fsdp2";
        if let Some((names, at)) = &names {
            targets(names, at.as_ref(), tree, &mut found);
            let embedding = modules.embeddings.iter().find(|module| names.iter().any(|name| is_target(module, name)));
            if let (true, Some(module)) = (is_fsdp2, embedding) {
                let module = shown(module);
                let message = format!(
                    "peft_config.target_modules: under fsdp2 the forward pass through an adapter of the embedding '{module}' fails"
                );
                found.push(Diagnostic::error(CODE, message).at(at.clone()).help("leave the embedding out"));
            }
        }
        if saved.is_empty() || found.iter().any(|d| d.severity == Severity::Error) {
            return found;
        }
        let is_word = self.peft("modules_to_save").is_some_and(|(value, _)| value.is_array());
        // peft compares the ends of paths here, also in the middle of a word.
        for name in saved.iter().filter(|name| is_word && !tree.0.keys().any(|path| path.ends_with(**name))) {
            let message =
                format!("peft_config.modules_to_save: no module of the model ends with '{}', and peft passes over it", shown(name));
            found.push(tree.advised(Diagnostic::warning("peft-module-ignored", message).at(saved_at.clone()), name));
        }
        let of_adapters = saved.iter().find_map(|name| Some((name, ADAPTERS.iter().find(|module| module.ends_with(name))?)));
        if let Some((name, module)) = of_adapters {
            let letters = if is_word { "" } else { ", which takes a string letter by letter" };
            let message = format!(
                "peft_config.modules_to_save{letters}: '{}' is also the end of the adapters' own {module}, which peft cannot copy: it fails",
                shown(name)
            );
            found.push(Diagnostic::error(CODE, message).at(saved_at.clone()).help("write a list of the model's own modules"));
            return found;
        }
        let copied = |module: &str| ancestors(module).any(|path| saved.iter().any(|name| path.ends_with(name)));
        let letters = if is_word { "" } else { ", which takes a string letter by letter" };
        let embedding = modules.embeddings.iter().find(|module| copied(module));
        if let (true, false, Some(module)) = (is_fsdp2, modules.ties_embeddings, embedding) {
            let module = shown(module);
            let message = format!(
                "peft_config.modules_to_save{letters}: LLaMA-Factory shards the copy of the embedding '{module}' twice under fsdp2, and torch refuses that"
            );
            found.push(Diagnostic::error(CODE, message).at(saved_at.clone()).help("write a list without the embedding"));
        }
        // Adapters are made in float32, copies are not, and DeepSpeed puts what is trained into one buffer.
        let is_three = self.document.get("/deepspeed/zero_optimization/stage").and_then(Json::as_i64) == Some(3);
        let rounded =
            tree.1.iter().find(|(name, dtype)| **dtype != DType::F32 && copied(name.rsplit_once('.').map_or("", |(module, _)| module)));
        if let (true, Some((name, dtype))) = (is_three, rounded) {
            let message = format!(
                "peft_config.modules_to_save{letters}: '{}' is {dtype} and the adapters are float32, and under stage 3 DeepSpeed fails on two dtypes",
                shown(name)
            );
            found.push(Diagnostic::error(CODE, message).at(saved_at.clone()).help("leave modules_to_save out, or use stage 2"));
        }
        let excluded = |module: &str| saved.iter().any(|name| format!(".{module}.").contains(&format!(".{name}.")));
        let is_asked = |module: &str| match &names {
            Some((names, _)) => names.iter().any(|name| is_target(module, name)),
            _ => {
                !modules.embeddings.contains(module)
                    && !["lm_head", "output", "score", "classifier"].iter().any(|head| module.contains(head))
            }
        };
        let mut asked =
            tree.0.iter().filter(|(module, own)| own.weight == Some(2) && is_asked(module)).map(|(module, _)| *module).peekable();
        if asked.peek().is_some() && asked.all(excluded) {
            let message = format!(
                "peft_config.modules_to_save{letters}: every module that would get an adapter lies in one of these, and peft fails"
            );
            found.push(Diagnostic::error(CODE, message).at(saved_at).help("name less, or leave modules_to_save out"));
        }
        found
    }

    /// The modules by LLaMA-Factory's own rule: those of the layers with index 0 or 1, and those outside of all layers.
    fn frozen(&self, parameters: &[&str]) -> Vec<Diagnostic> {
        let mut hidden = BTreeSet::new();
        let mut outside = BTreeSet::new();
        for name in parameters {
            for layer in [".0.", ".1."] {
                if let Some((_, rest)) = name.rsplit_once(layer) {
                    hidden.insert(rest.split('.').next().unwrap_or_default());
                    break;
                }
            }
            let mut parts: Vec<&str> = name.split('.').collect();
            let in_layer = parts.len() > 2
                && parts[1..parts.len() - 1].iter().any(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
            parts.pop();
            outside.extend(parts.last().filter(|_| !in_layer).copied());
        }
        let mut found = Vec::new();
        for (key, known, whose) in
            [("freeze_trainable_modules", &hidden, "in its layers"), ("freeze_extra_modules", &outside, "outside of its layers")]
        {
            let Some((value, at)) = self.peft(key) else { continue };
            let names: Vec<&str> = match value {
                Json::String(text) => text.split(',').map(str::trim).collect(),
                Json::Array(many) => many.iter().filter_map(Json::as_str).collect(),
                _ => continue,
            };
            let is_all = |name: &str| name == "all" && key == "freeze_trainable_modules";
            for name in names.iter().filter(|name| !is_all(name) && !known.contains(**name)) {
                let list: Vec<String> = known.iter().map(|name| shown(name).into_owned()).collect();
                let message =
                    format!("peft_config.{key}: the model has no module '{}' {whose}, expected some of {}", shown(name), list.join(", "));
                let error = Diagnostic::error(CODE, message).at(at.clone());
                found.push(match nearest(name, known.iter().copied()) {
                    Some(near) => error.help(format!("did you mean '{}'?", shown(near))),
                    None => error,
                });
            }
        }
        found
    }
}

/// A module's path, and those of the modules around it.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('.').map(|(dot, _)| &path[..dot]).chain([path])
}

/// Whether peft takes a name in `target_modules` for that module.
fn is_target(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

fn targets(names: &[&str], at: Option<&Location>, tree: &Tree<'_>, found: &mut Vec<Diagnostic>) {
    let (some, none): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| tree.0.keys().any(|module| is_target(module, name)));
    for name in &none {
        let message = format!("peft_config.target_modules: the model has no module '{}'", shown(name));
        let diagnostic = match some.is_empty() {
            true => Diagnostic::error(CODE, format!("{message}, and peft makes no adapter and fails")),
            false => Diagnostic::warning("peft-module-ignored", format!("{message}, and peft passes over it")),
        };
        found.push(tree.advised(diagnostic.at(at.cloned()), name));
    }
    for name in some {
        let no_adapter =
            tree.0.iter().filter(|(module, _)| is_target(module, name)).find_map(|(module, own)| Some((module, own.obstacle()?)));
        if let Some((module, why)) = no_adapter {
            let message = format!(
                "peft_config.target_modules: '{}' is '{}' of the model, {why}: peft has no adapter for it",
                shown(name),
                shown(module)
            );
            found.push(Diagnostic::error(CODE, message).at(at.cloned()).help("name linear layers, or write all"));
        }
    }
}

/// What a module has of its own: the number of dims of its `weight`, and whether it has other parameters.
#[derive(Clone, Copy, Default)]
struct Own {
    weight: Option<usize>,
    attention: bool,
    others: bool,
}

impl Own {
    /// Why peft makes no adapter for it, where that is certain.
    fn obstacle(&self) -> Option<&'static str> {
        match self.weight {
            Some(0 | 1) => Some("whose weight is not a matrix"),
            None if !self.attention && !self.others => Some("which only holds other modules"),
            None if !self.attention => Some("which has parameters but no weight"),
            _ => None,
        }
    }
}

/// Every module that has parameters, or holds one that has; and the dtypes of the parameters that are at hand.
struct Tree<'a>(BTreeMap<&'a str, Own>, BTreeMap<&'a str, DType>);

impl<'a> Tree<'a> {
    fn of(model: &'a Model) -> Self {
        let mut modules: BTreeMap<&str, Own> = BTreeMap::new();
        let tied = model.aliases.iter().flat_map(|(a, b)| [a, b]).map(|name| (name.as_ref(), Some(2)));
        for (name, dims) in parameters(model).chain(tied) {
            for (dot, _) in name.match_indices('.') {
                modules.entry(&name[..dot]).or_default();
            }
            let Some((module, own)) = name.rsplit_once('.').and_then(|(module, last)| Some((modules.get_mut(module)?, last))) else {
                continue;
            };
            match own {
                // One whose shape is not known may be a matrix.
                "weight" => module.weight = Some(dims.unwrap_or(2)),
                "in_proj_weight" => module.attention = true,
                _ => module.others = true,
            }
        }
        let dtypes = model.meta.tensors.iter().filter(|t| t.kind != Some(TensorKind::Buffer)).map(|t| (&*t.name, t.dtype));
        Self(modules, dtypes.collect())
    }

    fn advised(&self, diagnostic: Diagnostic, name: &str) -> Diagnostic {
        let lasts: BTreeSet<&str> = self.0.keys().map(|path| path.rsplit('.').next().unwrap_or(path)).collect();
        match nearest(name, lasts) {
            Some(near) => diagnostic.help(format!("did you mean '{}'?", shown(near))),
            None => diagnostic,
        }
    }
}

/// Parameters by name, with the number of their dims where it is known: those at hand, and those that the engine initialises.
fn parameters(model: &Model) -> impl Iterator<Item = (&str, Option<usize>)> {
    let here = model.meta.tensors.iter().filter(|t| t.kind != Some(TensorKind::Buffer)).map(|t| (&*t.name, Some(t.shape.len())));
    here.chain(model.missing.iter().map(|m| (&*m.name, m.shape.as_ref().map(Vec::len))))
}
