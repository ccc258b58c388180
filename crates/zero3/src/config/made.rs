//! `optimizer` and `scheduler`, which DeepSpeed makes where a script hands none over: their types and parameters. And what offloading asks of an
//! optimizer that the script makes. Source: `deepspeed/runtime/engine.py`, `_configure_basic_optimizer`, `_configure_optimizer` and
//! `_scheduler_from_config`; `deepspeed/runtime/lr_schedules.py`; `torch.optim` of torch 2.15.

use shardwright_core::{
    diagnostic::Diagnostic,
    document::Document,
    strategy_config::{BuildContext, DeepSpeed},
    suggest::nearest,
    text::short,
    tree::{Node, Value},
};

use super::read;

/// Optimizers of DeepSpeed's own, in any case of letters, with their parameters where nothing is offloaded and where the optimizer is. `mu…` come
/// from another package, and Muon passes over what it does not know.
#[rustfmt::skip]
const OPTIMIZERS: &[(&str, &[&str], &[&str])] = &[
    ("adam", &["lr", "bias_correction", "betas", "eps", "weight_decay", "amsgrad", "set_grad_none"], CPU_ADAM),
    ("adamw", &["lr", "bias_correction", "betas", "eps", "weight_decay", "amsgrad", "set_grad_none"], CPU_ADAM),
    ("adagrad", &["lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps", "foreach", "maximize", "differentiable", "fused"],
        &["lr", "eps", "weight_decay", "amsgrad", "fp32_optimizer_states"]),
    ("lamb", LAMB, LAMB),
    ("lion", &["lr", "betas", "weight_decay", "set_grad_none"], &["lr", "betas", "weight_decay", "fp32_optimizer_states"]),
    ("muon", &[], &[]), ("muadam", &[], &[]), ("muadamw", &[], &[]), ("musgd", &[], &[]),
];

const CPU_ADAM: &[&str] = &["lr", "bias_correction", "betas", "eps", "weight_decay", "amsgrad"];
#[rustfmt::skip]
const LAMB: &[&str] = &["lr", "bias_correction", "betas", "eps", "eps_inside_sqrt", "weight_decay", "max_coeff", "min_coeff", "amsgrad"];

/// What DeepSpeed takes out of Adam's parameters before it makes one, and what torch's Adam knows, which `torch_adam` asks for.
const ADAMS_OWN: &[&str] = &["adam_w_mode", "torch_adam", "fp32_optimizer_states"];
#[rustfmt::skip]
const TORCH_ADAM: &[&str] =
    &["lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused"];

/// Classes of `torch.optim`, and whether ZeRO takes them untested. Their parameters are not checked.
#[rustfmt::skip]
const TORCH: &[(&str, bool)] = &[
    ("ASGD", false), ("Adadelta", false), ("Adafactor", false), ("Adagrad", true), ("Adam", true), ("AdamW", true), ("Adamax", false),
    ("LBFGS", false), ("Muon", false), ("NAdam", false), ("RAdam", false), ("RMSprop", false), ("Rprop", false), ("SGD", false),
    ("SparseAdam", false),
];

/// Optimizers that DeepSpeed 0.19 removed.
const REMOVED: &[&str] = &["onebitadam", "onebitlamb", "zerooneadam"];

/// Those of DeepSpeed's own that ZeRO does not know.
const UNTESTED: &[&str] = &["lamb", "muadam", "muadamw", "musgd"];

/// Schedulers of DeepSpeed's own, their parameters, and those that have no default.
#[rustfmt::skip]
const SCHEDULERS: &[(&str, &[&str], &[&str])] = &[
    ("LRRangeTest", &["lr_range_test_min_lr", "lr_range_test_step_size", "lr_range_test_step_rate", "lr_range_test_staircase", "last_batch_iteration"], &[]),
    ("OneCycle", &["cycle_min_lr", "cycle_max_lr", "decay_lr_rate", "cycle_first_step_size", "cycle_second_step_size", "cycle_first_stair_count",
        "cycle_second_stair_count", "decay_step_size", "cycle_momentum", "cycle_min_mom", "cycle_max_mom", "decay_mom_rate", "last_batch_iteration"],
        &["cycle_min_lr", "cycle_max_lr"]),
    ("WarmupLR", &["warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type", "last_batch_iteration"], &[]),
    ("WarmupDecayLR", &["total_num_steps", "warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type", "last_batch_iteration"], &["total_num_steps"]),
    ("WarmupCosineLR", &["total_num_steps", "warmup_min_ratio", "warmup_num_steps", "cos_min_ratio", "warmup_type", "last_batch_iteration"], &["total_num_steps"]),
];

