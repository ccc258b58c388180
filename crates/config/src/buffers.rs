//! Float tensors that are likely buffers, though nothing in a checkpoint says so.

use shardwright_core::{Globs, ModelMeta, text::shown};

/// What transformers calls the float buffers that it writes into checkpoints, in models of the most kinds first. Read off the models of
/// transformers 5.24; names that as many models give to parameters (`positional_embedding`) are left out.
const USUAL: [&str; 18] = [
    "inv_freq",
    "e_score_correction_bias",
    "final_logits_bias",
    "running_mean",
    "running_var",
    "layer_scalar",
    "cluster_size",
    "embed_avg",
    "inited",
    "expert_bias",
    "balancing_biases",
    "embed_sum",
    "slope_rate",
    "query_decay",
    "key_decay",
    "diagonal_decay",
    "std_bias",
    "std_scale",
];

/// Float tensors of one name that a plan treats as parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LikelyBuffers {
    /// The last part of their names.
    pub name: &'static str,
    /// The first of them, whole.
    pub first: String,
    /// How many there are.
    pub count: usize,
}

impl LikelyBuffers {
    /// Those of a model, except what the user calls buffers anyway.
    #[must_use]
    pub fn of(model: &ModelMeta, buffers: &Globs) -> Vec<Self> {
        let parameters = || model.tensors.iter().filter(|t| t.dtype.is_float() && !buffers.matches(&t.name));
        let named = |name: &'static str| {
            let mut all = parameters().filter(move |t| t.name.rsplit('.').next() == Some(name));
            let first = all.next()?.name.to_string();
            Some(Self { name, first, count: 1 + all.count() })
        };
        USUAL.into_iter().filter_map(named).collect()
    }
}

impl std::fmt::Display for LikelyBuffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self { name, count, .. }, first) = (self, shown(&self.first));
        match count {
            1 => write!(f, "'{first}' is taken for a parameter")?,
            _ => write!(f, "'{first}' and {} more '{name}' are taken for parameters", count - 1)?,
        }
        write!(
            f,
            "; transformers has float buffers of that name, which are whole on every rank and never cast: if your model \
             does too, set shardwright: {{buffers: [\"*{name}\"]}}"
        )
    }
}

#[cfg(test)]
mod tests {
    use shardwright_core::{DType, ModelFacts, TensorMeta};

    use super::*;

    #[test]
    fn float_tensors_with_a_buffers_name_are_told_unless_the_user_has_named_them() {
        let tensor = |name: &str, dtype| TensorMeta::new(name, dtype, [4]);
        let tensors = vec![
            tensor("model.layers.3.mlp.gate.e_score_correction_bias", DType::F32),
            tensor("model.layers.4.mlp.gate.e_score_correction_bias", DType::F32),
            tensor("model.layers.4.mlp.gate.weight", DType::BF16),
            tensor("bn.running_mean", DType::F32),
            tensor("bn.running_var", DType::I64),
            tensor("not_inv_freq", DType::F32),
            tensor("inv_freq.weight", DType::F32),
        ];
        let model = ModelMeta::new(tensors, ModelFacts::default()).unwrap();
        let found = LikelyBuffers::of(&model, &Globs::default());
        let told: Vec<_> = found.iter().map(|b| (b.name, b.count)).collect();
        assert_eq!(told, [("e_score_correction_bias", 2), ("running_mean", 1)]);
        let text = found[0].to_string();
        assert!(text.starts_with("'model.layers.3.mlp.gate.e_score_correction_bias' and 1 more"), "{text}");
        assert!(text.ends_with(r#"shardwright: {buffers: ["*e_score_correction_bias"]}"#), "{text}");
        let named = Globs::new(["*e_score_correction_bias", "*running_mean"]).unwrap();
        assert_eq!(LikelyBuffers::of(&model, &named), []);
    }
}
