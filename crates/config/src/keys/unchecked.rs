//! Values of another type than their key takes, or out of its range, with which LLaMA-Factory runs all the same: it checks no types, so what it
//! does with a value decides.

use serde_json::Value as Json;
use shardwright_core::{
    diagnostic::Diagnostic,
    tree::{Node, Value},
};

/// The value that LLaMA-Factory goes on with, or `None` where it fails.
pub(super) fn value(key: &str, node: &Node, root: &Node, path: &str) -> Option<Json> {
    match path {
        "" => {}
        // Read where an adapter is merged and exported, and not by a training.
        "peft_config" if key.starts_with("export_") || key == "infer_dtype" => return Some(node.to_json()),
        "peft_config" if key == "lora_dropout" && node.as_number().is_some_and(|share| share <= 1.0) => return Some(node.to_json()),
        _ => return None,
    }
    let number = match node.value {
        Value::Bool(b) => Some(f64::from(u8::from(b))),
        _ => node.as_number(),
    };
    let counts_steps = || root.get("max_steps").and_then(Node::as_number).is_some_and(|steps| steps > 0.0);
    let saves = || ["save_steps", "save_epochs"].iter().any(|key| root.get(key).is_some_and(Node::is_truthy));
    let runs = match key {
        // Read where samples are made, and not by a training.
        "eval_dataset" | "sample_backend" | "max_new_tokens" => true,
        "num_train_epochs" => number.is_some() || counts_steps(),
        "max_steps" | "save_epochs" => number.is_some(),
        // Asked for its truth before its size.
        "save_steps" => number.is_some() || !node.is_truthy(),
        "max_grad_norm" => number.is_some() || node.as_str().is_some_and(|text| text.trim().parse::<f64>().is_ok()),
        "learning_rate" => number.is_some_and(|n| n >= 0.0),
        "cutoff_len" => number.is_some_and(|n| n != 0.0) && node.as_bool().is_none(),
        "logging_steps" => number.is_some_and(|n| n != 0.0),
        // Seconds, also parts of one.
        "dist_timeout" => number.is_some_and(|n| n > 0.0) && node.as_bool().is_none(),
        // Read where a checkpoint has been saved, and only compared.
        "save_total_limit" => !saves() || number.is_some_and(|n| n >= 0.0),
        "batching_workers" => node.as_bool().is_some() || number == Some(0.0),
        "micro_batch_size" | "global_batch_size" => return (node.as_bool() == Some(true)).then(|| 1.into()),
        "resume_from_checkpoint" => return (!node.is_truthy()).then_some(Json::Null),
        _ => false,
    };
    runs.then(|| number.filter(|n| n.is_finite()).map_or_else(|| node.to_json(), whole))
}

/// A number, without a fraction where it has none.
fn whole(number: f64) -> Json {
    #[expect(clippy::cast_possible_truncation, reason = "bounded")]
    let integer = (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64);
    integer.map_or_else(|| number.into(), Json::from)
}

/// The finding on such a value: what would be an error is a warning.
pub(super) fn warning(error: Diagnostic) -> Diagnostic {
    let message = format!("{}; LLaMA-Factory does not check this and goes on", error.message);
    let mut warning = Diagnostic::warning("config-unchecked", message).at(error.at);
    warning.help = error.help;
    warning
}

/// Values of the type that is due with which LLaMA-Factory fails all the same. A key that is left out has a default instead.
pub(crate) fn refused(root: &Node, diagnostics: &mut Vec<Diagnostic>) {
    let cases = [
        ("output_dir", "a path", true, "leave the key out for a fresh folder under outputs"),
        ("model", "a directory or a hub id", false, "name one, or leave the key out for the default"),
        ("train_dataset", "a file or a hub id", true, "name one; without any LLaMA-Factory does not train"),
    ];
    for (key, expected, not_null, help) in cases {
        let Some(node) = root.get(key).filter(|n| n.as_str() == Some("") || not_null && n.is_null()) else { continue };
        let message = format!("{key}: expected {expected}, found {}", node.describe());
        diagnostics.push(Diagnostic::error("config-value", message).at(node.at.clone()).help(help));
    }
}
