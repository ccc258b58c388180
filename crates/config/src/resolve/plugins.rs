//! The sections that belong to someone else: the strategy's and the policy's, each read by its own type and built. And `shardwright`, ours.

use std::collections::BTreeMap;

use shardwright_core::{
    Mesh,
    diagnostic::{Diagnostic, Location, Source},
    panics::caught,
    registry::DEFAULT_POLICY,
    replicate::Replicate,
    strategy_config::{BuildContext, Built, BuiltPolicy, PolicyContext, Training},
    tree::{Node, from_node},
};

use super::Resolver;
use crate::{
    draft::Draft,
    sections::{self, Section},
    settings::Settings,
};

impl Resolver<'_> {
    /// `shardwright: {…}` and, apart from it, `shardwright.precision`.
    pub(super) fn settings(&mut self, draft: &Draft) -> (Settings, Option<Section>) {
        let Some(node) = draft.root.get("shardwright").filter(|n| !n.is_null()) else { return Default::default() };
        let policy = sections::read(node.get("precision"), "shardwright.precision", &draft.sources, &mut self.diagnostics);
        let policy = policy.unwrap_or_else(|error| {
            self.diagnostics.push(error);
            None
        });
        let settings = from_node::<Settings>(&node.without("precision"), "shardwright").unwrap_or_else(|errors| {
            self.diagnostics.extend(errors);
            Settings::default()
        });
        if let Some(name) = &settings.architecture {
            let why = match self.supplied.files.get(name) {
                Some(Ok(_)) => None,
                Some(Err(why)) => Some(why.as_str()),
                None => Some("it was not read"),
            };
            if let Some(why) = why {
                self.error("file-unreadable", format!("cannot read '{name}': {why}"), draft.architecture().map(|n| n.at.clone()));
            }
        }
        (settings, policy)
    }

    pub(super) fn strategy(&mut self, draft: &Draft, training: &Training, settings: &Settings, mesh: &Mesh) -> Option<Built> {
        if !draft.sections.contains_key("dist_config") {
            return draft.root.get("dist_config").is_none_or(Node::is_null).then(|| Built::new(Replicate).without_groups());
        }
        let strategy = draft.strategy.as_ref()?;
        let mut files = BTreeMap::new();
        for name in strategy.config.files() {
            match self.supplied.files.get(&name) {
                Some(Ok(source)) => drop(files.insert(name, source.clone())),
                Some(Err(why)) => {
                    let at = strategy.section.body.entries().iter().find(|e| e.value.as_str() == Some(&name)).map(|e| e.value.at.clone());
                    self.error("file-unreadable", format!("cannot read '{name}': {why}"), at);
                    return None;
                }
                None => {
                    self.error("file-unreadable", format!("'{name}' was not read"), None);
                    return None;
                }
            }
        }
        let entry = self.registry.strategy(&strategy.section.name).ok()?;
        let body = &strategy.section.body;
        let config = entry.parse(body, "dist_config").ok()?;
        let mut cx = BuildContext::new(body, mesh, training, &files);
        cx.model = self.supplied.model.as_ref();
        cx.storage = settings.storage_dtype.map(|s| s.0);
        let built = caught(|| config.build(&mut cx)).unwrap_or_else(|what| Err(panicked(&strategy.section.name, &what, body)));
        let BuildContext { mut diagnostics, unresolved, .. } = cx;
        self.unresolved.extend(unresolved);
        let built = built.map_err(|error| diagnostics.push(error)).ok();
        if strategy.is_partial {
            // What follows from keys that were taken out is no news.
            let is_news = |at: &Location| at.file != body.at.file || body.entries().iter().any(|e| e.holds(at));
            diagnostics.retain(|d| d.at.as_ref().is_some_and(is_news));
        }
        self.diagnostics.extend(diagnostics);
        built.filter(|_| !strategy.is_partial)
    }

    /// What a named policy's section says is wrong with it, where nothing can be built.
    pub(super) fn only_check(&mut self, named: Option<&Section>) {
        let Some(section) = named else { return };
        match self.registry.policy(&section.name) {
            Ok(entry) => self.diagnostics.extend(entry.parse(&section.body, "shardwright.precision").err().into_iter().flatten()),
            Err(error) => self.diagnostics.push(error.at(section.name_at.clone())),
        }
    }

    /// Settings that what was chosen does not heed.
    pub(super) fn unheeded(&mut self, draft: &Draft, settings: &Settings, built: &Built, precision: &BuiltPolicy) {
        let at = |key: &str| draft.root.find(&["shardwright", key]).map(|n| n.at.clone());
        let name = built.strategy.name();
        let mut found = Vec::new();
        if !settings.units.is_empty() && !built.heeds_groups {
            found.push(("units", format!("shardwright.units has no effect under {name}, which has no all-gather groups")));
        }
        if settings.zero3_fp16 && built.document.get("/deepspeed").is_none() {
            found.push(("zero3_fp16", format!("shardwright.zero3_fp16 has no effect under {name}, which is not DeepSpeed's")));
        }
        let wanted = settings.storage_dtype.and_then(|s| serde_json::to_value(s).ok());
        if let Some(wanted) = wanted.filter(|wanted| *wanted != precision.summary.storage) {
            let rule = &precision.summary.rule;
            let message = format!("shardwright.storage_dtype {wanted} has no effect: {rule} keeps {}", precision.summary.storage);
            found.push(("storage_dtype", message.replace('"', "")));
        }
        self.not_read(draft);
        let warnings = found.into_iter().map(|(key, message)| Diagnostic::warning("setting-ignored", message).at(at(key)));
        self.diagnostics.extend(warnings);
    }

    /// Keys by which training starts from other weights than a load gives.
    fn not_read(&mut self, draft: &Draft) {
        const KEYS: [(&[&str], &str); 3] = [
            (&["dist_config", "dcp_path"], "it is not read here: shards are those of the model's own files"),
            (&["resume_from_checkpoint"], "it is not read here: shards are those of the model's own files"),
            (&["quant_config"], "nothing is quantized here: shards are those of the model's own tensors"),
        ];
        for (path, message) in KEYS {
            let given = draft.root.find(path).filter(|n| !n.is_null() && n.as_str() != Some(""));
            if let Some(node) = given {
                let message = format!("{}: {message}", path.join("."));
                self.diagnostics.push(Diagnostic::warning("not-read", message).at(node.at.clone()));
            }
        }
    }

    pub(super) fn precision(
        &mut self,
        strategy: &str,
        named: Option<Section>,
        own: Option<BuiltPolicy>,
        training: &Training,
        settings: &Settings,
    ) -> Option<BuiltPolicy> {
        let nowhere = Node::map(Vec::new(), Source::new("", "").at(0..0));
        let base = match own {
            Some(own) => own,
            None => self.policy(DEFAULT_POLICY, &nowhere, None, strategy, training, settings, None)?,
        };
        match named {
            None => Some(base),
            Some(section) => self.policy(&section.name, &section.body, Some(&section.name_at), strategy, training, settings, Some(base)),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one call site a case, above")]
    pub(super) fn policy(
        &mut self,
        name: &str,
        section: &Node,
        at: Option<&Location>,
        strategy: &str,
        training: &Training,
        settings: &Settings,
        base: Option<BuiltPolicy>,
    ) -> Option<BuiltPolicy> {
        let config = match self.registry.policy(name).map(|entry| entry.parse(section, "shardwright.precision")) {
            Ok(Ok(config)) => config,
            Ok(Err(errors)) => {
                self.diagnostics.extend(errors);
                return None;
            }
            Err(error) => {
                self.diagnostics.push(error.at(at.cloned()));
                return None;
            }
        };
        let mut cx = PolicyContext::new(section, strategy, training);
        cx.model = self.supplied.model.as_ref();
        cx.storage = settings.storage_dtype.map(|s| s.0);
        cx.base = base;
        let built = caught(|| config.build(&mut cx)).unwrap_or_else(|what| Err(panicked(name, &what, section)));
        let diagnostics = cx.diagnostics;
        self.diagnostics.extend(diagnostics);
        built.map_err(|error| self.diagnostics.push(error)).ok()
    }
}

fn panicked(name: &str, what: &str, section: &Node) -> Diagnostic {
    Diagnostic::error("plugin-panicked", format!("'{name}' panicked while it read its section: {what}"))
        .at(Some(section.at.clone()))
        .help("this is a fault of the crate that registers it: its `build` must answer with an error")
}
