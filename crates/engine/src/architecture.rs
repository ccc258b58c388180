//! From a checkpoint to the model as its class has it, by the architecture data; what does not fit is reported before anything is allocated.

mod describe;

use std::{cell::RefCell, collections::BTreeMap, os::unix::fs::FileExt as _};

use serde_json::Value;
use shardwright_arch::{Architecture, Assembled, Missing, Options, Reason, Same, Use};
use shardwright_config::{Resolved, TransformersVersion};
use shardwright_core::{
    Assembly, DType, Globs, Model, ModelFacts, ModelMeta, Modules, Name, TensorKind, TensorMeta,
    diagnostic::{Diagnostic, Source},
    piece, tree,
};

use crate::{
    checkpoint::{Checkpoint, Location, ModelRecord},
    codes,
    error::{EngineError, ErrorKind, Result},
    file::open_regular,
};

pub use describe::{AsModel, Counts, FromTensor, MissingTensor, ModelTensor, UnusedTensor};

/// What the model's class depends on besides the checkpoint.
#[derive(Clone, Debug)]
pub struct ModelOptions<'a> {
    /// `model_class`: llm, cls or other.
    pub class: &'a str,
    /// Checkpoint tensors that are left out.
    pub exclude: &'a Globs,
    /// A tied weight is a parameter of each parameter group that has it.
    pub tied_in_each_group: bool,
    /// Of names that config.json ties and the checkpoint has each, those with other values stay apart, as `from_pretrained` leaves them.
    pub tied_if_equal: bool,
    /// The version of transformers that builds the model; `None` for the newest that is known.
    pub transformers: Option<TransformersVersion>,
    /// An architecture of the user's own, which comes before the built-in data.
    pub architecture: Option<&'a Architecture>,
}

impl<'a> ModelOptions<'a> {
    /// For a class, everything else as by default.
    pub fn new(class: &'a str) -> Self {
        const NONE: &Globs = &Globs::none();
        Self { class, exclude: NONE, tied_in_each_group: false, tied_if_equal: false, transformers: None, architecture: None }
    }

    /// What a config decides.
    pub fn of(resolved: &'a Resolved, architecture: Option<&'a Architecture>) -> Self {
        Self {
            class: resolved.document.get("/training/model_class").and_then(Value::as_str).unwrap_or("llm"),
            exclude: &resolved.exclude,
            tied_in_each_group: resolved.strategy.ties_per_group(),
            // On meta the model is tied before anything is loaded.
            tied_if_equal: resolved.strategy.compares_tied() && !is_made_on_meta(resolved),
            transformers: resolved.transformers,
            architecture,
        }
    }

    fn major(&self) -> u32 {
        self.transformers.map_or(NEWEST, |version| version.major)
    }

    /// Which data decides.
    pub fn source(&self) -> String {
        let data = format!("transformers {}", shardwright_arch::version(self.major()));
        match self.architecture {
            None => data,
            Some(Architecture { like: None, .. }) => "shardwright.architecture".into(),
            Some(Architecture { like: Some(like), .. }) => format!("shardwright.architecture, like '{like}' of {data}"),
        }
    }

    /// Why that data.
    pub fn why(&self) -> String {
        let has = shardwright_arch::version(self.major());
        match self.transformers {
            None => "the newest version of transformers that is known".into(),
            Some(asked) if is_of(asked, &has) => "shardwright.engines.transformers".into(),
            Some(asked) => format!("shardwright.engines.transformers is {asked}; of its major version the data of {has} is at hand"),
        }
    }
}

/// Whether LLaMA-Factory makes the model on the meta device.
pub(crate) fn is_made_on_meta(resolved: &Resolved) -> bool {
    resolved.document.get("/training/init_config/name").is_some_and(|name| name == "init_on_meta")
}

/// The major version of transformers that is taken by default.
const NEWEST: u32 = 5;

fn is_of(asked: TransformersVersion, has: &str) -> bool {
    let minor = has.split('.').nth(1).and_then(|m| m.parse().ok());
    asked.minor.is_none() || asked.minor == minor
}

