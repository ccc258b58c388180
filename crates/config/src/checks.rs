//! What values mean together, checked as LLaMA-Factory checks it, all of it at once; and what is legal but costs a user time.

use std::ops::RangeInclusive;

use serde::de::DeserializeOwned;
use shardwright_core::{
    ModelFacts,
    diagnostic::{COMMAND_LINE, Diagnostic, Location},
    strategy_config::{Dialect, Init, Mixed, Training, Tuning},
    suggest::nearest,
    text::short,
    tree::{Entry, Node, Value, from_node},
};

use crate::{
    draft::Draft,
    keys::{self, FREEZE, Key, LORA, QUANT, Values},
    released,
    sections::Section,
    settings::{ByteSize, IoSettings},
};

/// The keys of a plugin section, where they are known.
pub(super) fn keys_of(section: &str, name: &str) -> &'static [Key] {
    match (section, name) {
        ("peft_config", "lora") => LORA,
        ("peft_config", "freeze") => FREEZE,
        ("quant_config", "bnb" | "auto") => QUANT,
        _ => &[],
    }
}

pub(super) fn run(draft: &Draft, values: &Values, training: &Training, model: Option<&ModelFacts>, found: &mut Vec<Diagnostic>) {
    sections(draft, found);
    io(draft, found);
    meta(draft, training, found);
    batching(values, found);
    sequence(values, training, model, found);
    divisible(training, found);
    lints(draft, training, found);
}

fn error(code: &'static str, message: impl Into<Box<str>>, at: Option<Location>) -> Diagnostic {
    Diagnostic::error(code, message).at(at)
}

/// Sections of known plugins are read strictly, as their dataclasses are.
fn sections(draft: &Draft, found: &mut Vec<Diagnostic>) {
    for (name, section) in &draft.sections {
        let keys = keys_of(name, &section.name);
        if keys.is_empty() {
            continue;
        }
        keys::unknown_keys(&section.body, name, keys.iter().map(|k| k.name), None, found);
        let values = Values::read(&section.body, keys, name, found);
        if keys == LORA && values.float("lora_dropout").value.is_some_and(|share| share > 1.0) {
            found.push(error(
                "config-value",
                "peft_config.lora_dropout: expected a number from 0 to 1",
                values.float("lora_dropout").location(),
            ));
        }
        // A string is one module's name, whatever is in it: LLaMA-Factory splits none, and peft finds no module of that name.
        if keys == LORA
            && let Some(node) = section.body.get("target_modules")
            && node.as_str().is_some_and(|text| text.contains(',') || text == "all-linear")
        {
            let message =
                format!("peft_config.target_modules: LLaMA-Factory takes {} for one module's name, and there is none", node.describe());
            found.push(error("config-value", message, Some(node.at.clone())).help("write a list, [q_proj, v_proj], or all"));
        }
        // Where an adapter is merged there may be several.
        let exports = section.body.get("export_dir").is_some_and(Node::is_truthy);
        let exports = exports || draft.root.find(&["shardwright", "inference"]).is_some_and(Node::is_truthy);
        if keys == LORA
            && let Some(node) = section.body.get("adapter_name_or_path").filter(|_| !exports)
            && matches!(&node.value, Value::Seq(items) if items.len() > 1)
        {
            let message =
                "peft_config.adapter_name_or_path: expected one adapter, found a list of several, of which LLaMA-Factory trains none";
            found.push(error("config-value", message, Some(node.at.clone())).help("merge all but one into the model first"));
        }
        let starts_anew = section.body.get("adapter_name_or_path").is_none_or(|node| !node.is_truthy());
        if keys == LORA
            && starts_anew
            && let Some(node) = section.body.get("target_modules")
            && matches!(&node.value, Value::Seq(items) if items.is_empty())
        {
            let message = "peft_config.target_modules: expected a name, found an empty list, with which peft makes no adapter and fails";
            found.push(error("config-value", message, Some(node.at.clone())).help("write all, or leave the key out"));
        }
        if keys == QUANT && !matches!(values.int("quantization_bit").value, None | Some(4 | 8)) {
            found.push(error("config-value", "quant_config.quantization_bit: expected 4 or 8", values.int("quantization_bit").location()));
        }
    }
    for (key, names, help) in PLUGINS {
        let Some(section) = draft.sections.get(key) else { continue };
        // Of kernels there may be several.
        let mut written = section.name.split(',').map(str::trim).filter(|name| *key != "kernel_config" || !name.is_empty());
        let Some(unknown) = written.find(|name| !names.contains(name)) else { continue };
        let message = match names {
            [] => format!("{key}: LLaMA-Factory has no plugin of this kind, and fails on '{}'", short(unknown)),
            _ => format!("{key}.name: expected {}, found '{}'", names.join(" or "), short(unknown)),
        };
        let mut refused = error("config-value", message, Some(section.name_at.clone()));
        if let Some(help) =
            nearest(unknown, names.iter().copied()).map(|near| format!("did you mean '{near}'?")).or(help.map(str::to_owned))
        {
            refused = refused.help(help);
        }
        found.push(refused);
    }
    if let Some(section) = draft.sections.get("kernel_config").filter(|_| draft.document.is_none()) {
        released::kernels(section, found);
    }
}

