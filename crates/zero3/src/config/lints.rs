//! What a DeepSpeed config says that is legal and still costs a user time.

use serde_json::Value as Json;
use shardwright_core::{
    diagnostic::Diagnostic,
    document::Document,
    strategy_config::{BuildContext, Init, Tuning},
    tree::Node,
};

use super::{
    keys::{Stages, ZERO},
    read,
};

/// Elements of a buffer that takes 4 TiB, which is more than any device and nearly any host has.
const MOST_BUCKET: i64 = 1 << 41;

pub(super) fn check(zero: &Node, stage: i64, document: &Document, cx: &mut BuildContext<'_>) {
    let mut found = Vec::new();
    let get = |path: &str| document.get(&format!("/deepspeed/zero_optimization/{path}"));
    if let Some(node) = zero.get("stage").filter(|n| read::integer(n) != Some(stage) || stage > 3) {
        // What else there is to say depends on the stage; where it is not a number, that has been said.
        if stage > 3 {
            let message = format!("zero_optimization.stage: expected 0, 1, 2 or 3, found {stage}");
            cx.diagnostics.push(Diagnostic::error("deepspeed-stage", message).at(node.at.clone()));
        }
        return;
    }
    for key in ZERO {
        let ignored = match key.stages {
            Stages::All => false,
            Stages::Three => stage != 3,
            Stages::Below => stage == 3 || stage == 0,
        };
        let Some(entry) = zero.entry(key.name).or_else(|| zero.entry(key.alias?)).filter(|_| ignored) else { continue };
        let message = format!("zero_optimization.{} has no effect under stage {stage}", entry.key);
        found.push(Diagnostic::warning("deepspeed-ignored-key", message).at(entry.at.clone()));
    }
    for offload in ["offload_param", "offload_optimizer"] {
        let device = get(&format!("{offload}/device")).and_then(Json::as_str).unwrap_or("none");
        let unpinned = get(&format!("{offload}/pin_memory")) == Some(&Json::Bool(false));
        if device == "cpu" && unpinned {
            let at = zero.find(&[offload, "pin_memory"]).map(|n| n.at.clone());
            let message = format!("{offload} without pin_memory copies to and from the device synchronously");
            found.push(Diagnostic::warning("offload-unpinned", message).at(at).help("set pin_memory to true, unless host memory is short"));
        }
        if device == "nvme" && get(&format!("{offload}/nvme_path")).is_none_or(Json::is_null) {
            let at = zero.find(&[offload, "device"]).map(|n| n.at.clone());
            let message = format!("{offload}.device is nvme, and {offload}.nvme_path is not given");
            found.push(Diagnostic::error("deepspeed-nvme-path", message).at(at));
        }
    }
    let ratio = get("offload_optimizer/ratio").and_then(Json::as_f64).unwrap_or(1.0);
    if stage != 3 && ratio < 1.0 {
        let at = zero.find(&["offload_optimizer", "ratio"]).map(|n| n.at.clone());
        found.push(Diagnostic::error("deepspeed-ratio", "offload_optimizer.ratio below 1 needs stage 3").at(at));
    }
    if get("compute_grad_norm") == Some(&Json::Bool(false)) && !(1..=2).contains(&stage) {
        let at = zero.get("compute_grad_norm").map(|n| n.at.clone());
        found.push(Diagnostic::error("deepspeed-grad-norm", "compute_grad_norm false needs stage 1 or 2").at(at));
    }
    // Gradients are gathered in a buffer of that many elements of 2 bytes or more.
    let bucket = get("reduce_bucket_size").and_then(Json::as_i64).filter(|n| (1..=3).contains(&stage) && *n > MOST_BUCKET);
    if let (Some(elements), true) = (bucket, get("contiguous_gradients") != Some(&Json::Bool(false))) {
        let at = zero.get("reduce_bucket_size").map(|n| n.at.clone());
        let message = format!("reduce_bucket_size: DeepSpeed allocates a buffer of that many elements, and no device holds {elements}");
        let help = "DeepSpeed's default is 500000000, which is 1 GB in bfloat16";
        found.push(Diagnostic::error("deepspeed-bucket", message).at(at).help(help));
    }
    if stage == 3 {
        persistence(zero, &get, cx, &mut found);
        init(cx, &mut found);
    }
    cx.diagnostics.extend(found);
}