/// The version of transformers whose classes the data is of, the newest with the major version of `transformers`.
pub fn architecture_version(transformers: Option<TransformersVersion>) -> String {
    shardwright_arch::version(transformers.map_or(NEWEST, |version| version.major))
}

/// The JSON Schema of what [`parse_architecture`] reads.
pub fn architecture_schema() -> Value {
    Architecture::schema()
}

/// Reads an architecture of the user's own, a YAML or JSON.
///
/// # Errors
/// What is wrong with it, each with its place.
pub fn parse_architecture(text: &Source) -> Result<Architecture, Vec<Diagnostic>> {
    let mut found = Vec::new();
    let parse = if text.name.ends_with(".json") { tree::json::parse } else { tree::yaml::parse };
    let node = parse(text, &mut found).map_err(|error| vec![error])?;
    let own: Architecture = tree::from_node(&node, "architecture")?;
    own.check().map_err(|flaw| {
        let keys: Vec<&str> = flaw.key.split(['.', '[']).take(1).collect();
        let at = node.find(&keys).map_or_else(|| node.at.clone(), |n| n.at.clone());
        vec![Diagnostic::error("architecture", format!("architecture.{flaw}")).at(at)]
    })?;
    Ok(own)
}

/// The model, and what a user should know of how it was found.
#[derive(Debug)]
#[non_exhaustive]
pub struct Found {
    /// The model.
    pub model: Model,
    /// Its class, where the architecture is known.
    pub class: Option<String>,
    /// Which data decided.
    pub source: String,
    /// Oddities that do not stop a load.
    pub warnings: Vec<String>,
    /// How it was found.
    pub record: ModelRecord,
}

impl ModelOptions<'_> {
    fn record(&self, source: &str) -> ModelRecord {
        ModelRecord {
            class: self.class.to_owned(),
            exclude: self.exclude.patterns().to_vec(),
            tied_in_each_group: self.tied_in_each_group,
            tied_if_equal: self.tied_if_equal,
            transformers: self.transformers.map(|version| version.to_string()),
            architecture: self.architecture.cloned(),
            source: source.to_owned(),
        }
    }
}

/// Prefixes that a wrapper of the module puts before or into names, and whose they are.
const WRAPPERS: [(&str, &str, bool); 5] = [
    ("_orig_mod.", "torch.compile", false),
    ("_fsdp_wrapped_module.", "FSDP", false),
    ("_checkpoint_wrapped_module.", "activation checkpointing", false),
    ("base_model.model.", "PEFT", true),
    ("module.", "DistributedDataParallel or DeepSpeed", true),
];

impl Checkpoint {
    /// The model that this checkpoint is, by `config.json` and the architecture data.
    ///
    /// # Errors
    /// [`ErrorKind::Checkpoint`] where the checkpoint cannot be that model: quantized weights, shapes that `config.json` contradicts, conversions
    /// that fail, names of which none is the model's.
    pub fn find_model(&self, options: &ModelOptions<'_>) -> Result<Found> {
        let found = self.find_over_names(options)?;
        Ok(Found { model: self.over_parts(found.model)?, ..found })
    }

    /// The same files as the model that [`Checkpoint::find_model`] finds in them, and its warnings. Of a checkpoint in parts, how they make the
    /// tensors is held but once.
    ///
    /// # Errors
    /// As [`Checkpoint::find_model`] and [`Checkpoint::assemble`].
    pub fn into_model(mut self, options: &ModelOptions<'_>) -> Result<(Self, Vec<String>)> {
        let found = self.find_over_names(options)?;
        self.forget_assemblies();
        let model = self.over_parts(found.model)?;
        Ok((self.assemble(model)?.recorded(found.record), found.warnings))
    }