/// Sections whose plugins LLaMA-Factory v1 registers under these names, and what to do instead of another.
#[rustfmt::skip]
const PLUGINS: &[(&str, &[&str], Option<&str>)] = &[
    ("quant_config", &["bnb", "auto"], None),
    ("optim_config", &["muon"], Some("leave optim_config out for AdamW with learning_rate")),
    ("lr_scheduler_config", &[], Some("leave it out: the learning rate stays as it is")),
    ("kernel_config", &[
        "auto", "liger_kernel", "cuda_fused_moe", "flash-linear-attention", "npu_fused_moe", "npu_fused_rmsnorm", "npu_fused_rope", "npu_fused_swiglu",
    ], Some("leave kernel_config out")),
];

/// `shardwright.io`, key by key, so that nothing else that is wrong with the section hides it.
fn io(draft: &Draft, found: &mut Vec<Diagnostic>) {
    let Some(io) = draft.root.find(&["shardwright", "io"]) else { return };
    range::<u32>(io, "threads", IoSettings::THREADS, found);
    range::<u32>(io, "queue_depth", IoSettings::QUEUE_DEPTH, found);
    range::<ByteSize>(io, "block_size", IoSettings::BLOCK_SIZE, found);
    range::<ByteSize>(io, "ring_size", IoSettings::RING_SIZE, found);
    let on = |key| io.entry(key).filter(|e| e.value.as_bool() == Some(true));
    if let (Some(direct), Some(mmap)) = (on("direct"), on("mmap")) {
        // What the command line says comes after the file.
        let place = |e: &Entry| (&*e.at.file == COMMAND_LINE, e.at.span.start);
        let (first, second) = if place(direct) < place(mmap) { (direct, mmap) } else { (mmap, direct) };
        let message =
            format!("shardwright.io: {} beside {}: files are read past the page cache or mapped, not both", second.key, first.key);
        let error = error("io-direct-and-mmap", message, Some(second.at.clone()));
        found.push(
            error
                .and(first.at.clone(), format!("{} here", first.key))
                .help("leave out one of them; under mmap a file that shrinks kills the process"),
        );
    }
}

/// A number of a range; one that is no such number is the section's own to tell.
fn range<T: DeserializeOwned + Into<u64>>(io: &Node, key: &str, range: RangeInclusive<u64>, found: &mut Vec<Diagnostic>) {
    let Some(node) = io.get(key) else { return };
    let Ok(number) = from_node::<T>(node, "").map(Into::into) else { return };
    if !range.contains(&number) {
        let (least, most) = (range.start(), range.end());
        let expected = if *most == u64::MAX { format!("{least} or more") } else { format!("{least} to {most}") };
        let message = format!("shardwright.io.{key}: expected {expected}, found {}", node.describe());
        found.push(error("config-value", message, Some(node.at.clone())));
    }
}

