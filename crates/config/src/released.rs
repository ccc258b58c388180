//! What LLaMA-Factory 0.9.5 spells otherwise than the versions after it: the sizes of the mesh stand in `dist_config` there, and the chat template
//! has a name. Both are taken, with a warning that says which version reads them.

use std::collections::BTreeMap;

use shardwright_core::{
    diagnostic::{Diagnostic, Location, Source},
    suggest::nearest,
    text::short,
    tree::Node,
};

use crate::sections::{self, Section};

/// Keys of `dist_config` in 0.9.5, and what they are on the top level afterwards.
const SIZES: &[(&str, &str)] = &[
    ("mp_replicate_size", "mp_replicate_size"),
    ("mp_shard_size", "mp_shard_size"),
    ("dp_size", "dp_size"),
    ("cp_size", "cp_size"),
    ("cp_mode", "cp_mode"),
    ("timeout", "dist_timeout"),
];

/// Keys of later versions, which 0.9.5 refuses.
const LATER: &[&str] = &[
    "custom_chat_template",
    "dp_size",
    "cp_size",
    "cp_mode",
    "mp_replicate_size",
    "mp_shard_size",
    "dist_timeout",
    "pref_loss",
    "pref_beta",
    "pref_ftx",
    "simpo_gamma",
    "dpo_label_smoothing",
    "ld_alpha",
];

/// The warning on what one version of LLaMA-Factory reads and another refuses.
pub(super) const CODE: &str = "llamafactory-release";

/// A `dist_config` that is a JSON string with sizes becomes the mapping that it is, so that they are found.
pub(super) fn unfold(root: &mut Node, sources: &[Source]) {
    let Some(entry) = root.entry("dist_config") else { return };
    let Some(dist) = sections::unfolded(&entry.value, sources) else { return };
    if SIZES.iter().any(|(old, _)| dist.entry(old).is_some()) {
        let at = entry.at.clone();
        root.set("dist_config", at, dist);
    }
}

/// Refuses a file that no version reads: with keys of 0.9.5 that later versions refuse, and keys of later versions, which 0.9.5 refuses.
pub(super) fn mixed(root: &Node, diagnostics: &mut Vec<Diagnostic>) {
    let dist = root.get("dist_config");
    let older = root.entry("template").map(|e| ("template".to_owned(), e));
    let older = older.or_else(|| SIZES.iter().find_map(|(old, _)| Some((format!("dist_config.{old}"), dist?.entry(old)?))));
    let Some((older, old)) = older else { return };
    let Some(new) = LATER.iter().find_map(|key| root.entry(key)) else { return };
    let message = format!("{older} is of LLaMA-Factory 0.9.5, and {} of later versions: each version refuses the other's keys", new.key);
    let help = format!("for 0.9.5 leave {} out or write it where 0.9.5 has it, for a later version {older}", new.key);
    let error = Diagnostic::error("llamafactory-mixed", message).at(new.at.clone()).and(old.at.clone(), format!("{older} here"));
    diagnostics.push(error.help(help));
}

/// Warns of keys of later versions, with which LLaMA-Factory 0.9.5 does not start. A file with keys of both has been refused.
pub(super) fn later(root: &Node, diagnostics: &mut Vec<Diagnostic>) {
    if diagnostics.iter().any(|d| d.code == "llamafactory-mixed") {
        return;
    }
    let entries: Vec<_> = LATER.iter().filter_map(|key| root.entry(key)).collect();
    let Some(first) = entries.iter().min_by_key(|e| (&*e.at.file, e.at.span.start)) else { return };
    let message = match entries.len() {
        1 => format!("{} is a key of later versions of LLaMA-Factory; 0.9.5 refuses it", first.key),
        _ => {
            let names: Vec<&str> = entries.iter().map(|e| e.key.as_str()).collect();
            format!("{} are keys of later versions of LLaMA-Factory; 0.9.5 refuses them", names.join(", "))
        }
    };
    let help = match SIZES.iter().find(|(_, new)| *new == first.key) {
        Some((old, _)) => format!("under 0.9.5 write it as dist_config.{old}"),
        None => "under 0.9.5 leave it out".to_owned(),
    };
    diagnostics.push(Diagnostic::warning("llamafactory-later", message).at(first.at.clone()).help(help));
}

