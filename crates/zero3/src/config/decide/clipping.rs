//! `gradient_clipping`, and how it goes with the YAML's `max_grad_norm`.

use shardwright_core::{
    diagnostic::Diagnostic,
    document::{Document, Origin},
    strategy_config::BuildContext,
    tree::{Node, Value},
};

use super::ConfigIs;
use crate::config::read;

/// DeepSpeed's default for `gradient_clipping`, and what accelerate fills an "auto" with.
const CLIPPING: f64 = 1.0;

pub(super) fn clipping(root: &Node, file: ConfigIs, document: &mut Document, cx: &mut BuildContext<'_>) {
    const PATH: [&str; 2] = ["deepspeed", "gradient_clipping"];
    let yaml = &cx.training.max_grad_norm;
    match root.get("gradient_clipping") {
        Some(node) if node.as_str() == Some("auto") => {
            let (value, origin) = match yaml.value {
                Some(norm) => (norm, Origin::rule("auto: max_grad_norm of the YAML", ["/training/max_grad_norm"])),
                None => (CLIPPING, Origin::rule("auto: 1.0, as accelerate fills it", [] as [&str; 0])),
            };
            if yaml.value.is_some_and(|norm| norm != CLIPPING) {
                let message = format!(
                    "gradient_clipping auto is max_grad_norm, {value}; accelerate left alone would use 1.0, and ignore max_grad_norm"
                );
                let diagnostic = Diagnostic::warning("deepspeed-clipping", message).at(node.at.clone());
                cx.diagnostics.push(match yaml.location() {
                    Some(at) => diagnostic.and(at, "max_grad_norm here"),
                    None => diagnostic,
                });
            }
            document.set(&PATH, value, origin.asked_at(node.at.clone()));
        }
        // Nobody looks at it before the first step.
        Some(node) if matches!(node.value, Value::Float(number) if !number.is_finite()) => {
            document.set(&PATH, node.to_json(), Origin::Written(node.at.clone()));
        }
        // In a file a number in quotes stays a string, which the first step compares with a number.
        Some(node) => match read::float(node).filter(|_| file == ConfigIs::Inline || node.as_str().is_none()) {
            Some(value) => document.set(&PATH, value, Origin::Written(node.at.clone())),
            None => {
                let message = format!("gradient_clipping: expected a number or auto, found {}", node.describe());
                cx.diagnostics.push(Diagnostic::error("deepspeed-type", message).at(node.at.clone()));
            }
        },
        None => {
            if let (Some(norm), Some(at)) = (yaml.value.filter(|norm| *norm != CLIPPING), yaml.location()) {
                let message =
                    format!("max_grad_norm {norm} has no effect: under DeepSpeed gradient_clipping decides, and its default is {CLIPPING}");
                cx.diagnostics.push(Diagnostic::warning("deepspeed-clipping", message).at(at).help("add \"gradient_clipping\": \"auto\""));
            }
            document.set(&PATH, CLIPPING, Origin::Default);
        }
    }
}
