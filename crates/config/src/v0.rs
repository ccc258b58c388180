//! LLaMA-Factory's older (v0) YAML, recognised so that it is one error that says what each key becomes.

use shardwright_core::{diagnostic::Diagnostic, tree::Node};

/// Keys by which a file is of v0: none of them is a key of v1.
const TELLING: &[&str] = &["model_name_or_path", "finetuning_type", "do_train", "do_predict", "per_device_train_batch_size", "stage"];

/// What a key of v0 is in v1, where it has another name.
#[rustfmt::skip]
const TODAY: &[(&str, &str)] = &[
    ("adapter_name_or_path", "peft_config.adapter_name_or_path"),
    ("dataloader_num_workers", "batching_workers"),
    ("dataset", "train_dataset"),
    ("ddp_timeout", "dist_timeout"),
    ("deepspeed", "dist_config: {name: deepspeed, config_file: …}"),
    ("disable_gradient_checkpointing", "enable_activation_checkpointing"),
    ("finetuning_type", "peft_config: {name: lora} or {name: freeze}, and nothing for full"),
    ("freeze_extra_modules", "peft_config.freeze_extra_modules"),
    ("freeze_trainable_layers", "peft_config.freeze_trainable_layers"),
    ("freeze_trainable_modules", "peft_config.freeze_trainable_modules"),
    ("fsdp", "dist_config: {name: fsdp2}"),
    ("fsdp_config", "dist_config: {name: fsdp2}"),
    ("gradient_accumulation_steps", "global_batch_size, which is dp_size times micro_batch_size times the steps"),
    ("lora_alpha", "peft_config.lora_alpha"),
    ("lora_dropout", "peft_config.lora_dropout"),
    ("lora_rank", "peft_config.r"),
    ("lora_target", "peft_config.target_modules"),
    ("lr_scheduler_type", "lr_scheduler_config"),
    ("model_name_or_path", "model"),
    ("optim", "optim_config"),
    ("per_device_train_batch_size", "micro_batch_size"),
    ("quantization_bit", "quant_config.quantization_bit"),
    ("quantization_method", "quant_config: {name: …}"),
    ("template", "custom_chat_template, where the model's own does not do"),
];

/// The error that a v0 file is, if the root is one.
pub(crate) fn recognised(root: &Node) -> Option<Diagnostic> {
    if ["model", "dist_config", "distributed_type"].iter().any(|key| root.entry(key).is_some()) {
        return None;
    }
    let entry = TELLING.iter().find_map(|key| root.entry(key))?;
    let message = format!("expected LLaMA-Factory's v1 YAML, found the older v0, of which '{}' is a key", entry.key);
    let renamed = TODAY.iter().filter(|(old, _)| root.entry(old).is_some()).map(|(old, new)| format!("{old} becomes {new}"));
    let dropped: Vec<&str> = ["do_train", "stage"].into_iter().filter(|key| root.entry(key).is_some()).collect();
    let dropped = (!dropped.is_empty()).then(|| format!("{}: the command says it", dropped.join(" and ")));
    let help: Vec<String> = renamed.chain(dropped).collect();
    Some(Diagnostic::error("config-is-v0", message).at(entry.at.clone()).help(help.join("; ")))
}
