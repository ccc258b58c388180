//! What `accelerate config` writes, recognised by its own keys and translated to the flat keys of `keys`, every value at its own place.
//! FSDP version 2 and DeepSpeed, inline and by file; for FSDP version 1 there is a hint.

mod launch;
pub(super) mod schema;

use std::{collections::BTreeMap, sync::OnceLock};

use shardwright_core::{
    diagnostic::{Diagnostic, Location, Severity, Source},
    strategy_config::Mixed,
    tree::{Entry, Node, Value},
};

use crate::keys::unknown_keys;

/// Keys that tell the dialect; none of them is LLaMA-Factory's.
pub(super) const TELLING: &[&str] =
    &["distributed_type", "compute_environment", "fsdp_config", "deepspeed_config", "num_machines", "machine_rank"];

#[rustfmt::skip]
const KEYS: &[&str] = &[
    "commands", "command_file", "compute_environment", "debug", "deepspeed_config", "distributed_type", "downcast_bf16", "dynamo_backend",
    "dynamo_config", "enable_cpu_affinity", "fp16", "fp8_config", "fsdp_config", "gpu_ids", "machine_rank", "main_process_ip",
    "main_process_port", "main_training_function", "megatron_lm_config", "mixed_precision", "mpirun_config", "num_machines", "num_processes",
    "parallelism_config", "rdzv_backend", "same_network", "tpu_env", "tpu_name", "tpu_use_cluster", "tpu_use_sudo", "tpu_vm", "tpu_zone", "use_cpu",
];

/// Keys of ours that may stand beside accelerate's.
const OURS: &[&str] = &["model", "dtype", "torch_dtype", "shardwright", "micro_batch_size"];

#[rustfmt::skip]
const FSDP: &[&str] = &[
    "fsdp_activation_checkpointing", "fsdp_activation_checkpointing_offload", "fsdp_auto_wrap_policy", "fsdp_cpu_ram_efficient_loading",
    "fsdp_ignored_modules", "fsdp_min_num_params", "fsdp_offload_params", "fsdp_reshard_after_forward", "fsdp_state_dict_type",
    "fsdp_transformer_layer_cls_to_wrap", "fsdp_version",
];

/// Keys of FSDP version 1, and what they are today.
#[rustfmt::skip]
const FSDP1: &[(&str, &str)] = &[
    ("fsdp_sharding_strategy", "version 2 has fsdp_reshard_after_forward: true for FULL_SHARD, false for SHARD_GRAD_OP"),
    ("fsdp_backward_prefetch", "version 2 prefetches by itself"),
    ("fsdp_forward_prefetch", "version 2 has no such key"),
    ("fsdp_sync_module_states", "version 2 always does"),
    ("fsdp_use_orig_params", "version 2 always does"),
];

/// Values of `distributed_type` under which every rank has the whole model.
#[rustfmt::skip]
const REPLICATED: &[&str] = &[
    "NO", "MULTI_GPU", "MULTI_CPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_SDAA", "MULTI_MUSA", "MULTI_HPU", "MULTI_NEURON", "XLA",
];

#[rustfmt::skip]
const DEEPSPEED: &[&str] = &[
    "deepspeed_config_file", "deepspeed_exclusion_filter", "deepspeed_hostfile", "deepspeed_inclusion_filter", "deepspeed_moe_layer_cls_names",
    "deepspeed_multinode_launcher", "gradient_accumulation_steps", "gradient_clipping", "offload_optimizer_device", "offload_optimizer_nvme_path",
    "offload_param_device", "offload_param_nvme_path", "zero3_init_flag", "zero3_save_16bit_model", "zero_stage",
];

/// Keys of `parallelism_config`, without their prefix.
#[rustfmt::skip]
const PARALLELISM: &[&str] = &[
    "cp_backend", "cp_comm_strategy", "cp_size", "dp_replicate_size", "dp_shard_size", "sp_attn_implementation", "sp_backend", "sp_seq_length",
    "sp_seq_length_is_variable", "sp_size", "tp_size",
];

/// Keys of `deepspeed_config` that are an error beside `deepspeed_config_file`.
#[rustfmt::skip]
const NOT_BESIDE_A_FILE: &[&str] = &[
    "gradient_accumulation_steps", "gradient_clipping", "offload_optimizer_device", "offload_optimizer_nvme_path", "offload_param_device",
    "offload_param_nvme_path", "zero3_save_16bit_model", "zero_stage",
];

