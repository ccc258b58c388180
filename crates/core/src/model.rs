//! What is known of a model before any of its data is read: tensor metadata and the facts of `config.json`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{dtype::DType, name::Name, steps};

/// One tensor as a checkpoint's header declares it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorMeta {
    /// Name in the checkpoint, such as `model.layers.0.mlp.up_proj.weight`.
    pub name: Name,
    /// Element type in the checkpoint.
    pub dtype: DType,
    /// Global shape, in elements, outermost dim first; empty for a 0-d tensor.
    pub shape: Vec<u64>,
    /// What the model's class says it is; `None` where that is not known, and its dtype decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<TensorKind>,
    /// The class keeps it in float32 under every engine.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_fp32: bool,
    /// The class makes it in float32, so that it is not rounded to the model's dtype.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub made_fp32: bool,
}

impl TensorMeta {
    /// A tensor of that name, dtype and shape.
    pub fn new(name: impl Into<Name>, dtype: DType, shape: impl Into<Vec<u64>>) -> Self {
        Self { name: name.into(), dtype, shape: shape.into(), kind: None, keep_fp32: false, made_fp32: false }
    }

    /// Number of elements; `None` when the product overflows.
    pub fn numel(&self) -> Option<u64> {
        steps::count(1);
        numel(&self.shape)
    }

    /// Size in the checkpoint in bytes; `None` on overflow.
    pub fn bytes(&self) -> Option<u64> {
        self.dtype.bytes(self.numel()?)
    }
}

/// Product of a shape's dims; 1 for a 0-d tensor, `None` on overflow. A zero anywhere wins over an overflow.
pub fn numel(shape: &[u64]) -> Option<u64> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d))
}

/// Parameter or buffer: only parameters are sharded and cast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TensorKind {
    /// Sharded by the strategy, in the dtype of the precision policy.
    Parameter,
    /// Whole on every rank, in its own dtype.
    Buffer,
}

/// What `config.json` says that layout, parameter groups or "auto" values depend on. Every field is optional: a checkpoint of bare
/// tensors has none of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ModelFacts {
    /// `architectures[0]`, such as `Qwen3ForCausalLM`.
    pub architecture: Option<String>,
    /// `model_type`, such as `qwen3`.
    pub model_type: Option<String>,
    /// The hidden size that transformers' "auto" uses: `hidden_size` by the name that the model's class gives it, else the largest of
    /// `hidden_sizes`, else the same under `text_config`.
    pub hidden_size: Option<u64>,
    /// `num_hidden_layers`, `num_layers` or `n_layer`, here or under `text_config`.
    pub num_layers: Option<u64>,
    /// Whether input and output embeddings are one tensor. Unset in the file means transformers' default, true, unless the
    /// model type's own default is known to differ.
    pub tie_word_embeddings: Option<bool>,
    /// `dtype`, or its older spelling `torch_dtype`.
    pub dtype: Option<DType>,
}

impl ModelFacts {
    /// Reads the facts out of a parsed `config.json`. Fields of an unexpected type count as absent.
    pub fn from_config(config: &serde_json::Value) -> Self {
        let text = &config["text_config"];
        let text_of = |v: &serde_json::Value| v.as_str().map(str::to_owned);
        let number = |key: &str| config[key].as_u64().or_else(|| text[key].as_u64());
        Self {
            architecture: text_of(&config["architectures"][0]),
            model_type: text_of(&config["model_type"]),
            hidden_size: crate::facts::hidden_size(config),
            num_layers: number("num_hidden_layers").or_else(|| number("num_layers")).or_else(|| number("n_layer")),
            tie_word_embeddings: config["tie_word_embeddings"].as_bool(),
            dtype: [&config["dtype"], &config["torch_dtype"], &text["dtype"]]
                .into_iter()
                .find_map(|v| v.as_str().and_then(DType::from_spelling)),
        }
    }
}

/// Everything a plan may depend on of a model: its tensors, sorted by name, and its facts.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ModelMeta {
    /// Sorted by name, each name once.
    pub tensors: Vec<TensorMeta>,
    /// What `config.json` says.
    pub facts: ModelFacts,
    /// What the model's class says of its modules; `None` where it is not known.
    pub modules: Option<Modules>,
}

/// Modules that a strategy may treat as one, by their paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Modules {
    /// What LLaMA-Factory wraps: modules of the class of the first element of each list called `layers` or `blocks`, else the classes that the
    /// model does not split.
    pub blocks: BTreeSet<String>,
    /// `nn.Embedding`s.
    pub embeddings: BTreeSet<String>,
    /// Whether input and output embeddings are one tensor, by config.json or the class's default.
    pub ties_embeddings: bool,
}

impl ModelMeta {
    /// Sorts the tensors by name.
    ///
    /// # Errors
    /// The name of a tensor that occurs twice.
    pub fn new(mut tensors: Vec<TensorMeta>, facts: ModelFacts) -> Result<Self, Name> {
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        match tensors.windows(2).find(|w| w[0].name == w[1].name) {
            Some(twice) => Err(twice[0].name.clone()),
            None => Ok(Self { tensors, facts, modules: None }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numel_is_checked() {
        assert_eq!(numel(&[]), Some(1));
        assert_eq!(numel(&[3, 0, u64::MAX, u64::MAX]), Some(0));
        assert_eq!(numel(&[u64::MAX, 2]), None);
    }

    #[test]
    fn hidden_size_is_found_as_transformers_finds_it() {
        let hidden = |text: &str| ModelFacts::from_config(&serde_json::from_str(text).unwrap()).hidden_size;
        assert_eq!(hidden(r#"{"hidden_size": 60, "hidden_sizes": [70]}"#), Some(60));
        assert_eq!(hidden(r#"{"hidden_sizes": [32, 160, 64], "text_config": {"hidden_size": 9}}"#), Some(160));
        assert_eq!(hidden(r#"{"text_config": {"hidden_size": 9, "hidden_sizes": [10]}}"#), Some(9));
        assert_eq!(hidden(r#"{"text_config": {"hidden_sizes": [10, 12]}}"#), Some(12));
        assert_eq!(hidden("{}"), None);
    }
}