fn meta(draft: &Draft, training: &Training, found: &mut Vec<Diagnostic>) {
    if training.init.value != Init::Meta {
        return;
    }
    let with = |d: Diagnostic| match training.init.location() {
        Some(at) => d.and(at, "init_config here"),
        None => d,
    };
    let at = |key: &str| draft.sections.get(key).map(|s: &Section| s.name_at.clone());
    if draft.sections.get("peft_config").is_some_and(|s| s.name == "lora") {
        let message = "peft_config lora does not go with init_config init_on_meta: the model is never loaded from meta";
        found.push(with(error("lora-on-meta", message, at("peft_config"))).help("use init_on_rank0 or init_on_default"));
    }
    let trains = draft.original.is_none() && draft.document.is_none() && training.tuning.value != Tuning::Inference;
    if trains && draft.root.get("dist_config").is_none_or(Node::is_null) {
        let message =
            "init_config init_on_meta needs dist_config fsdp2, which loads the model afterwards; without it the model stays without data";
        found.push(
            error("meta-without-fsdp2", message, training.init.location()).help("leave init_config out, or add dist_config: {name: fsdp2}"),
        );
    }
    if draft.sections.contains_key("quant_config") {
        let message = "quant_config does not go with init_config init_on_meta: there is nothing to quantize";
        found.push(with(error("quant-on-meta", message, at("quant_config"))).help("use init_on_rank0 or init_on_default"));
    }
}

fn batching(values: &Values, found: &mut Vec<Diagnostic>) {
    let strategy = values.text("batching_strategy");
    match strategy.value.as_deref() {
        Some("dynamic_batching") => {
            if values.int("max_steps").value.is_none_or(|n| n <= 0) {
                let message = "batching_strategy dynamic_batching needs max_steps above 0, because it counts steps";
                found.push(error("dynamic-batching", message, strategy.location()));
            }
            let epochs = values.float("save_epochs");
            if epochs.value.is_some() {
                let message = "save_epochs does not go with batching_strategy dynamic_batching";
                found.push(error("dynamic-batching", message, epochs.location()).help("use save_steps"));
            }
        }
        Some("padding_free") if values.text("flash_attn").value.as_deref() != Some("flash_attention_2") => {
            let message = "batching_strategy padding_free needs flash_attn flash_attention_2";
            found.push(error("padding-free", message, strategy.location()));
        }
        _ => {}
    }
}

fn sequence(values: &Values, training: &Training, model: Option<&ModelFacts>, found: &mut Vec<Diagnostic>) {
    let cp = &training.cp_size;
    if cp.value <= 1 || training.dialect != Dialect::LlamaFactory {
        return;
    }
    if values.text("flash_attn").value.as_deref() != Some("flash_attention_2") {
        let message = format!("cp_size {} needs flash_attn flash_attention_2", cp.value);
        found.push(error("cp-attention", message, cp.location()));
    }
    if model.and_then(|m| m.model_type.as_deref()) == Some("qwen3_5") {
        found.push(error("cp-model", format!("cp_size {} does not go with model type qwen3_5", cp.value), cp.location()));
    }
}

fn divisible(training: &Training, found: &mut Vec<Diagnostic>) {
    let (dp, micro) = (training.dp_size.value, training.micro_batch_size.value);
    let Some(step) = u64::from(dp).checked_mul(micro).map(|step| step.max(1)) else {
        let message = format!("dp_size {dp} times micro_batch_size {micro}: the batch has more samples than 64 bits count");
        return found.push(error("batch-not-divisible", message, training.micro_batch_size.location()));
    };
    if let Some(global) = training.global_batch_size.value.filter(|g| !g.is_multiple_of(step)) {
        let message =
            format!("global_batch_size is {global}, expected a multiple of dp_size {dp} times micro_batch_size {micro}, which is {step}");
        let below = (global / step).saturating_mul(step);
        let near = if below > 0 && global - below <= step / 2 { below } else { below.saturating_add(step) };
        found.push(error("batch-not-divisible", message, training.global_batch_size.location()).help(format!("the nearest is {near}")));
    }
}

