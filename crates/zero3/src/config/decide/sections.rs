//! Keys and sections as DeepSpeed checks them, one by one and together, and `zero_optimization` in the spellings of today.

use serde_json::Value as Json;
use shardwright_core::{
    DType,
    diagnostic::{Diagnostic, Location},
    document::Document,
    strategy_config::{BuildContext, DeepSpeed},
    suggest::nearest,
    tree::{Node, Value},
};

use super::ConfigIs;
use crate::config::{
    keys::{DEPRECATED, PASSED, REMOVED, STRICT, TOP},
    loose,
    read::{self, Reader},
};

pub(super) fn top_level(root: &Node, cx: &mut BuildContext<'_>) {
    let version = cx.training.deepspeed.value;
    const MOST_SUGGESTED: usize = 32;
    let known = || TOP.iter().chain(PASSED).copied();
    let mut count = 0;
    for entry in root.entries().iter().filter(|e| known().all(|key| key != e.key)) {
        if let Some((key, today)) = REMOVED.iter().find(|(key, _)| *key == entry.key) {
            if version >= DeepSpeed::V0_19 {
                cx.diagnostics.push(read::removed(key, entry.at.clone(), today));
            }
            continue;
        }
        let message = format!("DeepSpeed has no key '{}'; it is passed through and has no effect", entry.key);
        let mut diagnostic = Diagnostic::warning("deepspeed-unknown-top-level", message).at(entry.at.clone());
        count += 1;
        if let Some(near) = (count <= MOST_SUGGESTED).then(|| nearest(&entry.key, known())).flatten() {
            diagnostic = diagnostic.help(format!("did you mean '{near}'?"));
        }
        cx.diagnostics.push(diagnostic);
    }
    for (name, keys) in STRICT {
        let Some(section) = root.get(name) else { continue };
        // Sections that differ between versions are read as today's only by today's.
        if version < DeepSpeed::V0_19 && ["compile", "tensor_parallel"].contains(name) {
            continue;
        }
        let mut nowhere = Document::default();
        let mut reader = Reader { document: &mut nowhere, diagnostics: &mut cx.diagnostics, hidden: None, version, unresolved: Vec::new() };
        reader.strict(section, keys, &[name]);
    }
    autocast(root, cx);
    loose::check(root, cx);
    for (key, allowed) in
        [("gradient_allreduce_op", &["mean", "sum"][..]), ("seq_parallel_communication_data_type", &["fp32", "fp16", "bf16"])]
    {
        let Some(node) = root.get(key).filter(|n| n.as_str() != Some("auto") && !(n.is_null() && key.starts_with("seq"))) else { continue };
        if node.as_str().is_none_or(|text| !allowed.contains(&&*text.to_lowercase())) {
            let message = format!("{key}: expected {}, found {}", allowed.join(" or "), node.describe());
            cx.diagnostics.push(Diagnostic::error("deepspeed-type", message).at(node.at.clone()));
        }
    }
}

/// `torch_autocast`, of which DeepSpeed reads three keys and passes over any other.
fn autocast(root: &Node, cx: &mut BuildContext<'_>) {
    #[rustfmt::skip]
    const DTYPES: &[&str] = &[
        "fp16", "float16", "half", "torch.float16", "fp32", "float32", "float", "torch.float32", "bf16", "bfloat16", "torch.bfloat16", "int8",
        "torch.int8",
    ];
    let Some(section) = root.get("torch_autocast") else { return };
    let mut refuse = |name: &str, expected: &str, node: &Node| {
        let message = format!("torch_autocast{name}: expected {expected}, found {}", node.describe());
        cx.diagnostics.push(Diagnostic::error("deepspeed-type", message).at(node.at.clone()));
    };
    if !section.is_map() {
        return refuse("", "a mapping", section);
    }
    if let Some(node) = section.get("dtype").filter(|n| n.as_str().is_none_or(|text| !DTYPES.contains(&text) && text != "auto")) {
        refuse(".dtype", "bfloat16 or float16", node);
    }
    const MODULES: &str = "lower_precision_safe_modules";
    let are_names = |node: &Node| match &node.value {
        Value::Seq(items) => items.iter().all(|item| item.as_str().is_some()),
        value => matches!(value, Value::Text { .. } | Value::Map(_)),
    };
    if let Some(node) = section.get(MODULES).filter(|n| !are_names(n)) {
        refuse(&format!(".{MODULES}"), "a list of strings", node);
    }
}

