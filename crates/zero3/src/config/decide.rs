//! What a DeepSpeed config means: the strategy, the precision, the batch, every "auto" made concrete.

use std::collections::BTreeSet;

use serde_json::Value as Json;
use shardwright_core::{
    Offload,
    diagnostic::{Diagnostic, Location},
    document::{Document, Origin},
    mesh::MP_REPLICATE,
    replicate::Replicate,
    strategy_config::{BuildContext, Built, DeepSpeed, Dialect, Mixed, Unresolved},
    suggest::nearest,
    tree::{Node, Value},
};
use shardwright_precision::{
    policies::{Loaded, Ruled},
    rules::{self, Switch},
};

use super::{
    batch::{self, BatchError},
    keys::{BF16, DEPRECATED, FP16, PASSED, REMOVED, STRICT, TOP, ZERO},
    lints, loose,
    read::{self, Reader},
};
use crate::Zero3;

/// Where a DeepSpeed config stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConfigIs {
    /// In a file of its own, which the engines read.
    File,
    /// In the YAML.
    Inline,
}

/// Builds the strategy that a DeepSpeed config describes. `root` is all of it.
pub(super) fn build(root: &Node, file: ConfigIs, cx: &mut BuildContext<'_>) -> Result<Built, Diagnostic> {
    let mut document = Document::default();
    top_level(root, cx);
    layouts_of_others(root, cx);
    if file == ConfigIs::File && cx.training.dialect == Dialect::LlamaFactory {
        no_optimizer(root, cx);
    }
    batches(root, file, &mut document, cx);
    let batch_is_wrong = cx.diagnostics.iter().any(|d| d.code == "deepspeed-batch");
    if file == ConfigIs::File && cx.training.dialect == Dialect::LlamaFactory && !batch_is_wrong {
        at_loading(root, cx);
    }
    clipping(root, &mut document, cx);
    if let Some(null) = root.find(&["zero_optimization", "offload_optimizer"]).filter(|n| file == ConfigIs::File && n.is_null()) {
        let message =
            "zero_optimization.offload_optimizer: expected a mapping with a device, found null; accelerate reads the device and fails";
        let help = "leave the key out, or write {\"device\": \"none\"}";
        cx.diagnostics.push(Diagnostic::error("deepspeed-type", message).at(null.at.clone()).help(help));
    }
    let zero = zero_section(root, cx).unwrap_or_else(|missing| {
        cx.diagnostics.push(missing);
        Node::map(Vec::new(), root.at.clone())
    });
    let mut reader = Reader {
        document: &mut document,
        diagnostics: &mut cx.diagnostics,
        hidden: cx.model.and_then(|m| m.hidden_size),
        version: cx.training.deepspeed.value,
        unresolved: Vec::new(),
    };
    reader.table(Some(&zero), ZERO, &["zero_optimization"]);
    let unresolved = std::mem::take(&mut reader.unresolved);
    for (pointer, node) in unresolved {
        cx.unresolved.push(Unresolved::new(pointer, "hidden_size of the model's config.json", node.at));
    }
    let case = precision(root, &mut document, cx);
    passed(root, &mut document, cx);
    let stage = number(&document, "stage").unwrap_or(0);
    if document.get("/deepspeed/zero_optimization/overlap_comm") == Some(&Json::Null) {
        let origin = Origin::rule("true exactly under stage 3", ["/deepspeed/zero_optimization/stage"]);
        document.set(&["deepspeed", "zero_optimization", "overlap_comm"], stage == 3, origin);
    }
    needs_of_the_stage(root, stage, cx);
    lints::check(&zero, stage, &document, cx);
    if cx.training.cp_size.value > 1 && cx.training.dialect == Dialect::LlamaFactory {
        let message = format!("cp_size is {}, and context parallelism does not go with DeepSpeed", cx.training.cp_size.value);
        cx.diagnostics
            .push(Diagnostic::error("deepspeed-cp", message).at(cx.training.cp_size.location()).help("use dist_config.name: fsdp2"));
    }
    if stage == 3 && cx.mesh.size_of(MP_REPLICATE) > 1 {
        let message = "mp_replicate_size has no effect under DeepSpeed, which partitions over all ranks";
        cx.diagnostics
            .push(Diagnostic::warning("deepspeed-mesh", message).at(zero.at.clone()).help("leave it out, or use dist_config.name: fsdp2"));
    }
    let mut built = match stage {
        3 => Built::new(zero3(&document, &zero, cx)),
        _ => Built::new(Replicate),
    }
    .without_groups();
    built.document = document;
    Ok(match case {
        Some(policy) => built.with_precision(policy),
        None => built,
    })
}

