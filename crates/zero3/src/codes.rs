//! The codes of this crate's diagnostics, which are part of its interface.

use shardwright_core::diagnostic::Code;

/// By name.
#[rustfmt::skip]
pub const CODES: &[Code] = &[
    Code::error("accelerate-precision", "`mixed_precision` and the DeepSpeed config contradict each other"),
    Code::warning("batch-disagrees", "a batch size of the DeepSpeed config is not what the YAML makes it"),
    Code::error("deepspeed-alias", "a key and its alias are both given"),
    Code::error("deepspeed-auto-left", "an \"auto\" that nothing fills: accelerate refuses to start"),
    Code::warning("deepspeed-auto-trainer", "an \"auto\" that transformers' Trainer fills and accelerate by itself refuses"),
    Code::error("deepspeed-batch", "train_batch_size is not micro batch times accumulation times ranks, or one of them is not positive"),
    Code::warning("deepspeed-batch-on-cpu", "`train_batch_size: auto` on CPUs, where accelerate counts one rank: DeepSpeed's batch check fails"),
    Code::warning("deepspeed-bf16-ignored", "`bf16` of the YAML is ignored under DeepSpeed, and its own config says otherwise"),
    Code::warning("deepspeed-bf16-twice", "`bf16` and its older spelling `bfloat16` are both given"),
    Code::warning("deepspeed-bfloat16", "`bfloat16` is DeepSpeed's older spelling, which LLaMA-Factory and accelerate do not read"),
    Code::warning("deepspeed-clipping", "`gradient_clipping` and `max_grad_norm` are not what a reader would think"),
    Code::error("deepspeed-combination", "values that DeepSpeed refuses together, such as `gradient_allreduce_op: sum` under stage 3"),
    Code::error("deepspeed-cp", "context parallelism does not go with DeepSpeed in LLaMA-Factory"),
    Code::warning("deepspeed-deprecated", "a key that is spelled otherwise today"),
    Code::error("deepspeed-deprecated-both", "a deprecated key beside the one that replaces it"),
    Code::error("deepspeed-expert-parallel", "`expert_parallel` deals experts out over ranks, which is not laid out"),
    Code::error("deepspeed-fp16", "fp16 is enabled, which LLaMA-Factory refuses; `shardwright.zero3_fp16: true` allows it here"),
    Code::error("deepspeed-grad-norm", "`compute_grad_norm: false` needs stage 1 or 2"),
    Code::error("deepspeed-group", "a group of ranks that does not divide the world"),
    Code::warning("deepspeed-ignored-key", "a key of `zero_optimization` that its stage ignores"),
    Code::warning("deepspeed-mesh", "`mp_replicate_size` has no effect under DeepSpeed"),
    Code::error("deepspeed-newer-key", "a key that the DeepSpeed of `shardwright.engines` does not have yet"),
    Code::error("deepspeed-no-zero", "the section `zero_optimization` is missing, which accelerate requires"),
    Code::error("deepspeed-nvme-path", "`nvme_path` is missing"),
    Code::error("deepspeed-optimizer", "`optimizer` or `scheduler` in the file, beside LLaMA-Factory's own"),
    Code::warning("deepspeed-persistence", "a persistence threshold so large that most of the model stays gathered on every rank"),
    Code::error("deepspeed-ratio", "`offload_optimizer.ratio` below 1 needs stage 3"),
    Code::error("deepspeed-removed", "a key that DeepSpeed 0.19 removed; `shardwright.engines: {deepspeed: \"0.18\"}` takes it"),
    Code::error("deepspeed-stage", "a stage other than 0, 1, 2 and 3"),
    Code::error("deepspeed-tensor-parallel", "`tensor_parallel.autotp_size` cuts linear layers over ranks, which is not laid out"),
    Code::error("deepspeed-type", "a value that DeepSpeed's reader would not take"),
    Code::error("deepspeed-unknown-key", "a key that DeepSpeed refuses in a section that it reads strictly"),
    Code::warning("deepspeed-unknown-top-level", "a top-level key that DeepSpeed does not know, and passes over"),
    Code::warning("init-under-deepspeed", "an `init_config` that works against ZeRO-3"),
];
