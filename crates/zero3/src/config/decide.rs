//! What a DeepSpeed config means: the strategy, the precision, the batch, every "auto" made concrete.

mod batches;
mod clipping;
mod passed;
mod precision;
mod sections;

use serde_json::Value as Json;
use shardwright_core::{
    Offload,
    diagnostic::Diagnostic,
    document::{Document, Origin},
    mesh::MP_REPLICATE,
    replicate::Replicate,
    strategy_config::{BuildContext, Built, Dialect, Unresolved},
    tree::Node,
};

use super::{keys::ZERO, lints, made, read::Reader};
use crate::Zero3;

/// Where a DeepSpeed config stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConfigIs {
    /// In a file of its own, which the engines read.
    File,
    /// In the YAML.
    Inline,
}

/// Builds the strategy that a DeepSpeed config describes. `root` is all of it.
pub(super) fn build(root: &Node, file: ConfigIs, cx: &mut BuildContext<'_>) -> Result<Built, Diagnostic> {
    let mut document = Document::default();
    sections::top_level(root, cx);
    if file == ConfigIs::File && cx.training.dialect == Dialect::LlamaFactory {
        sections::no_optimizer(root, cx);
    }
    batches::batches(root, file, &mut document, cx);
    let batch_is_wrong = cx.diagnostics.iter().any(|d| d.code == "deepspeed-batch");
    if file == ConfigIs::File && cx.training.dialect == Dialect::LlamaFactory && !batch_is_wrong {
        batches::at_loading(root, cx);
    }
    clipping::clipping(root, file, &mut document, cx);
    if let Some(null) = root.find(&["zero_optimization", "offload_optimizer"]).filter(|n| file == ConfigIs::File && n.is_null()) {
        let message =
            "zero_optimization.offload_optimizer: expected a mapping with a device, found null; accelerate reads the device and fails";
        let help = "leave the key out, or write {\"device\": \"none\"}";
        cx.diagnostics.push(Diagnostic::error("deepspeed-type", message).at(null.at.clone()).help(help));
    }
    let zero = sections::zero_section(root, cx).unwrap_or_else(|missing| {
        cx.diagnostics.push(missing);
        Node::map(Vec::new(), root.at.clone())
    });
    let mut reader = Reader {
        document: &mut document,
        diagnostics: &mut cx.diagnostics,
        hidden: cx.model.and_then(|m| m.hidden_size),
        version: cx.training.deepspeed.value,
        unresolved: Vec::new(),
    };
    reader.table(Some(&zero), ZERO, &["zero_optimization"]);
    let unresolved = std::mem::take(&mut reader.unresolved);
    for (pointer, node) in unresolved {
        cx.unresolved.push(Unresolved::new(pointer, "hidden_size of the model's config.json", node.at));
    }
    let case = precision::precision(root, &mut document, cx);
    passed::passed(root, &mut document, cx);
    let stage = number(&document, "stage").unwrap_or(0);
    sections::layouts_of_others(root, stage, file, cx);
    if document.get("/deepspeed/zero_optimization/overlap_comm") == Some(&Json::Null) {
        let origin = Origin::rule("true exactly under stage 3", ["/deepspeed/zero_optimization/stage"]);
        document.set(&["deepspeed", "zero_optimization", "overlap_comm"], stage == 3, origin);
    }
    sections::needs_of_the_stage(root, stage, &document, cx);
    lints::check(&zero, stage, &document, cx);
    if file == ConfigIs::File {
        made::optimizer_of_the_script(root, &document, cx);
        made::zenflow(root, &zero, stage, cx);
        if cx.training.dialect == Dialect::Accelerate {
            made::check(root, stage, &document, cx);
        }
    }
    if file == ConfigIs::File && cx.training.dialect == Dialect::LlamaFactory {
        lints::under_llamafactory(root, stage, &document, cx);
    }
    if cx.training.cp_size.value > 1 && cx.training.dialect == Dialect::LlamaFactory {
        let message = format!("cp_size is {}, and context parallelism does not go with DeepSpeed", cx.training.cp_size.value);
        cx.diagnostics
            .push(Diagnostic::error("deepspeed-cp", message).at(cx.training.cp_size.location()).help("use dist_config.name: fsdp2"));
    }
    if stage == 3 && cx.mesh.size_of(MP_REPLICATE) > 1 {
        let message = "mp_replicate_size has no effect under DeepSpeed, which partitions over all ranks";
        cx.diagnostics
            .push(Diagnostic::warning("deepspeed-mesh", message).at(zero.at.clone()).help("leave it out, or use dist_config.name: fsdp2"));
    }
    let mut built = match stage {
        3 => Built::new(zero3(&document, &zero, cx)),
        _ => Built::new(Replicate),
    }
    .without_groups();
    built.document = document;
    Ok(match case {
        Some(policy) => built.with_precision(policy),
        None => built,
    })
}

fn number(document: &Document, key: &str) -> Option<i64> {
    document.get(&format!("/deepspeed/zero_optimization/{key}")).and_then(Json::as_i64)
}

fn zero3(document: &Document, zero: &Node, cx: &mut BuildContext<'_>) -> Zero3 {
    let world = cx.mesh.world_size();
    let at = |key: &str| zero.get(key).map(|n| n.at.clone());
    let count = |key: &str| number(document, key).and_then(|n| u64::try_from(n).ok());
    let ranks = |key: &str| number(document, key).and_then(|n| u32::try_from(n).ok());
    let mics = ranks("mics_shard_size").filter(|n| *n > 0);
    // DeepSpeed makes no group larger than the world.
    let hpz = ranks("zero_hpz_partition_size").unwrap_or(1).clamp(1, world);
    for (key, size) in [("mics_shard_size", mics.unwrap_or(1)), ("zero_hpz_partition_size", hpz)] {
        if !world.is_multiple_of(size) {
            let message = format!("zero_optimization.{key} is {size}, expected a divisor of the world size {world}");
            cx.diagnostics.push(Diagnostic::error("deepspeed-group", message).at(at(key)));
        }
    }
    let offload = match document.get("/deepspeed/zero_optimization/offload_param/device").and_then(Json::as_str) {
        Some("cpu") => Offload::Cpu,
        Some("nvme") => Offload::Nvme,
        _ => Offload::None,
    };
    Zero3 {
        mics_shard_size: mics,
        hpz_partition_size: hpz,
        param_persistence_threshold: count("stage3_param_persistence_threshold").unwrap_or(0),
        model_persistence_threshold: count("stage3_model_persistence_threshold").unwrap_or(u64::MAX),
        offload,
    }
}
