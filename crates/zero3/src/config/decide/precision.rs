//! `bf16`, `fp16` and `communication_data_type`: which rule of precision they ask for.

use shardwright_core::{
    DType,
    diagnostic::Diagnostic,
    document::{Document, Origin},
    strategy_config::{BuildContext, BuiltPolicy, Dialect, Mixed},
    tree::{Node, Value},
};
use shardwright_precision::{
    policies::{Loaded, Ruled},
    rules::{self, Switch},
};

use crate::config::{
    keys::{BF16, FP16},
    read::{self, Reader},
};

/// `enabled` of a section: LLaMA-Factory takes booleans and the strings true, false and auto in any case; anything else counts as auto.
fn switch(section: Option<&Node>) -> Switch {
    let Some(enabled) = section.and_then(|s| s.get("enabled")) else { return Switch::Auto };
    match (&enabled.value, enabled.as_str().map(str::to_lowercase).as_deref()) {
        (Value::Bool(true), _) | (_, Some("true")) => Switch::On,
        (Value::Bool(false), _) | (_, Some("false")) => Switch::Off,
        _ => Switch::Auto,
    }
}

/// The same under accelerate: only an absent section or an "auto" is filled, and DeepSpeed reads everything else. A section without `enabled` has
/// its default, false.
fn as_deepspeed_reads_it(name: &str, section: Option<&Node>, cx: &mut BuildContext<'_>) -> Switch {
    let Some(section) = section else { return Switch::Auto };
    let Some(enabled) = section.get("enabled") else { return Switch::Off };
    match read::boolean(enabled) {
        _ if enabled.as_str() == Some("auto") => Switch::Auto,
        Some(true) => Switch::On,
        Some(false) => Switch::Off,
        None => {
            let message = format!("{name}.enabled: expected a boolean or auto, found {}", enabled.describe());
            cx.diagnostics.push(Diagnostic::error("deepspeed-type", message).at(enabled.at.clone()));
            Switch::Off
        }
    }
}

fn section<'a>(root: &'a Node, name: &str, cx: &mut BuildContext<'_>) -> Option<&'a Node> {
    let node = root.get(name)?;
    if !node.is_map() {
        let message = format!("{name}: expected a mapping, found {}", node.describe());
        cx.diagnostics.push(Diagnostic::error("deepspeed-type", message).at(node.at.clone()));
        return None;
    }
    Some(node)
}

