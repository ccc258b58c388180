//! The codes of this crate's diagnostics, which are part of its interface.

use shardwright_core::diagnostic::{Code, Severity};

const fn error(name: &'static str, meaning: &'static str) -> Code {
    Code { name, severity: Severity::Error, meaning }
}

const fn warning(name: &'static str, meaning: &'static str) -> Code {
    Code { name, severity: Severity::Warning, meaning }
}

/// By name.
#[rustfmt::skip]
pub const CODES: &[Code] = &[
    error("accelerate-precision", "`mixed_precision` and the DeepSpeed config contradict each other"),
    warning("batch-disagrees", "a batch size of the DeepSpeed config is not what the YAML makes it"),
    error("deepspeed-alias", "a key and its alias are both given"),
    warning("deepspeed-auto-default", "an \"auto\" that nothing fills: DeepSpeed silently uses its default"),
    warning("deepspeed-auto-left", "an \"auto\" that nothing fills, in a section that DeepSpeed reads as it is"),
    error("deepspeed-batch", "train_batch_size is not micro batch times accumulation times ranks, or one of them is not positive"),
    warning("deepspeed-bf16-ignored", "`bf16` of the YAML is ignored under DeepSpeed, and its own config says otherwise"),
    warning("deepspeed-bf16-twice", "`bf16` and its older spelling `bfloat16` are both given"),
    warning("deepspeed-bfloat16", "`bfloat16` is DeepSpeed's older spelling, which LLaMA-Factory and accelerate do not read"),
    warning("deepspeed-clipping", "`gradient_clipping` and `max_grad_norm` are not what a reader would think"),
    error("deepspeed-cp", "context parallelism does not go with DeepSpeed in LLaMA-Factory"),
    warning("deepspeed-deprecated", "a key that is spelled otherwise today"),
    error("deepspeed-deprecated-both", "a deprecated key beside the one that replaces it"),
    error("deepspeed-fp16", "fp16 is enabled, which LLaMA-Factory refuses; `shardwright.zero3_fp16: true` allows it here"),
    error("deepspeed-grad-norm", "`compute_grad_norm: false` needs stage 1 or 2"),
    error("deepspeed-group", "a group of ranks that does not divide the world"),
    warning("deepspeed-ignored-key", "a key of `zero_optimization` that its stage ignores"),
    warning("deepspeed-mesh", "`mp_replicate_size` has no effect under DeepSpeed"),
    error("deepspeed-no-zero", "the section `zero_optimization` is missing, which accelerate requires"),
    error("deepspeed-nvme-path", "`nvme_path` is missing"),
    warning("deepspeed-persistence", "a persistence threshold so large that most of the model stays gathered on every rank"),
    error("deepspeed-ratio", "`offload_optimizer.ratio` below 1 needs stage 3"),
    error("deepspeed-stage", "a stage other than 0, 1, 2 and 3"),
    error("deepspeed-type", "a value that DeepSpeed's reader would not take"),
    error("deepspeed-unknown-key", "a key that DeepSpeed refuses in `zero_optimization`, `bf16` or `fp16`"),
    warning("deepspeed-unknown-top-level", "a top-level key that DeepSpeed does not know, and passes over"),
    warning("init-under-deepspeed", "an `init_config` that works against ZeRO-3"),
];
