//! The keys of a DeepSpeed config, as DeepSpeed 0.19.8 has them: types, bounds, aliases, defaults, meanings, one a line. Source:
//! `deepspeed/runtime/zero/config.py`, `offload_config.py`, `precision_config.py`.

use shardwright_core::strategy_config::DeepSpeed;

/// What a key takes. DeepSpeed's own reader (pydantic) is lax, and so is `read`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A boolean.
    Bool,
    /// An integer of at least this.
    Int(i64),
    /// A number in this range.
    Float(f64, f64),
    /// An integer, but no boolean and no string with a fraction, as the loss scaler's own checks have it.
    StrictInt,
    /// A number of at least 0, but no boolean.
    StrictFloat,
    /// One of these strings.
    Choice(&'static [&'static str]),
    /// A string.
    Text,
    /// A list of strings, or one.
    List,
    /// A mapping with keys of its own.
    Table(&'static [Key]),
    /// Anything; DeepSpeed reads it elsewhere.
    Any,
}

/// What "auto" becomes. accelerate fills it before DeepSpeed reads the config, and only under the key's full name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auto {
    /// Nothing: accelerate refuses it.
    Refused,
    /// This value, as JSON: that of accelerate's plugin where nothing else is set.
    Value(&'static str),
    /// hidden_size².
    Square,
    /// ⌊0.9 · hidden_size²⌋.
    NineTenths,
    /// 10 · hidden_size.
    TenTimes,
}

/// A key.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Key {
    /// Its name in files.
    pub name: &'static str,
    /// A second name that DeepSpeed takes for the same.
    pub alias: Option<&'static str>,
    /// What it takes.
    pub kind: Kind,
    /// Its default, as JSON.
    pub default: &'static str,
    /// What "auto" becomes.
    pub auto: Auto,
    /// The first version of DeepSpeed with it.
    pub since: DeepSpeed,
    /// The first version of DeepSpeed without it.
    pub until: Option<DeepSpeed>,
    /// Its default in DeepSpeed 0.18, where that differs.
    pub default_0_18: Option<&'static str>,
    /// Whether it means something under stage 3, and under stages 0 to 2.
    pub stages: Stages,
    /// What it means.
    pub meaning: &'static str,
}

/// Under which stages a key means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stages {
    /// All.
    All,
    /// 3.
    Three,
    /// 1 and 2.
    Below,
}

const fn key(name: &'static str, kind: Kind, default: &'static str, meaning: &'static str) -> Key {
    Key {
        name,
        alias: None,
        kind,
        default,
        auto: Auto::Refused,
        since: DeepSpeed::V0_18,
        until: None,
        default_0_18: None,
        stages: Stages::All,
        meaning,
    }
}

impl Key {
    const fn alias(self, alias: &'static str) -> Self {
        Self { alias: Some(alias), ..self }
    }

    const fn auto(self, auto: Auto) -> Self {
        Self { auto, ..self }
    }

    const fn since(self, version: DeepSpeed) -> Self {
        Self { since: version, ..self }
    }

    const fn default_0_18(self, default: &'static str) -> Self {
        Self { default_0_18: Some(default), ..self }
    }

    /// Whether a version has it.
    pub fn is_in(&self, version: DeepSpeed) -> bool {
        version >= self.since && self.until.is_none_or(|until| version < until)
    }

    /// Its default in a version, as JSON.
    pub fn default_in(&self, version: DeepSpeed) -> &'static str {
        self.default_0_18.filter(|_| version == DeepSpeed::V0_18).unwrap_or(self.default)
    }

    const fn until(self, version: DeepSpeed) -> Self {
        Self { until: Some(version), ..self }
    }

    const fn three(self) -> Self {
        Self { stages: Stages::Three, ..self }
    }

    const fn below(self) -> Self {
        Self { stages: Stages::Below, ..self }
    }
}