/// What DeepSpeed's own check of a config finds between its sections. Source: `deepspeed/runtime/config.py`, `_do_error_check`.
pub(super) fn needs_of_the_stage(root: &Node, stage: i64, document: &Document, cx: &mut BuildContext<'_>) {
    let is_on = |path: &[&str]| root.find(path).filter(|n| read::boolean(n) == Some(true));
    let mut refuse =
        |node: &Node, message: String| cx.diagnostics.push(Diagnostic::error("deepspeed-combination", message).at(node.at.clone()));
    let is_sum = |n: &&Node| n.as_str().is_some_and(|op| op.eq_ignore_ascii_case("sum"));
    if let Some(op) = root.get("gradient_allreduce_op").filter(is_sum) {
        if stage == 3 {
            refuse(op, "gradient_allreduce_op sum does not go with ZeRO stage 3".to_owned());
        } else if root.find(&["zero_optimization", "zenflow"]).is_some_and(|n| !n.is_null()) {
            refuse(op, "gradient_allreduce_op sum does not go with zenflow".to_owned());
        }
    }
    let offloads = root.find(&["zero_optimization", "offload_optimizer", "device"]).and_then(Node::as_str).is_some_and(|d| d != "none");
    let offloads = offloads || is_on(&["zero_optimization", "cpu_offload"]).is_some();
    if let Some(node) = root.find(&["zero_optimization", "zenflow"]).filter(|n| !n.is_null() && (1..=2).contains(&stage) && !offloads) {
        refuse(node, format!("zero_optimization.zenflow needs offload_optimizer under stage {stage}"));
    }
    let scatters = root.find(&["zero_optimization", "reduce_scatter"]).is_none_or(|n| read::boolean(n) == Some(true));
    let averages = stage == 3 || stage == 2 && root.get("gradient_allreduce_op").is_none_or(|n| !is_sum(&n));
    for (key, is_factor) in [("prescale_gradients", false), ("gradient_predivide_factor", true)] {
        let is_asked = |n: &&Node| if is_factor { n.as_number() != Some(1.0) } else { n.is_truthy() };
        if let Some(node) = root.get(key).filter(|n| is_asked(n) && n.as_str() != Some("auto") && averages && scatters) {
            refuse(node, format!("{key} does not go with ZeRO stage {stage} and reduce_scatter, which is on by default"));
        }
    }
    let is_in = |name: &str| document.get(&format!("/deepspeed/{name}/enabled")) == Some(&Json::Bool(true));
    let model =
        [("bf16", DType::BF16), ("fp16", DType::F16)].into_iter().find(|(name, _)| is_in(name)).map_or(DType::F32, |(_, dtype)| dtype);
    let accumulated = root.find(&["data_types", "grad_accum_dtype"]).and_then(|node| Some((node, loose::grad_accum(node)?)));
    if let Some((node, dtype)) = accumulated.filter(|(_, dtype)| stage == 0 && *dtype != model) {
        refuse(node, format!("data_types.grad_accum_dtype is {dtype} and the model {model}: without ZeRO DeepSpeed takes no mixture"));
    }
    if let Some((node, _)) = accumulated.filter(|(_, dtype)| stage == 1 && *dtype == DType::I8) {
        refuse(node, "data_types.grad_accum_dtype int8: under stage 1 gradients cannot be added in it".to_owned());
    }
    for path in
        [&["fp16", "fp16_master_weights_and_grads"][..], &["bf16", "bf16_master_weights_and_grads"], &["bf16", "bf16_optimizer_states"]]
    {
        if let Some(node) = is_on(path).filter(|_| stage == 0) {
            refuse(node, format!("{} needs ZeRO stage 1, 2 or 3", path.join(".")));
        }
    }
    if let Some(node) = is_on(&["bf16", "bf16_optimizer_states"]).filter(|_| is_on(&["bf16", "bf16_master_weights_and_grads"]).is_none()) {
        refuse(node, "bf16.bf16_optimizer_states needs bf16.bf16_master_weights_and_grads".to_owned());
    }
}