/// True where the keys are accelerate's.
pub(super) fn is_dialect(root: &Node) -> bool {
    root.entry("dist_config").is_none() && TELLING.iter().any(|key| root.get(key).is_some())
}

/// Whether there are keys that occur twice. PyYAML minds none; OmegaConf, which reads LLaMA-Factory's YAML, does.
pub(super) fn later_counts(found: &mut [Diagnostic]) -> bool {
    let mut any = false;
    for diagnostic in found.iter_mut().filter(|d| d.code == "yaml-duplicate-key") {
        let message = format!("{}, and accelerate takes the later one", diagnostic.message);
        let mut warning = Diagnostic::warning("accelerate-value", message).at(diagnostic.at.take()).help("leave out one of them");
        warning.also = std::mem::take(&mut diagnostic.also);
        *diagnostic = warning;
        any = true;
    }
    any
}

/// The same config with flat keys.
pub(super) fn translate(root: &Node, diagnostics: &mut Vec<Diagnostic>) -> Node {
    unknown_keys(root, "", KEYS.iter().chain(OURS).copied(), None, diagnostics);
    let mut flat = Node::map(Vec::new(), root.at.clone());
    for key in OURS {
        copy(root, key, &mut flat, key);
    }
    let Some(kind) = root.entry("distributed_type") else {
        let message = "the key 'distributed_type' is missing";
        diagnostics.push(Diagnostic::error("config-missing", message).at(root.at.clone()).help("FSDP or DEEPSPEED"));
        return flat;
    };
    match kind.value.as_str() {
        Some("FSDP") => fsdp(root, &kind.value.at, &mut flat, diagnostics),
        Some("DEEPSPEED") => deepspeed(root, &kind.value.at, &mut flat, diagnostics),
        Some(kind) if REPLICATED.contains(&kind) => {}
        _ if kind.value.as_bool() == Some(false) => {
            let message = "PyYAML reads this NO as false; accelerate means the string 'NO', and so it is taken here";
            diagnostics.push(Diagnostic::warning("yaml-bool-word", message).at(kind.value.at.clone()).help("put it in quotes"));
        }
        Some("MEGATRON_LM") => {
            let message = "distributed_type: Megatron-LM runs, but shardwright does not lay it out: it cuts layers in a way of its own";
            diagnostics.push(Diagnostic::error("config-value", message).at(kind.value.at.clone()).help("FSDP or DEEPSPEED"));
        }
        _ => {
            let message = format!("distributed_type: expected FSDP, DEEPSPEED, NO or MULTI_GPU, found {}", kind.value.describe());
            diagnostics.push(Diagnostic::error("config-value", message).at(kind.value.at.clone()));
        }
    }
    launch::check(root, diagnostics);
    parallelism(root, &mut flat, diagnostics);
    flat
}

/// Every key that is read, as the user writes it.
pub(super) fn paths() -> &'static [String] {
    static PATHS: OnceLock<Vec<String>> = OnceLock::new();
    PATHS.get_or_init(|| {
        let of = |section: &'static str, keys: &'static [&'static str]| keys.iter().map(move |k| format!("{section}{k}"));
        of("", KEYS)
            .chain(of("", OURS))
            .chain(of("fsdp_config.", FSDP))
            .chain(of("deepspeed_config.", DEEPSPEED))
            .chain(of("parallelism_config.parallelism_config_", PARALLELISM))
            .collect()
    })
}

/// What the flat keys and sections of the translation are called in the user's file, longer names first.
#[rustfmt::skip]
const WORDS: &[(&str, &str)] = &[
    ("zero_optimization.stage3_gather_16bit_weights_on_model_save", "deepspeed_config.zero3_save_16bit_model"),
    ("stage3_gather_16bit_weights_on_model_save", "deepspeed_config.zero3_save_16bit_model"),
    ("zero_optimization.offload_optimizer.nvme_path", "deepspeed_config.offload_optimizer_nvme_path"),
    ("zero_optimization.offload_optimizer.device", "deepspeed_config.offload_optimizer_device"),
    ("offload_optimizer.device", "deepspeed_config.offload_optimizer_device"),
    ("zero_optimization.offload_param.nvme_path", "deepspeed_config.offload_param_nvme_path"),
    ("zero_optimization.offload_param.device", "deepspeed_config.offload_param_device"),
    ("offload_param.device", "deepspeed_config.offload_param_device"),
    ("zero_optimization.offload_optimizer", "deepspeed_config.offload_optimizer_device"),
    ("zero_optimization.offload_param", "deepspeed_config.offload_param_device"),
    ("zero_optimization.stage", "deepspeed_config.zero_stage"),
    ("dist_config.reshard_after_forward", "fsdp_config.fsdp_reshard_after_forward"),
    ("dist_config.offload_params", "fsdp_config.fsdp_offload_params"),
    ("dist_config.config_file", "deepspeed_config.deepspeed_config_file"),
    ("gradient_accumulation_steps", "deepspeed_config.gradient_accumulation_steps"),
    ("reshard_after_forward", "fsdp_config.fsdp_reshard_after_forward"),
    ("offload_params", "fsdp_config.fsdp_offload_params"),
    ("gradient_clipping", "deepspeed_config.gradient_clipping"),
    ("dist_config.wrap", "fsdp_config.fsdp_auto_wrap_policy"),
    ("cp_size", "parallelism_config.parallelism_config_cp_size"),
    ("mp_replicate_size", "parallelism_config.parallelism_config_dp_replicate_size"),
    ("mp_shard_size", "parallelism_config.parallelism_config_dp_shard_size"),
    ("dist_config.name", "distributed_type"),
    ("dist_config", "distributed_type"),
    ("the YAML asks for", "mixed_precision asks for"),
];