/// Classes of `torch.optim.lr_scheduler`. Their parameters are not checked.
#[rustfmt::skip]
const TORCH_SCHEDULERS: &[&str] = &[
    "ChainedScheduler", "ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR", "ExponentialLR", "LambdaLR", "LinearLR",
    "MultiStepLR", "MultiplicativeLR", "OneCycleLR", "PolynomialLR", "ReduceLROnPlateau", "SequentialLR", "StepLR",
];

/// Where the optimizer's states are, as the document has it.
fn is_offloaded(document: &Document) -> bool {
    let device = document.get("/deepspeed/zero_optimization/offload_optimizer/device");
    device.and_then(serde_json::Value::as_str).is_some_and(|device| device != "none")
}

/// An optimizer of the script: accelerate swaps it for DeepSpeed's own where `offload_optimizer` says so, and not for the older spelling.
pub(super) fn optimizer_of_the_script(root: &Node, document: &Document, cx: &mut BuildContext<'_>) {
    let forced = root.get("zero_force_ds_cpu_optimizer").is_none_or(Node::is_truthy);
    let Some(entry) = root.get("zero_optimization").and_then(|zero| zero.entry("cpu_offload")) else { return };
    if forced && root.get("optimizer").is_none() && is_offloaded(document) && read::boolean(&entry.value) == Some(true) {
        let message = "zero_optimization.cpu_offload: DeepSpeed refuses to offload an optimizer that the script makes; accelerate hands over \
                       DeepSpeed's own only for offload_optimizer";
        let help = "\"offload_optimizer\": {\"device\": \"cpu\"}";
        cx.diagnostics.push(Diagnostic::error("deepspeed-optimizer", message).at(entry.at.clone()).help(help));
    }
}

/// `zenflow`, which has an optimizer of its own besides. Source: `deepspeed/runtime/zenflow`.
pub(super) fn zenflow(root: &Node, zero: &Node, stage: i64, cx: &mut BuildContext<'_>) {
    let Some(section) = zero.get("zenflow").filter(|n| n.is_map() && (1..=3).contains(&stage)) else { return };
    let given = |key: &str| section.get(key).filter(|n| !n.is_null() && n.as_str() != Some("auto"));
    let strategy = given("select_strategy").and_then(Node::as_str);
    let mut refuse = |node: &Node, message: String, help: &str| {
        let error = Diagnostic::error("deepspeed-combination", message).at(node.at.clone());
        cx.diagnostics.push(error.help(help.to_owned()));
    };
    match (given("select_strategy"), given("select_interval")) {
        (None, Some(interval)) if interval.as_integer().is_some() => {
            let message = "zenflow.select_interval is given, and select_strategy is auto, which has one of its own: DeepSpeed refuses both";
            refuse(interval, message.to_owned(), "\"select_strategy\": \"step\" or \"epoch\", or leave select_interval out");
        }
        (Some(named), None) if matches!(strategy, Some("step" | "epoch")) => {
            refuse(named, "zenflow.select_strategy needs a number as select_interval".to_owned(), "\"select_interval\": 1");
        }
        (Some(named), _) if !matches!(strategy, Some("step" | "epoch")) => {
            let message = format!("zenflow.select_strategy: expected auto, step or epoch, found {}", named.describe());
            refuse(named, message, "leave it out for auto");
        }
        _ => {}
    }
    let has_params = root.find(&["optimizer", "params"]).is_some_and(Node::is_map);
    if stage < 3 && !has_params {
        let message = format!("under stage {stage} zenflow makes an optimizer with this file's optimizer.params, and there are none");
        refuse(section, message, "leave zenflow out, or use it where DeepSpeed makes the optimizer");
    }
}

/// What DeepSpeed fails on while it makes the two.
pub(super) fn check(root: &Node, stage: i64, document: &Document, cx: &mut BuildContext<'_>) {
    let mut found = Vec::new();
    let version = cx.training.deepspeed.value;
    let is_older = |made: &Made<'_>| version < DeepSpeed::V0_19 && REMOVED.contains(&&*made.kind.to_lowercase());
    if let Some(made) = made(root, "optimizer", &mut found).filter(|made| !is_older(made)) {
        optimizer(root, &made, stage, is_offloaded(document), &mut found);
    }
    let no_type = |section: &&Node| section.is_map() && section.get("type").is_none_or(Node::is_null);
    if let Some(section) = root.get("optimizer").filter(no_type).filter(|_| (1..=2).contains(&stage)) {
        let message = format!("optimizer has no type, and DeepSpeed needs an optimizer under stage {stage}");
        found.push(Diagnostic::error("deepspeed-missing", message).at(section.at.clone()).help("\"type\": \"AdamW\""));
    }
    if let Some(made) = made(root, "scheduler", &mut found) {
        let is_half = |name: &str| document.get(&format!("/deepspeed/{name}/enabled")) == Some(&serde_json::Value::Bool(true));
        scheduler(&made, stage > 0 || is_half("bf16") || is_half("fp16"), version, &mut found);
    }
    cx.diagnostics.extend(found);
}

