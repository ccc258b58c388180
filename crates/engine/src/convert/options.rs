//! What to convert to, and how.

use std::path::PathBuf;

use shardwright_core::DType;

use super::names::Names;

/// What to convert to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// Safetensors with whole tensors, as `from_pretrained` reads them.
    Hf,
    /// Safetensors with one file for each rank of FSDP2.
    HfSharded,
    /// torch's distributed checkpoint, `model/` and `optimizer/`.
    Dcp,
    /// DeepSpeed ZeRO-3.
    Zero3,
    /// DeepSpeed's universal checkpoint.
    Universal,
}

/// How to convert.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConvertOptions {
    /// What to convert to.
    pub to: Target,
    /// Ranks that the target's parts are for.
    pub ranks: u32,
    /// Groups of ranks that each hold the whole model, as under hybrid sharding; they divide `ranks`.
    pub replicas: u32,
    /// The dtype of parameters; optimizer states and buffers keep theirs.
    pub dtype: Option<DType>,
    /// Leaves the optimizer out.
    pub params_only: bool,
    /// Bytes of tensors in one file of [`Target::Hf`], at most.
    pub max_file_size: u64,
    /// DeepSpeed's `sub_group_size`, which must be the run's own.
    pub sub_group_size: u64,
    /// Whose names the tensors of [`Target::Hf`] get; without one they keep theirs. For [`Names::Model`] see
    /// [`Contents::with_model_names`](crate::contents::Contents::with_model_names).
    pub names: Option<Names>,
    /// The directory of DeepSpeed's files, which `latest` names; without one the source's, else `global_step` and the step.
    pub tag: Option<String>,
    /// A directory whose config and tokenizer are copied to a Hugging Face target; else the source's.
    pub config: Option<PathBuf>,
}

impl ConvertOptions {
    /// Converts for one rank, with the formats' own defaults.
    pub fn new(to: Target) -> Self {
        Self {
            to,
            ranks: 1,
            replicas: 1,
            dtype: None,
            params_only: false,
            max_file_size: 5_000_000_000,
            sub_group_size: 1_000_000_000,
            names: None,
            tag: None,
            config: None,
        }
    }
}
