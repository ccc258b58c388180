//! The first phase: the texts at hand are read, and the draft says what else it needs: files, and the model's config.json. No value of a
//! draft can be used; `resolve` turns it into a [`Resolved`](super::Resolved).

use std::collections::BTreeMap;

use shardwright_core::{
    diagnostic::{Diagnostic, ENVIRONMENT, Location, Severity, Source},
    registry::{ErasedConfig, Registry},
    strategy_config::Dialect,
    tree::{Entry, Node, TAB, Value, yaml},
};

use crate::{
    accelerate,
    keys::{self, EXTRA, KEYS},
    overrides, released, resolved,
    sections::{self, Section},
    v0,
};

/// What a draft is made of.
#[derive(Clone, Debug)]
pub struct Input {
    /// The YAML.
    pub config: Source,
    /// `KEY=VALUE`, in order.
    pub overrides: Vec<String>,
    /// The environment, or the part of it that matters.
    pub env: BTreeMap<String, String>,
}

/// The parsed strategy section.
pub(super) struct StrategySection {
    pub(super) section: Section,
    pub(super) config: Box<dyn ErasedConfig>,
    /// True where something is wrong with the section: then `section` is what is left of it, and only good for finding more problems.
    pub(super) is_partial: bool,
}

/// A config that is read but not decided.
pub struct Draft {
    pub(super) sources: Vec<Source>,
    pub(super) root: Node,
    /// The file as it is, where `root` is a translation.
    pub(super) original: Option<Node>,
    /// The document, where the file is a resolution.
    pub(super) document: Option<Node>,
    pub(super) dialect: Dialect,
    /// Sections by key, their names taken out.
    pub(super) sections: BTreeMap<&'static str, Section>,
    pub(super) strategy: Option<StrategySection>,
    pub(super) diagnostics: Vec<Diagnostic>,
}

impl std::fmt::Debug for Draft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Draft").field("root", &self.root).field("diagnostics", &self.diagnostics).finish_non_exhaustive()
    }
}

impl Draft {
    /// Reads the texts. What is wrong with them is in [`Draft::diagnostics`].
    pub fn parse(input: &Input, registry: &Registry) -> Self {
        let mut diagnostics = Vec::new();
        let sources = vec![input.config.clone(), overrides::source(&input.overrides), environment(&input.env)];
        let mut root = yaml::parse(&input.config, &mut diagnostics).unwrap_or_else(|error| {
            diagnostics.push(error);
            Node::map(Vec::new(), input.config.at(0..0))
        });
        if accelerate::is_dialect(&root)
            && accelerate::later_counts(&mut diagnostics)
            && let Ok(later) = yaml::parse_later(&input.config, &mut Vec::new())
        {
            root = later;
        }
        if !accelerate::is_dialect(&root) {
            diagnostics.retain(|d| d.code != TAB);
        }
        if !root.is_map() {
            let message = format!("expected a mapping of keys to values, found {}", root.describe());
            diagnostics.push(Diagnostic::error("config-type", message).at(root.at.clone()));
            root = Node::map(Vec::new(), root.at);
        }
        if let Some(key) = deepspeeds_own(&root) {
            let message = format!("expected a training's YAML, found a DeepSpeed config, of which '{}' is a key", key.key);
            let help = "name this file in the YAML: dist_config: {name: deepspeed, config_file: THIS FILE}";
            diagnostics.push(Diagnostic::error("config-of-deepspeed", message).at(key.at.clone()).help(help));
            root = Node::map(Vec::new(), root.at);
        }
        if let Some(older) = v0::recognised(&root) {
            diagnostics.push(older);
            root = Node::map(Vec::new(), root.at);
        }
        overrides::apply(&mut root, &sources[1], &mut diagnostics);
        let mut draft = Self {
            sources,
            root,
            original: None,
            document: None,
            dialect: Dialect::LlamaFactory,
            sections: BTreeMap::new(),
            strategy: None,
            diagnostics,
        };
        if resolved::is_dialect(&draft.root) {
            // JSON's numbers, of which YAML 1.1 makes strings.
            overrides::settle(&mut draft.root);
            let flat = resolved::unpack(&draft.root);
            draft.document = Some(std::mem::replace(&mut draft.root, flat));
        }
        if accelerate::is_dialect(&draft.root) {
            draft.dialect = Dialect::Accelerate;
            let flat = accelerate::translate(&draft.root, &mut draft.diagnostics);
            draft.original = Some(std::mem::replace(&mut draft.root, flat));
        } else {
            let allowed = extra_keys_allowed(&input.env);
            released::unfold(&mut draft.root, &draft.sources);
            if draft.document.is_none() {
                keys::unchecked::refused(&draft.root, &mut draft.diagnostics);
                if !allowed {
                    released::mixed(&draft.root, &mut draft.diagnostics);
                    released::later(&draft.root, &mut draft.diagnostics);
                    draft.own_keys();
                }
            }
            released::translate(&mut draft.root, &mut draft.diagnostics);
            draft.check_keys(allowed);
        }
        if let Some(dist) = draft.document.as_ref().and_then(resolved::dist_config) {
            draft.root.set("dist_config", dist.at.clone(), dist);
        }
        draft.read_sections();
        draft.read_strategy(registry);
        draft
    }

