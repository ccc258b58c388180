//! What DeepSpeed reads and this project does not.

use serde_json::Value as Json;
use shardwright_core::{
    diagnostic::Diagnostic,
    document::{Document, Origin},
    strategy_config::{BuildContext, DeepSpeed, Dialect},
    tree::{Node, Value},
};

use crate::config::{
    keys::{REMOVED, TOP},
    read,
};

/// What DeepSpeed reads and this project does not, as it is; an "auto" in it is filled or reported.
pub(super) fn passed(root: &Node, document: &mut Document, cx: &mut BuildContext<'_>) {
    for entry in root.entries().iter().filter(|e| !TOP.contains(&e.key.as_str())) {
        // Removed keys have been reported already.
        if REMOVED.iter().any(|(key, _)| *key == entry.key) && cx.training.deepspeed.value >= DeepSpeed::V0_19 {
            continue;
        }
        let path = ["deepspeed", &entry.key];
        let is_theirs = entry.key == "zero_allow_untested_optimizer" && root.get("optimizer").is_none();
        if is_theirs && entry.value.as_str() == Some("auto") {
            let rule = "accelerate sets it to true for an optimizer that is made in the code";
            document.set(&path, true, Origin::rule(rule, [] as [&str; 0]).asked_at(entry.value.at.clone()));
            continue;
        }
        pass(&path, &entry.value, document, cx);
    }
}

fn pass(path: &[&str], node: &Node, document: &mut Document, cx: &mut BuildContext<'_>) {
    if let (false, Value::Map(entries)) = (node.entries().is_empty(), &node.value) {
        for entry in entries {
            let path: Vec<&str> = path.iter().copied().chain([entry.key.as_str()]).collect();
            pass(&path, &entry.value, document, cx);
        }
        return;
    }
    if node.as_str() != Some("auto") {
        return document.set(path, node.to_json(), Origin::Written(node.at.clone()));
    }
    let by_accelerate = cx.training.dialect == Dialect::Accelerate;
    let asked = |rule: &str| Origin::rule(rule, [] as [&str; 0]).asked_at(node.at.clone());
    match &path[1..] {
        // accelerate sets these whatever is written.
        ["steps_per_print"] => document.set(path, Json::Null, asked("accelerate sets it to infinity")),
        ["scheduler", "params", "warmup_min_lr"] if by_accelerate => {
            document.set(path, 0, asked("auto: 0, as accelerate fills it"));
        }
        ["optimizer", "params", "lr" | "weight_decay"]
        | ["scheduler", "params", "warmup_max_lr" | "warmup_num_steps" | "total_num_steps"]
            if by_accelerate =>
        {
            document.set(path, Json::Null, asked("auto: the script's DummyOptim or DummyScheduler decides when training starts"));
        }
        ["optimizer", "params", "betas" | "eps"] if by_accelerate => {
            let message = format!("{}: the Trainer of transformers fills this auto; accelerate by itself refuses it", path[1..].join("."));
            let help = "write the value that is meant, unless the script is a Trainer's";
            cx.diagnostics.push(Diagnostic::warning("deepspeed-auto-trainer", message).at(node.at.clone()).help(help));
            document.set(path, Json::Null, asked("auto: transformers' Trainer decides when training starts"));
        }
        _ => {
            cx.diagnostics.push(read::auto_left(&path[1..], node));
            document.set(path, Json::Null, asked("auto: nothing fills it"));
        }
    }
}
