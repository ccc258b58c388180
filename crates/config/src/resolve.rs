//! The second phase: with the files, the model's facts and the world size at hand, everything is decided, and every problem is said.

mod plugins;
mod trainable;
mod training;
mod world;
mod write;

use std::collections::BTreeMap;

use shardwright_core::{
    Globs, Mesh, ModelFacts, PrecisionPolicy, ShardStrategy, Trainable,
    diagnostic::{Diagnostic, Location, Severity, Source},
    document::Document,
    registry::Registry,
    strategy_config::{Dialect, Unresolved},
};

use crate::{
    accelerate, checks,
    draft::Draft,
    elsewhere,
    keys::{EXTRA, KEYS, Values},
    released, resolved,
    settings::{IoSettings, TransformersVersion},
    starts::{Look, Opens},
};

/// What the shell found for a draft.
#[derive(Clone, Debug, Default)]
pub struct Supplied {
    /// The files that the draft named, by the name it gave: their text, or why there is none.
    pub files: BTreeMap<String, Result<Source, String>>,
    /// What the model's config.json says; `None` when it is not at hand.
    pub model: Option<ModelFacts>,
    /// Ranks, as the launcher or the command line says; `None` for a single process.
    pub world_size: Option<u32>,
    /// Whether `world_size` is from `--world-size`.
    pub world_size_is_flag: bool,
}

/// What became of a draft.
#[derive(Debug)]
pub struct Outcome {
    /// Everything decided; `None` where there is an error.
    pub resolved: Option<Resolved>,
    /// Errors and warnings, by place.
    pub diagnostics: Vec<Diagnostic>,
    /// The texts that places point into.
    pub sources: Vec<Source>,
}

/// A decided config.
#[derive(Debug)]
#[non_exhaustive]
pub struct Resolved {
    /// Decides layout.
    pub strategy: Box<dyn ShardStrategy>,
    /// Decides dtypes.
    pub precision: Box<dyn PrecisionPolicy>,
    /// All ranks.
    pub mesh: Mesh,
    /// Which parameters the optimizer changes.
    pub trainable: Trainable,
    /// Float tensors that are buffers.
    pub buffers: Globs,
    /// Modules whose parameters form a group of their own.
    pub units: Globs,
    /// Checkpoint tensors that are left out.
    pub exclude: Globs,
    /// The text of `shardwright.architecture`.
    pub architecture: Option<Source>,
    /// The version of transformers that the model is built with; `None` for the newest that is known.
    pub transformers: Option<TransformersVersion>,
    /// A directory or a hub id, as written.
    pub model: String,
    /// How files are read.
    pub io: IoSettings,
    /// Where shards are placed, if the config says.
    pub device: Option<String>,
    /// Values that the texts at hand do not decide. `load` refuses while there is one.
    pub unresolved: Vec<Unresolved>,
    /// Every value with where it is from.
    pub document: Document,
    /// What a training with this config opens.
    opens: Option<Opens>,
}

impl Resolved {
    /// What keeps LLaMA-Factory from starting to train with this config: no dataset, or paths where nothing lies that it could open. With the
    /// texts that places point into.
    #[doc(hidden)]
    pub fn start_findings(&self, look: &dyn Look) -> (Vec<Diagnostic>, Vec<Source>) {
        self.opens.as_ref().map(|opens| opens.findings(look)).unwrap_or_default()
    }

    /// What a load cannot do without and nothing at hand decides.
    pub fn undecided(&self) -> Vec<Diagnostic> {
        let error = |open: &Unresolved| {
            let name = open.pointer.trim_start_matches('/').replace('/', ".");
            Diagnostic::error("not-decided", format!("{name} is not decided: it needs {}", open.needs)).at(open.at.clone())
        };
        self.unresolved.iter().map(error).collect()
    }
}

/// Warnings that are of no use where there are errors.
#[doc(hidden)]
pub const ADVICE: [&str; 2] = [checks::INIT_HOLDS_MODEL, "deepspeed-not-saved"];

impl Outcome {
    /// Adds findings in their places. Where there is an error, nothing is decided.
    #[doc(hidden)]
    pub fn add(&mut self, findings: Vec<Diagnostic>) {
        let found = &mut self.diagnostics;
        found.extend(findings);
        found.sort_by_key(|d| (d.severity, d.at.as_ref().map(|at| (at.file.clone(), at.span.start)), d.code));
        found.dedup();
        if found.iter().any(|d| d.severity == Severity::Error) {
            // Advice on a training that would start, beside what keeps it from starting.
            found.retain(|d| !ADVICE.contains(&d.code));
            self.resolved = None;
        }
    }