fn lints(draft: &Draft, training: &Training, found: &mut Vec<Diagnostic>) {
    let replicates = draft.root.get("dist_config").is_none_or(Node::is_null);
    let llamafactory = draft.original.is_none();
    if let Some(section) = draft.sections.get("optim_config").filter(|s| s.name == "muon" && draft.document.is_none()) {
        let release = draft.diagnostics.iter().find(|d| d.code == released::CODE).and_then(|d| d.at.clone());
        found.push(released::optimizer(section, release));
    }
    if let Some(lr) = draft.sections.get("optim_config").and_then(|s| s.body.get("lr")) {
        let message = "optim_config.lr is overridden by learning_rate";
        found.push(Diagnostic::warning("optim-lr", message).at(lr.at.clone()).help("remove lr, and set learning_rate"));
    }
    if llamafactory && replicates && training.mixed.value == Mixed::Bf16 && training.mixed.location().is_some() {
        let message = "bf16 has no effect without a dist_config: the model is trained in the dtype that it is stored in";
        found.push(Diagnostic::warning("bf16-without-dist", message).at(training.mixed.location()));
    }
    if llamafactory && !replicates {
        init(draft, training, found);
    }
    freeze(draft, training, found);
}

/// That every rank holds the whole model before it is sharded.
pub(super) const INIT_HOLDS_MODEL: &str = "init-holds-model";

/// What LLaMA-Factory does where nothing else is said: every rank loads the whole model onto its device, and shards it then.
fn init(draft: &Draft, training: &Training, found: &mut Vec<Diagnostic>) {
    let Some(dist) = draft.sections.get("dist_config").filter(|s| s.name != "deepspeed" && s.name != "zero3") else { return };
    let at = match draft.sections.get("init_config") {
        Some(init) if init.name == "init_on_default" => init.name_at.clone(),
        None if training.world_size.value > 1 && training.tuning.value != Tuning::Inference => dist.name_at.clone(),
        _ => return,
    };
    let what =
        if draft.sections.contains_key("init_config") { "init_config init_on_default" } else { "without an init_config, the default" };
    let message = format!("{what} makes every rank hold the whole model before it is sharded");
    let help =
        if training.tuning.value == Tuning::Lora { "init_config: {name: init_on_rank0}" } else { "init_config: {name: init_on_meta}" };
    found.push(Diagnostic::warning(INIT_HOLDS_MODEL, message).at(at).help(help));
}

fn freeze(draft: &Draft, training: &Training, found: &mut Vec<Diagnostic>) {
    let (Tuning::Freeze { .. }, Some(section)) = (training.tuning.value, draft.sections.get("peft_config")) else { return };
    if let Some(null) = section.body.get("freeze_trainable_modules").filter(|n| n.is_null()) {
        let message =
            "peft_config.freeze_trainable_modules: expected a string or a list of strings, found null, with which LLaMA-Factory fails";
        found.push(Diagnostic::error("config-type", message).at(null.at.clone()).help("leave the key out, or write all"));
    }
    let is_empty = |n: &&Node| matches!(&n.value, Value::Seq(items) if items.is_empty());
    let no_modules = section.body.get("freeze_trainable_modules").filter(is_empty);
    let layers = section.body.get("freeze_trainable_layers");
    let extra = section.body.get("freeze_extra_modules").is_some_and(Node::is_truthy);
    if let Some(none) = no_modules.filter(|_| !extra) {
        let message =
            "freeze_trainable_modules names nothing, so that nothing is trained, and the optimizer refuses an empty list of parameters";
        found.push(Diagnostic::error("freeze-nothing", message).at(none.at.clone()).help("write all, or name a module"));
    }
    if let Some(zero) = layers.filter(|n| n.as_integer() == Some(0) && !extra) {
        let message = "freeze_trainable_layers 0 leaves nothing to train, and the optimizer refuses an empty list of parameters";
        found.push(Diagnostic::error("freeze-nothing", message).at(zero.at.clone()).help("train 1 layer or more, or freeze_extra_modules"));
    }
}