/// Says what findings about the translation are about in the words of the file that was translated; `yaml` are the texts of that file and of
/// the command line, and findings elsewhere are about other files, which have their own words.
pub(super) fn in_users_words(found: &mut [Diagnostic], original: Option<&Node>, yaml: &[Source]) {
    let config = original.and_then(|root| root.get("fsdp_config"));
    let bare = |text: String| {
        let Some(config) = config else { return text };
        config
            .entries()
            .iter()
            .filter(|e| !e.key.starts_with("fsdp"))
            .fold(text, |text, e| text.replace(&format!("fsdp_config.fsdp_{}", e.key), &format!("fsdp_config.{}", e.key)))
    };
    for diagnostic in found.iter_mut().filter(|d| d.at.as_ref().is_none_or(|at| yaml.iter().any(|s| s.name == at.file))) {
        diagnostic.message = bare(in_words(&diagnostic.message)).into();
        diagnostic.help = diagnostic.help.take().map(|help| bare(in_words(&help)).into());
    }
}

/// Every name of the translation, where it stands as a word of its own, replaced once.
fn in_words(text: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    let (mut said, mut rest) = (String::new(), text);
    while let Some(c) = rest.chars().next() {
        let free = !said.ends_with(is_part);
        let ends = |after: &str| !after.trim_start_matches('.').starts_with(is_part);
        let word = WORDS.iter().find(|(flat, _)| free && rest.strip_prefix(flat).is_some_and(ends));
        let (taken, word) = word.map_or((c.len_utf8(), &rest[..c.len_utf8()]), |(flat, word)| (flat.len(), word));
        said.push_str(word);
        rest = &rest[taken..];
    }
    said
}

fn copy(from: &Node, key: &str, to: &mut Node, name: &str) {
    if let Some(entry) = from.entry(key).filter(|e| !e.value.is_null()) {
        to.set(name, entry.at.clone(), entry.value.clone());
    }
}

/// A truth value in any of the spellings that accelerate takes; what is none has been reported.
fn copy_truth(from: &Node, key: &str, to: &mut Node, name: &str) {
    if let Some(entry) = from.entry(key)
        && let Some(truth) = launch::truth(&entry.value)
    {
        to.set(name, entry.at.clone(), Node::new(Value::Bool(truth), entry.value.at.clone()));
    }
}

/// Why an unknown key of a section is no error.
const PASSED_OVER: Option<&str> = Some("accelerate passes over it");

/// `fsdp_config` with the prefix that accelerate adds where a key lacks it; the later of two spellings counts.
fn prefixed(config: &Node) -> Node {
    let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
    for entry in config.entries() {
        let key = if entry.key.starts_with("fsdp") { entry.key.clone() } else { format!("fsdp_{}", entry.key) };
        entries.insert(key.clone(), Entry { key, ..entry.clone() });
    }
    Node::map(entries.into_values().collect(), config.at.clone())
}

