//! The flat keys of a LLaMA-Factory v1 YAML: their types, bounds, defaults and meanings, one a line, and the reader that applies them.
//! What the values mean together is in `resolve`.

pub(super) mod unchecked;

use std::collections::BTreeMap;

use serde_json::Value as Json;

use shardwright_core::{
    diagnostic::Diagnostic,
    document::{Origin, Sourced},
    suggest::nearest,
    text::short,
    tree::{Node, Value, truthiness},
};

/// What a key takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A string.
    Text,
    /// A boolean.
    Bool,
    /// An integer of at least this.
    Int(i64),
    /// A number of at least this.
    Float(f64),
    /// The same, and whole where it is written so.
    Number(f64),
    /// One of these strings; any other is an error.
    Choice(&'static [&'static str]),
    /// One of these strings; any other is a warning, for engines grow.
    OpenChoice(&'static [&'static str]),
    /// A string, or a list of strings.
    Names,
    /// `{name, …}`, or the same as a JSON string.
    Section,
}

/// A key.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Its default, as JSON; `null` makes it optional.
    pub default: &'static str,
    /// What it means.
    pub meaning: &'static str,
}

const fn key(name: &'static str, kind: Kind, default: &'static str, meaning: &'static str) -> Key {
    Key { name, kind, default, meaning }
}

impl Key {
    /// Its default. The commonest are not parsed: every key of every config that is read needs its own.
    pub(super) fn default(&self) -> Json {
        match self.default {
            "null" => Json::Null,
            "true" => Json::Bool(true),
            "false" => Json::Bool(false),
            text => serde_json::from_str(text).unwrap_or(Json::Null),
        }
    }
}