    /// The model of a class that is built already: the first of the `architectures` of `config`, its config in the form of `config.json`. Made of
    /// [`Checkpoint::named`].
    ///
    /// # Errors
    /// As [`Checkpoint::find_model`].
    pub fn find_class(&self, config: &Value, transformers: Option<TransformersVersion>) -> Result<Found> {
        let wanted = config["architectures"][0].as_str();
        let of = |class| self.find_by(Some(config), &ModelOptions { transformers, ..ModelOptions::new(class) });
        let first = of("other");
        if first.as_ref().is_ok_and(|found| found.class.as_deref() == wanted) {
            return first;
        }
        // Some types have classes of another type.
        let found = ["llm", "cls"].into_iter().find_map(|class| of(class).ok().filter(|found| found.class.as_deref() == wanted));
        found.map_or(first, Ok)
    }

    /// As [`Checkpoint::find_model`], made of [`Checkpoint::named`].
    fn find_over_names(&self, options: &ModelOptions<'_>) -> Result<Found> {
        self.find_by(self.config_value().as_ref(), options)
    }

    fn find_by(&self, config: Option<&Value>, options: &ModelOptions<'_>) -> Result<Found> {
        let (sources, facts) = (self.named(), &self.model().facts);
        let mut source = options.source();
        let record = options.record(&source);
        let error = |what: String| EngineError::new(ErrorKind::Checkpoint, what).file(self.dir().join("config.json"));
        if sources.iter().all(|t| t.shape.contains(&0)) {
            let what = "every tensor is empty: it was saved under ZeRO-3 without gathering the parameters";
            let help =
                "save it again with stage3_gather_16bit_weights_on_model_save, or convert the engine's own checkpoint with zero_to_fp32";
            return Err(EngineError::new(ErrorKind::Checkpoint, format!("{what}; {help}")).file(self.dir()));
        }
        let Some(config) = config else {
            let meta = ModelMeta::new(sources.to_vec(), facts.clone()).map_err(|n| error(format!("'{n}' occurs twice")))?;
            return Ok(Found { model: Model::identity(meta), class: None, source: "no config.json".into(), warnings: Vec::new(), record });
        };
        self.refuse_quantized(config)?;
        let class = match options.class {
            "cls" => Use::Cls,
            "other" => Use::Other,
            _ => Use::Llm,
        };
        let failed = RefCell::new(None);
        let same = |a: u32, b: u32| self.same_bytes(a, b).unwrap_or_else(|e| failed.replace(Some(e)).is_none());
        // transformers 4 ties whatever there is; parts of an engine's own checkpoint are of tied weights.
        let compares = options.tied_if_equal && options.major() >= 5 && self.is_safetensors();
        let wanted = Options {
            class,
            exclude: options.exclude,
            tied_in_each_group: options.tied_in_each_group,
            same: compares.then_some(Same(&same)),
            transformers: options.major(),
            own: options.architecture,
        };
        let assembled = shardwright_arch::assemble(sources, config, &wanted);
        if let Some(error) = failed.take() {
            return Err(error);
        }
        let mut warnings = Vec::new();
        self.wrapped(&assembled, &mut warnings)?;
        if let Some(first) = assembled.misfits.first() {
            let more = match assembled.misfits.len() - 1 {
                0 => String::new(),
                n => format!(", and {n} more parameters do not fit"),
            };
            return Err(error(format!("the checkpoint is not the model that config.json describes: {first}{more}")));
        }
        let has = shardwright_arch::version(options.major());
        if let Some(asked) = options.transformers.filter(|&asked| !is_of(asked, &has)) {
            warnings.push(format!(
                "shardwright.engines.transformers is {asked}, but the architectures are those of {has}: check names if they differ"
            ));
        }
        if assembled.class.is_none() {
            warnings.extend(unknown(config, &source, options.major()));
        }
        warnings.extend(left_over(&assembled, sources));
        warnings.extend(missing(&assembled));
        warnings.extend(untied(&assembled, &has));
        let (class, known) = (assembled.class.clone(), assembled.class.is_some());
        if let Some(other) = assembled.version.as_ref().filter(|version| **version != has && options.architecture.is_none()) {
            source = format!("transformers {other}, which converts nothing of it, so that {has} builds it alike");
        }
        let model = model_of(assembled, facts).map_err(|n| error(format!("'{n}' would be made twice")))?;
        let source = if known { source } else { "the checkpoint's tensors".into() };
        Ok(Found { model, class, source, warnings, record })
    }

