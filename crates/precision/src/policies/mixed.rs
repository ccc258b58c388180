//! `mixed`: what the engine that the YAML is for would do, unless a key says otherwise. The default.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shardwright_core::{
    DType, ModelFacts, Precision, PrecisionPolicy, TensorMeta,
    diagnostic::Diagnostic,
    piece,
    replicate::REPLICATE,
    strategy_config::{BuiltPolicy, Dialect, PolicyConfig, PolicyContext, Tuning},
};

use crate::rules::{self, Case, Keep};

/// A case of the rules as a policy.
#[derive(Clone, Debug)]
pub struct Ruled {
    case: Case,
    loaded: Loaded,
    /// What the engine loads the model in where it keeps the checkpoint's dtype: config.json's.
    own: Option<DType>,
}

/// How the engine loads a model before it shards it, for tensors of which the class is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// As the checkpoint has it.
    AsStored,
    /// transformers' `dtype="auto"`: values pass through this dtype unless the class makes the tensor in float32.
    /// `None` stands for config.json's.
    Auto(Option<DType>),
    /// Straight into the storage dtype: `deepspeed.zero.Init`.
    Partitioned,
}

impl PrecisionPolicy for Ruled {
    fn decide(&self, param: &TensorMeta, trainable: bool) -> Precision {
        let own = self.own.filter(|_| param.kind.is_some() && param.dtype.is_float());
        let own = own.map(|own| if param.made_fp32 || param.keep_fp32 { DType::F32 } else { own });
        self.case.decide(own.unwrap_or(param.dtype), trainable)
    }

    /// Engines cast float buffers as they cast parameters, except those that the class keeps in float32.
    fn buffer(&self, buffer: &TensorMeta) -> DType {
        if !buffer.dtype.is_float() || buffer.kind.is_none() || self.loaded == Loaded::AsStored {
            return buffer.dtype;
        }
        let made = buffer.made_fp32 && self.loaded != Loaded::Partitioned;
        if buffer.keep_fp32 || made { DType::F32 } else { self.case.trainable.of(buffer.dtype) }
    }

    fn rounded(&self, tensor: &TensorMeta, facts: &ModelFacts) -> Option<DType> {
        match self.loaded {
            Loaded::Auto(model) if tensor.kind.is_some() => piece::rounding(tensor, model.or(facts.dtype)),
            _ => None,
        }
    }
}

impl Ruled {
    /// With its summary.
    pub fn built<P: Into<String>>(case: Case, loaded: Loaded, from: impl IntoIterator<Item = P>) -> BuiltPolicy {
        let summary = case.summary().from(from);
        BuiltPolicy::new(Self { case, loaded, own: None }, summary)
    }
}

/// Storage and compute apart, as FSDP2 has it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MixedConfig {
    /// The dtype that shards are stored in; null for what the engine would do.
    pub storage: Option<DType>,
    /// What is gathered and computed in; null for what the engine would do.
    pub compute: Option<DType>,
    /// What gradients are reduced in; null for what the engine would do.
    pub reduce: Option<DType>,
}

impl PolicyConfig for MixedConfig {
    const NAME: &'static str = "mixed";
    const SUMMARY: &'static str = "storage and compute apart: float32 shards, bfloat16 compute, as FSDP2 in LLaMA-Factory; the default";

    fn build(self, cx: &mut PolicyContext<'_>) -> Result<BuiltPolicy, Diagnostic> {
        let training = cx.training;
        let (mixed, tuning, model) = (training.mixed.value, training.tuning.value, training.model_dtype.value);
        let mut from = match training.dialect {
            Dialect::LlamaFactory => {
                let tuned = match tuning {
                    Tuning::Full => "/training/peft_config",
                    Tuning::Inference => "/shardwright/inference",
                    _ => "/training/peft_config/name",
                };
                vec![tuned, "/training/bf16"]
            }
            Dialect::Accelerate => vec!["/training/mixed_precision"],
        };
        let mut case = match (training.dialect, cx.strategy) {
            (Dialect::LlamaFactory, REPLICATE) => rules::replicate(tuning, model),
            (Dialect::LlamaFactory, _) => rules::fsdp2(mixed, tuning, model),
            (Dialect::Accelerate, REPLICATE) => rules::accelerate_replicate(mixed, model),
            (Dialect::Accelerate, _) => rules::accelerate_fsdp2(mixed, tuning, model),
        }
        .stored_in(cx.storage);
        if let Some(storage) = self.storage {
            (case.trainable, case.frozen) = (Keep::Fixed(storage), Keep::Fixed(storage));
        }
        case.compute = self.compute.map_or(case.compute, Keep::Fixed);
        case.reduce = self.reduce.map_or(case.reduce, Keep::Fixed);
        if case.reduce == Keep::Checkpoint && cx.strategy != REPLICATE {
            let message = "no reduce dtype is set: before torch 2.15 gradients are reduced in the compute dtype, from 2.15 on in their own";
            let help = "set shardwright.precision: {name: mixed, reduce: float32}";
            let at = training.mixed.location().or_else(|| Some(cx.section.at.clone()).filter(|at| !at.file.is_empty()));
            cx.diagnostics.push(Diagnostic::warning("reduce-dtype-version", message).at(at).help(help));
        }
        if self.storage.is_some() || self.compute.is_some() || self.reduce.is_some() {
            case.why.push_str("; where shardwright.precision names a dtype, that");
            from.push("/shardwright/precision/name");
        }
        let loaded = match training.dialect {
            Dialect::LlamaFactory => Loaded::Auto(model),
            Dialect::Accelerate => Loaded::AsStored,
        };
        // `dtype="auto"`, unless shardwright's own settings say what is stored.
        let is_engines = loaded != Loaded::AsStored && cx.storage.is_none() && self.storage.is_none();
        let own = model.or(cx.model.and_then(|facts| facts.dtype)).filter(|dtype| is_engines && dtype.is_float());
        let summary = case.summary().from(from);
        Ok(BuiltPolicy::new(Ruled { case, loaded, own }, summary))
    }
}

shardwright_core::register_precision!(MixedConfig);
