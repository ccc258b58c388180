//! A section of the YAML as a type, for strategies and for precision policies, and what it may know when it becomes one.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value as Json;

use crate::{
    DType, Mesh, ModelFacts, Precision, PrecisionPolicy, ShardStrategy,
    diagnostic::{Diagnostic, Location, Source},
    document::{Document, Sourced},
    tree::Node,
};

/// The section `dist_config: {name: NAME, …}` of one strategy.
///
/// The doc comments of the fields are the reference that `shardwright strategies NAME` prints. Derive `Deserialize` with
/// `#[serde(default, deny_unknown_fields)]`; `name` itself never reaches the type.
pub trait StrategyConfig: DeserializeOwned + Serialize + Default + JsonSchema + 'static {
    /// What the YAML names: bare for the built-ins, `vendor/name` for all others.
    const NAME: &'static str;
    /// One line for `shardwright strategies`.
    const SUMMARY: &'static str;

    /// A section to paste, where the default says too little.
    fn example() -> Self {
        Self::default()
    }

    /// Files that the section names, which are read before [`StrategyConfig::build`] and handed over as [`BuildContext::files`].
    fn files(&self) -> Vec<String> {
        Vec::new()
    }

    /// Makes the strategy. Findings go to `cx`; an error among them means that the answer is never used.
    ///
    /// # Errors
    /// What makes it impossible to go on.
    fn build(self, cx: &mut BuildContext<'_>) -> Result<Built, Diagnostic>;
}

/// The section `shardwright.precision: {name: NAME, …}` of one precision policy; as [`StrategyConfig`] in all else.
pub trait PolicyConfig: DeserializeOwned + Serialize + Default + JsonSchema + 'static {
    /// What the YAML names: bare for the built-ins, `vendor/name` for all others.
    const NAME: &'static str;
    /// One line for `shardwright strategies`.
    const SUMMARY: &'static str;

    /// A section to paste, where the default says too little.
    fn example() -> Self {
        Self::default()
    }

    /// Makes the policy. Findings go to `cx`; an error among them means that the answer is never used.
    ///
    /// # Errors
    /// What makes it impossible to go on.
    fn build(self, cx: &mut PolicyContext<'_>) -> Result<BuiltPolicy, Diagnostic>;
}

/// What a strategy's section becomes.
#[derive(Debug)]
#[non_exhaustive]
pub struct Built {
    /// Decides layout.
    pub strategy: Box<dyn ShardStrategy>,
    /// The strategy's own precision policy; `None` for that of the YAML's `bf16` (mixed precision as FSDP2 has it).
    pub precision: Option<BuiltPolicy>,
    /// What else it resolved, such as `/deepspeed`; it wins over what the YAML alone would say.
    pub document: Document,
    /// True where `document` has all of the section, resolved, so that it is not shown again as it was written.
    pub shown: bool,
    /// False where `shardwright.units` has no effect, which is then said.
    pub heeds_groups: bool,
}

impl Built {
    /// A strategy under the YAML's own mixed precision.
    pub fn new(strategy: impl ShardStrategy + 'static) -> Self {
        Self { strategy: Box::new(strategy), precision: None, document: Document::default(), shown: false, heeds_groups: true }
    }

    /// With a precision policy of its own.
    #[must_use]
    pub fn with_precision(mut self, precision: BuiltPolicy) -> Self {
        self.precision = Some(precision);
        self
    }

    /// As a strategy that does not heed `shardwright.units`.
    #[must_use]
    pub fn without_groups(mut self) -> Self {
        self.heeds_groups = false;
        self
    }
}

/// What a policy's section becomes.
#[derive(Debug)]
#[non_exhaustive]
pub struct BuiltPolicy {
    /// Decides dtypes.
    pub policy: Box<dyn PrecisionPolicy>,
    /// What it decides, in one place for people.
    pub summary: PrecisionSummary,
}

impl BuiltPolicy {
    /// A policy and what it decides.
    pub fn new(policy: impl PrecisionPolicy + 'static, summary: PrecisionSummary) -> Self {
        Self { policy: Box::new(policy), summary }
    }
}

/// `/precision` of the resolved document.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct PrecisionSummary {
    /// torch's dtype name, `checkpoint`, or `{trainable, frozen}` of those.
    pub storage: Json,
    /// torch's dtype name.
    pub compute: Json,
    /// torch's dtype name.
    pub reduce: Json,
    /// What outputs are in: torch's dtype name, as for `compute` where nothing casts them.
    pub output: Json,
    /// The case's name, such as `fsdp2.full.bf16`.
    pub rule: String,
    /// The case in a sentence.
    pub why: String,
    /// JSON pointers of what decided.
    pub from: Vec<String>,
}