fn fsdp(root: &Node, at: &Location, flat: &mut Node, diagnostics: &mut Vec<Diagnostic>) {
    let nothing = Node::map(Vec::new(), at.clone());
    let written = root.get("fsdp_config").filter(|n| n.is_map()).unwrap_or(&nothing);
    let config = &prefixed(written);
    let mut dist = Node::map(Vec::new(), config.at.clone());
    dist.set("name", at.clone(), Node::text("fsdp2", at.clone()));
    copy_truth(config, "fsdp_reshard_after_forward", &mut dist, "reshard_after_forward");
    copy_truth(config, "fsdp_offload_params", &mut dist, "offload_params");
    let version = config.get("fsdp_version");
    let is_two = version.and_then(launch::integer) == Some(2);
    if is_two {
        launch::fsdp(config, diagnostics);
        let wrap = wrap(config, diagnostics);
        dist.set("wrap", config.at.clone(), wrap);
    }
    flat.set("dist_config", at.clone(), dist);
    if !is_two {
        let found = version.map_or("nothing, which means 1".to_owned(), Node::describe);
        let why = match version.and_then(launch::integer).unwrap_or(1) {
            1 => "version 1 runs, but shardwright does not lay it out",
            _ => "accelerate takes 1 and 2",
        };
        let message = format!("fsdp_version: expected 2, found {found}; {why}");
        let place = version.map_or_else(|| config.at.clone(), |v| v.at.clone());
        let mut help = "set fsdp_version: 2; accelerate to-fsdp2 converts a config".to_owned();
        let old: Vec<String> =
            FSDP1.iter().filter(|(key, _)| config.get(key).is_some()).map(|(key, today)| format!("{key}: {today}")).collect();
        if !old.is_empty() {
            help = format!("{help}. {}", old.join("; "));
        }
        diagnostics.push(Diagnostic::error("accelerate-fsdp1", message).at(place).help(help));
    }
    for (key, today) in FSDP1 {
        let is_wrong = |e: &Entry| diagnostics.iter().any(|d| d.severity == Severity::Error && d.at.as_ref().is_some_and(|at| e.holds(at)));
        if let Some(entry) = config.entry(key).filter(|e| is_two && !is_wrong(e)) {
            let message = format!("{key} is a key of FSDP version 1 and has no effect in version 2");
            diagnostics.push(Diagnostic::warning("accelerate-fsdp1-key", message).at(entry.at.clone()).help(*today));
        }
    }
    let bare = |key: &&'static str| key.strip_prefix("fsdp_");
    let known = FSDP.iter().copied().chain(FSDP1.iter().map(|(key, _)| *key));
    let known: Vec<&str> = known.clone().chain(known.filter_map(|key| bare(&key))).collect();
    unknown_keys(written, "fsdp_config", known.iter().copied(), PASSED_OVER, diagnostics);
    if config.get("fsdp_cpu_ram_efficient_loading").and_then(launch::truth) == Some(false) {
        let message = "fsdp_cpu_ram_efficient_loading false makes every rank hold the whole model before it is sharded";
        let place = config.get("fsdp_cpu_ram_efficient_loading").map(|n| n.at.clone());
        diagnostics.push(Diagnostic::warning("init-holds-model", message).at(place));
    }
}

/// What accelerate wraps: `dist_config.wrap` of the translation. Source: `accelerate/utils/fsdp_utils.py`, `fsdp2_prepare_model`.
fn wrap(config: &Node, diagnostics: &mut Vec<Diagnostic>) -> Node {
    const POLICY: &str = "fsdp_auto_wrap_policy";
    let node = config.get(POLICY).filter(|n| !n.is_null());
    let at = node.map_or_else(|| config.at.clone(), |n| n.at.clone());
    let mut wrap = Node::map(Vec::new(), at.clone());
    let policy = node.map_or(Some("NO_WRAP".to_owned()), |n| n.as_str().map(str::to_uppercase));
    let whole = |why: &str| {
        let message = format!("{why}: no layer is wrapped, so that all layers are gathered at once and the whole model is on every rank");
        let help = "set fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP";
        Diagnostic::warning("accelerate-wrap", message).at(at.clone()).help(help)
    };
    let least = config.get("fsdp_min_num_params").and_then(launch::integer).unwrap_or(0);
    let mut name = |name: &str| wrap.set("policy", at.clone(), Node::text(name, at.clone()));
    match policy.as_deref() {
        Some("TRANSFORMER_BASED_WRAP") => {
            name("layers");
            let classes = config.get("fsdp_transformer_layer_cls_to_wrap").filter(|n| !n.is_null());
            if let Some(text) = classes.and_then(Node::as_str) {
                let place = classes.map_or_else(|| at.clone(), |n| n.at.clone());
                let names = text.split(',').map(|class| Node::text(class.trim(), place.clone())).collect();
                wrap.set("classes", place.clone(), Node::new(Value::Seq(names), place));
            }
        }
        Some("SIZE_BASED_WRAP") if least > 0 => {
            name("size");
            let place = config.get("fsdp_min_num_params").map_or_else(|| at.clone(), |n| n.at.clone());
            wrap.set("min_num_params", place.clone(), Node::new(Value::Int(least), place));
        }
        Some("SIZE_BASED_WRAP") => {
            name("none");
            diagnostics.push(whole("SIZE_BASED_WRAP without fsdp_min_num_params is NO_WRAP"));
        }
        Some("NO_WRAP") => {
            name("none");
            let why =
                if node.is_some() { "fsdp_auto_wrap_policy is NO_WRAP" } else { "fsdp_auto_wrap_policy is not given, which means NO_WRAP" };
            diagnostics.push(whole(why));
        }
        _ => {
            let found = node.map_or_else(String::new, Node::describe);
            let message = format!("{POLICY}: expected TRANSFORMER_BASED_WRAP, SIZE_BASED_WRAP or NO_WRAP, found {found}");
            diagnostics.push(Diagnostic::error("config-value", message).at(at.clone()));
        }
    }
    wrap
}