    /// True where an error was found.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|d| d.severity == Severity::Error)
    }
}

impl Draft {
    /// Decides everything.
    pub fn resolve(self, supplied: &Supplied, registry: &Registry) -> Outcome {
        let mut supplied = supplied.clone();
        if let (None, Some(document)) = (&supplied.model, &self.document) {
            supplied.model = resolved::facts(document);
        }
        let supplied = &supplied;
        let mut sources = self.sources.clone();
        sources.extend(supplied.files.values().filter_map(|f| f.as_ref().ok().cloned()));
        let mut resolver = Resolver { supplied, registry, diagnostics: Vec::new(), document: Document::default(), unresolved: Vec::new() };
        let mut resolved = resolver.run(&self);
        let mut diagnostics = self.diagnostics;
        diagnostics.append(&mut resolver.diagnostics);
        if let Some(document) = &self.document {
            // Every key is written out in a resolution; what is odd about that has been said when it was made.
            diagnostics.retain(|d| d.severity == Severity::Error);
            if let Some(resolved) = &mut resolved {
                resolved::carry_over(document, &mut resolved.document);
            }
        }
        let strategy = self.sections.get("dist_config").map(|s| s.name.as_str());
        let files = supplied.files.values().filter_map(|f| f.as_ref().ok().map(|source| &*source.name)).collect();
        elsewhere::Scope { dialect: self.dialect, strategy, registry, files }.tell(&mut diagnostics);
        if self.dialect == Dialect::LlamaFactory {
            released::passed_over(&self.sections, &mut diagnostics);
        }
        if self.dialect == Dialect::Accelerate {
            let stage = resolved.as_ref().and_then(|r| r.document.get("/deepspeed/zero_optimization/stage")?.as_i64());
            if stage.is_some_and(|stage| stage != 3) {
                diagnostics.retain(|d| d.code != accelerate::INIT_FLAG);
            }
            accelerate::in_users_words(&mut diagnostics, self.original.as_ref(), &sources[..2]);
        }
        let mut outcome = Outcome { resolved, diagnostics: Vec::new(), sources };
        outcome.add(diagnostics);
        outcome
    }
}

struct Resolver<'a> {
    supplied: &'a Supplied,
    registry: &'a Registry,
    diagnostics: Vec<Diagnostic>,
    document: Document,
    unresolved: Vec<Unresolved>,
}

impl Resolver<'_> {
    fn error(&mut self, code: &'static str, message: impl Into<Box<str>>, at: Option<Location>) {
        self.diagnostics.push(Diagnostic::error(code, message).at(at));
    }

    fn run(&mut self, draft: &Draft) -> Option<Resolved> {
        let (settings, policy) = self.settings(draft);
        let keys: Vec<_> = KEYS.iter().chain(EXTRA).copied().collect();
        let values = Values::read(&draft.root, &keys, "", &mut self.diagnostics);
        let world = self.world(draft);
        let mesh = self.mesh(&values, &world);
        let training = self.training(draft, &values, &settings, world);
        checks::run(draft, &values, &training, self.supplied.model.as_ref(), &mut self.diagnostics);
        let trainable = self.trainable(draft, &training);
        let built = mesh.as_ref().and_then(|mesh| self.strategy(draft, &training, &settings, mesh));
        let (Some(mesh), Some(mut built)) = (mesh, built) else {
            self.only_check(policy.as_ref());
            return None;
        };
        let name = built.strategy.name().to_owned();
        let precision = self.precision(&name, policy, built.precision.take(), &training, &settings)?;
        self.unheeded(draft, &settings, &built, &precision);
        // Nobody sees the values of a config that is refused.
        if !draft.has_errors() && !self.diagnostics.iter().any(|d| d.severity == Severity::Error) {
            self.write(draft, &values, &settings, &training, &mesh, &name, &precision, built.shown);
        }
        self.document.merge(built.document);
        Some(Resolved {
            strategy: built.strategy,
            precision: precision.policy,
            mesh,
            trainable,
            buffers: settings.buffers,
            units: settings.units,
            exclude: settings.exclude,
            architecture: settings.architecture.and_then(|name| self.supplied.files.get(&name)?.as_ref().ok().cloned()),
            transformers: settings.engines.transformers,
            model: draft.model(),
            io: settings.io,
            device: settings.device,
            unresolved: std::mem::take(&mut self.unresolved),
            document: std::mem::take(&mut self.document),
            opens: Opens::of(draft),
        })
    }
}
