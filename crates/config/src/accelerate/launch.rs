//! What `accelerate launch` and the plugins that it starts stop at, beside what is laid out. They read most values as texts, out of environment
//! variables. Source: `accelerate/commands/launch.py`, `utils/launch.py`, and the plugins of `utils/dataclasses.py`.

use shardwright_core::{
    diagnostic::Diagnostic,
    tree::{Node, Value},
};

use super::REPLICATED;

/// `DynamoBackend`.
#[rustfmt::skip]
const DYNAMO: &[&str] = &[
    "NO", "EAGER", "AOT_EAGER", "INDUCTOR", "AOT_TS_NVFUSER", "NVPRIMS_NVFUSER", "CUDAGRAPHS", "OFI", "FX2TRT", "ONNXRT", "TENSORRT",
    "AOT_TORCHXLA_TRACE_ONCE", "TORCHXLA_TRACE_ONCE", "TVM", "HPU_BACKEND", "NEURON",
];

/// Keys of `fsdp_config` that are truth values.
#[rustfmt::skip]
pub(super) const FSDP_TRUTHS: &[&str] = &[
    "fsdp_activation_checkpointing", "fsdp_activation_checkpointing_offload", "fsdp_cpu_ram_efficient_loading", "fsdp_offload_params",
    "fsdp_reshard_after_forward",
];

/// Values of `fsdp_state_dict_type` that FSDP version 2 takes, and `fsdp_backward_prefetch`'s: names in any case, or their numbers.
pub(super) const STATE_DICTS: &[&str] = &["FULL_STATE_DICT", "SHARDED_STATE_DICT", "1", "3"];
pub(super) const PREFETCH: &[&str] = &["BACKWARD_PRE", "BACKWARD_POST", "NO_PREFETCH", "1", "2"];

/// Python's `str` of a scalar.
pub(super) fn text(node: &Node) -> Option<String> {
    match &node.value {
        Value::Null => Some("None".to_owned()),
        Value::Bool(b) => Some(if *b { "True" } else { "False" }.to_owned()),
        Value::Int(i) => Some(i.to_string()),
        Value::Float(f) => Some(format!("{f:?}")),
        Value::Text { text, .. } => Some(text.clone()),
        Value::Seq(_) | Value::Map(_) => None,
    }
}

/// Python's `int(str(value))`.
pub(super) fn integer(node: &Node) -> Option<i128> {
    let text = text(node)?;
    let text = text.trim();
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let sound = digits.split('_').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    sound.then(|| text.replace('_', "").parse().ok()).flatten()
}

/// accelerate's `str_to_bool(str(value))`.
pub(super) fn truth(node: &Node) -> Option<bool> {
    match text(node)?.to_lowercase().as_str() {
        "y" | "yes" | "t" | "true" | "on" | "1" => Some(true),
        "n" | "no" | "f" | "false" | "off" | "0" => Some(false),
        _ => None,
    }
}

pub(super) fn value(message: String, node: &Node) -> Diagnostic {
    Diagnostic::error("config-value", message).at(node.at.clone())
}

/// What is wrong with the top level.
pub(super) fn check(root: &Node, diagnostics: &mut Vec<Diagnostic>) {
    let kind = root.get("distributed_type").and_then(Node::as_str).unwrap_or("NO");
    // What goes through the launchers of several processes.
    let several = matches!(kind, "FSDP" | "DEEPSPEED") || (REPLICATED.contains(&kind) && !matches!(kind, "NO" | "MULTI_CPU" | "XLA"));
    let mut refuse = |message: String, node: &Node, help: &str| diagnostics.push(value(message, node).help(help.to_owned()));
    if let Some(node) = root.get("compute_environment").filter(|n| n.as_str() != Some("LOCAL_MACHINE")) {
        let message = format!("compute_environment: expected LOCAL_MACHINE, found {}", node.describe());
        refuse(message, node, "a config for SageMaker has keys of its own and is not read here");
    }
    if let Some(node) = root.get("gpu_ids").filter(|n| n.as_str().is_none() && !n.is_null()) {
        let message = format!("gpu_ids: expected a string, found {}; accelerate fails to split it", node.describe());
        refuse(message, node, "put it in quotes: '0,1', or write all");
    }
    if !several && kind == "XLA" {
        return;
    }
    if kind != "DEEPSPEED" {
        let nested = root.get("dynamo_config").and_then(|config| config.get("dynamo_backend").or_else(|| config.get("backend")));
        if let Some(node) = root.get("dynamo_backend").or(nested).filter(|n| !n.is_null())
            && node.as_str().is_none_or(|name| !DYNAMO.contains(&&*name.to_uppercase()))
        {
            let message = format!("dynamo_backend: expected {}, found {}", DYNAMO.join(", "), node.describe());
            let is_word = node.as_bool().is_some();
            refuse(
                message,
                node,
                if is_word { "PyYAML reads this word as a boolean: put 'NO' in quotes" } else { "leave it out for none" },
            );
        }
    }
    let is_simple = matches!(kind, "NO" | "MULTI_CPU");
    let machines = root.get("num_machines");
    let number = |n: &Node| matches!(n.value, Value::Int(_) | Value::Float(_) | Value::Bool(_));
    if let Some(node) = machines.filter(|n| (several || is_simple) && !number(n)) {
        refuse(format!("num_machines: expected a number, found {}", node.describe()), node, "write 1 for one machine");
    }
    let are_many = machines.filter(|n| n.as_number().is_some_and(|n| n > 1.0));
    if let Some(node) = are_many.filter(|_| is_simple) {
        for key in ["main_process_ip", "main_process_port"].iter().filter(|key| root.get(key).is_none_or(Node::is_null)) {
            let message = format!("num_machines is {}, and {key} is not given", node.describe());
            refuse(message, node, "name the address and the port of the first machine, or write 1");
        }
    }
    if let Some(node) = root.get("use_cpu").filter(|n| is_simple && truth(n).is_none()) {
        refuse(format!("use_cpu: expected true or false, found {}", node.describe()), node, "leave it out for false");
    }
    if !several {
        return;
    }
    if let Some(node) = root.get("machine_rank").filter(|n| are_many.is_some() && !number(n) && (n.is_null() || integer(n).is_none())) {
        let message = format!("machine_rank: expected an integer, found {}", node.describe());
        refuse(message, node, "0 on the first machine, 1 on the second");
    }
    if let Some(node) = root.get("main_process_port").filter(|n| !n.is_null() && !number(n)) {
        let message = format!("main_process_port: expected a number, found {}", node.describe());
        refuse(message, node, "write it without quotes, or leave it out");
    }
    let is_one = machines.and_then(Node::as_integer).is_none_or(|n| n <= 1);
    if let Some(node) = root.get("gpu_ids").filter(|_| is_one && REPLICATED.contains(&kind))
        && node.as_str().is_some_and(|ids| ids != "all" && !ids.contains(','))
    {
        let message =
            format!("gpu_ids is {}, one GPU, and distributed_type {kind} needs several; accelerate refuses to start", node.describe());
        refuse(message, node, "write all, or distributed_type: 'NO'");
    }
}

