//! The hidden size by the name that a model's class gives it.

use serde_json::Value;

/// transformers' `attribute_map` of `hidden_size`: the key in `config.json`, and the model types whose class maps it. Read off transformers
/// 5.24.
#[rustfmt::skip]
const NAMES: &[(&str, &[&str])] = &[
    ("d_model", &[
        "autoformer", "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "conditional_detr", "d_fine", "dbrx", "deformable_detr",
        "deimv2", "detr", "fsmt", "funnel", "grounding-dino", "informer", "led", "longt5", "m2m_100", "marian", "mbart", "mm-grounding-dino",
        "mpt", "mt5", "mvp", "nllb-moe", "patchtsmixer", "patchtst", "pegasus", "pegasus_x", "plbart", "pop2piano", "pp_doclayout_v2",
        "pp_doclayout_v3", "pp_formulanet_text", "qwen2_5_omni_audio_encoder", "qwen2_audio_encoder", "qwen3_asr_encoder",
        "qwen3_omni_moe_audio_encoder", "rt_detr", "rt_detr_v2", "speech_to_text", "switch_transformers", "t5", "table-transformer",
        "time_series_transformer", "trocr", "udop", "umt5", "whisper", "xglm", "xlnet",
    ]),
    ("dim", &["distilbert"]),
    ("emb_dim", &["flaubert", "xlm"]),
    ("embed_dim", &["idefics_vision", "kosmos_2_5_text_model", "kosmos_2_text_model", "swin2sr"]),
    ("hidden_dim", &["granite_speech_encoder", "granite_speech_plus_encoder", "mask2former", "oneformer"]),
    ("mask_feature_size", &["maskformer"]),
    ("n_embd", &["codegen", "ctrl", "gpt-sw3", "gpt2", "gpt_bigcode", "gptj", "imagegpt", "openai-gpt"]),
    ("text_hidden_size", &["inkling_audio"]),
];

/// Sections that hold the language model's config, in the order in which they are looked into.
const SECTIONS: &[&[&str]] = &[&[], &["text_config"], &["thinker_config", "text_config"], &["thinker_config"]];

/// `config.hidden_size` as the model's class answers it: under its own name or a mapped one, else the largest of `hidden_sizes`; else the
/// same in the language model's section.
pub(crate) fn hidden_size(config: &Value) -> Option<u64> {
    let section = |path: &&[&str]| path.iter().try_fold(config, |at, key| at.get(key));
    SECTIONS.iter().filter_map(section).find_map(|at| {
        let model_type = at["model_type"].as_str();
        let mapped =
            || NAMES.iter().find(|(_, types)| model_type.is_some_and(|t| types.contains(&t))).and_then(|(key, _)| at[*key].as_u64());
        let largest = || at["hidden_sizes"].as_array().and_then(|sizes| sizes.iter().filter_map(Value::as_u64).max());
        at["hidden_size"].as_u64().or_else(mapped).or_else(largest)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_hidden_size_has_the_name_that_the_class_maps() {
        assert_eq!(hidden_size(&json!({"model_type": "gpt2", "n_embd": 16})), Some(16));
        assert_eq!(hidden_size(&json!({"model_type": "t5", "d_model": 8, "d_ff": 32})), Some(8));
        assert_eq!(hidden_size(&json!({"model_type": "distilbert", "dim": 24})), Some(24));
        assert_eq!(hidden_size(&json!({"model_type": "segformer", "hidden_sizes": [4, 16, 8]})), Some(16));
        let thinker = json!({"model_type": "qwen2_5_omni", "thinker_config": {"text_config": {"hidden_size": 32}}});
        assert_eq!(hidden_size(&thinker), Some(32));
        // A class that maps nothing has no hidden_size by another name.
        assert_eq!(hidden_size(&json!({"model_type": "qwen3", "n_embd": 16})), None);
    }
}
