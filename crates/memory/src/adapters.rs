//! The parameters that LoRA adds to a model, as tensors that the strategy then plans like any other.

use shardwright_core::{DType, Globs, ModelMeta, TensorKind, TensorMeta, Trainable, strategy::modules};

use crate::settings::Lora;

/// The model with its adapters. PEFT adds `lora_A` of `r × in` and `lora_B` of `out × r` beside each target, in float32
/// (`autocast_adapter_dtype`); `all` is every linear layer but the output's, as LLaMA-Factory and PEFT's `all-linear` have it.
pub fn adapters(model: &ModelMeta, lora: &Lora) -> ModelMeta {
    let mut with = model.clone();
    for tensor in &model.tensors {
        let Some((module, out, input)) = target(model, tensor, lora) else { continue };
        let mut push = |name: &str, shape: Vec<u64>| {
            let mut added = TensorMeta::new(format!("{module}.{name}"), DType::F32, shape);
            added.kind = Some(TensorKind::Parameter);
            with.tensors.push(added);
        };
        push("lora_A.default.weight", vec![lora.rank, input]);
        push("lora_B.default.weight", vec![out, lora.rank]);
        if lora.dora {
            push("lora_magnitude_vector.default.weight", vec![out]);
        }
    }
    with.tensors.sort_by(|a, b| a.name.cmp(&b.name));
    with
}

/// Which parameters are trained then. `None` where a name of `modules_to_save` is no pattern.
pub fn adapters_trained(lora: &Lora) -> Option<Trainable> {
    let escape =
        |name: &str| name.chars().flat_map(|c| if "*?[]{}\\!".contains(c) { vec!['[', c, ']'] } else { vec![c] }).collect::<String>();
    let own = ["*.lora_A.*", "*.lora_B.*", "*.lora_magnitude_vector.*"].map(str::to_owned);
    let whole = lora.whole.iter().map(|name| format!("*{}*", escape(name)));
    Globs::new(own.into_iter().chain(whole)).ok().map(Trainable::Matching)
}

/// The module, outputs and inputs of a linear layer that gets an adapter.
fn target<'a>(model: &ModelMeta, tensor: &'a TensorMeta, lora: &Lora) -> Option<(&'a str, u64, u64)> {
    let (module, "weight") = tensor.name.rsplit_once('.')? else { return None };
    let &[out, input] = tensor.shape.as_slice() else { return None };
    if tensor.kind == Some(TensorKind::Buffer) || !tensor.dtype.is_float() {
        return None;
    }
    let last = module.rsplit('.').next().unwrap_or(module);
    let chosen = if lora.targets.iter().any(|t| t == "all" || t == "all-linear") {
        let embedding = match &model.modules {
            Some(known) => known.embeddings.contains(module),
            None => ["embed", "wte", "wpe"].iter().any(|part| last.contains(part)),
        };
        let output = modules(&tensor.name).count() == 1 || ["lm_head", "score", "embed_out", "output"].contains(&last);
        !embedding && !output && !last.contains("norm")
    } else {
        lora.targets.iter().any(|t| t == last || module.strip_suffix(t.as_str()).is_some_and(|before| before.ends_with('.')))
    };
    chosen.then_some((module, out, input))
}

#[cfg(test)]
mod tests {
    use shardwright_core::ModelFacts;

    use super::*;

    #[test]
    fn every_linear_layer_but_the_output_gets_a_pair() {
        let tensors = [
            ("model.embed_tokens.weight", vec![100, 8]),
            ("model.layers.0.self_attn.q_proj.weight", vec![16, 8]),
            ("model.layers.0.input_layernorm.weight", vec![8]),
            ("lm_head.weight", vec![100, 8]),
        ];
        let tensors = tensors.into_iter().map(|(name, shape)| TensorMeta::new(name, DType::BF16, shape)).collect();
        let model = ModelMeta::new(tensors, ModelFacts::default()).unwrap();
        let mut lora = Lora { rank: 4, targets: vec!["all".into()], dora: false, whole: Vec::new() };
        let shapes = |lora: &Lora| -> Vec<(String, Vec<u64>)> {
            let with = adapters(&model, lora);
            with.tensors.iter().filter(|t| t.name.contains("lora")).map(|t| (t.name.to_string(), t.shape.clone())).collect()
        };
        let q = "model.layers.0.self_attn.q_proj";
        let pair = vec![(format!("{q}.lora_A.default.weight"), vec![4, 8]), (format!("{q}.lora_B.default.weight"), vec![16, 4])];
        assert_eq!(shapes(&lora), pair);
        lora.targets = vec!["q_proj".into()];
        assert_eq!(shapes(&lora), pair);
        lora.targets = vec!["v_proj".into()];
        assert!(shapes(&lora).is_empty());
        let trained = adapters_trained(&lora).unwrap();
        assert!(trained.contains(&pair[0].0) && !trained.contains("model.layers.0.self_attn.q_proj.weight"));
    }
}
