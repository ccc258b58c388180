//! The codes of this crate's diagnostics, which are part of its interface. `docs/diagnostics.md` is generated from this and its siblings in
//! the other crates.

use crate::diagnostic::{Code, Severity};

const fn error(name: &'static str, meaning: &'static str) -> Code {
    Code { name, severity: Severity::Error, meaning }
}

const fn warning(name: &'static str, meaning: &'static str) -> Code {
    Code { name, severity: Severity::Warning, meaning }
}

/// By name.
#[rustfmt::skip]
pub const CODES: &[Code] = &[
    error("accelerate-beside-file", "a key of `deepspeed_config` stands beside `deepspeed_config_file`; accelerate refuses both together, because the file decides"),
    warning("accelerate-fp8", "`mixed_precision: fp8` casts inside of layers while training; weights are laid out as under bf16"),
    error("accelerate-fsdp1", "FSDP version 1 lays tensors out otherwise; set `fsdp_version: 2`, or run `accelerate to-fsdp2`"),
    warning("accelerate-fsdp1-key", "a key of FSDP version 1 has no effect in version 2"),
    error("accelerate-parallelism", "tensor, context and sequence parallelism of `parallelism_config` are not laid out"),
    error("batch-not-divisible", "`global_batch_size` must be a multiple of `dp_size` times `micro_batch_size`"),
    warning("bf16-without-dist", "`bf16` has no effect where there is no `dist_config`"),
    warning("config-extra-key", "an unknown key is ignored because ALLOW_EXTRA_KEYS is set"),
    error("config-missing", "a key that is required is not there"),
    error("config-type", "a value has another type than its key takes"),
    error("config-unknown-key", "a key that the section does not have; the help names the nearest"),
    error("config-value", "a value of the right type is none of those that its key takes"),
    error("cp-attention", "`cp_size` above 1 needs `flash_attn: flash_attention_2`"),
    error("cp-model", "the model type does not go with `cp_size` above 1"),
    error("dtype-twice", "`dtype` and its older spelling `torch_dtype` are both given"),
    error("dynamic-batching", "`batching_strategy: dynamic_batching` needs `max_steps` and forbids `save_epochs`"),
    error("explain-unknown-key", "`--explain` asks for a key that the resolution does not have"),
    error("file-unreadable", "a file that the config names cannot be read"),
    warning("freeze-nothing", "`freeze_trainable_layers: 0` leaves nothing to train"),
    warning("init-holds-model", "every rank holds the whole model before it is sharded"),
    warning("json-comment", "a comment, which DeepSpeed's hjson reader takes and Hugging Face's strict one does not"),
    error("json-duplicate-key", "a key occurs twice in one object, which DeepSpeed rejects"),
    error("json-syntax", "the text is no JSON"),
    error("json-too-deep", "more levels or more values than any config has"),
    error("json-too-large", "a file larger than any config"),
    error("lora-on-meta", "`peft_config: lora` does not go with `init_on_meta`"),
    error("mesh-product", "two mesh sizes do not multiply to the world size"),
    warning("mesh-single-process", "mesh sizes have no effect in a single process"),
    warning("optim-lr", "`optim_config.lr` is overridden by `learning_rate`"),
    error("override-syntax", "an argument is no `KEY=VALUE`"),
    error("padding-free", "`batching_strategy: padding_free` needs `flash_attn: flash_attention_2`"),
    error("quant-on-meta", "`quant_config` does not go with `init_on_meta`"),
    error("registry-core-version", "a linked plugin was built against another version of the core crate"),
    error("registry-name", "a linked plugin's name is not of the form `vendor/name`"),
    error("registry-twice", "two linked crates register the same name"),
    warning("unknown-choice", "a value that the engine may know and this program does not"),
    error("unknown-precision", "`shardwright.precision.name` names a policy that is not linked"),
    error("unknown-strategy", "`dist_config.name` names a strategy that is not linked"),
    warning("world-disagrees", "the file is for another number of processes than there are"),
    error("world-size", "a world of no ranks"),
    warning("yaml-bool-word", "PyYAML reads an unquoted `no` as false where the word is meant"),
    error("yaml-duplicate-key", "a key occurs twice in one mapping, which OmegaConf rejects and PyYAML silently lets the last win"),
    warning("yaml-exponent", "PyYAML reads `5e8` and `1e-4` as strings: a float needs a dot and a signed exponent there"),
    error("yaml-key", "a list or a mapping as a key"),
    warning("yaml-key-type", "PyYAML reads a key as another type than a string"),
    error("yaml-many-documents", "a second document in one file"),
    error("yaml-merge", "a merge key `<<` of something that is no mapping"),
    warning("yaml-octal", "PyYAML reads `010` as octal and `0o10` as a string"),
    error("yaml-recursive-alias", "an alias inside of its own anchor"),
    warning("yaml-sexagesimal", "PyYAML reads `1:30` in base 60"),
    error("yaml-syntax", "the text is no YAML"),
    error("yaml-tag", "a tag that is not read, or that its value does not fit"),
    error("yaml-too-deep", "collections nested deeper than in any config"),
    error("yaml-too-large", "a file larger than any config"),
    error("yaml-too-many-values", "more values than any config has, aliases expanded"),
];
