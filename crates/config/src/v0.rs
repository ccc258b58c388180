//! LLaMA-Factory's older (v0) YAML, recognised so that it is one error that says what each key becomes. And the YAML of other trainers.

use shardwright_core::{diagnostic::Diagnostic, tree::Node};

use crate::keys::KEYS;

/// Keys by which a file is of v0: none of them is a key of v1.
const TELLING: &[&str] = &["model_name_or_path", "finetuning_type", "do_train", "do_predict", "per_device_train_batch_size", "stage"];

/// Keys of v0 alone.
const ITS_OWN: &[&str] = &["finetuning_type", "stage", "template", "dataset", "lora_rank", "lora_target", "infer_backend"];

/// Keys of other trainers, and whose: axolotl's, and those of TRL's scripts, which share many of their keys with v0.
#[rustfmt::skip]
const OTHERS: &[(&str, &str)] = &[
    ("base_model", "axolotl"),
    ("dataset_name", "TRL"), ("dataset_config", "TRL"), ("dataset_mixer", "TRL"), ("dataset_mixture", "TRL"), ("use_peft", "TRL"), ("lora_r", "TRL"),
    ("lora_target_modules", "TRL"), ("attn_implementation", "TRL"), ("model_revision", "TRL"), ("max_seq_length", "TRL"),
];

/// What a key of v0 is in v1, where it has another name.
#[rustfmt::skip]
const TODAY: &[(&str, &str)] = &[
    ("adapter_name_or_path", "peft_config.adapter_name_or_path"),
    ("additional_target", "peft_config.modules_to_save"),
    ("dataloader_num_workers", "batching_workers"),
    ("dataset", "train_dataset, a data YAML or a hub id"),
    ("ddp_timeout", "dist_config.timeout in 0.9.5 and dist_timeout in later versions"),
    ("deepspeed", "dist_config: {name: deepspeed, config_file: …}"),
    ("disable_gradient_checkpointing", "enable_activation_checkpointing"),
    ("enable_liger_kernel", "kernel_config: {name: liger_kernel, include_kernels: auto}"),
    ("export_dir", "peft_config.export_dir"),
    ("export_hub_model_id", "peft_config.export_hub_model_id"),
    ("export_legacy_format", "peft_config.export_legacy_format"),
    ("export_size", "peft_config.export_size"),
    ("finetuning_type", "peft_config: {name: lora} or {name: freeze}, and nothing for full"),
    ("freeze_extra_modules", "peft_config.freeze_extra_modules"),
    ("freeze_trainable_layers", "peft_config.freeze_trainable_layers"),
    ("freeze_trainable_modules", "peft_config.freeze_trainable_modules"),
    ("fsdp", "dist_config: {name: fsdp2}"),
    ("fsdp_config", "dist_config: {name: fsdp2}"),
    ("gradient_accumulation_steps", "global_batch_size, which is dp_size times micro_batch_size times the steps"),
    ("gradient_checkpointing", "enable_activation_checkpointing"),
    ("infer_backend", "sample_backend"),
    ("infer_dtype", "peft_config.infer_dtype"),
    ("lora_alpha", "peft_config.lora_alpha"),
    ("lora_dropout", "peft_config.lora_dropout"),
    ("lora_rank", "peft_config.r"),
    ("lora_target", "peft_config.target_modules"),
    ("model_name_or_path", "model"),
    ("per_device_train_batch_size", "micro_batch_size"),
    ("quantization_bit", "quant_config.quantization_bit"),
    ("quantization_method", "quant_config: {name: …}"),
    ("template", "template in 0.9.5, which has qwen3 and qwen3_nothink, and custom_chat_template in later versions, where the model's own does not do"),
    ("use_dora", "peft_config.use_dora"),
    ("use_rslora", "peft_config.use_rslora"),
];

/// What the command says.
const COMMANDS: &[&str] = &["do_train", "do_predict", "do_eval", "stage"];

/// Most keys without a counterpart that are named.
const MOST_NAMED: usize = 12;

/// The error that a v0 file is, if the root is one.
pub(crate) fn recognised(root: &Node) -> Option<Diagnostic> {
    if ["model", "dist_config", "distributed_type"].iter().any(|key| root.entry(key).is_some()) {
        return None;
    }
    let other = OTHERS.iter().find_map(|(key, whose)| Some((root.entry(key)?, whose)));
    if let Some((entry, whose)) = other.filter(|_| ITS_OWN.iter().all(|key| root.entry(key).is_none())) {
        let message =
            format!("expected a YAML of LLaMA-Factory v1 or accelerate, found one of {whose}'s: '{}' is a key of {whose}", entry.key);
        let help =
            "name the YAML that accelerate launch reads, or a LLaMA-Factory YAML; a DeepSpeed file is read where one of them names it";
        return Some(Diagnostic::error("config-of-another-trainer", message).at(entry.at.clone()).help(help));
    }
    let entry = TELLING.iter().find_map(|key| root.entry(key))?;
    let message = format!("expected LLaMA-Factory's v1 YAML, found the older v0, of which '{}' is a key", entry.key);
    let today = |key: &str| TODAY.iter().find(|(old, _)| *old == key).map(|(_, new)| *new);
    let mut help: Vec<String> =
        TODAY.iter().filter(|(old, _)| root.entry(old).is_some()).map(|(old, new)| format!("{old} becomes {new}")).collect();
    let said: Vec<&str> = COMMANDS.iter().copied().filter(|key| root.entry(key).is_some()).collect();
    if !said.is_empty() {
        help.push(format!("{}: the command says it", said.join(" and ")));
    }
    let stays = |key: &str| today(key).is_some() || COMMANDS.contains(&key) || KEYS.iter().any(|k| k.name == key);
    let mut gone: Vec<&str> = root.entries().iter().map(|e| e.key.as_str()).filter(|key| !stays(key)).collect();
    if !gone.is_empty() {
        let more = gone.len().saturating_sub(MOST_NAMED);
        gone.truncate(MOST_NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        help.push(format!("v1 has nothing for {}{more}", gone.join(", ")));
    }
    Some(Diagnostic::error("config-is-v0", message).at(entry.at.clone()).help(help.join("; ")))
}
