//! Strategies and policies built through the registry, from a section as a user's YAML has it. The rest of that YAML is LLaMA-Factory's
//! defaults.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::violation::{Found, Rule};
use crate::{
    Mesh, Precision, PrecisionPolicy, TensorMeta,
    diagnostic::{Diagnostic, Severity, Source},
    registry::{DEFAULT_POLICY, Place, PolicyEntry, Registry},
    strategy_config::{BuildContext, Built, BuiltPolicy, PolicyConfig, PolicyContext, PrecisionSummary, Training},
    tree::{Node, yaml},
};

/// Texts by the name that a section gives them.
pub(super) type Files = BTreeMap<String, Source>;

/// A strategy made of its section, with the policy of its own if it has one.
pub(super) fn built(name: &str, section: &str, mesh: &Mesh, files: &Files) -> Result<Built, String> {
    let registry = registry().map_err(|(_, what)| what)?;
    let entry = registry.strategy(name).map_err(|e| describe(&e))?;
    let (section, mut findings) = tree(section)?;
    let config = entry.parse(&section, "dist_config").map_err(|errors| all(&errors))?;
    if let Some(missing) = config.files().into_iter().find(|file| !files.contains_key(file)) {
        return Err(format!("the section names the file '{missing}', which the kit was not given"));
    }
    let training = training(mesh);
    let mut cx = BuildContext::new(&section, mesh, &training, files);
    let built = config.build(&mut cx).map_err(|e| describe(&e))?;
    findings.append(&mut cx.diagnostics);
    sound(findings).map(|()| built)
}

/// A policy made of its section, over a strategy that was made of its own.
pub(super) fn built_policy(name: &str, section: &str, mesh: &Mesh, over: &str, own: Option<BuiltPolicy>) -> Result<BuiltPolicy, String> {
    let registry = registry().map_err(|(_, what)| what)?;
    let training = training(mesh);
    let mut findings = Vec::new();
    let mut build = |name: &str, section: &str, base: Option<BuiltPolicy>| {
        let entry = registry.policy(name).map_err(|e| describe(&e))?;
        let (section, mut warnings) = tree(section)?;
        let config = entry.parse(&section, "shardwright.precision").map_err(|errors| all(&errors))?;
        let mut cx = PolicyContext { base, ..PolicyContext::new(&section, over, &training) };
        let built = config.build(&mut cx).map_err(|e| describe(&e))?;
        findings.append(&mut warnings);
        findings.append(&mut cx.diagnostics);
        Ok::<_, String>(built)
    };
    let base = match own {
        Some(own) => own,
        None => build(DEFAULT_POLICY, "", None)?,
    };
    let built = build(name, section, Some(base))?;
    sound(findings).map(|()| built)
}

fn training(mesh: &Mesh) -> Training {
    let mut training = Training::default();
    training.world_size.value = mesh.world_size();
    training.dp_size.value = mesh.world_size();
    training
}

/// A section's text, and what is odd about it.
fn tree(text: &str) -> Result<(Node, Vec<Diagnostic>), String> {
    let mut warnings = Vec::new();
    let node = yaml::parse(&Source::new("section.yaml", text), &mut warnings).map_err(|e| describe(&e))?;
    Ok((node, warnings))
}

fn sound(findings: Vec<Diagnostic>) -> Result<(), String> {
    let errors: Vec<Diagnostic> = findings.into_iter().filter(|d| d.severity == Severity::Error).collect();
    if errors.is_empty() { Ok(()) } else { Err(all(&errors)) }
}

fn all(errors: &[Diagnostic]) -> String {
    errors.iter().map(describe).collect::<Vec<_>>().join("; ")
}

/// What is linked, and a policy of the kit's own where a binary has no default one.
pub(super) fn registry() -> Result<Registry, Found> {
    let linked = Registry::linked().map_err(|e| (Rule::Registered, describe(&e)))?;
    if linked.policies().iter().any(|p| p.name == DEFAULT_POLICY) {
        return Ok(linked);
    }
    let place = Place { package: env!("CARGO_PKG_NAME"), version: crate::VERSION, core: crate::VERSION, file: file!(), line: line!() };
    let mut policies = linked.policies().to_vec();
    policies.push(PolicyEntry::of::<AsIsConfig>(place));
    Registry::new(linked.strategies().to_vec(), policies).map_err(|e| (Rule::Registered, describe(&e)))
}

/// A finding in one line, with its place and its advice.
pub(super) fn describe(diagnostic: &Diagnostic) -> String {
    let at = diagnostic.at.as_ref().map(|at| format!(" (line {}, column {})", at.line, at.column)).unwrap_or_default();
    let help = diagnostic.help.as_deref().map(|help| format!("; {help}")).unwrap_or_default();
    format!("{}{at}{help}", diagnostic.message)
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
    const NAME: &'static str = DEFAULT_POLICY;
    const SUMMARY: &'static str = "as the checkpoint has it";

    fn build(self, _: &mut PolicyContext<'_>) -> Result<BuiltPolicy, Diagnostic> {
        let summary = PrecisionSummary::of_words("checkpoint", "checkpoint", "checkpoint", "as-is", "as the checkpoint has it");
        Ok(BuiltPolicy::new(AsIs, summary))
    }
}