/// Every key of LLaMA-Factory v1.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key("model", Kind::Text, r#""Qwen/Qwen3-4B-Instruct-2507""#, "a directory, or a hub id that is in the local cache"),
    key("model_class", Kind::Choice(&["llm", "cls", "other"]), r#""llm""#, "which auto class builds the model"),
    key("custom_chat_template", Kind::Text, "null", "a Jinja2 chat template in place of the model's own"),
    key("trust_remote_code", Kind::Bool, "false", "run code that comes with the model"),
    key("flash_attn", Kind::Choice(&["eager", "sdpa", "flash_attention_2"]), r#""sdpa""#, "the attention implementation"),
    key("init_config", Kind::Section, "null", "where the model is built before it is sharded: init_on_meta, init_on_rank0, init_on_default"),
    key("peft_config", Kind::Section, "null", "what is trained: lora, freeze; null for everything"),
    key("kernel_config", Kind::Section, "null", "faster kernels"),
    key("quant_config", Kind::Section, "null", "quantization"),
    key("train_dataset", Kind::Text, "null", "what is trained on"),
    key("eval_dataset", Kind::Text, "null", "what is evaluated on"),
    key("output_dir", Kind::Text, "null", "where results go; null for a fresh folder under outputs"),
    key("micro_batch_size", Kind::Int(1), "1", "samples of one forward pass of one rank"),
    key("global_batch_size", Kind::Int(1), "null", "samples of one optimizer step; null for dp_size times micro_batch_size"),
    key("cutoff_len", Kind::Int(1), "2048", "longest sequence, in tokens"),
    key("learning_rate", Kind::Float(0.0), "0.0001", "learning rate"),
    key("num_train_epochs", Kind::Number(0.0), "3", "passes over the data, also parts of one"),
    key("max_steps", Kind::Int(i64::MIN), "null", "optimizer steps; wins over num_train_epochs"),
    key("max_grad_norm", Kind::Float(0.0), "1.0", "gradients are clipped to this norm"),
    key("bf16", Kind::Bool, "true", "compute in bfloat16 under FSDP2; DeepSpeed has its own"),
    key("batching_strategy", Kind::Choice(&["normal", "padding_free", "dynamic_batching", "dynamic_padding_free"]), r#""normal""#, "how samples become batches"),
    key("batching_workers", Kind::Int(0), "16", "processes that make batches"),
    key("enable_activation_checkpointing", Kind::Bool, "true", "recompute activations in the backward pass"),
    key("dist_config", Kind::Section, "null", "the sharding strategy; null replicates"),
    key("dp_size", Kind::Int(1), "null", "data-parallel ranks; null for the world size over cp_size"),
    key("cp_size", Kind::Int(1), "1", "context-parallel ranks"),
    key("cp_mode", Kind::OpenChoice(&["ulysses"]), r#""ulysses""#, "how sequences are split over context-parallel ranks"),
    key("mp_replicate_size", Kind::Int(1), "1", "groups that hold equal shards"),
    key("mp_shard_size", Kind::Int(1), "null", "ranks that share one model; null for the world size over mp_replicate_size"),
    key("dist_timeout", Kind::Int(1), "18000", "seconds until a collective gives up"),
    key("optim_config", Kind::Section, "null", "the optimizer"),
    key("lr_scheduler_config", Kind::Section, "null", "the learning rate's schedule"),
    key("seed", Kind::Int(0), "42", "random seed"),
    key("full_determinism", Kind::Bool, "false", "deterministic kernels throughout"),
    key("resume_from_checkpoint", Kind::Text, "null", "a checkpoint to go on from, or auto"),
    key("save_steps", Kind::Int(0), "null", "steps between checkpoints; 0 or null for none"),
    key("save_epochs", Kind::Float(0.0), "null", "epochs between checkpoints"),
    key("save_ckpt_as_hf", Kind::Bool, "false", "also save in Hugging Face's format"),
    key("save_total_limit", Kind::Int(1), "null", "checkpoints to keep"),
    key("logging_steps", Kind::Int(1), "1", "steps between log lines"),
    key("pref_loss", Kind::Choice(&["sigmoid", "orpo", "simpo"]), r#""sigmoid""#, "the preference loss"),
    key("pref_beta", Kind::Float(f64::MIN), "0.1", "its beta"),
    key("pref_ftx", Kind::Float(f64::MIN), "0.0", "the share of the supervised loss"),
    key("simpo_gamma", Kind::Float(f64::MIN), "0.5", "the reward margin of SimPO"),
    key("dpo_label_smoothing", Kind::Float(0.0), "0.0", "label smoothing of cDPO, up to 0.5"),
    key("ld_alpha", Kind::Float(f64::MIN), "null", "the weight of verbose tokens in LD-DPO"),
    key("sample_backend", Kind::Choice(&["hf", "vllm"]), r#""hf""#, "what generates samples"),
    key("max_new_tokens", Kind::Int(1), "128", "most tokens of a sample"),
];

/// Keys beside LLaMA-Factory's own that are understood here.
#[rustfmt::skip]
pub const EXTRA: &[Key] = &[
    key("dtype", Kind::Text, "null", "what the model is loaded in where the engine keeps the checkpoint's dtype; auto or null for each tensor's own"),
    key("torch_dtype", Kind::Text, "null", "older spelling of dtype"),
    key("template", Kind::Text, "null", "LLaMA-Factory 0.9.5's name of a chat template; later versions refuse it"),
    key("shardwright", Kind::Section, "null", "what only shardwright knows"),
];

/// Keys of `peft_config: {name: lora}`.
#[rustfmt::skip]
pub const LORA: &[Key] = &[
    key("r", Kind::Int(1), "8", "rank of the adapters"),
    key("lora_alpha", Kind::Number(f64::MIN), "16", "scale of the adapters"),
    key("lora_dropout", Kind::Float(0.0), "0.05", "dropout before the adapters"),
    key("target_modules", Kind::Names, r#""all""#, "modules that get an adapter"),
    key("use_rslora", Kind::Bool, "false", "rank-stabilised scale"),
    key("use_dora", Kind::Bool, "false", "weight-decomposed adapters"),
    key("modules_to_save", Kind::Names, "null", "modules trained whole"),
    key("adapter_name_or_path", Kind::Names, "null", "adapters to start from"),
    key("export_dir", Kind::Text, "null", "where the merged model goes"),
    key("export_size", Kind::Int(1), "5", "size of a file of the merged model, in GB"),
    key("export_hub_model_id", Kind::Text, "null", "the merged model's name on the hub"),
    key("infer_dtype", Kind::Choice(&["auto", "float16", "float32", "bfloat16"]), r#""auto""#, "dtype of the merged model"),
    key("export_legacy_format", Kind::Bool, "false", "export pickled files"),
];

/// Keys of `peft_config: {name: freeze}`.
#[rustfmt::skip]
pub const FREEZE: &[Key] = &[
    key("freeze_trainable_layers", Kind::Int(i64::MIN), "2", "trainable layers: the last n, or for n up to 0 the first -n"),
    key("freeze_trainable_modules", Kind::Names, r#""all""#, "modules of those layers that are trainable"),
    key("freeze_extra_modules", Kind::Names, "[]", "modules outside of layers that are trainable too"),
    key("cast_trainable_params_to_fp32", Kind::Bool, "true", "make trainable parameters float32"),
];

/// Keys of `quant_config: {name: bnb}` and `{name: auto}`.
#[rustfmt::skip]
pub const QUANT: &[Key] = &[
    key("quantization_bit", Kind::Int(4), "null", "4 or 8"),
    key("compute_dtype", Kind::Text, r#""float16""#, "what is computed in"),
    key("double_quantization", Kind::Bool, "true", "quantize the scales too"),
    key("quantization_type", Kind::Text, r#""nf4""#, "the 4-bit type"),
];

/// The typed values of flat keys.
#[derive(Clone, Debug, Default)]
pub(super) struct Values {
    values: BTreeMap<&'static str, Sourced<Json>>,
}

impl Values {
    /// Reads every key of `keys` from a mapping that is called `path`. A value of the wrong type is an error, and its default goes on in
    /// its place.
    pub(super) fn read(root: &Node, keys: &[Key], path: &str, diagnostics: &mut Vec<Diagnostic>) -> Self {
        let mut values = BTreeMap::new();
        for key in keys.iter().filter(|k| k.kind != Kind::Section) {
            let default = || Sourced::default(key.default());
            let value = match root.get(key.name) {
                None => default(),
                Some(node) => match read(key, node, path, diagnostics) {
                    Ok(value) => Sourced { value, origin: Origin::Written(node.at.clone()) },
                    Err(diagnostic) => match unchecked::value(key.name, node, root, path) {
                        Some(value) => {
                            diagnostics.push(unchecked::warning(diagnostic));
                            Sourced { value, origin: Origin::Written(node.at.clone()) }
                        }
                        None => {
                            diagnostics.push(diagnostic);
                            default()
                        }
                    },
                },
            };
            values.insert(key.name, value);
        }
        Self { values }
    }

    pub(super) fn json(&self, name: &str) -> Sourced<Json> {
        self.values.get(name).cloned().unwrap_or(Sourced::default(Json::Null))
    }

    fn map<T>(&self, name: &str, with: impl Fn(&Json) -> T) -> Sourced<T> {
        let value = self.json(name);
        Sourced { value: with(&value.value), origin: value.origin }
    }

    pub(super) fn bool(&self, name: &str) -> Sourced<bool> {
        self.map(name, |v| v.as_bool().unwrap_or_default())
    }

    pub(super) fn uint(&self, name: &str) -> Sourced<Option<u64>> {
        self.map(name, Json::as_u64)
    }

    pub(super) fn int(&self, name: &str) -> Sourced<Option<i64>> {
        self.map(name, Json::as_i64)
    }

    pub(super) fn float(&self, name: &str) -> Sourced<Option<f64>> {
        self.map(name, Json::as_f64)
    }

    pub(super) fn text(&self, name: &str) -> Sourced<Option<String>> {
        self.map(name, |v| v.as_str().map(str::to_owned))
    }
}

fn read(key: &Key, node: &Node, path: &str, diagnostics: &mut Vec<Diagnostic>) -> Result<Json, Diagnostic> {
    let name = if path.is_empty() { key.name.to_owned() } else { format!("{path}.{}", key.name) };
    let wrong = |what: String| {
        let or_null = if key.default == "null" { " or null" } else { "" };
        Diagnostic::error("config-type", format!("{name}: expected {what}{or_null}, found {}", node.describe())).at(node.at.clone())
    };
    // Without target modules peft takes its own for the model type.
    let null_is_fine = key.default == "null" || key.default == "[]" || key.name == "target_modules";
    if node.is_null() && null_is_fine {
        return Ok(Json::Null);
    }
    match key.kind {
        Kind::Names => match &node.value {
            Value::Seq(items) if items.iter().all(|i| i.as_str().is_some()) => Ok(node.to_json()),
            Value::Text { text, .. } => Ok(text.as_str().into()),
            _ => Err(wrong("a string or a list of strings".into())),
        },
        Kind::Text | Kind::Section => match node.as_str() {
            Some(text) => Ok(text.into()),
            None if matches!(node.value, Value::Seq(_) | Value::Map(_) | Value::Null) => Err(wrong("a string".into())),
            None => Err(wrong("a string".into()).help("put it in quotes")),
        },
        Kind::Bool => {
            if node.as_bool().is_none() {
                diagnostics.push(truthiness(&name, node));
            }
            Ok(node.is_truthy().into())
        }
        Kind::Int(least) => {
            let most = if key.name == "seed" { i64::from(u32::MAX) } else { i64::MAX };
            let number = match node.value {
                Value::Int(i) => i64::try_from(i).ok().filter(|i| (least..=most).contains(i)),
                _ => None,
            };
            let what = match (least, most) {
                (i64::MIN, _) => "an integer".into(),
                (_, i64::MAX) => format!("an integer of at least {least}"),
                _ => format!("an integer from {least} to {most}"),
            };
            number.map(Json::from).ok_or_else(|| wrong(what))
        }
        Kind::Float(least) | Kind::Number(least) => {
            let number = node.as_number().filter(|f| f.is_finite() && *f >= least);
            let whole = node.as_integer().and_then(|i| i64::try_from(i).ok()).filter(|_| matches!(key.kind, Kind::Number(_)));
            if let (Some(_), Some(whole)) = (number, whole) {
                return Ok(whole.into());
            }
            let what = if least == f64::MIN { "a number".into() } else { format!("a number of at least {least}") };
            number.map(Json::from).ok_or_else(|| wrong(what))
        }
        Kind::Choice(choices) | Kind::OpenChoice(choices) => {
            let what = format!("one of {}", choices.join(", "));
            let Some(text) = node.as_str() else { return Err(wrong(what)) };
            if choices.contains(&text) {
                return Ok(text.into());
            }
            let mut diagnostic = wrong(what);
            if let Some(near) = nearest(text, choices.iter().copied()) {
                diagnostic = diagnostic.help(format!("did you mean '{near}'?"));
            }
            match key.kind {
                Kind::Choice(_) => {
                    diagnostic.code = "config-value";
                    Err(diagnostic)
                }
                _ => {
                    let known = choices.join(", ");
                    let message = format!("{name}: LLaMA-Factory v1 knows {known}; '{text}' is passed on as it is");
                    diagnostics.push(Diagnostic::warning("unknown-choice", message).at(node.at.clone()));
                    Ok(text.into())
                }
            }
        }
    }
}

/// Unknown keys of one section whose nearest words are looked for; of more than that, none is a misspelling.
const MOST_SUGGESTED: usize = 32;

/// Reports every key of a mapping that is none of `known`, as an error or, where extra keys are allowed, as a warning.
pub(super) fn unknown_keys<'a>(
    root: &Node,
    path: &str,
    known: impl Iterator<Item = &'a str>,
    allowed: Option<&str>,
    diagnostics: &mut Vec<Diagnostic>,
) {
    // A few dozen: gone through sooner than put into order.
    let known: Vec<&str> = known.collect();
    for (count, entry) in root.entries().iter().filter(|e| !known.contains(&&*e.key)).enumerate() {
        let name = short(&entry.key);
        let place = if path.is_empty() { String::new() } else { format!(" in {path}") };
        let mut diagnostic = match allowed {
            None => Diagnostic::error("config-unknown-key", format!("unknown key '{name}'{place}")),
            Some(why) => Diagnostic::warning("config-extra-key", format!("the key '{name}'{place} is unknown and ignored: {why}")),
        }
        .at(entry.at.clone());
        if let Some(near) = (count < MOST_SUGGESTED).then(|| nearest(&entry.key, known.iter().copied())).flatten() {
            diagnostic = diagnostic.help(format!("did you mean '{near}'?"));
        }
        diagnostics.push(diagnostic);
    }
}