fn deepspeed(root: &Node, at: &Location, flat: &mut Node, diagnostics: &mut Vec<Diagnostic>) {
    let nothing = Node::map(Vec::new(), at.clone());
    let section = root.get("deepspeed_config");
    if let Some(node) = section.filter(|n| !n.is_map() && !n.is_null()) {
        // accelerate joins its keys with commas, as far as there are any and they are strings.
        let is_joined = match &node.value {
            Value::Seq(items) => items.iter().all(|item| item.as_str().is_some()),
            _ => node.as_str().is_some(),
        };
        let message = format!("deepspeed_config: expected a mapping, found {}", node.describe());
        diagnostics.push(match is_joined {
            true => Diagnostic::warning("accelerate-value", format!("{message}; accelerate passes over it")).at(node.at.clone()),
            false => launch::value(message, node),
        });
    }
    let config = section.filter(|n| n.is_map()).unwrap_or(&nothing);
    unknown_keys(config, "deepspeed_config", DEEPSPEED.iter().copied(), PASSED_OVER, diagnostics);
    let mut dist = Node::map(Vec::new(), config.at.clone());
    // Whether the whole model is ever a matter of zero3_init_flag; a file says so itself.
    let mut may_be_three = true;
    if let Some(file) = config.entry("deepspeed_config_file").filter(|e| e.value.as_str().is_some_and(|f| f != "none")) {
        let mixed = root.entry("mixed_precision").filter(|e| !e.value.is_null());
        for entry in NOT_BESIDE_A_FILE.iter().filter_map(|key| config.entry(key)).chain(mixed) {
            let message = format!("{} does not go with deepspeed_config_file: that file decides, and accelerate refuses both", entry.key);
            diagnostics.push(Diagnostic::error("accelerate-beside-file", message).at(entry.at.clone()).and(file.at.clone(), "the file"));
        }
        dist.set("name", at.clone(), Node::text("deepspeed", at.clone()));
        copy(config, "deepspeed_config_file", &mut dist, "config_file");
    } else {
        dist.set("name", at.clone(), Node::text("zero3", at.clone()));
        inline(config, &mut dist, diagnostics);
        may_be_three = config.get("zero_stage").is_some_and(is_three);
    }
    if let Some(flag) = config.get("zero3_init_flag").filter(|n| !n.is_null() && launch::truth(n).is_none()) {
        let message = format!("deepspeed_config.zero3_init_flag: expected true or false, found {}", flag.describe());
        diagnostics.push(launch::value(message, flag));
    }
    flat.set("dist_config", at.clone(), dist);
    if let Some(flag) = config.get("zero3_init_flag").filter(|n| may_be_three && launch::truth(n) == Some(false)) {
        let message = "zero3_init_flag false makes every rank build the whole model before it is partitioned";
        diagnostics.push(Diagnostic::warning(INIT_FLAG, message).at(flag.at.clone()).help("set it to true under stage 3"));
    }
}

/// The code of a finding about `zero3_init_flag`, which only holds under stage 3.
pub(super) const INIT_FLAG: &str = "init-holds-model";

fn is_three(node: &Node) -> bool {
    launch::integer(node) == Some(3)
}

