//! Sections that DeepSpeed reads key by key, without a model of their types: what it still fails on at start. Source: `deepspeed/runtime/config.py`.

use shardwright_core::{
    DType,
    diagnostic::Diagnostic,
    strategy_config::BuildContext,
    tree::{Node, Value},
};

use super::read;

/// Sections that must be mappings where they are given.
const MAPPINGS: &[&str] =
    &["activation_checkpointing", "autotuning", "checkpoint", "data_efficiency", "data_types", "flops_profiler", "pipeline"];

type Fits = fn(&Node) -> bool;

/// Sections that are looked at once their `enabled` is on, whatever is off around them, with a key that they need then.
const NEEDED: &[(&[&str], &[&str])] = &[
    (&["data_efficiency", "data_sampling", "curriculum_learning"], &["curriculum_metrics"]),
    (&["data_efficiency", "data_sampling", "dynamic_batching"], &["max_tokens"]),
    (&["data_efficiency", "data_routing", "random_ltd"], &["total_layer_num"]),
    (&["data_efficiency", "data_routing", "random_ltd"], &["random_ltd_layer_num"]),
    (&["data_efficiency", "data_routing", "random_ltd"], &["random_ltd_schedule"]),
    (&["data_efficiency", "data_routing", "random_ltd"], &["random_ltd_schedule", "min_value"]),
    (&["data_efficiency", "data_routing", "random_ltd"], &["random_ltd_schedule", "max_value"]),
    (&["data_efficiency", "data_routing", "random_ltd"], &["random_ltd_schedule", "schedule_config"]),
    (&["data_efficiency", "data_routing", "random_ltd"], &["random_ltd_schedule", "schedule_type"]),
];

/// Values with which DeepSpeed does not start where it runs on CPUs.
const NOT_ON_CPU: &[&[&str]] =
    &[&["aio", "use_gds"], &["zero_optimization", "zero_quantized_weights"], &["zero_optimization", "zero_quantized_nontrainable_weights"]];

/// Values that are looked at, with what is expected.
const VALUES: &[(&[&str], &str, Fits)] = &[
    (&["wall_clock_breakdown"], "a boolean", is_switch),
    (&["flops_profiler", "enabled"], "a boolean", is_switch),
    (&["comms_logger", "prof_ops"], "a list", is_list),
    (&["checkpoint", "tag_validation"], "Ignore, Warn or Fail", is_mode),
    (&["checkpoint", "parallel_write"], "a mapping", Node::is_map),
    (&["checkpoint", "parallel_write", "pipeline_stage"], "a boolean", is_switch),
    (&["data_types", "keep_in_fp32_modules"], "a list of name patterns", is_list_of_strings),
    (&["data_types", "grad_accum_dtype"], "fp32, bf16 or fp16", |node| node.is_null() || grad_accum(node).is_some()),
];

/// Reports what DeepSpeed fails on. An "auto" is reported where it is passed on.
pub(super) fn check(root: &Node, cx: &mut BuildContext<'_>) {
    let mut refuse = |path: &[&str], expected: &str, node: &Node| {
        let message = format!("{}: expected {expected}, found {}", path.join("."), node.describe());
        cx.diagnostics.push(Diagnostic::error("deepspeed-type", message).at(node.at.clone()));
    };
    for name in MAPPINGS {
        if let Some(node) = root.get(name).filter(|n| !n.is_map() && n.as_str() != Some("auto")) {
            refuse(&[name], "a mapping", node);
        }
    }
    if let Some(node) = root.get("aio").filter(|n| !n.is_map() && !n.is_null() && n.as_str() != Some("auto")) {
        refuse(&["aio"], "a mapping or null", node);
    }
    for (path, expected, fits) in VALUES {
        if let Some(node) = root.find(path).filter(|n| !fits(n) && n.as_str() != Some("auto")) {
            refuse(path, expected, node);
        }
    }
    needed(root, cx);
    on_cpu(root, cx);
}

/// Reports the first key that an enabled section lacks.
fn needed(root: &Node, cx: &mut BuildContext<'_>) {
    let mut reported: &[&str] = &[];
    for (path, key) in NEEDED {
        let is_on = |section: &&Node| section.get("enabled").is_some_and(|on| on.is_truthy() && on.as_str() != Some("auto"));
        let Some(section) = root.find(path).filter(is_on).filter(|section| reported != *path && section.find(key).is_none()) else {
            continue;
        };
        reported = path;
        let message = format!("{} is enabled, and {} is missing, without which DeepSpeed does not start", path.join("."), key.join("."));
        cx.diagnostics
            .push(Diagnostic::error("deepspeed-missing", message).at(section.at.clone()).help("write it, or set enabled to false"));
    }
}

fn on_cpu(root: &Node, cx: &mut BuildContext<'_>) {
    let variable = &cx.training.deepspeed_on_cpu;
    if !variable.value {
        return;
    }
    for path in NOT_ON_CPU {
        let is_three = path[0] != "zero_optimization" || root.find(&["zero_optimization", "stage"]).and_then(read::integer) == Some(3);
        let Some(node) = root.find(path).filter(|n| is_three && n.as_str() != Some("auto") && read::boolean(n) == Some(true)) else {
            continue;
        };
        let message = format!("{} needs a GPU, and DeepSpeed runs on CPUs here", path.join("."));
        let mut error = Diagnostic::error("deepspeed-on-cpu", message).at(node.at.clone()).help("set it to false");
        if let Some(at) = variable.location() {
            error = error.and(at, "CPUs by this variable");
        }
        cx.diagnostics.push(error);
    }
}

/// The dtype that `DtypeEnum` makes of a name.
pub(super) fn grad_accum(node: &Node) -> Option<DType> {
    match node.as_str()? {
        "fp16" | "float16" | "half" | "torch.float16" => Some(DType::F16),
        "fp32" | "float32" | "float" | "torch.float32" => Some(DType::F32),
        "bf16" | "bfloat16" | "torch.bfloat16" => Some(DType::BF16),
        "int8" | "torch.int8" => Some(DType::I8),
        _ => None,
    }
}

/// A boolean, or an integer in its place.
fn is_switch(node: &Node) -> bool {
    matches!(node.value, Value::Bool(_) | Value::Int(_))
}

fn is_list(node: &Node) -> bool {
    matches!(node.value, Value::Seq(_))
}

fn is_list_of_strings(node: &Node) -> bool {
    matches!(&node.value, Value::Seq(items) if items.iter().all(|item| item.as_str().is_some()))
}

fn is_mode(node: &Node) -> bool {
    node.as_str().is_some_and(|text| ["IGNORE", "WARN", "FAIL"].contains(&&*text.to_uppercase()))
}
