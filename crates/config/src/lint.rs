//! What is odd about a checkpoint under a config: float tensors that are likely buffers, though nothing in a checkpoint says so, and globs
//! that match nothing.

use std::collections::{BTreeMap, BTreeSet};

use shardwright_core::{Globs, ModelMeta, suggest::nearest, text::shown};

use crate::Resolved;

/// What transformers calls the float buffers that it writes into checkpoints. Read off the models of transformers 5.24; names that as many models give to parameters (`positional_embedding`) are left out.
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

impl Resolved {
    /// What a user should know before this is loaded from that model, a line each.
    #[must_use]
    pub fn lint(&self, model: &ModelMeta) -> Vec<String> {
        let mut found = likely_buffers(model, &self.buffers);
        let floats = || model.tensors.iter().filter(|t| t.dtype.is_float()).map(|t| t.name.as_str());
        if !self.buffers.is_empty() {
            found.extend(unmatched("buffers", "float tensor", &self.buffers, &floats().collect()));
        }
        if !self.units.is_empty() {
            let mut modules: BTreeSet<_> = floats().flat_map(|name| name.match_indices('.').map(|(dot, _)| &name[..dot])).collect();
            modules.extend(["lm_head", "embed_out"]); // modules all the same where their weights are tied and so not in the checkpoint
            found.extend(unmatched("units", "module", &self.units, &modules));
        }
        found
    }
}

/// Float tensors by the last part of their names, except what the user calls buffers anyway.
fn likely_buffers(model: &ModelMeta, buffers: &Globs) -> Vec<String> {
    let mut found: BTreeMap<&str, (&str, usize)> = BTreeMap::new(); // by last part: the first name, and how many there are
    for tensor in &model.tensors {
        let last = tensor.name.rsplit('.').next().unwrap_or_default();
        if tensor.kind.is_none() && USUAL.contains(&last) && tensor.dtype.is_float() && !buffers.matches(&tensor.name) {
            found.entry(last).or_insert((&tensor.name, 0)).1 += 1;
        }
    }
    let say = |(name, (first, count)): (&str, (&str, usize))| {
        let first = shown(first);
        let taken = match count {
            1 => format!("'{first}' is taken for a parameter"),
            _ => format!("'{first}' and {} more '{name}' are taken for parameters", count - 1),
        };
        format!(
            "{taken}; transformers has float buffers of that name, which are whole on every rank and never cast: if your model does too, set \
             shardwright: {{buffers: [\"*{name}\"]}}"
        )
    };
    found.into_iter().map(say).collect()
}

/// Globs that match nothing and are reported one by one; their nearest names are looked for, each among all names.
const MOST_REPORTED: usize = 8;

fn unmatched(key: &str, what: &str, globs: &Globs, names: &BTreeSet<&str>) -> Vec<String> {
    let patterns = globs.unmatched(names.iter().copied());
    let say = |pattern: &&str| {
        let near = nearest(pattern, names.iter().copied()).map_or(String::new(), |near| format!("; did you mean '{}'?", shown(near)));
        format!("shardwright.{key}: '{}' matches no {what} of the model{near}", shown(pattern))
    };
    let mut reported: Vec<String> = patterns.iter().take(MOST_REPORTED).map(say).collect();
    if let Some(more) = patterns.len().checked_sub(MOST_REPORTED).filter(|more| *more > 0) {
        reported.push(format!("shardwright.{key}: {more} more globs match no {what} of the model"));
    }
    reported
}

#[cfg(test)]
mod tests {
    use shardwright_core::{DType, ModelFacts, TensorMeta};

    use super::*;

    #[test]
    fn float_tensors_with_a_buffers_name_are_reported_unless_the_user_has_named_them() {
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
        let found = likely_buffers(&model, &Globs::default());
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("'model.layers.3.mlp.gate.e_score_correction_bias' and 1 more"), "{}", found[0]);
        assert!(found[0].ends_with(r#"shardwright: {buffers: ["*e_score_correction_bias"]}"#), "{}", found[0]);
        assert!(found[1].starts_with("'bn.running_mean' is taken for a parameter"), "{}", found[1]);
        let named = Globs::new(["*e_score_correction_bias", "*running_mean"]).unwrap();
        assert!(likely_buffers(&model, &named).is_empty());
    }

    #[test]
    fn a_glob_that_matches_nothing_is_reported() {
        let names = BTreeSet::from(["model.layers.0", "model.layers.1", "model.norm"]);
        let globs = Globs::new(["model.layers.*", "model.nrom", "zzz"]).unwrap();
        let found = unmatched("units", "module", &globs, &names);
        assert_eq!(
            found,
            [
                "shardwright.units: 'model.nrom' matches no module of the model; did you mean 'model.norm'?",
                "shardwright.units: 'zzz' matches no module of the model"
            ]
        );
    }
}
