//! Module names of `peft_config` against a model: each row was started in LLaMA-Factory 0.9.5's `run_sft` on a tiny Qwen3, whose embeddings
//! are tied or not, and ran or failed as it says.

use shardwright_core::{DType, ModelFacts, ModelMeta, TensorKind, TensorMeta, diagnostic::Severity, model::Modules, piece::Model};

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

const FSDP2: &str = "{name: fsdp2}";
const ZERO: &str = "{name: deepspeed, config_file: ds.json}";

/// The codes of what is found, and whether there is an error among them.
fn found(dist: &str, peft: &str, stage: u32, tied: bool) -> (Vec<&'static str>, bool) {
    let yaml = format!("model: m\ntrain_dataset: d\ndist_config: {dist}\npeft_config: {peft}\n");
    let zero = format!(r#"{{"zero_optimization": {{"stage": {stage}}}, "train_micro_batch_size_per_gpu": "auto"}}"#);
    let outcome = Case::new(yaml).deepspeed(zero).outcome();
    assert!(!outcome.has_errors(), "{peft}: {:?}", outcome.diagnostics);
    let found = outcome.resolved.unwrap().misfits(&qwen3(tied));
    assert!(found.iter().all(|d| d.at.is_some()), "{found:?}");
    (found.iter().map(|d| d.code).collect(), found.iter().any(|d| d.severity == Severity::Error))
}

#[test]
fn names_that_peft_and_llamafactory_fail_on_are_refused() {
    for (dist, peft, stage, tied, fails) in [
        (FSDP2, "{name: lora}", 0, false, false),
        (FSDP2, "{name: lora, target_modules: null}", 0, false, false),
        (FSDP2, "{name: lora, target_modules: all}", 0, false, false),
        (FSDP2, "{name: lora, target_modules: [all]}", 0, false, true),
        (FSDP2, "{name: lora, target_modules: q_proj}", 0, false, false),
        (FSDP2, "{name: lora, target_modules: [nope]}", 0, false, true),
        (FSDP2, "{name: lora, target_modules: [q_proj, nope]}", 0, false, false),
        (FSDP2, "{name: lora, target_modules: [self_attn.q_proj]}", 0, false, false),
        (FSDP2, "{name: lora, target_modules: [model.layers.0.self_attn.q_proj]}", 0, false, false),
        (FSDP2, "{name: lora, target_modules: [q_norm]}", 0, false, true),
        (FSDP2, "{name: lora, target_modules: [mlp]}", 0, false, true),
        (FSDP2, "{name: lora, target_modules: [embed_tokens]}", 0, false, true),
        (FSDP2, "{name: lora, target_modules: [embed_tokens, q_proj]}", 0, false, true),
        (FSDP2, "{name: lora, target_modules: [embed_tokens]}", 0, true, true),
        ("null", "{name: lora, target_modules: [embed_tokens]}", 0, false, false),
        (ZERO, "{name: lora, target_modules: [embed_tokens]}", 3, false, false),
        (FSDP2, "{name: lora, target_modules: [lm_head, q_proj]}", 0, false, false),
        (FSDP2, "{name: lora, target_modules: ['.*q_proj']}", 0, false, true),
        (FSDP2, "{name: lora, target_modules: [q_proj.weight]}", 0, false, true),
        (FSDP2, "{name: lora, target_modules: ''}", 0, false, true),
        (FSDP2, "{name: lora, modules_to_save: [lm_head]}", 0, false, false),
        (FSDP2, "{name: lora, modules_to_save: [head]}", 0, false, false),
        (FSDP2, "{name: lora, modules_to_save: [embed_tokens]}", 0, false, true),
        (FSDP2, "{name: lora, modules_to_save: [embed_tokens]}", 0, true, false),
        ("null", "{name: lora, modules_to_save: [embed_tokens]}", 0, false, false),
        (FSDP2, "{name: lora, modules_to_save: [nope]}", 0, false, false),
        (FSDP2, "{name: lora, modules_to_save: []}", 0, false, false),
        (FSDP2, "{name: lora, modules_to_save: ''}", 0, false, false),
        (FSDP2, "{name: lora, modules_to_save: lm_head}", 0, false, true),
        (FSDP2, "{name: lora, modules_to_save: lm_head}", 0, true, false),
        ("null", "{name: lora, modules_to_save: lm_head}", 0, false, false),
        (FSDP2, "{name: lora, modules_to_save: [layers]}", 0, false, true),
        (ZERO, "{name: lora, modules_to_save: [lm_head]}", 3, false, true),
        (ZERO, "{name: lora, modules_to_save: [norm]}", 3, false, true),
        (ZERO, "{name: lora, modules_to_save: [nope]}", 3, false, false),
        (ZERO, "{name: lora, modules_to_save: [lm_head]}", 2, false, false),
        (FSDP2, "{name: freeze}", 0, false, false),
        (FSDP2, "{name: freeze, freeze_trainable_modules: [nope]}", 0, false, true),
        (FSDP2, "{name: freeze, freeze_trainable_modules: [mlp]}", 0, false, false),
        (FSDP2, "{name: freeze, freeze_trainable_modules: 'mlp, self_attn'}", 0, false, false),
        (FSDP2, "{name: freeze, freeze_trainable_modules: [mlp.up_proj]}", 0, false, true),
        (FSDP2, "{name: freeze, freeze_trainable_modules: ''}", 0, false, true),
        (FSDP2, "{name: freeze, freeze_extra_modules: [embed_tokens]}", 0, false, false),
        (FSDP2, "{name: freeze, freeze_extra_modules: 'norm,lm_head'}", 0, false, false),
        (FSDP2, "{name: freeze, freeze_extra_modules: [nope]}", 0, false, true),
        (FSDP2, "{name: freeze, freeze_extra_modules: [model]}", 0, false, true),
        (FSDP2, "{name: freeze, freeze_extra_modules: ''}", 0, false, true),
        (FSDP2, "{name: freeze, freeze_extra_modules: null}", 0, false, false),
    ] {
        let (codes, has_error) = found(dist, peft, stage, tied);
        assert_eq!(has_error, fails, "{dist} {peft} {stage} {tied}: {codes:?}");
    }
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