    /// The same files as the model that [`Checkpoint::find_model`] found in them.
    ///
    /// # Errors
    /// As [`Checkpoint::assemble`].
    pub fn with_model(self, found: Found) -> Result<Self> {
        Ok(self.assemble(found.model)?.recorded(found.record))
    }

    /// The same files as the model that a save of them recorded; as the tensors that they are where it recorded none.
    ///
    /// # Errors
    /// As [`Checkpoint::find_model`] and [`Checkpoint::assemble`].
    pub fn with_recorded_model(self, record: Option<&ModelRecord>) -> Result<Self> {
        let Some(record) = record else { return Ok(self) };
        let exclude = Globs::new(record.exclude.iter().cloned()).map_err(|what| EngineError::new(ErrorKind::Checkpoint, what))?;
        let options = ModelOptions {
            class: &record.class,
            exclude: &exclude,
            tied_in_each_group: record.tied_in_each_group,
            tied_if_equal: record.tied_if_equal,
            transformers: record.transformers.as_deref().and_then(TransformersVersion::parse),
            architecture: record.architecture.as_ref(),
        };
        Ok(self.into_model(&options)?.0)
    }

    /// Whether two of the checkpoint's tensors have the same bytes; up to the first difference is read.
    fn same_bytes(&self, a: u32, b: u32) -> Result<bool> {
        const BLOCK: u64 = 1 << 20;
        let (a, b) = (a as usize, b as usize);
        let (one, other) = (&self.sources()[a], &self.sources()[b]);
        let (first, second) = (self.location(a), self.location(b));
        if (one.dtype, &one.shape, first.bytes) != (other.dtype, &other.shape, second.bytes) {
            return Ok(false);
        }
        let open = |at: Location| {
            let path = &self.files()[at.file].path;
            open_regular(path).map(|(file, _)| (file, path))
        };
        let ((left, left_path), (right, right_path)) = (open(first)?, open(second)?);
        let mut blocks = [Vec::new(), Vec::new()];
        for at in (0..first.bytes).step_by(1 << 20) {
            let size = usize::try_from(BLOCK.min(first.bytes - at)).unwrap_or(0);
            for (block, (file, path, offset)) in
                blocks.iter_mut().zip([(&left, left_path, first.offset), (&right, right_path, second.offset)])
            {
                block.resize(size, 0);
                file.read_exact_at(block, offset + at).map_err(|e| EngineError::io("cannot read the file", path, e).offset(offset + at))?;
            }
            if blocks[0] != blocks[1] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Codes are not weights.
    fn refuse_quantized(&self, config: &Value) -> Result<()> {
        let quantization = ["quantization_config", "compression_config"].into_iter().find_map(|k| config.get(k).filter(|v| v.is_object()));
        let plain = |d: DType| matches!(d, DType::F64 | DType::F32 | DType::BF16 | DType::F16 | DType::I64 | DType::Bool);
        let found = match quantization {
            Some(quantization) => self.named().iter().find(|t| !plain(t.dtype)).map(|t| {
                let method = quantization["quant_method"].as_str().unwrap_or("of an unnamed kind");
                (t.name.as_str(), t.dtype, format!("({method}): its tensors are codes and scales, not the model's weights"))
            }),
            None => codes::find(self.named().iter().map(|t| (t.name.as_str(), t.dtype)))
                .map(|c| (c.name, c.dtype, format!("though config.json does not say so: these are codes, with scales in '{}'", c.scales))),
        };
        let Some((name, dtype, how)) = found else { return Ok(()) };
        let help = "dequantize it first: load it with transformers, call model.dequantize() and save_pretrained";
        Err(EngineError::new(ErrorKind::Checkpoint, format!("the checkpoint is quantized {how}; {help}"))
            .file(self.dir().join("config.json"))
            .tensor(name)
            .expected("float32, bfloat16 or float16")
            .found(dtype))
    }

    /// Names that carry a wrapper's prefix: an error where they are no names of the model's.
    fn wrapped(&self, assembled: &Assembled, warnings: &mut Vec<String>) -> Result<()> {
        let tensors = self.named();
        for (prefix, whose, leading) in WRAPPERS {
            let has = |t: &&TensorMeta| if leading { t.name.starts_with(prefix) } else { t.name.contains(prefix) };
            let mut with = tensors.iter().filter(has);
            let Some(first) = with.next() else { continue };
            let count = 1 + with.count();
            let text = format!("{count} of {} names carry the prefix '{prefix}' of {whose}, which no model's class has", tensors.len());
            let help = "save the inner module's state dict, or rename the tensors";
            let fills_nothing =
                |u: &&shardwright_arch::Unused| matches!(u.reason, Reason::NotInTheModel | Reason::OtherKind(..) | Reason::Off(_));
            let unused = assembled.unused.iter().filter(fills_nothing).count();
            if assembled.class.is_some() && 2 * count > tensors.len() && 2 * unused > tensors.len() {
                return Err(EngineError::new(ErrorKind::Checkpoint, format!("{text}; {help}")).file(self.dir()).tensor(&first.name));
            }
            warnings.push(format!("{text}: '{}'; {help}", first.name));
        }
        Ok(())
    }
}

fn model_of(assembled: Assembled, facts: &ModelFacts) -> Result<Model, Name> {
    let mut modules = Modules::default();
    modules.ties_embeddings = assembled.ties_embeddings;
    let known = assembled.tensors.iter().any(|t| t.block.is_some());
    let mut tensors = Vec::with_capacity(assembled.tensors.len());
    let mut assemblies: Vec<Assembly> = Vec::with_capacity(assembled.tensors.len());
    for made in assembled.tensors {
        if let Some(block) = made.block.filter(|b| !b.is_empty()) {
            modules.blocks.insert(block);
        }
        if let (true, Some((module, _))) = (made.embedding, made.name.rsplit_once('.')) {
            modules.embeddings.insert(module.to_owned());
        }
        let mut meta = TensorMeta::new(made.name, made.dtype, made.shape);
        meta.kind = made.buffer.map(|b| if b { TensorKind::Buffer } else { TensorKind::Parameter });
        (meta.keep_fp32, meta.made_fp32) = (made.keep_fp32, made.fp32);
        tensors.push(meta);
        assemblies.push(made.assembly);
    }
    // Sorted by name already, so that the assemblies stay parallel.
    let mut meta = ModelMeta::new(tensors, facts.clone())?;
    meta.modules = known.then_some(modules);
    let unused = assembled.unused.iter().map(|u| piece::Unused { source: u.source, reason: reason(&u.reason) });
    let missing = assembled.missing.iter().map(|m| piece::Missing {
        name: Name::from(m.name.as_str()),
        shape: m.shape.clone(),
        reason: "no tensor of the checkpoint fills it".into(),
    });
    let aliases = assembled.aliases.iter().map(|(a, b)| (Name::from(a.as_str()), Name::from(b.as_str())));
    Ok(Model { meta, assemblies, unused: unused.collect(), missing: missing.collect(), aliases: aliases.collect() })
}

fn reason(reason: &Reason) -> String {
    match reason {
        Reason::NotInTheModel => "the class has nothing of that name".into(),
        Reason::Ignored => "the class ignores tensors of that name".into(),
        Reason::OtherKind(module, keys) => format!("{} makes '{module}' of another kind", of_config(keys)),
        Reason::Off(says) => format!("the class has nothing of that name with {}", of_config(says)),
        Reason::MadeAnew => "the class makes this buffer anew".into(),
        Reason::Beyond(list, index, length) => format!("'{list}' has {length} elements, so there is none of index {index}"),
        Reason::TiedTo(name) => format!("tied to '{name}', which is stored as well"),
        Reason::Twice(name) => format!("'{name}' is made from another tensor"),
        Reason::Excluded => "left out by shardwright.exclude".into(),
    }
}

fn unknown(config: &Value, source: &str, major: u32) -> Option<String> {
    let model_type = config["model_type"].as_str()?;
    let remote = if config.get("auto_map").is_some() { ", and its code comes with the checkpoint" } else { "" };
    let why = match shardwright_arch::without(major, model_type) {
        Some(why) => format!(" ({why})"),
        None if major < NEWEST && shardwright_arch::knows(model_type) => {
            format!(" (transformers {} has it)", shardwright_arch::version(NEWEST))
        }
        None => String::new(),
    };
    Some(format!(
        "model type '{model_type}' is not one that {source} builds{why}{remote}: the checkpoint's tensors are taken for the model's parameters, \
         under their own names. Where that is wrong, shardwright.architecture describes the model: see docs/architectures.md"
    ))
}

/// Tensors that fill nothing, a line for each reason that a user should know.
fn left_over(assembled: &Assembled, sources: &[TensorMeta]) -> Vec<String> {
    let mut by_reason: BTreeMap<String, (&str, usize)> = BTreeMap::new();
    let class = assembled.class.as_deref().unwrap_or("the model");
    for unused in &assembled.unused {
        let why = match &unused.reason {
            Reason::Ignored | Reason::MadeAnew | Reason::TiedTo(_) | Reason::Excluded => continue,
            Reason::Beyond(list, _, length) => format!("beyond the {length} elements that config.json gives '{list}'"),
            Reason::NotInTheModel => format!("not part of {class}"),
            Reason::OtherKind(_, keys) => format!("not part of {class} with its layers as {} makes them", of_config(keys)),
            Reason::Off(says) => format!("not part of {class} with {}", of_config(says)),
            Reason::Twice(name) => format!("another tensor than the one that '{name}' is made from"),
        };
        let name = sources.get(unused.source as usize).map_or("", |t| t.name.as_str());
        by_reason.entry(why).or_insert((name, 0)).1 += 1;
    }
    let say = |(why, (first, count)): (String, (&str, usize))| match count {
        1 => format!("'{first}' is left out: it is {why}"),
        n => format!("{n} tensors are left out, '{first}' the first: they are {why}"),
    };
    by_reason.into_iter().map(say).collect()
}

/// Keys of config.json, as a message names them.
fn of_config(keys: &str) -> String {
    format!("config.json ({keys})")
}

/// Names that config.json ties, and that are stored with other values.
fn untied(assembled: &Assembled, has: &str) -> Option<String> {
    let (name, other) = assembled.untied.first()?;
    let (what, them) = match assembled.untied.len() {
        1 => (format!("config.json ties '{name}' to '{other}'"), "both"),
        n => (format!("config.json ties {n} names, '{name}' to '{other}' the first"), "both of each"),
    };
    Some(format!(
        "{what}, but the checkpoint has {them}, with other values: they stay apart, as transformers {has} leaves them. \
         Set tie_word_embeddings: false in config.json to say so"
    ))
}

/// Parameters that nothing fills: a line for those of each key of config.json that has the class make them, and one for all others.
fn missing(assembled: &Assembled) -> Vec<String> {
    let mut by_switch: BTreeMap<Option<&str>, (&Missing, usize)> = BTreeMap::new();
    for missing in &assembled.missing {
        by_switch.entry(missing.switch.as_deref()).or_insert((missing, 0)).1 += 1;
    }
    let class = assembled.class.as_deref().unwrap_or("the model");
    let say = |(switch, (first, count)): (Option<&str>, (&Missing, usize))| {
        let shape = first.shape.as_ref().map_or(String::new(), |s| format!(" {s:?}"));
        let with = switch.map_or(String::new(), |says| format!(" with {}", of_config(says)));
        let because = assembled.other_kind(&first.name).map_or(String::new(), |(module, keys)| {
            format!(". {} makes '{module}' of another kind than the checkpoint's", of_config(keys))
        });
        match count {
            1 => format!("no tensor fills '{}'{shape} of {class}{with}: the engine initialises it anew{because}", first.name),
            n => format!(
                "no tensor fills {n} parameters of {class}{with}, '{}'{shape} the first: the engine initialises them anew{because}",
                first.name
            ),
        }
    };
    by_switch.into_iter().map(say).collect()
}
