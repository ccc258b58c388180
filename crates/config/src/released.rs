//! What LLaMA-Factory 0.9.5 spells otherwise than the versions after it: the sizes of the mesh stand in `dist_config` there, and the chat template
//! has a name. Both are taken, with a warning that says which version reads them.

use shardwright_core::{diagnostic::Diagnostic, tree::Node};

use crate::sections;

/// Keys of `dist_config` in 0.9.5, and what they are on the top level afterwards.
const SIZES: &[(&str, &str)] = &[
    ("mp_replicate_size", "mp_replicate_size"),
    ("mp_shard_size", "mp_shard_size"),
    ("dp_size", "dp_size"),
    ("cp_size", "cp_size"),
    ("cp_mode", "cp_mode"),
    ("timeout", "dist_timeout"),
];

/// Moves keys to where later versions have them. A key that the file has in both places stays, and is an unknown key of its section.
pub(super) fn translate(root: &mut Node, diagnostics: &mut Vec<Diagnostic>) {
    const CODE: &str = "llamafactory-release";
    const TEMPLATES: [&str; 2] = ["qwen3", "qwen3_nothink"];
    if let Some(node) = root.get("template").filter(|n| n.as_str().is_none_or(|name| !TEMPLATES.contains(&name))) {
        let message = format!("template: expected {}, found {}", TEMPLATES.join(" or "), node.describe());
        let help = "LLaMA-Factory 0.9.5 has only these, and later versions have no such key: leave it out";
        diagnostics.push(Diagnostic::error("config-value", message).at(node.at.clone()).help(help));
    } else if let Some(entry) = root.entry("template") {
        let message = "template is a key of LLaMA-Factory 0.9.5; later versions refuse it";
        let help = "under a later version leave it out, or set custom_chat_template where the model's own template does not do";
        diagnostics.push(Diagnostic::warning(CODE, message).at(entry.at.clone()).help(help));
    }
    for (old, new) in SIZES {
        if root.get(new).is_some() {
            continue;
        }
        let Some(dist) = root.get("dist_config") else { return };
        let Some(entry) = dist.entry(old).cloned() else { continue };
        let (rest, dist_at) = (dist.without(old), dist.at.clone());
        let message = format!(
            "dist_config.{old} is where LLaMA-Factory 0.9.5 reads it; later versions read {new} on the top level and refuse it here"
        );
        let help = format!("under a later version write {new} outside of all sections");
        diagnostics.push(Diagnostic::warning(CODE, message).at(entry.at.clone()).help(help));
        let key_at = root.entry("dist_config").map_or(dist_at, |e| e.at.clone());
        root.set("dist_config", key_at, rest);
        let mut value = entry.value;
        sections::coerce(&mut value);
        root.set(new, entry.at, value);
    }
}
