//! The sections that belong to someone else: the strategy's and the policy's, each read by its own type and built. And `shardwright`, ours.

use std::collections::BTreeMap;

use shardwright_core::{
    Mesh,
    diagnostic::{Location, Source},
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
        (settings, policy)
    }

    pub(super) fn strategy(&mut self, draft: &Draft, training: &Training, settings: &Settings, mesh: &Mesh) -> Option<Built> {
        if !draft.sections.contains_key("dist_config") {
            return draft.root.get("dist_config").is_none_or(Node::is_null).then(|| Built::new(Replicate));
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
        let config = entry.parse(&strategy.section.body, "dist_config").ok()?;
        let mut cx = BuildContext::new(&strategy.section.body, mesh, training, &files);
        cx.model = self.supplied.model.as_ref();
        cx.storage = settings.storage_dtype.map(|s| s.0);
        let built = config.build(&mut cx);
        let BuildContext { diagnostics, unresolved, .. } = cx;
        self.diagnostics.extend(diagnostics);
        self.unresolved.extend(unresolved);
        built.map_err(|error| self.diagnostics.push(error)).ok()
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
        let built = config.build(&mut cx);
        let diagnostics = cx.diagnostics;
        self.diagnostics.extend(diagnostics);
        built.map_err(|error| self.diagnostics.push(error)).ok()
    }
}