pub(super) fn precision(root: &Node, document: &mut Document, cx: &mut BuildContext<'_>) -> Option<BuiltPolicy> {
    let old = root.entry("bfloat16");
    if let (Some(old), Some(new)) = (old, root.entry("bf16")) {
        let message = "bfloat16 is the older spelling of bf16, and both are given; DeepSpeed ignores it";
        cx.diagnostics.push(Diagnostic::warning("deepspeed-bf16-twice", message).at(old.at.clone()).and(new.at.clone(), "bf16 here"));
    } else if let Some(old) = old {
        let message = "bfloat16 is the older spelling of bf16, which LLaMA-Factory and accelerate do not read: to them bf16 is left open";
        cx.diagnostics.push(Diagnostic::warning("deepspeed-bfloat16", message).at(old.at.clone()).help("write bf16"));
    }
    let bf16 = section(root, "bf16", cx);
    let fp16 = section(root, "fp16", cx);
    let (bf16_switch, fp16_switch) = (switch(bf16), switch(fp16));
    let case = match cx.training.dialect {
        Dialect::LlamaFactory => rules::deepspeed(bf16_switch, fp16_switch, cx.training.zero3_fp16.value),
        Dialect::Accelerate => {
            let (bf16_switch, fp16_switch) = (as_deepspeed_reads_it("bf16", bf16, cx), as_deepspeed_reads_it("fp16", fp16, cx));
            match rules::accelerate_deepspeed(bf16_switch, fp16_switch, cx.training.mixed.value) {
                Ok(case) => Ok(case),
                Err(conflict) => {
                    let there = [fp16, bf16].into_iter().flatten().find_map(|s| s.get("enabled")).map(|n| n.at.clone());
                    let diagnostic = Diagnostic::error("accelerate-precision", conflict.to_string()).at(there);
                    cx.diagnostics.push(match cx.training.mixed.location() {
                        Some(at) => diagnostic.and(at, "mixed_precision here"),
                        None => diagnostic,
                    });
                    return None;
                }
            }
        }
    };
    let case = match case {
        Ok(case) => case.stored_in(cx.storage),
        Err(refused) => {
            let at = fp16.and_then(|s| s.get("enabled")).map(|n| n.at.clone());
            let help = "set fp16.enabled to false; shardwright.zero3_fp16: true allows fp16 here, not in LLaMA-Factory";
            cx.diagnostics.push(Diagnostic::error("deepspeed-fp16", refused.to_string()).at(at).help(help));
            return None;
        }
    };
    let enabled = |d| case.compute == rules::Keep::Fixed(d);
    let values = [("bf16", bf16, BF16, enabled(DType::BF16)), ("fp16", fp16, FP16, enabled(DType::F16))];
    for (name, node, keys, on) in values {
        let rest = node.map(|n| n.without("enabled"));
        let mut reader = Reader {
            document,
            diagnostics: &mut cx.diagnostics,
            hidden: None,
            version: cx.training.deepspeed.value,
            unresolved: Vec::new(),
        };
        reader.table(rest.as_ref(), keys, &[name]);
        let written = node.and_then(|n| n.get("enabled")).filter(|n| read::boolean(n) == Some(on)).map(|n| Origin::Written(n.at.clone()));
        let asked = node.and_then(|n| n.get("enabled")).map(|n| n.at.clone());
        let origin = written.unwrap_or_else(|| Origin::rule(case.name, [] as [&str; 0]).asked_at(asked));
        document.set(&["deepspeed", name, "enabled"], on, origin);
    }
    if cx.training.dialect == Dialect::Accelerate && fp16.is_none() && enabled(DType::F16) {
        let rule = "accelerate's own fp16 section, where the DeepSpeed config has none";
        document.set(&["deepspeed", "fp16", "auto_cast"], true, Origin::rule(rule, ["/training/mixed_precision"]));
    }
    disagreement(bf16, fp16, &case, cx);
    let case = reduced_in(root, case, cx);
    Some(Ruled::built(case, Loaded::Partitioned, ["/deepspeed/bf16/enabled", "/deepspeed/fp16/enabled"]))
}

/// `communication_data_type` is what gradients are reduced in.
fn reduced_in(root: &Node, mut case: rules::Case, cx: &mut BuildContext<'_>) -> rules::Case {
    let Some(node) = root.get("communication_data_type").filter(|n| !n.is_null() && n.as_str() != Some("auto")) else { return case };
    let dtype = match node.as_str().map(str::to_lowercase).as_deref() {
        Some("fp32") => Some(DType::F32),
        Some("fp16") => Some(DType::F16),
        Some("bf16") => Some(DType::BF16),
        _ => None,
    };
    match dtype {
        Some(dtype) => {
            case.reduce = rules::Keep::Fixed(dtype);
            case.why.push_str("; gradients are reduced as communication_data_type says");
        }
        None => {
            let message = format!("communication_data_type: expected fp32, fp16 or bf16, found {}", node.describe());
            cx.diagnostics.push(Diagnostic::error("deepspeed-type", message).at(node.at.clone()));
        }
    }
    case
}

/// `bf16` of the YAML is ignored under DeepSpeed; where it says otherwise, both lines are named.
fn disagreement(bf16: Option<&Node>, fp16: Option<&Node>, case: &rules::Case, cx: &mut BuildContext<'_>) {
    let mixed = &cx.training.mixed;
    let Some(at) = mixed.location() else { return };
    let wanted = match mixed.value {
        Mixed::Bf16 => DType::BF16,
        Mixed::Fp16 => DType::F16,
        Mixed::No => DType::F32,
    };
    if case.compute == rules::Keep::Fixed(wanted) {
        return;
    }
    let there = bf16.and_then(|s| s.get("enabled")).or_else(|| fp16.and_then(|s| s.get("enabled")));
    let message =
        format!("the YAML asks for {wanted}, but DeepSpeed's own config decides, and makes it {}: {}", case.compute.word(), case.why);
    let diagnostic = Diagnostic::warning("deepspeed-bf16-ignored", message).at(at);
    cx.diagnostics.push(match there {
        Some(there) => diagnostic.and(there.at.clone(), "decided here"),
        None => diagnostic,
    });
}