/// Sections by which DeepSpeed lays tensors out in a way that is not known here.
pub(super) fn layouts_of_others(root: &Node, stage: i64, file: ConfigIs, cx: &mut BuildContext<'_>) {
    let ranks = |path: &[&str]| root.find(path).filter(|n| read::integer(n).is_some_and(|ranks| ranks > 1));
    if let Some(node) = ranks(&["tensor_parallel", "autotp_size"]) {
        let message = format!(
            "tensor_parallel.autotp_size is {}: DeepSpeed cuts linear layers over that many ranks, which runs, but shardwright does not lay it out",
            node.describe()
        );
        let help = "leave the section tensor_parallel out, or set autotp_size to 1";
        cx.diagnostics.push(Diagnostic::error("deepspeed-tensor-parallel", message).at(node.at.clone()).help(help));
    }
    // accelerate compares it with a number before DeepSpeed reads it.
    if let Some(node) =
        root.find(&["tensor_parallel", "autotp_size"]).filter(|n| file == ConfigIs::File && n.as_str().is_some_and(|t| t != "auto"))
    {
        let message = format!("tensor_parallel.autotp_size: expected an integer, found {}", node.describe());
        cx.diagnostics.push(Diagnostic::error("deepspeed-type", message).at(node.at.clone()).help("write it without quotes"));
    }
    if let Some(node) = root.get("expert_parallel").filter(|n| n.is_truthy() && !n.is_map() && n.as_str() != Some("auto")) {
        let message = format!("expert_parallel: expected a mapping, found {}", node.describe());
        cx.diagnostics.push(Diagnostic::error("deepspeed-type", message).at(node.at.clone()));
    }
    if let Some(node) = root.find(&["expert_parallel", "enabled"]).filter(|n| read::boolean(n) == Some(true)) {
        let message = "expert_parallel: DeepSpeed deals experts out over ranks, which runs, but shardwright does not lay it out";
        cx.diagnostics.push(Diagnostic::error("deepspeed-expert-parallel", message).at(node.at.clone()).help("set enabled to false"));
    }
    if let Some(node) = root.find(&["zero_optimization", "zenflow"]).filter(|n| !n.is_null() && stage == 3) {
        let message = "zenflow under stage 3: DeepSpeed cuts every matrix transposed, which shardwright does not lay out; where the model is made \
                       in pieces (zero.Init), as LLaMA-Factory and transformers make it, the first forward pass fails";
        let error = Diagnostic::error("deepspeed-zenflow", message).at(node.at.clone());
        cx.diagnostics.push(error.help("leave zenflow out, or use stage 2 with it"));
    }
}

/// LLaMA-Factory hands its own optimizer and scheduler over, and accelerate refuses a second one.
pub(super) fn no_optimizer(root: &Node, cx: &mut BuildContext<'_>) {
    for (key, instead) in [
        ("optimizer", "the YAML's learning_rate and optim_config apply"),
        ("scheduler", "the learning rate stays at the YAML's learning_rate"),
    ] {
        let Some(entry) = root.entries().iter().find(|e| e.key == key) else { continue };
        let message =
            format!("the section {key} conflicts with LLaMA-Factory's own: accelerate refuses one in the config beside one in the code");
        let help = format!("leave {key} out; {instead}");
        cx.diagnostics.push(Diagnostic::error("deepspeed-optimizer", message).at(entry.at.clone()).help(help));
    }
}

/// `zero_optimization` with the spellings of today.
pub(super) fn zero_section(root: &Node, cx: &mut BuildContext<'_>) -> Result<Node, Diagnostic> {
    let Some(zero) = root.get("zero_optimization") else {
        let message = "the section zero_optimization is missing, which accelerate requires";
        return Err(Diagnostic::error("deepspeed-no-zero", message).at(root.at.clone()).help("\"zero_optimization\": {\"stage\": 3}"));
    };
    if !zero.is_map() {
        let message = format!("zero_optimization: expected a mapping, found {}", zero.describe());
        return Err(Diagnostic::error("deepspeed-type", message).at(zero.at.clone()));
    }
    let mut zero = zero.clone();
    for (old, new, value) in DEPRECATED {
        let Some(entry) = zero.entry(old).cloned() else { continue };
        zero = zero.without(old);
        if entry.value.as_str() == Some("auto") {
            cx.diagnostics.push(read::auto_left(&["zero_optimization", old], &entry.value));
            continue;
        }
        let message = format!("zero_optimization.{old} is deprecated");
        let mut deprecated = Diagnostic::warning("deepspeed-deprecated", message).at(entry.at.clone()).help(format!("use {new}"));
        let Some(value) = value else {
            deprecated.message = format!("zero_optimization.{old} is deprecated and has no effect").into();
            cx.diagnostics.push(deprecated);
            continue;
        };
        cx.diagnostics.push(deprecated);
        if let Some(there) = zero.entry(new) {
            let message = format!("zero_optimization: '{old}' is the old spelling of '{new}', and both are given");
            cx.diagnostics
                .push(Diagnostic::error("deepspeed-deprecated-both", message).at(entry.at.clone()).and(there.at.clone(), "the new one"));
            continue;
        }
        match read::boolean(&entry.value) {
            Some(true) => zero.set(new, entry.at.clone(), from_json(value, &entry.value.at)),
            Some(false) => {}
            None => {
                let message = format!("zero_optimization.{old}: expected a boolean, found {}", entry.value.describe());
                cx.diagnostics.push(Diagnostic::error("deepspeed-type", message).at(entry.value.at));
            }
        }
    }
    Ok(zero)
}

fn from_json(text: &str, at: &Location) -> Node {
    match text {
        "true" => Node::new(Value::Bool(true), at.clone()),
        _ => {
            let mut map = Node::map(Vec::new(), at.clone());
            map.set("device", at.clone(), Node::text("cpu", at.clone()));
            map
        }
    }
}