    fn check_keys(&mut self, extra_allowed: bool) {
        let allowed = extra_allowed.then_some("ALLOW_EXTRA_KEYS is set");
        let known = KEYS.iter().chain(EXTRA).map(|k| k.name);
        keys::unknown_keys(&self.root, "", known, allowed, &mut self.diagnostics);
    }

    /// The model's dtype, a key of this program's: what LLaMA-Factory does with it is said, for the file is LLaMA-Factory's too.
    fn own_keys(&mut self) {
        for entry in ["dtype", "torch_dtype"].iter().filter_map(|key| self.root.entry(key)) {
            let message = format!("LLaMA-Factory has no key '{}' and does not start with it: only shardwright knows it", entry.key);
            let help = "for a training leave it out: LLaMA-Factory loads a model in its checkpoint's dtype, and trains it in float32";
            self.diagnostics.push(Diagnostic::warning("key-is-not-llamafactorys", message).at(entry.at.clone()).help(help));
        }
    }

    fn read_sections(&mut self) {
        for key in KEYS.iter().filter(|k| k.kind == keys::Kind::Section) {
            match sections::read(self.root.get(key.name), key.name, &self.sources, &mut self.diagnostics) {
                Ok(Some(section)) => drop(self.sections.insert(key.name, section)),
                Ok(None) => {}
                Err(error) => self.diagnostics.push(error),
            }
        }
    }

    fn read_strategy(&mut self, registry: &Registry) {
        let Some(section) = self.sections.get("dist_config").cloned() else { return };
        let entry = match registry.strategy(&section.name) {
            Ok(entry) => entry,
            Err(error) => return self.diagnostics.push(of_other_engines(&section.name, error).at(section.name_at)),
        };
        if self.dialect == Dialect::LlamaFactory && self.document.is_none() && !LLAMA_FACTORYS.contains(&&*section.name) {
            let message = format!("LLaMA-Factory has no strategy '{}' and does not start with it: only shardwright knows it", section.name);
            let mut warning = Diagnostic::warning("strategy-is-not-llamafactorys", message).at(section.name_at.clone());
            if section.name == "zero3" {
                warning = warning.help(
                    "for a training, put these sections into a JSON file: dist_config: {name: deepspeed, config_file: ds_zero3.json}",
                );
            }
            self.diagnostics.push(warning);
        }
        let (section, found) = match entry.parse(&section.body, "dist_config") {
            Ok(config) => return self.strategy = Some(StrategySection { section, config, is_partial: false }),
            Err(errors) => (without(section, &errors), errors),
        };
        self.diagnostics.extend(found);
        if let Ok(config) = entry.parse(&section.body, "dist_config") {
            self.strategy = Some(StrategySection { section, config, is_partial: true });
        }
    }