impl PrecisionSummary {
    /// The summary of a policy that treats all parameters alike.
    pub fn new(precision: Precision, rule: impl Into<String>, why: impl Into<String>) -> Self {
        let name = |d: DType| Json::from(d.torch_name());
        Self {
            storage: name(precision.storage),
            compute: name(precision.compute),
            reduce: name(precision.reduce),
            output: name(precision.compute),
            rule: rule.into(),
            why: why.into(),
            from: Vec::new(),
        }
    }

    /// A summary in words: torch's dtype names, `checkpoint` for each tensor's own, or `{trainable, frozen}` of those. Outputs are in the
    /// compute dtype.
    pub fn of_words(
        storage: impl Into<Json>,
        compute: impl Into<Json>,
        reduce: impl Into<Json>,
        rule: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        let (storage, compute, reduce) = (storage.into(), compute.into(), reduce.into());
        Self { storage, output: compute.clone(), compute, reduce, rule: rule.into(), why: why.into(), from: Vec::new() }
    }

    /// With a dtype that outputs are cast to.
    #[must_use]
    pub fn output(mut self, output: impl Into<Json>) -> Self {
        self.output = output.into();
        self
    }

    /// With another word for the storage dtype: `checkpoint`, or `{trainable, frozen}`.
    #[must_use]
    pub fn storage(mut self, storage: impl Into<Json>) -> Self {
        self.storage = storage.into();
        self
    }

    /// Decided by the values at these JSON pointers.
    #[must_use]
    pub fn from<P: Into<String>>(mut self, pointers: impl IntoIterator<Item = P>) -> Self {
        self.from = pointers.into_iter().map(Into::into).collect();
        self
    }
}

/// What a strategy's section may depend on besides itself.
#[derive(Debug)]
#[non_exhaustive]
pub struct BuildContext<'a> {
    /// The section as it stands in the file, without `name`: for places.
    pub section: &'a Node,
    /// All ranks, as the YAML arranges them.
    pub mesh: &'a Mesh,
    /// What `config.json` says; `None` when it is not at hand.
    pub model: Option<&'a ModelFacts>,
    /// The rest of the YAML.
    pub training: &'a Training,
    /// `shardwright.storage_dtype`: `None` for what the engine would do.
    pub storage: Option<StorageDtype>,
    /// The files that the section named, by the name it gave.
    pub files: &'a BTreeMap<String, Source>,
    /// Findings so far.
    pub diagnostics: Vec<Diagnostic>,
    /// Values that the texts at hand do not decide; `load` refuses while there is one.
    pub unresolved: Vec<Unresolved>,
}

impl<'a> BuildContext<'a> {
    /// A section by itself: without a model at hand, and without a word about storage.
    pub fn new(section: &'a Node, mesh: &'a Mesh, training: &'a Training, files: &'a BTreeMap<String, Source>) -> Self {
        Self { section, mesh, model: None, training, storage: None, files, diagnostics: Vec::new(), unresolved: Vec::new() }
    }

    /// The place of a key of the section, or of the section where it has no such key.
    pub fn at(&self, key: &str) -> Location {
        self.section.get(key).unwrap_or(self.section).at.clone()
    }
}

/// What a policy's section may depend on besides itself.
#[derive(Debug)]
#[non_exhaustive]
pub struct PolicyContext<'a> {
    /// The section as it stands in the file, without `name`: for places. Empty where the policy was not named.
    pub section: &'a Node,
    /// The strategy's name.
    pub strategy: &'a str,
    /// What `config.json` says; `None` when it is not at hand.
    pub model: Option<&'a ModelFacts>,
    /// The rest of the YAML.
    pub training: &'a Training,
    /// `shardwright.storage_dtype`: `None` for what the engine would do.
    pub storage: Option<StorageDtype>,
    /// What would decide if the YAML named no policy; `None` for the policy that is this default itself.
    pub base: Option<BuiltPolicy>,
    /// Findings so far.
    pub diagnostics: Vec<Diagnostic>,
}

impl<'a> PolicyContext<'a> {
    /// A section by itself: without a model at hand, without a word about storage, over nothing else.
    pub fn new(section: &'a Node, strategy: &'a str, training: &'a Training) -> Self {
        Self { section, strategy, model: None, training, storage: None, base: None, diagnostics: Vec::new() }
    }
}

