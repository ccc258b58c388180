//! Sections that DeepSpeed reads key by key, without a model of their types: what it still fails on at start. Source: `deepspeed/runtime/config.py`.

use shardwright_core::{
    diagnostic::Diagnostic,
    strategy_config::BuildContext,
    tree::{Node, Value},
};

/// Sections that must be mappings where they are given.
const MAPPINGS: &[&str] =
    &["activation_checkpointing", "autotuning", "checkpoint", "data_efficiency", "data_types", "flops_profiler", "pipeline"];

type Fits = fn(&Node) -> bool;

/// Values that are looked at, with what is expected.
const VALUES: &[(&[&str], &str, Fits)] = &[
    (&["wall_clock_breakdown"], "a boolean", is_switch),
    (&["flops_profiler", "enabled"], "a boolean", is_switch),
    (&["comms_logger", "prof_ops"], "a list", is_list),
    (&["checkpoint", "tag_validation"], "Ignore, Warn or Fail", is_mode),
    (&["checkpoint", "parallel_write"], "a mapping", Node::is_map),
    (&["checkpoint", "parallel_write", "pipeline_stage"], "a boolean", is_switch),
    (&["data_types", "keep_in_fp32_modules"], "a list of name patterns", is_list_of_strings),
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
