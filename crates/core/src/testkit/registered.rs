//! Kits for what is registered: everything is built as a user's YAML builds it, through the registry and the resolver.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    StrategyKit,
    violation::{Found, Rule},
};
use crate::{
    Mesh, Precision, PrecisionPolicy, ShardStrategy, TensorMeta,
    config::{DEFAULT_POLICY, Draft, Input, Resolved, Supplied},
    diagnostic::{Diagnostic, Severity, Source},
    mesh::{MP_REPLICATE, MP_SHARD},
    registry::{Place, PolicyEntry, Registry},
    strategy_config::{BuiltPolicy, PolicyConfig, PolicyContext, PrecisionSummary},
};

/// The suite for the strategy that is registered under this name in the test's binary: name its crate (`use acme_strategy as _;`).
pub fn strategy(name: &str) -> StrategyKit<'static> {
    let owned = name.to_owned();
    let mut kit = StrategyKit::new(name, move |section, mesh| build(&owned, section, mesh));
    kit.registered = true;
    kit
}

fn build(name: &str, section: &str, mesh: &Mesh) -> Result<Box<dyn ShardStrategy>, String> {
    Ok(resolve(name, section, "", mesh)?.strategy)
}

/// Resolves a YAML that names a strategy and, if there is one, a policy, each with its section.
pub(super) fn resolve(strategy: &str, section: &str, policy: &str, mesh: &Mesh) -> Result<Resolved, String> {
    let registry = registry().map_err(|(_, what)| what)?;
    let (replicate, shard) = (mesh.size_of(MP_REPLICATE), mesh.size_of(MP_SHARD));
    let (section, policy) = (indented(section, 2), indented(policy, 4));
    let precision = if policy.is_empty() { String::new() } else { format!("shardwright:\n  precision:\n{policy}") };
    let yaml = format!("mp_replicate_size: {replicate}\nmp_shard_size: {shard}\ndist_config:\n  name: {strategy}\n{section}{precision}");
    let input = Input { config: Source::new("kit.yaml", yaml.clone()), overrides: Vec::new(), env: BTreeMap::new() };
    let supplied = Supplied { world_size: Some(mesh.world_size()), ..Supplied::default() };
    let outcome = Draft::parse(&input, &registry).resolve(&supplied, &registry);
    let errors: Vec<String> = outcome.diagnostics.iter().filter(|d| d.severity == Severity::Error).map(describe).collect();
    outcome.resolved.ok_or_else(|| errors.join("; "))
}

/// What is linked, and a policy of the kit's own where a binary has no default one.
pub(super) fn registry() -> Result<Registry, Found> {
    let linked = Registry::linked().map_err(|e| (Rule::Registered, describe(&e)))?;
    if linked.policies().iter().any(|p| p.name == DEFAULT_POLICY) {
        return Ok(linked);
    }
    let place = Place { package: env!("CARGO_PKG_NAME"), version: crate::VERSION, core: crate::VERSION, file: file!(), line: line!() };
    let mut policies = linked.policies().to_vec();
    policies.push(PolicyEntry { name: DEFAULT_POLICY, ..PolicyEntry::of::<AsIsConfig>(place) });
    Registry::new(linked.strategies().to_vec(), policies).map_err(|e| (Rule::Registered, describe(&e)))
}

/// A finding in one line, with its place and its advice.
pub(super) fn describe(diagnostic: &Diagnostic) -> String {
    let at = diagnostic.at.as_ref().map(|at| format!(" (line {}, column {})", at.line, at.column)).unwrap_or_default();
    let help = diagnostic.help.as_deref().map(|help| format!("; {help}")).unwrap_or_default();
    format!("{}{at}{help}", diagnostic.message)
}

fn indented(yaml: &str, by: usize) -> String {
    yaml.lines().filter(|line| !line.trim().is_empty()).map(|line| format!("{:by$}{line}\n", "")).collect()
}

/// The policy of a binary that links none: every parameter as the checkpoint has it.
#[derive(Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct AsIsConfig {}

#[derive(Debug)]
struct AsIs;

impl PrecisionPolicy for AsIs {
    fn decide(&self, param: &TensorMeta, _trainable: bool) -> Precision {
        Precision::uniform(param.dtype)
    }
}

impl PolicyConfig for AsIsConfig {
    const NAME: &'static str = "testkit/as-is";
    const SUMMARY: &'static str = "as the checkpoint has it";

    fn build(self, _: &mut PolicyContext<'_>) -> Result<BuiltPolicy, Diagnostic> {
        let summary = PrecisionSummary::of_words("checkpoint", "checkpoint", "checkpoint", "as-is", "as the checkpoint has it");
        Ok(BuiltPolicy::new(AsIs, summary))
    }
}