/// What the YAML says about the run, resolved, as far as sections may depend on it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Training {
    /// Whose dialect the file is in.
    pub dialect: Dialect,
    /// `bf16`, or accelerate's `mixed_precision`.
    pub mixed: Sourced<Mixed>,
    /// `peft_config`, or `shardwright.inference`.
    pub tuning: Sourced<Tuning>,
    /// `dtype`: what the model is loaded in where the engine keeps the checkpoint's dtype; `None` for each tensor's own.
    pub model_dtype: Sourced<Option<DType>>,
    /// Whether every rank first holds the whole model in LLaMA-Factory: `init_config`.
    pub init: Sourced<Init>,
    /// Ranks.
    pub world_size: Sourced<u32>,
    /// Data-parallel ranks.
    pub dp_size: Sourced<u32>,
    /// Context-parallel ranks.
    pub cp_size: Sourced<u32>,
    /// Samples of one forward pass of one rank.
    pub micro_batch_size: Sourced<u64>,
    /// Samples of one optimizer step, if written.
    pub global_batch_size: Sourced<Option<u64>>,
    /// Forward passes before an optimizer step, if written (accelerate).
    pub accumulation: Sourced<Option<u64>>,
    /// Largest gradient norm; `None` where the dialect has no such key.
    pub max_grad_norm: Sourced<Option<f64>>,
    /// `learning_rate`.
    pub learning_rate: Sourced<Option<f64>>,
    /// `shardwright.zero3_fp16`: DeepSpeed's fp16 although LLaMA-Factory refuses it.
    pub zero3_fp16: Sourced<bool>,
    /// `shardwright.engines.deepspeed`: the version that the answer is for.
    pub deepspeed: Sourced<DeepSpeed>,
    /// `DS_ACCELERATOR=cpu`: whether DeepSpeed trains on CPUs.
    pub deepspeed_on_cpu: Sourced<bool>,
}

impl Default for Training {
    /// A YAML of LLaMA-Factory's that says nothing, in a single process.
    fn default() -> Self {
        Self {
            dialect: Dialect::LlamaFactory,
            mixed: Sourced::default(Mixed::Bf16),
            tuning: Sourced::default(Tuning::Full),
            model_dtype: Sourced::default(None),
            init: Sourced::default(Init::Default),
            world_size: Sourced::default(1),
            dp_size: Sourced::default(1),
            cp_size: Sourced::default(1),
            micro_batch_size: Sourced::default(1),
            global_batch_size: Sourced::default(None),
            accumulation: Sourced::default(None),
            max_grad_norm: Sourced::default(Some(1.0)),
            learning_rate: Sourced::default(Some(1e-4)),
            zero3_fp16: Sourced::default(false),
            deepspeed: Sourced::default(DeepSpeed::V0_19),
            deepspeed_on_cpu: Sourced::default(false),
        }
    }
}

impl Training {
    /// True where the micro batch is the data loader's to say, as under accelerate.
    pub fn batch_is_unknown(&self) -> bool {
        self.dialect == Dialect::Accelerate && self.micro_batch_size.location().is_none()
    }
}

/// Whose config a YAML is, known by its keys. This and the choices below are closed on purpose: whoever decides by them must decide every case,
/// so a new one shall not compile until it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// LLaMA-Factory v1, flat.
    LlamaFactory,
    /// What `accelerate config` writes.
    Accelerate,
}

/// A version of DeepSpeed whose configs are known, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeepSpeed {
    /// 0.18, as 0.18.9 has it.
    V0_18,
    /// 0.19, as 0.19.8 has it.
    #[default]
    V0_19,
}

impl DeepSpeed {
    /// The release that was read.
    pub fn release(self) -> &'static str {
        match self {
            Self::V0_18 => "0.18.9",
            Self::V0_19 => "0.19.8",
        }
    }
}

/// `init_config`: where the model is before it is sharded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// Whole on every rank.
    Default,
    /// Whole on rank 0, nowhere else.
    Rank0,
    /// Nowhere.
    Meta,
}

/// The YAML's own mixed precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mixed {
    /// float32 throughout.
    No,
    /// bfloat16 compute.
    Bf16,
    /// float16 compute.
    Fp16,
}

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tuning {
    /// Everything.
    Full,
    /// Adapters beside a frozen model.
    Lora,
    /// Some of the parameters.
    Freeze {
        /// Whether the trainable ones are made float32.
        cast_trainable: bool,
    },
    /// Nothing.
    Inference,
}

/// A value that the texts at hand do not decide.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Unresolved {
    /// Its JSON pointer.
    pub pointer: String,
    /// What would decide it.
    pub needs: String,
    /// Where it is asked for.
    pub at: Option<Location>,
}

impl Unresolved {
    /// The value at this pointer, undecided until there is what it needs.
    pub fn new(pointer: impl Into<String>, needs: impl Into<String>, at: impl Into<Option<Location>>) -> Self {
        Self { pointer: pointer.into(), needs: needs.into(), at: at.into() }
    }
}

/// `shardwright.storage_dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageDtype {
    /// Each tensor's own.
    Checkpoint,
    /// One for all parameters.
    Fixed(DType),
}