/// A section's type and its parameters.
struct Made<'a> {
    name: &'a str,
    kind: &'a str,
    kind_at: &'a Node,
    params: Option<&'a Node>,
}

fn wrong(path: &str, expected: &str, node: &Node) -> Diagnostic {
    Diagnostic::error("deepspeed-type", format!("{path}: expected {expected}, found {}", node.describe())).at(node.at.clone())
}

/// The section, or `None` where it is absent, has no type, or was refused.
fn made<'a>(root: &'a Node, name: &'static str, found: &mut Vec<Diagnostic>) -> Option<Made<'a>> {
    let section = root.get(name)?;
    // An "auto" is reported where it is passed on.
    if section.as_str() == Some("auto") {
        return None;
    }
    if !section.is_map() {
        found.push(wrong(name, "a mapping with a type and params", section));
        return None;
    }
    let kind = section.get("type").filter(|kind| !kind.is_null() && kind.as_str() != Some("auto"))?;
    let Some(text) = kind.as_str() else {
        found.push(wrong(&format!("{name}.type"), "a string", kind));
        return None;
    };
    let params = section.get("params").filter(|params| params.as_str() != Some("auto"));
    // No parameters are none for an optimizer, and a failure for a scheduler.
    if let Some(node) = params.filter(|n| !(n.is_map() || name == "optimizer" && n.is_null())) {
        found.push(wrong(&format!("{name}.params"), "a mapping", node));
        return None;
    }
    Some(Made { name, kind: text, kind_at: kind, params: params.filter(|n| n.is_map()) })
}

impl Made<'_> {
    fn unknown_type<'k>(&self, known: impl Iterator<Item = &'k str>) -> Diagnostic {
        let message = format!("{}.type: DeepSpeed and torch know no {} called '{}'", self.name, self.name, short(self.kind));
        let error = Diagnostic::error("deepspeed-type", message).at(self.kind_at.at.clone());
        if REMOVED.contains(&&*self.kind.to_lowercase()) {
            return error.help("it was removed in DeepSpeed 0.19; for a run with 0.18, shardwright.engines: {deepspeed: \"0.18\"}");
        }
        match nearest(self.kind, known) {
            Some(near) => error.help(format!("did you mean '{near}'?")),
            None => error,
        }
    }

    fn unknown_params(&self, known: &[&str], found: &mut Vec<Diagnostic>) {
        for entry in self.params.iter().flat_map(|params| params.entries()).filter(|e| !known.contains(&&*e.key)) {
            let message = format!("{}.params: {} has no parameter '{}', and DeepSpeed fails to make it", self.name, self.kind, entry.key);
            let error = Diagnostic::error("deepspeed-unknown-key", message).at(entry.at.clone());
            found.push(match nearest(&entry.key, known.iter().copied()) {
                Some(near) => error.help(format!("did you mean '{near}'?")),
                None => error.help("leave it out"),
            });
        }
    }

    /// Parameters that are calculated with at once or in the first step.
    fn numbers(&self, keys: &[&str], found: &mut Vec<Diagnostic>) {
        let is_number = |node: &Node| matches!(node.value, Value::Int(_) | Value::Float(_) | Value::Bool(_));
        for key in keys {
            let Some(node) = self.params.and_then(|params| params.get(key)) else { continue };
            if !is_number(node) && node.as_str() != Some("auto") {
                found.push(wrong(&format!("{}.params.{key}", self.name), "a number", node));
            }
        }
    }
}

fn optimizer(root: &Node, made: &Made<'_>, stage: i64, offloaded: bool, found: &mut Vec<Diagnostic>) {
    let lower = made.kind.to_lowercase();
    let own = OPTIMIZERS.iter().find(|(name, ..)| *name == lower);
    let torch = TORCH.iter().find(|(name, _)| *name == made.kind);
    if own.is_none() && torch.is_none() {
        let known = OPTIMIZERS.iter().map(|(name, ..)| *name).chain(TORCH.iter().map(|(name, _)| *name));
        found.push(made.unknown_type(known));
        return;
    }
    made.numbers(&["lr", "eps", "weight_decay"], found);
    if let Some(node) = made.params.and_then(|params| params.get("max_grad_norm")) {
        let message = "optimizer.params.max_grad_norm is not supported, and DeepSpeed refuses it";
        found.push(Diagnostic::error("deepspeed-unknown-key", message).at(node.at.clone()).help("use gradient_clipping"));
    }
    if let Some(node) = made.params.and_then(|params| params.get("betas")).filter(|n| n.as_str() != Some("auto") && !are_two_numbers(n)) {
        found.push(wrong("optimizer.params.betas", "a list of two numbers", node));
    }
    if let Some(own) = own {
        params_of(own, made, offloaded, found);
    }
    let scatters = root.find(&["zero_optimization", "reduce_scatter"]).is_none_or(|n| read::boolean(n) == Some(true));
    if lower == "muon" && stage == 3 && scatters {
        let message = "optimizer.type is Muon, which does not go with ZeRO stage 3 and reduce_scatter, which is on by default";
        let help = "\"reduce_scatter\": false in zero_optimization";
        found.push(Diagnostic::error("deepspeed-combination", message).at(made.kind_at.at.clone()).help(help));
    }
    let is_tested = match own {
        Some((name, ..)) => !UNTESTED.contains(name),
        None => torch.is_some_and(|(_, tested)| *tested),
    };
    let is_allowed = root.get("zero_allow_untested_optimizer").is_some_and(Node::is_truthy);
    if stage > 0 && !is_tested && !is_allowed {
        let message = format!("optimizer.type is {}, which DeepSpeed refuses under ZeRO as untested", made.kind);
        found.push(
            Diagnostic::error("deepspeed-optimizer", message).at(made.kind_at.at.clone()).help("\"zero_allow_untested_optimizer\": true"),
        );
    }
}