fn top_level(root: &Node, cx: &mut BuildContext<'_>) {
    let version = cx.training.deepspeed.value;
    const MOST_SUGGESTED: usize = 32;
    let known: BTreeSet<&str> = TOP.iter().chain(PASSED).copied().collect();
    let mut count = 0;
    for entry in root.entries().iter().filter(|e| !known.contains(&*e.key)) {
        if let Some((key, today)) = REMOVED.iter().find(|(key, _)| *key == entry.key) {
            if version >= DeepSpeed::V0_19 {
                cx.diagnostics.push(read::removed(key, entry.at.clone(), today));
            }
            continue;
        }
        let message = format!("DeepSpeed has no key '{}'; it is passed through and has no effect", entry.key);
        let mut diagnostic = Diagnostic::warning("deepspeed-unknown-top-level", message).at(entry.at.clone());
        count += 1;
        if let Some(near) = (count <= MOST_SUGGESTED).then(|| nearest(&entry.key, known.iter().copied())).flatten() {
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
fn needs_of_the_stage(root: &Node, stage: i64, cx: &mut BuildContext<'_>) {
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
    let scatters = root.find(&["zero_optimization", "reduce_scatter"]).is_none_or(|n| read::boolean(n) == Some(true));
    let averages = stage == 3 || stage == 2 && root.get("gradient_allreduce_op").is_none_or(|n| !is_sum(&n));
    for (key, is_factor) in [("prescale_gradients", false), ("gradient_predivide_factor", true)] {
        let is_asked = |n: &&Node| if is_factor { n.as_number() != Some(1.0) } else { n.is_truthy() };
        if let Some(node) = root.get(key).filter(|n| is_asked(n) && n.as_str() != Some("auto") && averages && scatters) {
            refuse(node, format!("{key} does not go with ZeRO stage {stage} and reduce_scatter, which is on by default"));
        }
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
fn layouts_of_others(root: &Node, cx: &mut BuildContext<'_>) {
    let ranks = |path: &[&str]| root.find(path).filter(|n| read::integer(n).is_some_and(|ranks| ranks > 1));
    if let Some(node) = ranks(&["tensor_parallel", "autotp_size"]) {
        let message = format!(
            "tensor_parallel.autotp_size is {}: DeepSpeed cuts linear layers over that many ranks; only data-parallel sharding is laid out",
            node.describe()
        );
        let help = "leave the section tensor_parallel out, or set autotp_size to 1";
        cx.diagnostics.push(Diagnostic::error("deepspeed-tensor-parallel", message).at(node.at.clone()).help(help));
    }
    if let Some(node) = root.find(&["expert_parallel", "enabled"]).filter(|n| read::boolean(n) == Some(true)) {
        let message = "expert_parallel: DeepSpeed deals experts out over ranks; only data-parallel sharding is laid out";
        cx.diagnostics.push(Diagnostic::error("deepspeed-expert-parallel", message).at(node.at.clone()).help("set enabled to false"));
    }
}

/// LLaMA-Factory hands its own optimizer and scheduler over, and accelerate refuses a second one.
fn no_optimizer(root: &Node, cx: &mut BuildContext<'_>) {
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
fn zero_section(root: &Node, cx: &mut BuildContext<'_>) -> Result<Node, Diagnostic> {
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

/// A batch key: a positive integer, or `None` for auto and absent, with the place of what is written.
fn batch_key(root: &Node, key: &str, cx: &mut BuildContext<'_>) -> (Option<u64>, Option<Location>) {
    let Some(node) = root.get(key).filter(|n| !n.is_null()) else { return (None, None) };
    if node.as_str() == Some("auto") {
        return (None, None);
    }
    // Both engines calculate with it before DeepSpeed reads it.
    let value = read::integer(node).filter(|_| node.as_str().is_none()).and_then(|i| u64::try_from(i).ok());
    if value.is_none() {
        let message = format!("{key}: expected a positive integer or auto, found {}", node.describe());
        cx.diagnostics.push(Diagnostic::error("deepspeed-type", message).at(node.at.clone()));
    }
    (value, Some(node.at.clone()))
}

const TRAIN: &str = "train_batch_size";
const SEQUENCE: &str = "sequence_parallel_size";
const MICRO: &str = "train_micro_batch_size_per_gpu";
const ACCUMULATION: &str = "gradient_accumulation_steps";

/// The batch triple: what the file leaves open is filled from the YAML, then DeepSpeed's own check applies.
fn batches(root: &Node, file: ConfigIs, document: &mut Document, cx: &mut BuildContext<'_>) {
    let (train, train_at) = batch_key(root, TRAIN, cx);
    let (micro, micro_at) = batch_key(root, MICRO, cx);
    let (mut accumulation, accumulation_at) = batch_key(root, ACCUMULATION, cx);
    let training = cx.training;
    // accelerate fills what is "auto" from the YAML; an accumulation that its file lacks it writes as 1 before that, and null it multiplies by.
    let is_absent = file == ConfigIs::File && root.get(ACCUMULATION).is_none();
    if is_absent {
        accumulation = Some(1);
    }
    if let Some(null) = root.get(ACCUMULATION).filter(|node| file == ConfigIs::File && node.is_null()) {
        let message = format!("{ACCUMULATION} is null, with which accelerate fails: it multiplies by it");
        let help = "write \"auto\", which follows from the YAML, or a number";
        cx.diagnostics.push(Diagnostic::error("deepspeed-type", message).at(null.at.clone()).help(help));
    }
    let is_auto = |key: &str| root.get(key).is_some_and(|node| node.as_str() == Some("auto"));
    let open = |key: &str| root.get(key).is_none_or(Node::is_null);
    if file == ConfigIs::File && training.dialect == Dialect::Accelerate && open(MICRO) && train.is_none() && train_at.is_none() {
        if let Some(node) = root.get(TRAIN).filter(|_| is_auto(TRAIN)) {
            let message = format!("{TRAIN}: accelerate fills this auto only where {MICRO} is given too, and refuses to start");
            let help = format!("write \"{MICRO}\": \"auto\" too");
            return cx.diagnostics.push(Diagnostic::error("deepspeed-auto-left", message).at(node.at.clone()).help(help));
        }
        return cx.diagnostics.push(batch_error(BatchError::Missing, u64::from(training.world_size.value), Some(root.at.clone())));
    }
    if micro.is_none() && training.batch_is_unknown() {
        return batch_of_the_loader(train.zip(train_at), accumulation.zip(accumulation_at), document);
    }
    let yaml_micro = training.micro_batch_size.value;
    let step = u64::from(training.dp_size.value).saturating_mul(yaml_micro).max(1);
    let yaml_accumulation =
        training.accumulation.value.unwrap_or_else(|| training.global_batch_size.value.map_or(1, |global| (global / step).max(1)));
    // Ranks that share a sequence share its samples.
    let sharing = if training.dialect == Dialect::Accelerate { u64::from(training.cp_size.value).max(1) } else { 1 };
    let world = u64::from(training.world_size.value) / sharing;
    // DeepSpeed divides the ranks by the file's `sequence_parallel_size`; accelerate does not when it fills an "auto".
    let sequence = root.get(SEQUENCE).and_then(read::integer).and_then(|n| u64::try_from(n).ok()).unwrap_or(1).max(1);
    let (counted, world) = (world, world / sequence);
    if counted % sequence != 0 || (sequence > 1 && is_auto(TRAIN)) {
        let message = format!(
            "{SEQUENCE} {sequence} divides the {counted} ranks for DeepSpeed's batch check, and accelerate fills {TRAIN} for all of them: they differ"
        );
        let at = root.get(SEQUENCE).map(|node| node.at.clone());
        let help = format!("leave {TRAIN} out, and let {SEQUENCE} divide the number of ranks");
        return cx.diagnostics.push(Diagnostic::error("deepspeed-batch", message).at(at).help(help));
    }
    let from_yaml = training.dialect == Dialect::LlamaFactory;
    for (key, yaml_key, value, at, yaml, written) in [
        (MICRO, "micro_batch_size", micro, &micro_at, yaml_micro, training.micro_batch_size.location()),
        (ACCUMULATION, "global_batch_size", accumulation, &accumulation_at, yaml_accumulation, training.global_batch_size.location()),
    ] {
        if let (Some(value), true) = (value, from_yaml && value.is_some_and(|v| v != yaml)) {
            let is = if key == ACCUMULATION && is_absent { "absent, which accelerate takes for 1," } else { &format!("{value} here,") };
            let message =
                format!("{key} is {is} but {yaml_key} of the YAML makes it {yaml}; DeepSpeed uses {value}, LLaMA-Factory's loop {yaml}");
            let mut diagnostic =
                Diagnostic::warning("batch-disagrees", message).at(at.clone().unwrap_or_else(|| root.at.clone())).help("write auto");
            if let Some(written) = written {
                diagnostic = diagnostic.and(written, format!("{yaml_key} here"));
            }
            cx.diagnostics.push(diagnostic);
        }
    }
    if let (true, Some(node)) = (from_yaml, root.get(TRAIN).filter(|node| node.as_str() == Some("auto"))) {
        on_cpu(&node.at, yaml_micro, world, cx);
    }
    // accelerate fills what is "auto", and leaves what is absent to DeepSpeed.
    let left_out = training.dialect == Dialect::Accelerate && train.is_some() && open(MICRO);
    let filled = (train, micro.or((!left_out).then_some(yaml_micro)), Some(accumulation.unwrap_or(yaml_accumulation)));
    let place = [&train_at, &micro_at, &accumulation_at].into_iter().find_map(Clone::clone);
    let batch = match batch::infer(filled.0, filled.1, filled.2, world) {
        Ok(batch) => batch,
        Err(error) => return cx.diagnostics.push(batch_error(error, world, place)),
    };
    let written = |at: &Option<Location>, rule: &str, from: &[&str]| match at {
        Some(at) => Origin::Written(at.clone()),
        None => Origin::rule(rule, from.iter().copied()),
    };
    let micro_origin = || match left_out {
        true => Origin::rule("train_batch_size / (accumulation * ranks)", ["/batch/global", "/batch/accumulation", "/mesh/world_size"]),
        false => written(&micro_at, "auto: micro_batch_size of the YAML", &["/training/micro_batch_size"]),
    };
    let accumulation_origin = || match is_absent {
        true => Origin::rule("absent: 1, as accelerate writes it", [] as [&str; 0]),
        false => written(
            &accumulation_at,
            "auto: global_batch_size of the YAML / (dp * micro)",
            &["/training/global_batch_size", "/mesh/dp", "/training/micro_batch_size"],
        ),
    };
    let train_origin =
        || written(&train_at, "micro * accumulation * world_size", &["/batch/micro", "/batch/accumulation", "/mesh/world_size"]);
    document.set(&["batch", "micro"], batch.micro, micro_origin());
    document.set(&["batch", "accumulation"], batch.accumulation, accumulation_origin());
    document.set(&["batch", "global"], batch.train, train_origin());
    document.set(&["deepspeed", TRAIN], batch.train, train_origin());
    document.set(&["deepspeed", MICRO], batch.micro, micro_origin());
    document.set(&["deepspeed", ACCUMULATION], batch.accumulation, accumulation_origin());
}

/// accelerate fills a `train_batch_size` of "auto" with micro batch times accumulation times the ranks that it counts. Without a GPU it finds no
/// backend and counts one, whatever the micro batch; DeepSpeed multiplies by all ranks, and refuses the difference.
fn on_cpu(at: &Location, micro: u64, world: u64, cx: &mut BuildContext<'_>) {
    let variable = &cx.training.deepspeed_on_cpu;
    if !variable.value || world < 2 {
        return;
    }
    let message = format!(
        "{TRAIN} is auto: without a GPU accelerate counts one rank and fills it for micro_batch_size {micro} on that one, and LLaMA-Factory fails in \
         DeepSpeed's batch check, which counts {world}; with a GPU per rank it runs"
    );
    let mut warning = Diagnostic::warning("deepspeed-batch-on-cpu", message).at(at.clone()).help(format!("leave {TRAIN} out"));
    if let Some(variable) = variable.location() {
        warning = warning.and(variable, "DeepSpeed runs on CPUs here".to_owned());
    }
    cx.diagnostics.push(warning);
}

/// LLaMA-Factory builds the model under ZeRO-3 before it knows the batch, and before DeepSpeed knows the ranks: a micro batch or an accumulation
/// that the file leaves open is 1 there, so is the number of ranks, and DeepSpeed checks the product. A `train_batch_size` of "auto" is left out.
fn at_loading(root: &Node, cx: &mut BuildContext<'_>) {
    // Python's comparison with 3, to which a string is never equal.
    let stage = root.find(&["zero_optimization", "stage"]).filter(|stage| stage.as_str().is_none());
    if stage.and_then(read::integer) != Some(3) {
        return;
    }
    // What is null is neither "auto" nor absent, and nobody fills it.
    if let (None, Some(null)) = (root.get(TRAIN).filter(|node| !node.is_null()), root.get(MICRO).filter(|node| node.is_null())) {
        let message =
            format!("{MICRO} is null and {TRAIN} is not given: while LLaMA-Factory loads the model under ZeRO-3, DeepSpeed refuses that");
        return cx
            .diagnostics
            .push(Diagnostic::error("deepspeed-batch", message).at(null.at.clone()).help("write \"auto\", or leave it out"));
    }
    let number = |key: &str| read::integer(root.get(key)?).and_then(|i| u64::try_from(i).ok());
    let (Some(train), Some(at)) = (number(TRAIN), root.get(TRAIN).map(|node| node.at.clone())) else { return };
    let (micro, accumulation) = (number(MICRO).unwrap_or(1), number(ACCUMULATION).unwrap_or(1));
    if let Err(BatchError::NotEqual(_)) = batch::infer(Some(train), Some(micro), Some(accumulation), 1) {
        let message = format!(
            "{TRAIN} is {train}; while LLaMA-Factory loads the model under ZeRO-3, DeepSpeed expects {MICRO} {micro} times {ACCUMULATION} \
             {accumulation} times 1 rank, for it does not know the others yet"
        );
        cx.diagnostics.push(Diagnostic::error("deepspeed-batch", message).at(at).help("write \"train_batch_size\": \"auto\""));
    }
}

/// accelerate fills the micro batch from the data loader when training starts.
fn batch_of_the_loader(train: Option<(u64, Location)>, accumulation: Option<(u64, Location)>, document: &mut Document) {
    let later = || Origin::rule("auto: the data loader decides when training starts", [] as [&str; 0]);
    let entry = |given: Option<(u64, Location)>| match given {
        Some((value, at)) => (Json::from(value), Origin::Written(at)),
        None => (Json::Null, later()),
    };
    let accumulation = match accumulation {
        None => (Json::from(1), Origin::rule("auto: 1, as accelerate fills it", [] as [&str; 0])),
        given => entry(given),
    };
    for (short, key, (value, origin)) in
        [("micro", MICRO, (Json::Null, later())), ("accumulation", ACCUMULATION, accumulation), ("global", TRAIN, entry(train))]
    {
        document.set(&["batch", short], value.clone(), origin.clone());
        document.set(&["deepspeed", key], value, origin);
    }
}

fn batch_error(error: BatchError, world: u64, at: Option<Location>) -> Diagnostic {
    let message = match error {
        BatchError::Missing => "either train_batch_size or train_micro_batch_size_per_gpu must be given".to_owned(),
        BatchError::TooLarge => "the batch has more samples than 64 bits count".to_owned(),
        BatchError::NotPositive(b) => {
            format!("{TRAIN} {}, {MICRO} {} and {ACCUMULATION} {} must all be positive, on {world} ranks", b.train, b.micro, b.accumulation)
        }
        BatchError::NotEqual(b) => {
            format!("{TRAIN} is {}, expected {MICRO} {} times {ACCUMULATION} {} times {world} ranks", b.train, b.micro, b.accumulation)
        }
    };
    Diagnostic::error("deepspeed-batch", message).at(at).help("write auto for the keys that should follow from the YAML")
}

/// DeepSpeed's default for `gradient_clipping`, and what accelerate fills an "auto" with.
const CLIPPING: f64 = 1.0;

fn clipping(root: &Node, document: &mut Document, cx: &mut BuildContext<'_>) {
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
        Some(node) => match read::float(node) {
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

/// `enabled` of a section: LLaMA-Factory takes booleans and the strings true, false and auto in any case; anything else counts as auto.
fn switch(section: Option<&Node>) -> Switch {
    let Some(enabled) = section.and_then(|s| s.get("enabled")) else { return Switch::Auto };
    match (&enabled.value, enabled.as_str().map(str::to_lowercase).as_deref()) {
        (Value::Bool(true), _) | (_, Some("true")) => Switch::On,
        (Value::Bool(false), _) | (_, Some("false")) => Switch::Off,
        _ => Switch::Auto,
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

fn precision(root: &Node, document: &mut Document, cx: &mut BuildContext<'_>) -> Option<shardwright_core::strategy_config::BuiltPolicy> {
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
            // A section without `enabled` is DeepSpeed's default there, false: only an absent section or an "auto" is filled.
            let strict =
                |section: Option<&Node>, switch| if section.is_some_and(|s| s.get("enabled").is_none()) { Switch::Off } else { switch };
            let (bf16_switch, fp16_switch) = (strict(bf16, bf16_switch), strict(fp16, fp16_switch));
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
    let values =
        [("bf16", bf16, BF16, enabled(shardwright_core::DType::BF16)), ("fp16", fp16, FP16, enabled(shardwright_core::DType::F16))];
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
    if cx.training.dialect == Dialect::Accelerate && fp16.is_none() && enabled(shardwright_core::DType::F16) {
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
        Some("fp32") => Some(shardwright_core::DType::F32),
        Some("fp16") => Some(shardwright_core::DType::F16),
        Some("bf16") => Some(shardwright_core::DType::BF16),
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
        Mixed::Bf16 => shardwright_core::DType::BF16,
        Mixed::Fp16 => shardwright_core::DType::F16,
        Mixed::No => shardwright_core::DType::F32,
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

/// What DeepSpeed reads and this project does not, as it is; an "auto" in it is filled or reported.
fn passed(root: &Node, document: &mut Document, cx: &mut BuildContext<'_>) {
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

fn number(document: &Document, key: &str) -> Option<i64> {
    document.get(&format!("/deepspeed/zero_optimization/{key}")).and_then(Json::as_i64)
}

fn zero3(document: &Document, zero: &Node, cx: &mut BuildContext<'_>) -> Zero3 {
    let world = cx.mesh.world_size();
    let at = |key: &str| zero.get(key).map(|n| n.at.clone());
    let count = |key: &str| number(document, key).and_then(|n| u64::try_from(n).ok());
    let ranks = |key: &str| number(document, key).and_then(|n| u32::try_from(n).ok());
    let mics = ranks("mics_shard_size").filter(|n| *n > 0);
    let hpz = ranks("zero_hpz_partition_size").unwrap_or(1).max(1);
    for (key, size) in [("mics_shard_size", mics.unwrap_or(1)), ("zero_hpz_partition_size", hpz)] {
        if !world.is_multiple_of(size) {
            let message = format!("zero_optimization.{key} is {size}, expected a divisor of the world size {world}");
            cx.diagnostics.push(Diagnostic::error("deepspeed-group", message).at(at(key)));
        }
    }
    let offload = match document.get("/deepspeed/zero_optimization/offload_param/device").and_then(Json::as_str) {
        Some("cpu") => Offload::Cpu,
        Some("nvme") => Offload::Nvme,
        _ => Offload::None,
    };
    Zero3 {
        mics_shard_size: mics,
        hpz_partition_size: hpz,
        param_persistence_threshold: count("stage3_param_persistence_threshold").unwrap_or(0),
        model_persistence_threshold: count("stage3_model_persistence_threshold").unwrap_or(u64::MAX),
        offload,
    }
}
