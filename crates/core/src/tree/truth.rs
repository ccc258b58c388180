//! The warning on values that stand where a boolean is due.

use super::{
    node::{Node, Value},
    scalar,
};
use crate::diagnostic::Diagnostic;

/// The warning on a value that is not a boolean, where LLaMA-Factory checks no type and goes by [`Node::is_truthy`].
#[doc(hidden)]
pub fn truthiness(name: &str, node: &Node) -> Diagnostic {
    let truth = node.is_truthy();
    let message = format!("{name}: expected a boolean, found {}, which LLaMA-Factory takes for {truth}", node.describe());
    let text = node.as_str().unwrap_or_default();
    let word = text.to_lowercase();
    let help = match (word.as_str(), scalar::plain(text).value) {
        ("true" | "yes" | "on" | "false" | "no" | "off", Value::Bool(_)) => format!("write {word} without quotes"),
        ("true" | "yes" | "on" | "false" | "no" | "off", _) => format!("write {word}"),
        _ => "write true or false".to_owned(),
    };
    Diagnostic::warning("config-truthiness", message).at(node.at.clone()).help(help)
}