/// Parameters of an optimizer of DeepSpeed's own.
fn params_of((name, plain, on_host): &(&str, &[&str], &[&str]), made: &Made<'_>, offloaded: bool, found: &mut Vec<Diagnostic>) {
    let given = |key: &str| made.params.and_then(|params| params.get(key)).filter(|n| n.is_truthy());
    let is_adam = matches!(*name, "adam" | "adamw");
    let is_torch = is_adam && given("torch_adam").is_some();
    let known = match (is_torch, offloaded) {
        (true, _) => TORCH_ADAM,
        (false, true) => on_host,
        (false, false) => plain,
    };
    if !known.is_empty() {
        let more: &[&str] = if is_adam { ADAMS_OWN } else { &[] };
        let known: Vec<&str> = known.iter().chain(more).copied().chain(["max_grad_norm"]).collect();
        made.unknown_params(&known, found);
    }
    if let Some(node) = given("amsgrad").filter(|_| is_adam && !is_torch) {
        let message = "optimizer.params.amsgrad: DeepSpeed's Adam does not support it";
        found
            .push(Diagnostic::error("deepspeed-combination", message).at(node.at.clone()).help("set it to false, or \"torch_adam\": true"));
    }
}

fn are_two_numbers(node: &Node) -> bool {
    let is_number = |node: &Node| matches!(node.value, Value::Int(_) | Value::Float(_));
    matches!(&node.value, Value::Seq(items) if items.len() == 2 && items.iter().all(is_number))
}

fn scheduler(made: &Made<'_>, is_wrapped: bool, version: DeepSpeed, found: &mut Vec<Diagnostic>) {
    let Some((_, known, needed)) = SCHEDULERS.iter().find(|(name, ..)| *name == made.kind) else {
        if !TORCH_SCHEDULERS.contains(&made.kind) {
            let known = SCHEDULERS.iter().map(|(name, ..)| *name).chain(TORCH_SCHEDULERS.iter().copied());
            found.push(made.unknown_type(known));
        } else if is_wrapped {
            let message = format!("scheduler.type is {}, torch's own, which does not take the optimizer that DeepSpeed wraps", made.kind);
            let help = "a scheduler of DeepSpeed's own such as WarmupDecayLR, or one that the script makes";
            found.push(Diagnostic::error("deepspeed-combination", message).at(made.kind_at.at.clone()).help(help));
        }
        return;
    };
    made.unknown_params(known, found);
    if made.params.is_none() {
        let message = format!("scheduler.params is missing, without which DeepSpeed does not make {}", made.kind);
        found.push(Diagnostic::error("deepspeed-missing", message).at(made.kind_at.at.clone()).help("\"params\": {}"));
        return;
    }
    for key in needed.iter().filter(|key| made.params.is_some_and(|params| params.get(key).is_none())) {
        let message = format!("scheduler.params: {} needs {key}", made.kind);
        found.push(Diagnostic::error("deepspeed-missing", message).at(made.kind_at.at.clone()).help(format!("write {key}, or \"auto\"")));
    }
    made.numbers(&["warmup_min_lr", "warmup_max_lr", "total_num_steps", "cycle_min_lr", "cycle_max_lr"], found);
    // Older versions take 0 for 2.
    for key in ["warmup_num_steps", "lr_range_test_step_size"].iter().filter(|_| version >= DeepSpeed::V0_19) {
        let Some(node) = made.params.and_then(|params| params.get(key)).filter(|n| n.as_str() != Some("auto")) else { continue };
        if node.as_integer().is_none_or(|steps| steps <= 0) && node.as_bool() != Some(true) {
            found.push(wrong(&format!("scheduler.params.{key}"), "a positive integer", node));
        }
    }
}