use Kind::{Any, Bool, Choice, Float, Int, List, StrictFloat, StrictInt, Table, Text};

const DEVICES: Kind = Choice(&["none", "cpu", "nvme"]);

/// `zero_optimization.offload_param`.
#[rustfmt::skip]
pub const OFFLOAD_PARAM: &[Key] = &[
    key("device", DEVICES, r#""none""#, "where parameters are stored").auto(Auto::Value(r#""none""#)),
    key("nvme_path", Text, "null", "the disk's folder").auto(Auto::Value(r#""none""#)),
    key("buffer_count", Int(0), "5", "buffers for swapping"),
    key("buffer_size", Int(0), "100000000", "elements of a buffer"),
    key("max_in_cpu", Int(0), "1000000000", "elements held in host memory with nvme"),
    key("pin_memory", Bool, "true", "pin that memory").default_0_18("false"),
];

/// `zero_optimization.offload_optimizer`.
#[rustfmt::skip]
pub const OFFLOAD_OPTIMIZER: &[Key] = &[
    key("device", DEVICES, r#""none""#, "where optimizer states are stored").auto(Auto::Value(r#""none""#)),
    key("nvme_path", Text, "null", "the disk's folder").auto(Auto::Value(r#""none""#)),
    key("buffer_count", Int(0), "4", "buffers for swapping"),
    key("pin_memory", Bool, "true", "pin that memory").default_0_18("false"),
    key("pipeline_read", Bool, "false", "read the next tile during the step"),
    key("pipeline_write", Bool, "false", "write the last tile during the step"),
    key("fast_init", Bool, "false", "initialise faster with nvme"),
    key("ratio", Float(0.0, 1.0), "1.0", "the share of states that is offloaded"),
    key("super_offload", Bool, "false", "speculative optimizer steps on the host"),
    key("cpuadam_cores_perc", Float(0.0, 1.0), "0.8", "the share of cores for the optimizer with super_offload"),
];

/// `zero_optimization.leaf_module`.
#[rustfmt::skip]
pub const LEAF_MODULE: &[Key] = &[
    key("classes", List, r#"["transformers.models.mixtral.modeling_mixtral.MixtralSparseMoeBlock", "transformers.models.qwen2_moe.modeling_qwen2_moe.Qwen2MoeSparseMoeBlock", "transformers.models.qwen3_moe.modeling_qwen3_moe.Qwen3MoeSparseMoeBlock"]"#, "classes that are fetched whole"),
    key("names", List, "[]", "modules that are fetched whole, by name"),
    key("name_suffixes", List, "[]", "modules that are fetched whole, by the end of their name"),
];

/// `zero_optimization.zenflow`.
#[rustfmt::skip]
pub const ZENFLOW: &[Key] = &[
    key("topk_ratio", Float(0.0, 1.0), "0.1", "the share of gradients that the device applies at once"),
    key("select_strategy", Text, r#""auto""#, "when those are selected anew: auto, step, epoch"),
    key("select_interval", Any, r#""auto""#, "how often"),
    key("update_interval", Any, r#""auto""#, "steps between updates of the others"),
    key("overlap_step", Bool, "false", "overlap the host's step with the device's"),
    key("offload", Bool, "false", "offload the selected optimizer states too"),
    key("auto_ratio", Float(0.0, 1.0), "0.99", "the threshold of automatic intervals"),
    key("full_warm_up_rounds", Int(i64::MIN), "0", "rounds in which every gradient is applied"),
    key("pt_reserved_cores_perc", Float(0.0, 1.0), "0.5", "the share of cores left to PyTorch"),
    key("steps_per_epoch", Int(i64::MIN), "null", "steps of an epoch"),
];

/// `zero_optimization`.
#[rustfmt::skip]
pub const ZERO: &[Key] = &[
    key("stage", Int(0), "0", "what is partitioned: 0 nothing, 1 optimizer states, 2 gradients too, 3 parameters too").auto(Auto::Value("2")),
    key("contiguous_gradients", Bool, "true", "copy gradients to one buffer as they come"),
    key("reduce_scatter", Bool, "true", "reduce gradients with reduce-scatter; Muon under stage 3 needs false"),
    key("reduce_bucket_size", Int(1), "500000000", "elements reduced at once").auto(Auto::Square),
    key("use_multi_rank_bucket_allreduce", Bool, "true", "reduce gradients of several ranks at once").below(),
    key("allgather_partitions", Bool, "true", "gather parameters with all-gather after the step").below(),
    key("allgather_bucket_size", Int(0), "500000000", "elements gathered at once").below(),
    key("overlap_comm", Bool, "null", "reduce while the backward pass runs; null for true exactly under stage 3"),
    key("compute_grad_norm", Bool, "true", "compute the gradient's norm").since(DeepSpeed::V0_19),
    key("load_from_fp32_weights", Bool, "true", "initialise master weights from a checkpoint's float32 ones"),
    key("elastic_checkpoint", Bool, "false", "load checkpoints of another world size").below(),
    key("offload_param", Table(OFFLOAD_PARAM), "null", "parameters outside of the device").three(),
    key("offload_optimizer", Table(OFFLOAD_OPTIMIZER), "null", "optimizer states outside of the device"),
    key("zenflow", Table(ZENFLOW), "null", "asynchronous offloading"),
    key("sub_group_size", Int(0), "1000000000", "elements of a tile of the optimizer step").three(),
    key("stage3_prefetch_bucket_size", Int(0), "50000000", "elements fetched ahead").alias("prefetch_bucket_size").auto(Auto::NineTenths).three(),
    key("stage3_param_persistence_threshold", Int(0), "100000", "parameters of at most this many elements stay gathered").alias("param_persistence_threshold").auto(Auto::TenTimes).three(),
    key("stage3_model_persistence_threshold", Int(0), "9223372036854775807", "elements that all parameters that stay gathered may have").alias("model_persistence_threshold").three(),
    key("stage3_max_live_parameters", Int(0), "1000000000", "elements gathered at a time").alias("max_live_parameters").three(),
    key("stage3_max_reuse_distance", Int(0), "1000000000", "a parameter used again within this many elements stays gathered").alias("max_reuse_distance").three(),
    key("stage3_gather_16bit_weights_on_model_save", Bool, "false", "save whole weights").alias("gather_16bit_weights_on_model_save").auto(Auto::Value("false")).three(),
    key("stage3_module_granularity_threshold", Int(i64::MIN), "0", "fetch modules with fewer elements per layer whole").alias("module_granularity_threshold").three(),
    key("stage3_use_all_reduce_for_fetch_params", Bool, "false", "fetch with all-reduce").alias("use_all_reduce_for_fetch_params").three(),
    key("stage3_allgather_sequential", Bool, "false", "fetch one parameter at a time").alias("allgather_sequential").three(),
    key("ignore_unused_parameters", Bool, "true", "allow parameters without gradients").below(),
    key("legacy_stage1", Bool, "false", "the older implementation of stage 1").below(),
    key("round_robin_gradients", Bool, "false", "spread gradients over ranks in turn").below(),
    key("parameter_alignment", Bool, "false", "align parameters in flat buffers").since(DeepSpeed::V0_19),
    key("zero_hpz_partition_size", Int(0), "1", "ranks that share a secondary partition").three(),
    key("zero_quantized_weights", Bool, "false", "gather quantized weights").three(),
    key("zero_quantized_nontrainable_weights", Bool, "false", "gather quantized frozen weights").three(),
    key("zero_quantized_gradients", Bool, "false", "reduce quantized gradients").three(),
    key("mics_shard_size", Int(-1), "-1", "ranks of a MiCS shard group; -1 for all; removed in 0.19").three().until(DeepSpeed::V0_19),
    key("mics_hierarchical_params_gather", Bool, "false", "gather within a node first; removed in 0.19").three().until(DeepSpeed::V0_19),
    key("zeropp_loco_param", Any, "null", "error feedback of quantized gradients; removed in 0.19").three().until(DeepSpeed::V0_19),
    key("memory_efficient_linear", Bool, "true", "linear layers that free gathered weights").three(),
    key("pipeline_loading_checkpoint", Bool, "false", "overlap loading a checkpoint"),
    key("override_module_apply", Bool, "true", "gather parameters for Module.apply").three(),
    key("log_trace_cache_warnings", Bool, "false", "say when the fetch order changes").three(),
    key("enable_sanity_checks", Bool, "false", "check internals").three(),
    key("save_muon_momentum_buffer_in_memory", Bool, "false", "keep Muon's momentum in device memory").three(),
    key("leaf_module", Table(LEAF_MODULE), "null", "modules that are fetched whole").three(),
];

/// Keys of `zero_optimization` that are spelled otherwise today: old, new, and what the old one's true means there.
#[rustfmt::skip]
pub const DEPRECATED: &[(&str, &str, Option<&str>)] = &[
    ("cpu_offload", "offload_optimizer", Some(r#"{"device": "cpu"}"#)),
    ("cpu_offload_param", "offload_param", Some(r#"{"device": "cpu"}"#)),
    ("cpu_offload_use_pin_memory", "offload_param.pin_memory or offload_optimizer.pin_memory", None),
    ("stage3_gather_fp16_weights_on_model_save", "stage3_gather_16bit_weights_on_model_save", Some("true")),
];

/// `bf16`.
#[rustfmt::skip]
pub const BF16: &[Key] = &[
    key("enabled", Bool, "false", "train in bfloat16"),
    key("immediate_grad_update", Bool, "false", "add gradients to the float32 ones as they come"),
    key("check_grad_overflow", Bool, "true", "skip a step whose gradients overflow").default_0_18("false"),
    key("bf16_master_weights_and_grads", Bool, "false", "master weights in bfloat16"),
    key("bf16_optimizer_states", Bool, "false", "optimizer states in bfloat16"),
];

/// `fp16`.
#[rustfmt::skip]
pub const FP16: &[Key] = &[
    key("enabled", Bool, "false", "train in float16"),
    key("auto_cast", Bool, "false", "cast inputs"),
    key("loss_scale", StrictFloat, "0.0", "the loss scale; 0 for a dynamic one"),
    key("initial_scale_power", Int(i64::MIN), "16", "the dynamic scale starts at 2 to this"),
    key("loss_scale_window", StrictInt, "1000", "steps without overflow before the scale rises"),
    key("hysteresis", Int(i64::MIN), "2", "overflows before the scale falls"),
    key("consecutive_hysteresis", Bool, "false", "refill the hysteresis after a good step"),
    key("min_loss_scale", StrictInt, "1", "the scale never falls below this"),
    key("fp16_master_weights_and_grads", Bool, "false", "master weights in float16"),
];

#[rustfmt::skip]
const COMPILE: &[Key] = &[
    key("deepcompile", Bool, "false", "compile communication with the model"),
    key("autoep_non_moe", Bool, "false", "compile what is not an expert under automatic expert parallelism"),
    key("free_activation", Bool, "false", "free activations early"),
    key("free_activation_threshold", Int(i64::MIN), "10485760", "bytes from which they are"),
    key("offload_activation", Bool, "false", "offload activations"),
    key("offload_activation_pin_memory", Bool, "true", "pin that memory"),
    key("offload_opt_states", Bool, "false", "offload optimizer states"),
    key("double_buffer", Bool, "true", "two buffers for communication"),
    key("symmetric_memory", Bool, "false", "communicate through symmetric memory"),
    key("debug_log", Bool, "false", "log the passes"),
    key("offload_parameters", Bool, "false", "offload parameters"),
    key("sync_before_reduce", Bool, "false", "synchronise before a reduction"),
    key("sync_after_reduce", Bool, "false", "synchronise after a reduction"),
    key("sync_before_allgather", Bool, "false", "synchronise before a gather"),
    key("sync_after_allgather", Bool, "false", "synchronise after a gather"),
    key("keep_int_input_tensors", Bool, "true", "keep integer inputs"),
    key("keep_all_input_tensors", Bool, "false", "keep all inputs"),
    key("passes", List, "null", "compiler passes: z1, z3, autosp, autotp"),
];

#[rustfmt::skip]
const TENSORBOARD: &[Key] = &[
    key("enabled", Bool, "false", "log to TensorBoard"),
    key("output_path", Text, r#""""#, "where to"),
    key("job_name", Text, r#""DeepSpeedJobName""#, "under which name"),
];

#[rustfmt::skip]
const WANDB: &[Key] = &[
    key("enabled", Bool, "false", "log to Weights & Biases"),
    key("group", Text, "null", "the group"),
    key("team", Text, "null", "the team"),
    key("project", Text, r#""deepspeed""#, "the project"),
];

#[rustfmt::skip]
const COMET: &[Key] = &[
    key("enabled", Bool, "false", "log to Comet"),
    key("samples_log_interval", Int(i64::MIN), "100", "samples between entries"),
    key("project", Text, "null", "the project"),
    key("workspace", Text, "null", "the workspace"),
    key("api_key", Text, "null", "the API key"),
    key("experiment_name", Text, "null", "the experiment's name"),
    key("experiment_key", Text, "null", "the experiment's key"),
    key("online", Bool, "null", "log to the server"),
    key("mode", Text, "null", "get, create or get_or_create"),
];

#[rustfmt::skip]
const COMMS_LOGGER: &[Key] = &[
    key("enabled", Bool, "false", "log collectives"),
    key("prof_all", Bool, "true", "all of them"),
    key("prof_ops", Any, "[]", "these"),
    key("verbose", Bool, "false", "log each call"),
    key("debug", Bool, "false", "log the caller too"),
];

#[rustfmt::skip]
const HYBRID_ENGINE: &[Key] = &[
    key("enabled", Bool, "false", "generate while training"),
    key("max_out_tokens", Int(1), "512", "tokens at most"),
    key("inference_tp_size", Int(i64::MIN), "1", "tensor-parallel ranks while generating"),
    key("release_inference_cache", Bool, "false", "free the cache afterwards"),
    key("pin_parameters", Bool, "true", "pin parameters"),
    key("tp_gather_partition_size", Int(i64::MIN), "8", "partitions gathered at once"),
    key("enable_cuda_graph", Bool, "false", "use CUDA graphs"),
];

#[rustfmt::skip]
const TP: &[Key] = &[
    key("tp_size", Int(i64::MIN), "1", "ranks"),
    key("tp_grain_size", Int(i64::MIN), "1", "granularity"),
    key("mpu", Any, "null", "a model-parallel unit"),
    key("tp_group", Any, "null", "a process group"),
];

#[rustfmt::skip]
const TENSOR_PARALLEL: &[Key] = &[
    key("dtype", Any, "null", "what the model is made"),
    key("autotp_size", Int(i64::MIN), "0", "ranks that linear layers are sliced over"),
    key("tp_overlap_comm", Bool, "false", "overlap communication"),
    key("vocab_parallel_lm_head", Bool, "null", "slice the head over the vocabulary"),
    key("vocab_parallel_ce_backend", Choice(&["torch", "liger"]), r#""torch""#, "its loss"),
    key("tensor_parallel", Table(TP), "null", "the inference engine's own").alias("tp"),
    key("injection_policy_tuple", Any, "null", "modules to replace"),
    key("partition_config", Any, "null", "rules of partitioning"),
    key("preset_model", Text, "null", "rules of a known model"),
    key("keep_module_on_host", Bool, "false", "keep the model in host memory"),
    key("replace_with_kernel_inject", Bool, "false", "inject kernels").alias("kernel_inject"),
];

#[rustfmt::skip]
const WEIGHT_QUANTIZATION: &[Key] = &[
    key("enabled", Bool, "true", "quantize weights"),
    key("num_bits", Int(i64::MIN), "8", "bits"),
    key("q_type", Any, "null", "symmetric or asymmetric"),
    key("q_groups", Int(i64::MIN), "1", "groups"),
    key("quantized_initialization", Any, "{}", "quantize while the model is built"),
    key("post_init_quant", Any, "{}", "quantize afterwards"),
];

/// Sections that DeepSpeed reads as strictly as those above, and that decide nothing here: their keys and types are checked, and they are
/// passed through as they are.
pub const STRICT: &[(&str, &[Key])] = &[
    ("comet", COMET),
    ("comms_logger", COMMS_LOGGER),
    ("compile", COMPILE),
    ("csv_monitor", TENSORBOARD),
    ("hybrid_engine", HYBRID_ENGINE),
    ("tensor_parallel", TENSOR_PARALLEL),
    ("tensorboard", TENSORBOARD),
    ("wandb", WANDB),
    ("weight_quantization", WEIGHT_QUANTIZATION),
];

/// Top-level keys that DeepSpeed 0.19 removed and refuses, with what stands in their place. Source: `deepspeed/runtime/config.py`,
/// `_REMOVED_TOP_LEVEL_CONFIG_KEYS`.
#[rustfmt::skip]
pub const REMOVED: &[(&str, &str)] = &[
    ("amp", "use bf16, fp16 or torch_autocast"),
    ("compression_training", "leave it out: nothing compresses the model any more"),
    ("curriculum_learning", "use data_efficiency.data_sampling.curriculum_learning"),
    ("eigenvalue", "leave it out"),
    ("elasticity", "set train_batch_size, train_micro_batch_size_per_gpu and gradient_accumulation_steps"),
    ("graph_harvesting", "leave it out"),
    ("nebula", "leave it out: checkpoints are written by torch.save"),
    ("progressive_layer_drop", "leave it out"),
    ("quantize_training", "leave it out"),
    ("sparse_attention", "leave it out"),
    ("sparse_gradients", "leave it out: gradients of an embedding with sparse=True are reduced sparsely in any case"),
];

/// Sections and scalars beside those, which DeepSpeed knows and which are passed through as they are.
pub const PASSED: &[&str] = &[
    "_comment",
    "activation_checkpointing",
    "aio",
    "autotuning",
    "checkpoint",
    "comet",
    "comms_config",
    "comms_logger",
    "communication_data_type",
    "compile",
    "csv_monitor",
    "data_efficiency",
    "data_types",
    "dataloader_drop_last",
    "datastates_config",
    "disable_allgather",
    "disable_python_gc",
    "dump_state",
    "expert_parallel",
    "expert_parallel_size",
    "flops_profiler",
    "fp8",
    "gradient_allreduce_op",
    "gradient_predivide_factor",
    "hybrid_engine",
    "log_level",
    "managed_gradient_accumulation",
    "memory_breakdown",
    "moe_param_group",
    "monitor_config",
    "msamp",
    "optimizer",
    "pipeline",
    "prescale_gradients",
    "scheduler",
    "seq_parallel_communication_data_type",
    "sequence_parallel_size",
    "steps_per_print",
    "tensor_parallel",
    "tensorboard",
    "timers",
    "torch_autocast",
    "use_data_before_expert_parallelism",
    "vocabulary_size",
    "wall_clock_breakdown",
    "wandb",
    "weight_quantization",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
];

/// Sections and scalars that are read here.
pub const TOP: &[&str] = &[
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "zero_optimization",
    "bf16",
    "bfloat16",
    "fp16",
];