/// What is wrong with `fsdp_config`, every key under its full name.
pub(super) fn fsdp(config: &Node, diagnostics: &mut Vec<Diagnostic>) {
    let mut refuse = |key: &str, expected: &str, node: &Node| {
        let message = format!("fsdp_config.{key}: expected {expected}, found {}", node.describe());
        diagnostics.push(value(message, node).help(if node.is_null() {
            "leave it out for its default"
        } else {
            "accelerate refuses to start"
        }));
    };
    for key in FSDP_TRUTHS {
        if let Some(node) = config.get(key).filter(|n| truth(n).is_none()) {
            refuse(key, "true or false", node);
        }
    }
    let named = |node: &Node, names: &[&str]| text(node).is_some_and(|text| names.contains(&&*text.to_uppercase()));
    for (key, names) in [("fsdp_state_dict_type", STATE_DICTS), ("fsdp_backward_prefetch", PREFETCH)] {
        if let Some(node) = config.get(key).filter(|n| !n.is_null() && !named(n, names)) {
            let names: Vec<&str> = names.iter().copied().filter(|name| name.len() > 1).collect();
            refuse(key, &names.join(" or "), node);
        }
    }
    let is_sized = config.get("fsdp_auto_wrap_policy").and_then(Node::as_str).is_some_and(|p| p.eq_ignore_ascii_case("SIZE_BASED_WRAP"));
    if let Some(node) = config.get("fsdp_min_num_params").filter(|n| is_sized && integer(n).is_none()) {
        refuse("fsdp_min_num_params", "an integer", node);
    }
    let on = |key: &str| config.get(key).and_then(truth) == Some(true);
    if let Some(node) = config.get("fsdp_activation_checkpointing_offload").filter(|n| truth(n) == Some(true))
        && !on("fsdp_activation_checkpointing")
    {
        let message = "fsdp_config.fsdp_activation_checkpointing_offload needs fsdp_config.fsdp_activation_checkpointing";
        let at = node.at.clone();
        diagnostics.push(Diagnostic::error("accelerate-launch", message).at(at).help("set fsdp_activation_checkpointing: true"));
    }
    // Both are true where they are not written.
    let is_efficient = config.get("fsdp_cpu_ram_efficient_loading").is_none_or(Node::is_truthy);
    if let Some(node) = config.get("fsdp_sync_module_states").filter(|n| is_efficient && !n.is_truthy()) {
        let message =
            "fsdp_config.fsdp_sync_module_states false does not go with fsdp_config.fsdp_cpu_ram_efficient_loading, which is on by default";
        let help = "leave fsdp_sync_module_states out, or set fsdp_cpu_ram_efficient_loading: false";
        diagnostics.push(Diagnostic::error("accelerate-launch", message).at(node.at.clone()).help(help));
    }
}

#[cfg(test)]
mod tests {
    use shardwright_core::diagnostic::Source;

    use super::*;

    fn node(yaml: &str) -> Node {
        shardwright_core::tree::yaml::parse(&Source::new("a.yaml", yaml), &mut Vec::new()).unwrap()
    }

    #[test]
    fn integers_and_truths_are_pythons() {
        for (yaml, want) in [("3", Some(3)), ("' 3 '", Some(3)), ("'1_000'", Some(1000)), ("-1", Some(-1)), ("3.0", None), ("true", None)] {
            assert_eq!(integer(&node(yaml)), want, "{yaml}");
        }
        for (yaml, want) in [("yes", Some(true)), ("'ON'", Some(true)), ("0", Some(false)), ("~", None), ("2", None), ("''", None)] {
            assert_eq!(truth(&node(yaml)), want, "{yaml}");
        }
    }
}