/// What LLaMA-Factory fails on under DeepSpeed, where it builds the model, and where it saves it in the end.
pub(super) fn under_llamafactory(root: &Node, stage: i64, document: &Document, cx: &mut BuildContext<'_>) {
    const KEY: &str = "stage3_gather_16bit_weights_on_model_save";
    let training = cx.training;
    if training.init.value == Init::Meta {
        let message = "init_config init_on_meta builds the model without data, and under DeepSpeed LLaMA-Factory fails on that";
        cx.diagnostics.push(Diagnostic::error("deepspeed-on-meta", message).at(training.init.location()).help("leave init_config out"));
    }
    if stage != 3 || training.tuning.value == Tuning::Inference {
        return;
    }
    if let Tuning::Freeze { .. } = training.tuning.value {
        let message = "peft_config freeze does not go with ZeRO stage 3: LLaMA-Factory divides by the number of parameters that it counts, which is 0 there";
        let error = Diagnostic::error("deepspeed-freeze", message).at(training.tuning.location());
        cx.diagnostics.push(error.help("use stage 2, or dist_config.name: fsdp2"));
    }
    // accelerate refuses to save what is not to be gathered.
    if document.get(&format!("/deepspeed/zero_optimization/{KEY}")) != Some(&Json::Bool(true)) {
        let at = root.find(&["zero_optimization", KEY]).or_else(|| root.get("zero_optimization")).map(|node| node.at.clone());
        let message = format!("without {KEY} LLaMA-Factory trains, and fails where it saves the model at the end");
        cx.diagnostics.push(Diagnostic::warning("deepspeed-not-saved", message).at(at).help(format!("\"{KEY}\": true")));
    }
}

/// A threshold that a layer's whole weight matrix falls under keeps most of the model gathered.
fn persistence<'a>(zero: &Node, get: &impl Fn(&str) -> Option<&'a Json>, cx: &BuildContext<'_>, found: &mut Vec<Diagnostic>) {
    const KEY: &str = "stage3_param_persistence_threshold";
    let (Some(threshold), Some(hidden)) = (get(KEY).and_then(Json::as_u64), cx.model.and_then(|m| m.hidden_size)) else { return };
    let Some(node) = zero.get(KEY).or_else(|| zero.get("param_persistence_threshold")).filter(|n| n.as_str() != Some("auto")) else {
        return;
    };
    let matrix = hidden.saturating_mul(hidden);
    let capped = get("stage3_model_persistence_threshold").and_then(Json::as_u64).is_some_and(|cap| cap < matrix);
    if threshold >= matrix && !capped && hidden > 1 {
        let message = format!(
            "{KEY} is {threshold}, and a weight matrix of this model has about {hidden} times {hidden} elements: most of it stays gathered on every rank"
        );
        found.push(
            Diagnostic::warning("deepspeed-persistence", message)
                .at(node.at.clone())
                .help(format!("auto means {}", hidden.saturating_mul(10))),
        );
    }
}

/// Under stage 3 the model is partitioned as it is built; an init_config works against that.
fn init(cx: &BuildContext<'_>, found: &mut Vec<Diagnostic>) {
    let init = &cx.training.init;
    let message = match init.value {
        // The file of LLaMA-Factory's deepspeed has an error there.
        Init::Meta if cx.section.get("config_file").is_some() => return,
        Init::Meta => "init_config init_on_meta builds the model without data, and under DeepSpeed nothing loads it afterwards",
        Init::Rank0 => "init_config init_on_rank0 has no effect under ZeRO-3, which partitions the model as it is built",
        Init::Default => return,
    };
    found.push(Diagnostic::warning("init-under-deepspeed", message).at(init.location()).help("leave init_config out"));
}
