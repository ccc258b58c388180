//! The second phase: with the files, the model's facts and the world size at hand, everything is decided, and every problem is said.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::{
    accelerate, checks, de,
    document::{Document, Origin, Sourced},
    draft::{Draft, variable},
    keys::{EXTRA, KEYS, Kind, Values},
    node::Node,
    resolved,
    sections::{self, Section},
    settings::{IoSettings, Settings},
};
use crate::{
    DType, Globs, Mesh, ModelFacts, PrecisionPolicy, ShardStrategy, Trainable,
    diagnostic::{COMMAND_LINE, Diagnostic, Location, Severity, Source},
    registry::Registry,
    replicate::Replicate,
    strategy_config::{BuildContext, Built, BuiltPolicy, Dialect, Init, Mixed, PolicyContext, Training, Tuning, Unresolved},
};

/// The name of the policy that decides where nothing else does.
pub const DEFAULT_POLICY: &str = "mixed";

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
    /// Modules that are a unit each.
    pub units: Globs,
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
}

impl Outcome {
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
        diagnostics.sort_by_key(|d| (d.severity, d.at.as_ref().map(|at| (at.file.clone(), at.span.start)), d.code));
        diagnostics.dedup();
        if diagnostics.iter().any(|d| d.severity == Severity::Error) {
            resolved = None;
        }
        Outcome { resolved, diagnostics, sources }
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
        let mesh = self.mesh(&values, &world)?;
        let training = self.training(draft, &values, &settings, world);
        checks::run(draft, &values, &training, self.supplied.model.as_ref(), &mut self.diagnostics);
        let trainable = self.trainable(draft, &training);
        let built = self.strategy(draft, &training, &settings, &mesh)?;
        let name = built.strategy.name().to_owned();
        let precision = self.precision(&name, policy, built.precision, &training, &settings)?;
        self.write(draft, &values, &settings, &training, &mesh, &name, &precision, built.shown);
        self.document.merge(built.document);
        Some(Resolved {
            strategy: built.strategy,
            precision: precision.policy,
            mesh,
            trainable,
            buffers: settings.buffers,
            units: settings.units,
            model: draft.model(),
            io: settings.io,
            device: settings.device,
            unresolved: std::mem::take(&mut self.unresolved),
            document: std::mem::take(&mut self.document),
        })
    }

    /// `shardwright: {…}` and, apart from it, `shardwright.precision`.
    fn settings(&mut self, draft: &Draft) -> (Settings, Option<Section>) {
        let Some(node) = draft.root.get("shardwright").filter(|n| !n.is_null()) else { return Default::default() };
        let policy = sections::read(node.get("precision"), "shardwright.precision", &draft.sources, &mut self.diagnostics);
        let policy = policy.unwrap_or_else(|error| {
            self.diagnostics.push(error);
            None
        });
        let settings = de::from_node::<Settings>(&node.without("precision"), "shardwright").unwrap_or_else(|errors| {
            self.diagnostics.extend(errors);
            Settings::default()
        });
        (settings, policy)
    }

    fn world(&mut self, draft: &Draft) -> Sourced<u32> {
        let in_document = draft.document.as_ref().and_then(|root| root.find(&["mesh", "world_size"]));
        let in_file = draft.original.as_ref().and_then(|root| root.get("num_processes"));
        let written = in_document.or(in_file).filter(|n| !n.is_null());
        let processes = written.and_then(|n| {
            let count = de::integer(n).and_then(|i| u32::try_from(i).ok()).filter(|n| *n > 0);
            if count.is_none() {
                self.error(
                    "config-value",
                    format!("number of processes: expected a positive integer, found {}", n.describe()),
                    Some(n.at.clone()),
                );
            }
            Some(Sourced { value: count?, origin: Origin::Written(n.at.clone()) })
        });
        let Some(size) = self.supplied.world_size else { return processes.unwrap_or(Sourced::default(1)) };
        if let Some(processes) = processes.filter(|p| p.value != size) {
            let message = format!("the file is for {} processes, but the world has {size} ranks, and that counts", processes.value);
            self.diagnostics.push(Diagnostic::warning("world-disagrees", message).at(processes.location()));
        }
        let flag = Source::new(COMMAND_LINE, format!("--world-size {size}"));
        let from_env = || ["WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"].iter().find_map(|name| variable(&draft.sources[2], name));
        let at = if self.supplied.world_size_is_flag { None } else { from_env() };
        if size == 0 {
            self.error("world-size", "the world size is 0, expected at least 1", None);
        }
        Sourced { value: size.max(1), origin: Origin::Written(at.unwrap_or_else(|| flag.at(0..flag.text.len()))) }
    }

    /// The model's mesh, as LLaMA-Factory's `DistributedStrategy` checks it.
    fn mesh(&mut self, values: &Values, world: &Sourced<u32>) -> Option<Mesh> {
        let replicate = values.uint("mp_replicate_size");
        let shard = values.uint("mp_shard_size");
        let pair = [("mp_replicate_size", &replicate), ("mp_shard_size", &shard)];
        let (replicate, shard) = self.product(world, pair);
        // An outcome without a mesh says why: a failure without a word would be all that is left.
        Mesh::replicate_shard(replicate, shard).map_err(|why| self.error("mesh-product", why, world.location())).ok()
    }

    /// Two sizes whose product is the world; the second is inferred where it is not given.
    fn product(&mut self, world: &Sourced<u32>, pair: [(&str, &Sourced<Option<u64>>); 2]) -> (u32, u32) {
        let [(first_name, first), (second_name, second)] = pair;
        let total = u64::from(world.value);
        let size = first.value.unwrap_or(1);
        let at = [first, second].into_iter().find_map(Sourced::location);
        let fits = |n: u64| u32::try_from(n).unwrap_or(1);
        if self.supplied.world_size.is_none() && world.origin == Origin::Default {
            if size > 1 || second.value.is_some_and(|s| s > 1) {
                let message = format!("{first_name} and {second_name} have no effect in a single process; the world size is 1");
                let help = "give --world-size, or start it with torchrun";
                self.diagnostics.push(Diagnostic::warning("mesh-single-process", message).at(at).help(help));
            }
            return (1, 1);
        }
        match second.value {
            Some(other) if size.checked_mul(other) != Some(total) => {
                let message = format!("{first_name} times {second_name} is {size} times {other}, expected the world size {total}");
                self.error("mesh-product", message, at);
                (1, world.value)
            }
            Some(other) => (fits(size), fits(other)),
            None if size == 0 || !total.is_multiple_of(size) => {
                self.error("mesh-product", format!("the world size {total} is not divisible by {first_name}, which is {size}"), at);
                (1, world.value)
            }
            None => (fits(size), fits(total / size)),
        }
    }

    fn training(&mut self, draft: &Draft, values: &Values, settings: &Settings, world: Sourced<u32>) -> Training {
        let pair = [("cp_size", &values.uint("cp_size")), ("dp_size", &values.uint("dp_size"))];
        let (cp, dp) = self.product(&world, pair);
        let dp_origin = match &values.uint("dp_size").origin {
            Origin::Written(at) => Origin::Written(at.clone()),
            _ => Origin::rule("world_size / cp_size", ["/mesh/world_size", "/mesh/cp"]),
        };
        let mixed = match &draft.original {
            None => {
                let bf16 = values.bool("bf16");
                Sourced { value: if bf16.value { Mixed::Bf16 } else { Mixed::No }, origin: bf16.origin }
            }
            Some(root) => {
                let (value, at) = accelerate::mixed(root, &mut self.diagnostics);
                Sourced { value, origin: at.map_or(Origin::Default, Origin::Written) }
            }
        };
        let known = draft.dialect == Dialect::LlamaFactory;
        let only = |value: Sourced<Option<f64>>| if known { value } else { Sourced::default(None) };
        let setting = |key: &str| draft.root.find(&["shardwright", key]).map_or(Origin::Default, |n| Origin::Written(n.at.clone()));
        Training {
            dialect: draft.dialect,
            mixed,
            tuning: self.tuning(draft, settings),
            model_dtype: self.model_dtype(values),
            init: self.init(draft),
            dp_size: Sourced { value: dp, origin: dp_origin },
            cp_size: Sourced { value: cp, origin: values.uint("cp_size").origin },
            micro_batch_size: {
                let v = values.uint("micro_batch_size");
                Sourced { value: v.value.unwrap_or(1), origin: v.origin }
            },
            global_batch_size: values.uint("global_batch_size"),
            accumulation: Sourced::default(None),
            max_grad_norm: only(values.float("max_grad_norm")),
            learning_rate: only(values.float("learning_rate")),
            zero3_fp16: Sourced { value: settings.zero3_fp16, origin: setting("zero3_fp16") },
            world_size: world,
        }
    }

    fn tuning(&mut self, draft: &Draft, settings: &Settings) -> Sourced<Tuning> {
        if settings.inference {
            let at = draft.root.find(&["shardwright", "inference"]).map(|n| n.at.clone());
            return Sourced { value: Tuning::Inference, origin: at.map_or(Origin::Default, Origin::Written) };
        }
        let Some(section) = draft.sections.get("peft_config") else { return Sourced::default(Tuning::Full) };
        let value = match section.name.as_str() {
            "lora" => Tuning::Lora,
            "freeze" => {
                Tuning::Freeze { cast_trainable: section.body.get("cast_trainable_params_to_fp32").and_then(Node::as_bool).unwrap_or(true) }
            }
            other => {
                let message = format!("peft_config.name: expected lora or freeze, found '{}'", super::node::short(other));
                self.error("config-value", message, Some(section.name_at.clone()));
                Tuning::Full
            }
        };
        Sourced { value, origin: Origin::Written(section.name_at.clone()) }
    }

    fn model_dtype(&mut self, values: &Values) -> Sourced<Option<DType>> {
        let (new, old) = (values.text("dtype"), values.text("torch_dtype"));
        if let (Some(_), Some(_), Some(at), Some(first)) = (&new.value, &old.value, old.location(), new.location()) {
            self.diagnostics.push(
                Diagnostic::error("dtype-twice", "torch_dtype is the older spelling of dtype, and both are given")
                    .at(at)
                    .and(first, "dtype here"),
            );
        }
        let written = if new.value.is_some() { new } else { old };
        let Some(text) = &written.value else { return Sourced::default(None) };
        let dtype = DType::from_spelling(text).filter(|d| d.is_float());
        if dtype.is_none() && text != "auto" {
            let message = format!("dtype: expected auto, float32, bfloat16 or float16, found '{}'", super::node::short(text));
            self.error("config-value", message, written.location());
        }
        Sourced { value: dtype, origin: written.origin }
    }

    fn init(&mut self, draft: &Draft) -> Sourced<Init> {
        let Some(section) = draft.sections.get("init_config") else { return Sourced::default(Init::Default) };
        let value = match section.name.as_str() {
            "init_on_meta" => Init::Meta,
            "init_on_rank0" => Init::Rank0,
            "init_on_default" => Init::Default,
            other => {
                let message = format!(
                    "init_config.name: expected init_on_meta, init_on_rank0 or init_on_default, found '{}'",
                    super::node::short(other)
                );
                self.error("config-value", message, Some(section.name_at.clone()));
                Init::Default
            }
        };
        Sourced { value, origin: Origin::Written(section.name_at.clone()) }
    }

    fn trainable(&mut self, draft: &Draft, training: &Training) -> Trainable {
        match training.tuning.value {
            Tuning::Full => Trainable::All,
            Tuning::Lora | Tuning::Inference => Trainable::None,
            Tuning::Freeze { .. } => self.freeze(draft),
        }
    }

    /// The parameters that LLaMA-Factory's freeze leaves trainable, by name.
    fn freeze(&mut self, draft: &Draft) -> Trainable {
        let Some(section) = draft.sections.get("peft_config") else { return Trainable::All };
        let body = &section.body;
        let list = |key: &str, default: &[&str]| -> Vec<String> {
            match body.get(key) {
                None => default.iter().map(|&s| s.to_owned()).collect(),
                Some(node) => match (&node.value, node.as_str()) {
                    (_, Some(text)) => text.split(',').map(|s| s.trim().to_owned()).collect(),
                    (super::node::Value::Seq(items), _) => items.iter().filter_map(|i| i.as_str().map(str::to_owned)).collect(),
                    _ => Vec::new(),
                },
            }
        };
        let count = body.get("freeze_trainable_layers").and_then(de::integer).unwrap_or(2);
        let Some(layers) = self.supplied.model.as_ref().and_then(|m| m.num_layers) else {
            let needs = "num_hidden_layers of the model's config.json";
            let pointer = "/training/peft_config/freeze_trainable_layers".to_owned();
            self.unresolved.push(Unresolved { pointer, needs: needs.to_owned(), at: Some(section.name_at.clone()) });
            return Trainable::None;
        };
        let total = i128::from(layers);
        let ids = if count > 0 { (total - count).max(0)..total } else { 0..(-count).min(total) };
        let mut patterns = Vec::new();
        for module in list("freeze_trainable_modules", &["all"]) {
            let rest = if module == "all" { "*".to_owned() } else { format!("{}*", escape(&module)) };
            patterns.extend(ids.clone().map(|id| format!("*.{id}.{rest}")));
        }
        patterns.extend(list("freeze_extra_modules", &[]).iter().filter(|m| !m.is_empty()).map(|m| format!("*{}*", escape(m))));
        match Globs::new(patterns) {
            Ok(globs) => Trainable::Matching(globs),
            Err(error) => {
                self.error("config-value", format!("peft_config: {error}"), Some(section.body.at.clone()));
                Trainable::None
            }
        }
    }

    fn strategy(&mut self, draft: &Draft, training: &Training, settings: &Settings, mesh: &Mesh) -> Option<Built> {
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
        let config = (entry.parse)(&strategy.section.body, "dist_config").ok()?;
        let mut cx = BuildContext {
            section: &strategy.section.body,
            mesh,
            model: self.supplied.model.as_ref(),
            training,
            storage: settings.storage_dtype.map(|s| s.0),
            files: &files,
            diagnostics: Vec::new(),
            unresolved: Vec::new(),
        };
        let built = config.build(&mut cx);
        let BuildContext { diagnostics, unresolved, .. } = cx;
        self.diagnostics.extend(diagnostics);
        self.unresolved.extend(unresolved);
        built.map_err(|error| self.diagnostics.push(error)).ok()
    }

    fn precision(
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
    fn policy(
        &mut self,
        name: &str,
        section: &Node,
        at: Option<&Location>,
        strategy: &str,
        training: &Training,
        settings: &Settings,
        base: Option<BuiltPolicy>,
    ) -> Option<BuiltPolicy> {
        let config = match self.registry.policy(name).map(|entry| (entry.parse)(section, "shardwright.precision")) {
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
        let storage = settings.storage_dtype.map(|s| s.0);
        let mut cx =
            PolicyContext { section, strategy, model: self.supplied.model.as_ref(), training, storage, base, diagnostics: Vec::new() };
        let built = config.build(&mut cx);
        let diagnostics = cx.diagnostics;
        self.diagnostics.extend(diagnostics);
        built.map_err(|error| self.diagnostics.push(error)).ok()
    }

    #[expect(clippy::too_many_arguments, reason = "it writes everything down, once")]
    fn write(
        &mut self,
        draft: &Draft,
        values: &Values,
        settings: &Settings,
        training: &Training,
        mesh: &Mesh,
        name: &str,
        precision: &BuiltPolicy,
        shown: bool,
    ) {
        let d = &mut self.document;
        let dialect = match draft.dialect {
            Dialect::LlamaFactory => "llamafactory",
            Dialect::Accelerate => "accelerate",
        };
        d.set(&["dialect"], dialect, Origin::rule("told by the file's keys", [] as [&str; 0]));
        write_model(d, draft, values, self.supplied.model.as_ref());
        let section = draft.strategy.as_ref().map(|s| &s.section);
        let name_origin = section.map_or(Origin::Default, |s| Origin::Written(s.name_at.clone()));
        d.set(&["strategy", "name"], name, name_origin);
        let config = draft.strategy.as_ref().filter(|_| !shown).map_or_else(|| Json::Object(Default::default()), |s| s.config.to_json());
        d.set_section(&["strategy", "config"], &config, section.map(|s| &s.body));
        let s = &precision.summary;
        let origin = || Origin::rule(s.rule.clone(), s.from.iter().cloned());
        for (key, value) in [("storage", &s.storage), ("compute", &s.compute), ("reduce", &s.reduce), ("output", &s.output)] {
            d.set(&["precision", key], value.clone(), origin());
        }
        d.set(&["precision", "rule"], s.rule.clone(), Origin::rule(s.why.clone(), s.from.iter().cloned()));
        d.set(&["mesh", "world_size"], training.world_size.value, training.world_size.origin.clone());
        for axis in mesh.axes() {
            let key = format!("{}_size", axis.name);
            let origin = match values.uint(&key).origin {
                Origin::Default if axis.name == crate::mesh::MP_SHARD => {
                    Origin::rule("world_size / mp_replicate_size", ["/mesh/world_size", "/mesh/mp_replicate"])
                }
                origin => origin,
            };
            d.set(&["mesh", &axis.name], axis.size, origin);
        }
        d.set(&["mesh", "dp"], training.dp_size.value, training.dp_size.origin.clone());
        d.set(&["mesh", "cp"], training.cp_size.value, training.cp_size.origin.clone());
        write_batch(d, training);
        if let Some(root) = &draft.original {
            for entry in root.entries().iter().filter(|e| !matches!(e.key.as_str(), "shardwright" | "dtype" | "torch_dtype")) {
                d.set_node(&["training", &entry.key], &entry.value);
            }
            let mixed = match training.mixed.value {
                Mixed::No => "no",
                Mixed::Bf16 => "bf16",
                Mixed::Fp16 => "fp16",
            };
            if root.get("mixed_precision").and_then(Node::as_str) != Some("fp8") {
                d.set(&["training", "mixed_precision"], mixed, training.mixed.origin.clone());
            }
        }
        let flat = draft.original.is_none();
        for key in KEYS.iter().filter(|k| flat && k.kind != Kind::Section) {
            let value = values.json(key.name);
            d.set(&["training", key.name], value.value, value.origin);
        }
        if flat {
            let dtype = training.model_dtype.value.map(DType::torch_name);
            d.set(&["training", "dtype"], dtype, training.model_dtype.origin.clone());
        }
        for key in KEYS.iter().filter(|k| flat && k.kind == Kind::Section && k.name != "dist_config") {
            match draft.sections.get(key.name) {
                None => d.set(&["training", key.name], Json::Null, Origin::Default),
                Some(section) => {
                    d.set(&["training", key.name, "name"], section.name.clone(), Origin::Written(section.name_at.clone()));
                    for inner in checks::keys_of(key.name, &section.name) {
                        let default = serde_json::from_str::<Json>(inner.default).unwrap_or(Json::Null);
                        d.set(&["training", key.name, inner.name], default, Origin::Default);
                    }
                    for entry in section.body.entries() {
                        d.set_node(&["training", key.name, &entry.key], &entry.value);
                    }
                }
            }
        }
        let json = serde_json::to_value(settings).unwrap_or(Json::Null);
        d.set_section(&["shardwright"], &json, draft.root.get("shardwright"));
        if let Some(policy) = draft.root.find(&["shardwright", "precision"]) {
            d.set_node(&["shardwright", "precision"], policy);
        }
    }
}

fn write_model(d: &mut Document, draft: &Draft, values: &Values, facts: Option<&ModelFacts>) {
    let model = values.text("model");
    let name = Some(draft.model()).filter(|name| !name.is_empty());
    d.set(&["model", "name"], name, model.origin);
    let known = |value: Json| match (facts, value) {
        (None, _) => (Json::Null, Origin::rule("the model's config.json is not at hand", [] as [&str; 0])),
        (Some(_), Json::Null) => (Json::Null, Origin::rule("the model's config.json does not say", [] as [&str; 0])),
        (Some(_), value) => (value, Origin::rule("the model's config.json", ["/model/name"])),
    };
    let facts = facts.cloned().unwrap_or_default();
    for (key, value) in [
        ("architecture", facts.architecture.into()),
        ("model_type", facts.model_type.into()),
        ("hidden_size", facts.hidden_size.into()),
        ("num_layers", facts.num_layers.into()),
        ("tie_word_embeddings", facts.tie_word_embeddings.into()),
        ("dtype", facts.dtype.map(DType::torch_name).into()),
    ] {
        let (value, origin) = known(value);
        d.set(&["model", key], value, origin);
    }
}

fn write_batch(d: &mut Document, training: &Training) {
    let micro = &training.micro_batch_size;
    let step = u64::from(training.dp_size.value).saturating_mul(micro.value);
    let (global, global_origin) = match training.global_batch_size.value {
        Some(global) => (global, training.global_batch_size.origin.clone()),
        None => (step, Origin::rule("dp_size * micro_batch_size", ["/mesh/dp", "/batch/micro"])),
    };
    if training.batch_is_unknown() {
        let later = || Origin::rule("the data loader decides when training starts", [] as [&str; 0]);
        d.set(&["batch", "micro"], Json::Null, later());
        d.set(&["batch", "accumulation"], Json::Null, later());
        return d.set(&["batch", "global"], Json::Null, later());
    }
    d.set(&["batch", "micro"], micro.value, micro.origin.clone());
    let rule = Origin::rule("global / (dp * micro)", ["/batch/global", "/mesh/dp", "/batch/micro"]);
    d.set(&["batch", "accumulation"], global / step.max(1), rule);
    d.set(&["batch", "global"], global, global_origin);
}

/// A module name as a glob that matches it alone.
fn escape(name: &str) -> String {
    name.chars().flat_map(|c| if "*?[]{}\\!".contains(c) { vec!['[', c, ']'] } else { vec![c] }).collect()
}