/// The DeepSpeed config that accelerate itself writes where the YAML names no file.
fn inline(config: &Node, dist: &mut Node, diagnostics: &mut Vec<Diagnostic>) {
    let mut zero = Node::map(Vec::new(), config.at.clone());
    let stage = config.get("zero_stage").filter(|n| !n.is_null());
    let place = stage.map_or_else(|| config.at.clone(), |n| n.at.clone());
    if let Some(node) = stage.filter(|n| launch::integer(n).is_none()) {
        diagnostics.push(launch::value(format!("deepspeed_config.zero_stage: expected an integer, found {}", node.describe()), node));
    }
    // What is none has been refused, and nothing more is to be said under a stage that nobody meant.
    let number = stage.map_or(2, |node| launch::integer(node).unwrap_or(3));
    zero.set("stage", place.clone(), Node::new(Value::Int(number), place));
    const WHOLE: &str = "stage3_gather_16bit_weights_on_model_save";
    if let Some(entry) = config.entry("zero3_save_16bit_model").filter(|e| !e.value.is_null()) {
        let is_on = launch::text(&entry.value).is_some_and(|text| text.eq_ignore_ascii_case("true"));
        if !is_on && launch::truth(&entry.value) != Some(false) {
            let message = format!("zero3_save_16bit_model is {}, and accelerate takes all but true for false", entry.value.describe());
            diagnostics.push(Diagnostic::warning("accelerate-value", message).at(entry.value.at.clone()).help("write true or false"));
        }
        zero.set(WHOLE, entry.at.clone(), Node::new(Value::Bool(is_on), entry.value.at.clone()));
    }
    let stage_three = zero.get("stage").is_some_and(is_three);
    if !stage_three {
        zero = zero.without(WHOLE);
    }
    for part in ["optimizer", "param"] {
        // Outside of stage 3 accelerate's own "none" for parameters is nobody's to hear of.
        if part == "param" && !stage_three && config.get("offload_param_device").is_none_or(Node::is_null) {
            continue;
        }
        offload(part, config, &mut zero, diagnostics);
    }
    dist.set("zero_optimization", config.at.clone(), zero);
    accumulation(config, dist, diagnostics);
    gradient_clipping(config, dist, diagnostics);
}

fn auto(at: &Location) -> Node {
    Node::text("auto", at.clone())
}

fn accumulation(config: &Node, dist: &mut Node, diagnostics: &mut Vec<Diagnostic>) {
    const KEY: &str = "gradient_accumulation_steps";
    let Some(entry) = config.entry(KEY).filter(|e| !e.value.is_null()) else { return dist.set(KEY, config.at.clone(), auto(&config.at)) };
    let node = &entry.value;
    let value = match launch::integer(node) {
        Some(number) => Node::new(Value::Int(number), node.at.clone()),
        None => {
            if node.as_str() == Some("auto") {
                let message = "gradient_accumulation_steps: the Trainer of transformers fills this auto; accelerate by itself refuses it";
                let help = "write the number, or leave it out, unless the script is a Trainer's";
                diagnostics.push(Diagnostic::warning("accelerate-value", message).at(node.at.clone()).help(help));
            } else {
                let message = format!("deepspeed_config.{KEY}: expected an integer, found {}", node.describe());
                diagnostics.push(launch::value(message, node));
            }
            auto(&node.at)
        }
    };
    dist.set(KEY, entry.at.clone(), value);
}

fn gradient_clipping(config: &Node, dist: &mut Node, diagnostics: &mut Vec<Diagnostic>) {
    const KEY: &str = "gradient_clipping";
    let Some(entry) = config.entry(KEY).filter(|e| !e.value.is_null()) else { return dist.set(KEY, config.at.clone(), auto(&config.at)) };
    let node = &entry.value;
    let text = launch::text(node).unwrap_or_default().to_lowercase();
    match text.trim().parse::<f64>() {
        Ok(0.0) => {
            let message = "accelerate leaves gradient_clipping out where it is 0, and DeepSpeed clips to its default, 1.0";
            let help = "a DeepSpeed file, named by deepspeed_config_file, can turn clipping off";
            diagnostics.push(Diagnostic::warning("accelerate-value", message).at(node.at.clone()).help(help));
        }
        Ok(number) => dist.set(KEY, entry.at.clone(), Node::new(Value::Float(number), node.at.clone())),
        Err(_) if text == "auto" => dist.set(KEY, entry.at.clone(), auto(&node.at)),
        Err(_) => {
            let message = format!("deepspeed_config.{KEY}: expected a number or auto, found {}", node.describe());
            diagnostics.push(launch::value(message, node));
        }
    }
}