/// `kernel_config` as 0.9.5 and as later versions read it.
pub(super) fn kernels(section: &Section, found: &mut Vec<Diagnostic>) {
    const OWN: &[&str] = &["cuda_fused_moe", "npu_fused_moe", "npu_fused_rmsnorm", "npu_fused_rope", "npu_fused_swiglu"];
    let name = section.name.as_str();
    if name.split(',').all(|part| part.trim().is_empty()) {
        let message = "kernel_config.name names no kernel, and LLaMA-Factory fails";
        let error = Diagnostic::error("config-value", message).at(section.name_at.clone());
        return found.push(error.help("write auto, or leave kernel_config out"));
    }
    if !matches!(name, "auto" | "liger_kernel") {
        let message = format!("kernel_config.name {}: LLaMA-Factory 0.9.5 has only auto and liger_kernel, one at a time", short(name));
        let help = "under 0.9.5 write auto, and the kernel as include_kernels";
        return found.push(Diagnostic::warning(CODE, message).at(section.name_at.clone()).help(help));
    }
    let Some(node) = section.body.get("include_kernels").filter(|n| n.is_truthy() && n.as_bool() != Some(true)) else { return };
    let unknown = match node.as_str() {
        Some("auto") => None,
        Some(names) if name == "auto" => names.split(',').find(|name| !OWN.contains(name)).map(str::to_owned),
        Some(_) => None,
        None => Some(node.describe()),
    };
    if let Some(unknown) = unknown {
        let message = format!(
            "kernel_config.include_kernels: expected auto, or kernels with commas and no spaces between them, found '{}', which LLaMA-Factory 0.9.5 does not know",
            short(&unknown)
        );
        let help = match nearest(unknown.trim(), OWN.iter().copied()) {
            Some(near) => format!("did you mean '{near}'?"),
            None => format!("there are {}", OWN.join(", ")),
        };
        found.push(Diagnostic::error("config-value", message).at(node.at.clone()).help(help));
    }
}

/// `optim_config`: 0.9.5 has no optimizers of its own and fails on any. `release` is where a key stands that only 0.9.5 reads.
pub(super) fn optimizer(section: &Section, release: Option<Location>) -> Diagnostic {
    let message = format!("optim_config {}: LLaMA-Factory 0.9.5 has no such optimizer and fails; later versions have it", section.name);
    match release {
        Some(at) => Diagnostic::error("llamafactory-mixed", message).and(at, "a key of 0.9.5"),
        None => Diagnostic::warning(CODE, message),
    }
    .at(section.name_at.clone())
    .help("leave optim_config out for AdamW with learning_rate")
}

/// Says of unknown keys what the versions make of them: 0.9.5 passes over those of these sections, misspelled ones too, and later versions refuse
/// them. They are errors here.
pub(super) fn passed_over(sections: &BTreeMap<&'static str, Section>, diagnostics: &mut [Diagnostic]) {
    let known = |key: &str, names: [&str; 2]| sections.get(key).filter(|section| names.contains(&&*section.name));
    let sections: Vec<&Section> =
        [known("dist_config", ["fsdp2", "deepspeed"]), known("peft_config", ["lora", "freeze"])].into_iter().flatten().collect();
    for error in diagnostics.iter_mut().filter(|d| d.code == "config-unknown-key") {
        let Some(at) = &error.at else { continue };
        if sections.iter().any(|section| section.body.entries().iter().any(|e| e.at == *at)) {
            error.message = format!("{}: later versions of LLaMA-Factory refuse it, 0.9.5 passes over it", error.message).into();
        }
    }
}

/// Moves keys to where later versions have them. A key that the file has in both places stays, and is an unknown key of its section.
pub(super) fn translate(root: &mut Node, diagnostics: &mut Vec<Diagnostic>) {
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