    /// Findings so far.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// True where an error was found.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|d| d.severity == Severity::Error)
    }

    /// The texts that places point into.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// Files that the config names, as written there.
    pub fn files(&self) -> Vec<String> {
        let mut files = self.strategy.as_ref().map(|s| s.config.files()).unwrap_or_default();
        files.extend(self.architecture().and_then(Node::as_str).map(str::to_owned));
        files
    }

    /// The file of `shardwright.architecture`.
    pub(super) fn architecture(&self) -> Option<&Node> {
        self.root.find(&["shardwright", "architecture"]).filter(|n| !n.is_null())
    }

    /// The model, as written or by default: a directory or a hub id. Empty where an accelerate YAML names none, which is usual.
    pub fn model(&self) -> String {
        match (self.root.get("model").and_then(Node::as_str), self.dialect) {
            (Some(model), _) => model.to_owned(),
            (None, Dialect::LlamaFactory) => DEFAULT_MODEL.to_owned(),
            (None, Dialect::Accelerate) => String::new(),
        }
    }
}

/// Whether LLaMA-Factory passes over unknown keys.
fn extra_keys_allowed(env: &BTreeMap<String, String>) -> bool {
    let enabled = |v: &String| matches!(v.to_lowercase().as_str(), "true" | "yes" | "on" | "t" | "y" | "1");
    env.get("ALLOW_EXTRA_KEYS").is_some_and(enabled)
}

/// Strategies that both this program and LLaMA-Factory v1 have.
const LLAMA_FACTORYS: [&str; 2] = ["fsdp2", "deepspeed"];

/// What LLaMA-Factory v1 registers beside `fsdp2` and `deepspeed`, named as what it is.
fn of_other_engines(name: &str, unknown: Diagnostic) -> Diagnostic {
    if name != "fsdpturbo" {
        return unknown;
    }
    let message = "fsdpturbo, which later versions of LLaMA-Factory run, is not laid out by shardwright: it cuts experts over a mesh of their own before fsdp2 shards the rest";
    let help = "without expert parallelism the same model is fsdp2: dist_config: {name: fsdp2}, without ep_size and ep_dispatcher";
    Diagnostic::error(unknown.code, message).help(help)
}

/// A section without the entries that something is wrong with.
fn without(mut section: Section, errors: &[Diagnostic]) -> Section {
    if let Value::Map(entries) = &mut section.body.value {
        entries.retain(|e| !errors.iter().filter_map(|d| d.at.as_ref()).any(|at| e.holds(at)));
    }
    section
}

/// The key by which a file is a DeepSpeed config and no YAML of a training.
fn deepspeeds_own(root: &Node) -> Option<&Entry> {
    const KEYS: [&str; 3] = ["zero_optimization", "train_micro_batch_size_per_gpu", "train_batch_size"];
    const TRAININGS: [&str; 4] = ["model", "dist_config", "train_dataset", "output_dir"];
    let find = |key: &str| root.entries().iter().find(|e| e.key == key);
    if TRAININGS.iter().any(|key| find(key).is_some()) { None } else { KEYS.iter().find_map(|key| find(key)) }
}

/// LLaMA-Factory's default.
pub(super) const DEFAULT_MODEL: &str = "Qwen/Qwen3-4B-Instruct-2507";

/// Environment variables that a value can be from.
pub(super) const VARIABLES: &[&str] = &[
    "WORLD_SIZE",
    "SLURM_NTASKS",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "FLUX_JOB_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "JSM_NAMESPACE_SIZE",
    "RANK",
    "SLURM_PROCID",
    "OMPI_COMM_WORLD_RANK",
    "ALLOW_EXTRA_KEYS",
    DS_ACCELERATOR,
];

/// What DeepSpeed runs on, where that is not to be found out by it.
pub(super) const DS_ACCELERATOR: &str = "DS_ACCELERATOR";

fn environment(env: &BTreeMap<String, String>) -> Source {
    let lines: Vec<String> =
        VARIABLES.iter().filter_map(|name| Some(format!("{name}={}", env.get(*name)?.replace(['\n', '\r'], " ")))).collect();
    Source::new(ENVIRONMENT, lines.join("\n"))
}

/// Where the environment sets a variable.
pub(super) fn variable(environment: &Source, name: &str) -> Option<Location> {
    let prefix = format!("{name}=");
    let mut start = 0;
    for line in environment.text.split('\n') {
        if line.starts_with(&prefix) {
            return Some(environment.at(start..start + line.len()));
        }
        start += line.len() + 1;
    }
    None
}