fn offload(part: &str, config: &Node, zero: &mut Node, diagnostics: &mut Vec<Diagnostic>) {
    let mut offload = Node::map(Vec::new(), config.at.clone());
    offload.set("device", config.at.clone(), Node::text("none", config.at.clone()));
    if let Some(entry) = config.entry(&format!("offload_{part}_device")).filter(|e| !e.value.is_null()) {
        let device =
            launch::text(&entry.value).map_or_else(|| entry.value.clone(), |text| Node::text(text.to_lowercase(), entry.value.at.clone()));
        // DeepSpeed's file may say so, where something fills it.
        if device.as_str() == Some("auto") {
            let message =
                format!("deepspeed_config.offload_{part}_device: expected none, cpu or nvme, found auto, which accelerate does not fill");
            diagnostics.push(launch::value(message, &entry.value));
        }
        offload.set("device", entry.at.clone(), device);
    }
    let path = format!("offload_{part}_nvme_path");
    let on_disk = offload.get("device").and_then(Node::as_str) == Some("nvme");
    if let Some(entry) = config.entry(&path).filter(|e| on_disk && e.value.as_str().is_some_and(|text| text != "none")) {
        let message = format!("accelerate launch does not hand {path} on, and DeepSpeed swaps to a folder that is called none");
        let help = "give a DeepSpeed file in deepspeed_config_file, with nvme_path";
        diagnostics.push(Diagnostic::warning("accelerate-nvme-path", message).at(entry.at.clone()).help(help));
    }
    if on_disk {
        let at = config.entry(&path).map_or_else(|| config.at.clone(), |e| e.value.at.clone());
        offload.set("nvme_path", at.clone(), Node::text("none", at));
    }
    let at = config.entry(&format!("offload_{part}_device")).map_or_else(|| config.at.clone(), |e| e.at.clone());
    zero.set(&format!("offload_{part}"), at, offload);
}

