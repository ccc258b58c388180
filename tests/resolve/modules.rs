//! Module names of `peft_config` against a model. Which of them LLaMA-Factory starts with is recorded in `engines_started.json`.

use shardwright_core::{DType, ModelFacts, ModelMeta, TensorKind, TensorMeta, model::Modules, piece::Model};

use crate::Case;

/// A Qwen3 of two layers.
pub(crate) fn qwen3(tied: bool) -> Model {
    let mut shapes: Vec<(String, Vec<u64>)> =
        vec![("model.embed_tokens.weight".into(), vec![64, 16]), ("model.norm.weight".into(), vec![16])];
    if !tied {
        shapes.push(("lm_head.weight".into(), vec![64, 16]));
    }
    for layer in 0..2 {
        let named = |name: &str| format!("model.layers.{layer}.{name}.weight");
        let linear = [
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        ];
        shapes.extend(linear.iter().map(|name| (named(name), vec![16, 16])));
        let norms = ["self_attn.q_norm", "self_attn.k_norm", "input_layernorm", "post_attention_layernorm"];
        shapes.extend(norms.iter().map(|name| (named(name), vec![16])));
    }
    let parameter = |(name, shape): (String, Vec<u64>)| {
        let mut tensor = TensorMeta::new(name, DType::BF16, shape);
        tensor.kind = Some(TensorKind::Parameter);
        tensor
    };
    let mut model = Model::identity(ModelMeta::new(shapes.into_iter().map(parameter).collect(), ModelFacts::default()).unwrap());
    let mut modules = Modules::default();
    modules.blocks.extend(["model.layers.0".to_owned(), "model.layers.1".to_owned()]);
    modules.embeddings.insert("model.embed_tokens".to_owned());
    modules.ties_embeddings = tied;
    model.meta.modules = Some(modules);
    if tied {
        model.aliases.push(("lm_head.weight".into(), "model.embed_tokens.weight".into()));
    }
    model
}

#[test]
fn a_name_that_is_passed_over_is_a_warning_with_the_nearest() {
    let yaml =
        "model: m\ndist_config: {name: fsdp2}\npeft_config: {name: lora, target_modules: [q_proj, v_prj], modules_to_save: [lm_haed]}\n";
    let found = Case::new(yaml).outcome().resolved.unwrap().misfits(&qwen3(false));
    let helps: Vec<&str> = found.iter().map(|d| d.help.as_deref().unwrap()).collect();
    assert_eq!(helps, ["did you mean 'v_proj'?", "did you mean 'lm_head'?"]);
    assert!(found.iter().all(|d| d.code == "peft-module-ignored"), "{found:?}");
}

/// Without the class nothing is known of its modules.
#[test]
fn an_unknown_class_is_not_judged() {
    let mut model = qwen3(false);
    model.meta.modules = None;
    let yaml = "model: m\ndist_config: {name: fsdp2}\npeft_config: {name: lora, target_modules: [nope]}\n";
    assert!(Case::new(yaml).outcome().resolved.unwrap().misfits(&model).is_empty());
}
