//! The codes of this crate's diagnostics, which are part of its interface.

use shardwright_core::diagnostic::Code;

/// By name.
#[rustfmt::skip]
pub const CODES: &[Code] = &[
    Code::error("accelerate-beside-file", "a key of `deepspeed_config`, or `mixed_precision`, stands beside `deepspeed_config_file`; accelerate refuses both together, because the file decides"),
    Code::warning("accelerate-fp8", "`mixed_precision: fp8` casts inside of layers while training; weights are laid out as under bf16"),
    Code::error("accelerate-fsdp1", "FSDP version 1 lays tensors out otherwise; set `fsdp_version: 2`, or run `accelerate to-fsdp2`"),
    Code::warning("accelerate-fsdp1-key", "a key of FSDP version 1 has no effect in version 2"),
    Code::warning("accelerate-nvme-path", "`accelerate launch` does not hand the `nvme_path` of its YAML on"),
    Code::error("accelerate-parallelism", "sizes of `parallelism_config` that accelerate refuses, or tensor parallelism, which is not laid out"),
    Code::warning("accelerate-wrap", "the wrap policy gathers the model in one piece, or names classes whose modules are not known"),
    Code::error("batch-not-divisible", "`global_batch_size` must be a multiple of `dp_size` times `micro_batch_size`"),
    Code::warning("bf16-without-dist", "`bf16` has no effect where there is no `dist_config`"),
    Code::error("config-is-deepspeeds", "a DeepSpeed config is given where the training's YAML is due; the YAML names it as `dist_config.config_file`"),
    Code::error("config-is-v0", "LLaMA-Factory's older (v0) YAML; the help says what each key becomes in v1"),
    Code::warning("config-extra-key", "an unknown key is ignored: because ALLOW_EXTRA_KEYS is set, or because accelerate passes over it"),
    Code::error("cp-attention", "`cp_size` above 1 needs `flash_attn: flash_attention_2`"),
    Code::error("cp-model", "the model type does not go with `cp_size` above 1"),
    Code::error("dtype-twice", "`dtype` and its older spelling `torch_dtype` are both given"),
    Code::error("dynamic-batching", "`batching_strategy: dynamic_batching` needs `max_steps` and forbids `save_epochs`"),
    Code::error("explain-unknown-key", "`--explain` asks for a key that the resolution does not have"),
    Code::error("file-unreadable", "a config, or a file that it names, cannot be read"),
    Code::warning("freeze-nothing", "`freeze_trainable_layers: 0` leaves nothing to train"),
    Code::warning("init-holds-model", "every rank holds the whole model before it is sharded"),
    Code::error("io-direct-and-mmap", "`shardwright.io` has both `direct: true` and `mmap: true`, and a file is read in one way"),
    Code::warning("llamafactory-release", "a key that LLaMA-Factory 0.9.5 reads and later versions refuse where it stands"),
    Code::error("lora-on-meta", "`peft_config: lora` does not go with `init_on_meta`"),
    Code::error("mesh-product", "two mesh sizes do not multiply to the world size"),
    Code::warning("mesh-single-process", "mesh sizes have no effect in a single process"),
    Code::error("not-decided", "a value that `load` needs is decided by nothing at hand; `resolve` shows such values as open"),
    Code::warning("not-read", "a key that says what weights are trained, and that a load from the model's own files does not follow"),
    Code::warning("optim-lr", "`optim_config.lr` is overridden by `learning_rate`"),
    Code::error("override-syntax", "an argument is not `KEY=VALUE`"),
    Code::error("padding-free", "`batching_strategy: padding_free` needs `flash_attn: flash_attention_2`"),
    Code::error("plugin-panicked", "a linked strategy or policy panicked on its section"),
    Code::error("quant-on-meta", "`quant_config` does not go with `init_on_meta`"),
    Code::warning("setting-ignored", "a key of `shardwright` that the strategy or the precision policy does not heed"),
    Code::warning("unknown-choice", "a value that the engine may know and this program does not"),
    Code::warning("world-disagrees", "the file is for another number of processes than there are"),
    Code::error("world-size", "a world of no ranks"),
];