/// HSDP, context and sequence parallelism: FSDP shards over `dp_shard` times `cp`, ZeRO over all ranks. Source:
/// `accelerate/parallelism_config.py`.
fn parallelism(root: &Node, flat: &mut Node, diagnostics: &mut Vec<Diagnostic>) {
    const PREFIX: &str = "parallelism_config_";
    let Some(config) = root.get("parallelism_config").filter(|n| n.is_map() && !n.entries().is_empty()) else { return };
    let known: Vec<String> = PARALLELISM.iter().map(|name| format!("{PREFIX}{name}")).collect();
    unknown_keys(config, "parallelism_config", known.iter().map(String::as_str), PASSED_OVER, diagnostics);
    let mut found = Vec::new();
    let mut refuse = |message: String, at: &Location| found.push(Diagnostic::error("accelerate-parallelism", message).at(at.clone()));
    let mut size = |name: &str| -> (i128, Location) {
        let Some(node) = config.get(&format!("{PREFIX}{name}")) else { return (1, config.at.clone()) };
        // These two are compared before they are made texts of.
        let is_compared = matches!(name, "cp_size" | "sp_size");
        let value = launch::integer(node).filter(|n| *n > 0 && !(is_compared && node.as_str().is_some()));
        if value.is_none() {
            refuse(format!("{PREFIX}{name}: expected an integer of at least 1, found {}", node.describe()), &node.at);
        }
        (value.unwrap_or(1), node.at.clone())
    };
    let [replicate, shard, tp, cp, sp] = ["dp_replicate_size", "dp_shard_size", "tp_size", "cp_size", "sp_size"].map(&mut size);
    for (name, only) in [("cp_backend", "torch"), ("sp_backend", "deepspeed")] {
        if let Some(node) = config.get(&format!("{PREFIX}{name}")).filter(|n| n.as_str() != Some(only)) {
            refuse(format!("{PREFIX}{name}: expected {only}, found {}", node.describe()), &node.at);
        }
    }
    let is = |kind: &str| root.get("distributed_type").and_then(Node::as_str) == Some(kind);
    let text = |name: &str| config.get(&format!("{PREFIX}{name}")).map(|node| (node, launch::text(node).unwrap_or_default()));
    if let Some((node, _)) = text("cp_comm_strategy").filter(|(_, text)| cp.0 > 1 && !matches!(&**text, "allgather" | "alltoall")) {
        refuse(format!("{PREFIX}cp_comm_strategy: expected allgather or alltoall, found {}", node.describe()), &node.at);
    }
    let attends = |text: &str| {
        matches!(text, "sdpa" | "flash_attention_2" | "flash_attention_3") || text.contains('/') && text.contains("flash-attn")
    };
    if let Some((node, _)) = text("sp_attn_implementation").filter(|(_, text)| sp.0 > 1 && !attends(text)) {
        let expected = "sdpa, flash_attention_2, flash_attention_3 or a flash-attn kernel of the hub";
        refuse(format!("{PREFIX}sp_attn_implementation: expected {expected}, found {}", node.describe()), &node.at);
    }
    // Anything but true is false, and a fixed length must be known.
    if let Some((node, _)) = text("sp_seq_length_is_variable").filter(|(_, text)| sp.0 > 1 && !text.eq_ignore_ascii_case("true"))
        && config.get(&format!("{PREFIX}sp_seq_length")).and_then(launch::integer).is_none()
    {
        let message = format!("{PREFIX}sp_seq_length_is_variable is {}, which needs an integer as {PREFIX}sp_seq_length", node.describe());
        refuse(message, &node.at);
    }
    if tp.0 > 1 {
        refuse(format!("{PREFIX}tp_size is {}: tensor parallelism runs, but shardwright does not lay it out", tp.0), &tp.1);
    } else if cp.0 > 1 && sp.0 > 1 {
        refuse(format!("{PREFIX}cp_size is {} and {PREFIX}sp_size {}; accelerate takes one of the two", cp.0, sp.0), &cp.1);
    } else if cp.0 > 1 && replicate.0 > 1 && shard.0 == 1 {
        let message = format!("{PREFIX}cp_size {} does not go with {PREFIX}dp_replicate_size {} and dp_shard_size 1", cp.0, replicate.0);
        refuse(message, &cp.1);
    } else if is("FSDP") && sp.0 > 1 {
        refuse(format!("{PREFIX}sp_size is {}: sequence parallelism is DeepSpeed's, and this is FSDP", sp.0), &sp.1);
    } else if is("FSDP") && shard.0 == 1 && cp.0 == 1 {
        let message =
            format!("{PREFIX}dp_shard_size and {PREFIX}cp_size are both 1, which leaves FSDP nothing to shard over; accelerate refuses it");
        refuse(message, &shard.1);
    } else if is("DEEPSPEED") && cp.0 > 1 {
        refuse(format!("{PREFIX}cp_size is {}: context parallelism is FSDP's; DeepSpeed has {PREFIX}sp_size", cp.0), &cp.1);
    }
    let is_sound = found.is_empty();
    diagnostics.append(&mut found);
    if !is_sound {
        return;
    }
    let mut set = |name: &str, value: i128, at: &Location| flat.set(name, at.clone(), Node::new(Value::Int(value), at.clone()));
    if is("FSDP") {
        set("mp_replicate_size", replicate.0, &replicate.1);
        set("mp_shard_size", shard.0.saturating_mul(cp.0), if cp.0 > 1 { &cp.1 } else { &shard.1 });
        set("cp_size", cp.0, &cp.1);
    } else if is("DEEPSPEED") && sp.0 > 1 {
        set("cp_size", sp.0, &sp.1);
    }
}

/// `mixed_precision`, and where it stands.
pub(super) fn mixed(root: &Node, diagnostics: &mut Vec<Diagnostic>) -> (Mixed, Option<Location>) {
    let Some(node) = root.get("mixed_precision").filter(|n| !n.is_null()) else {
        // What older versions wrote.
        let old = root.get("fp16").filter(|n| n.as_bool() == Some(true));
        return old.map_or((Mixed::No, None), |n| (Mixed::Fp16, Some(n.at.clone())));
    };
    let at = Some(node.at.clone());
    match (node.as_str().map(str::to_lowercase).as_deref(), node.as_bool()) {
        (Some("no"), _) => (Mixed::No, at),
        (Some("bf16"), _) => (Mixed::Bf16, at),
        (Some("fp16"), _) => (Mixed::Fp16, at),
        (Some("fp8"), _) => {
            let message = "mixed_precision fp8 casts inside of layers while training; weights are stored and gathered as under bf16";
            diagnostics.push(Diagnostic::warning("accelerate-fp8", message).at(at.clone()));
            (Mixed::Bf16, at)
        }
        (_, Some(false)) => {
            let message = "mixed_precision: PyYAML reads this no as false, at which accelerate launch stops; it takes the string 'no'";
            diagnostics.push(Diagnostic::error("config-value", message).at(at.clone()).help("put it in quotes"));
            (Mixed::No, at)
        }
        _ => {
            let message = format!("mixed_precision: expected no, fp16, bf16 or fp8, found {}", node.describe());
            diagnostics.push(Diagnostic::error("config-value", message).at(at.clone()));
            (Mixed::No, at)
        }
    }
}
