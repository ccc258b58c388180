//! What the memory of a run depends on besides its plan, read out of the resolved document.

use serde_json::Value as Json;
use shardwright_core::{DType, document::Document};

use crate::optimizer::Optimizer;

/// The engine that trains, with the settings that change its memory.
#[derive(Clone, Debug, PartialEq)]
pub enum Engine {
    /// PyTorch FSDP2.
    Fsdp2 {
        /// Offloaded shards lie in pinned memory.
        pin_memory: bool,
    },
    /// DeepSpeed ZeRO, stage 3 over a partitioned plan, stages 0 to 2 over a replicated one.
    Zero(Zero),
    /// DistributedDataParallel.
    Ddp,
    /// A strategy of a third party, whose engine is taken for one that works as FSDP2 does.
    Other,
}

/// DeepSpeed's settings; sizes are in elements, as DeepSpeed has them.
#[derive(Clone, Debug, PartialEq)]
pub struct Zero {
    /// `stage`.
    pub stage: u8,
    /// `reduce_bucket_size`.
    pub reduce_bucket: u64,
    /// `stage3_prefetch_bucket_size`.
    pub prefetch_bucket: u64,
    /// `allgather_bucket_size`, stages 1 and 2.
    pub allgather_bucket: u64,
    /// `stage3_max_live_parameters`.
    pub max_live: u64,
    /// `stage3_max_reuse_distance`.
    pub max_reuse: u64,
    /// `sub_group_size`.
    pub sub_group: u64,
    /// `contiguous_gradients`.
    pub contiguous_gradients: bool,
    /// `stage3_gather_16bit_weights_on_model_save`.
    pub gather_on_save: bool,
    /// `offload_optimizer.device`.
    pub optimizer_on: Device,
    /// `offload_optimizer.ratio`.
    pub offload_ratio: f64,
    /// `offload_optimizer.buffer_count`.
    pub optimizer_buffers: u64,
    /// `offload_param.device`.
    pub parameters_on: Device,
    /// `offload_param.buffer_count`.
    pub parameter_buffers: u64,
    /// `offload_param.buffer_size`.
    pub parameter_buffer: u64,
    /// `offload_param.max_in_cpu`.
    pub max_in_cpu: u64,
    /// `zero_hpz_partition_size`.
    pub hpz: u64,
    /// `data_types.grad_accum_dtype`; `None` for the model's dtype.
    pub gradient_dtype: Option<DType>,
    /// `bf16.bf16_master_weights_and_grads` or the same of fp16.
    pub low_precision_masters: bool,
    /// `bf16.bf16_optimizer_states`.
    pub low_precision_states: bool,
}

/// Where something is offloaded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// Nowhere.
    None,
    /// Host memory.
    Cpu,
    /// A local disk.
    Nvme,
}

/// Where the model is built before it is sharded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// Nowhere.
    Meta,
    /// Whole on rank 0.
    Rank0,
    /// Whole on every rank.
    Everywhere,
}

/// Low-rank adapters.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    /// `r`.
    pub rank: u64,
    /// Names of modules, or `all` for every linear layer but the output's.
    pub targets: Vec<String>,
    /// `use_dora`: a magnitude for each output as well.
    pub dora: bool,
    /// `modules_to_save`: modules trained whole.
    pub whole: Vec<String>,
}

/// Everything but the plan and the architecture.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Who trains.
    pub engine: Engine,
    /// What updates parameters.
    pub optimizer: Optimizer,
    /// Samples of one forward pass.
    pub micro_batch: u64,
    /// Forward passes of one optimizer step.
    pub accumulation: u64,
    /// Tokens of a sample.
    pub seq_len: u64,
    /// Ranks that share a sample.
    pub context_parallel: u64,
    /// Activations are recomputed.
    pub checkpointing: bool,
    /// The attention keeps its scores.
    pub eager_attention: bool,
    /// Where the model is built.
    pub init: Init,
    /// Adapters, if adapters are trained.
    pub lora: Option<Lora>,
    /// Nothing is trained.
    pub inference: bool,
    /// There is no GPU, so the device is host memory.
    pub on_cpu: bool,
    /// Rank 0 gathers the whole model when it saves.
    pub saves_whole: bool,
    /// What was assumed because nothing says it.
    pub assumed: Vec<String>,
}

/// torch's own limits for tokens, so that products stay far from the end of 64 bits.
const MOST_TOKENS: u64 = 1 << 32;

impl Settings {
    /// Reads the settings. `strategy` is the plan's; `on_cpu` says that the run has no GPU.
    pub fn from_document(document: &Document, strategy: &str, seq_len: Option<u64>, on_cpu: bool) -> Self {
        let read = Reader(document);
        let mut assumed = Vec::new();
        let engine = match strategy {
            _ if document.get("/deepspeed/zero_optimization").is_some() => Engine::Zero(zero(&read)),
            "fsdp2" => Engine::Fsdp2 { pin_memory: read.flag("/strategy/config/pin_memory", true) },
            "replicate" => Engine::Ddp,
            other => {
                assumed.push(format!("the engine of strategy '{other}' is taken to gather and reduce its parameter groups as FSDP2 does"));
                Engine::Other
            }
        };
        let optimizer = optimizer(&read, &mut assumed);
        let cutoff = read.count("/training/cutoff_len");
        let seq_len = seq_len.or(cutoff).unwrap_or_else(|| {
            assumed.push("sequences of 2048 tokens, for the config does not say; --seq-len does".to_owned());
            2048
        });
        let micro = read.count("/batch/micro").unwrap_or_else(|| {
            assumed.push("one sample in a forward pass, for the config does not say".to_owned());
            1
        });
        let lora = (read.text("/training/peft_config/name") == Some("lora")).then(|| Lora {
            rank: read.count("/training/peft_config/r").unwrap_or(8),
            targets: read.names("/training/peft_config/target_modules").unwrap_or_else(|| vec!["all".to_owned()]),
            dora: read.flag("/training/peft_config/use_dora", false),
            whole: read.names("/training/peft_config/modules_to_save").unwrap_or_default(),
        });
        let init = match read.text("/training/init_config/name") {
            Some("init_on_meta") => Init::Meta,
            Some("init_on_rank0") => Init::Rank0,
            _ => Init::Everywhere,
        };
        let accelerate = read.text("/dialect") == Some("accelerate");
        if accelerate && matches!(engine, Engine::Fsdp2 { .. } | Engine::Ddp | Engine::Other) {
            assumed.push("the script trains with AdamW".to_owned());
        }
        let checkpointing = ["/training/enable_activation_checkpointing", "/training/fsdp_config/fsdp_activation_checkpointing"]
            .into_iter()
            .find_map(|p| document.get(p).and_then(Json::as_bool))
            .unwrap_or_else(|| {
                if accelerate {
                    assumed.push("the script does not turn activation checkpointing on".to_owned());
                }
                !accelerate
            });
        if document.get("/training/quant_config/name").is_some() {
            assumed.push("quant_config is not counted: parameters are taken in their storage dtype".to_owned());
        }
        Self {
            saves_whole: match &engine {
                Engine::Zero(zero) => zero.gather_on_save,
                _ => read.flag("/training/save_ckpt_as_hf", false),
            },
            engine,
            optimizer,
            micro_batch: micro.clamp(1, MOST_TOKENS),
            accumulation: read.count("/batch/accumulation").unwrap_or(1).max(1),
            seq_len: seq_len.clamp(1, MOST_TOKENS),
            context_parallel: read.count("/mesh/cp").unwrap_or(1).max(1),
            checkpointing,
            eager_attention: read.text("/training/flash_attn") == Some("eager"),
            init,
            lora,
            inference: read.flag("/shardwright/inference", false),
            on_cpu,
            assumed,
        }
    }

    /// Tokens of one forward pass of one rank.
    pub fn tokens(&self) -> u64 {
        self.micro_batch.saturating_mul(self.seq_len.div_ceil(self.context_parallel))
    }
}

fn optimizer(read: &Reader<'_>, assumed: &mut Vec<String>) -> Optimizer {
    let yaml = read.text("/training/optim_config/name");
    let Some(name) = yaml.or_else(|| read.text("/deepspeed/optimizer/type")) else { return Optimizer::AdamW };
    let momentum = ["/training/optim_config/momentum", "/deepspeed/optimizer/params/momentum"]
        .iter()
        .find_map(|p| read.0.get(p).and_then(Json::as_f64))
        .is_some_and(|m| m != 0.0);
    Optimizer::from_name(name, momentum).unwrap_or_else(|| {
        assumed.push(format!("optimizer '{name}' is not known here and is taken for AdamW"));
        Optimizer::AdamW
    })
}

fn zero(read: &Reader<'_>) -> Zero {
    let at = |key: &str| format!("/deepspeed/zero_optimization/{key}");
    let count = |key: &str, default: u64| read.count(&at(key)).unwrap_or(default);
    let device = |key: &str| match read.text(&at(key)) {
        Some("cpu") => Device::Cpu,
        Some("nvme") => Device::Nvme,
        _ => Device::None,
    };
    let dtype = match read.text("/deepspeed/data_types/grad_accum_dtype") {
        Some("fp32") => Some(DType::F32),
        Some("bf16") => Some(DType::BF16),
        Some("fp16") => Some(DType::F16),
        _ => None,
    };
    let masters = ["/deepspeed/bf16/bf16_master_weights_and_grads", "/deepspeed/fp16/fp16_master_weights_and_grads"];
    Zero {
        stage: u8::try_from(count("stage", 0)).unwrap_or(0),
        reduce_bucket: count("reduce_bucket_size", 500_000_000),
        prefetch_bucket: count("stage3_prefetch_bucket_size", 50_000_000),
        allgather_bucket: count("allgather_bucket_size", 500_000_000),
        max_live: count("stage3_max_live_parameters", 1_000_000_000),
        max_reuse: count("stage3_max_reuse_distance", 1_000_000_000),
        sub_group: count("sub_group_size", 1_000_000_000).max(1),
        contiguous_gradients: read.flag(&at("contiguous_gradients"), true),
        gather_on_save: read.flag(&at("stage3_gather_16bit_weights_on_model_save"), false),
        optimizer_on: device("offload_optimizer/device"),
        offload_ratio: read.0.get(&at("offload_optimizer/ratio")).and_then(Json::as_f64).unwrap_or(1.0).clamp(0.0, 1.0),
        optimizer_buffers: count("offload_optimizer/buffer_count", 4),
        parameters_on: device("offload_param/device"),
        parameter_buffers: count("offload_param/buffer_count", 5),
        parameter_buffer: count("offload_param/buffer_size", 100_000_000),
        max_in_cpu: count("offload_param/max_in_cpu", 1_000_000_000),
        hpz: count("zero_hpz_partition_size", 1).max(1),
        gradient_dtype: dtype,
        low_precision_masters: masters.iter().any(|p| read.flag(p, false)),
        low_precision_states: read.flag("/deepspeed/bf16/bf16_optimizer_states", false),
    }
}

struct Reader<'a>(&'a Document);

impl<'a> Reader<'a> {
    fn text(&self, pointer: &str) -> Option<&'a str> {
        self.0.get(pointer).and_then(Json::as_str)
    }

    fn count(&self, pointer: &str) -> Option<u64> {
        self.0.get(pointer).and_then(Json::as_u64)
    }

    fn flag(&self, pointer: &str, default: bool) -> bool {
        self.0.get(pointer).and_then(Json::as_bool).unwrap_or(default)
    }

    /// A list, or a text with commas.
    fn names(&self, pointer: &str) -> Option<Vec<String>> {
        match self.0.get(pointer)? {
            Json::String(text) => Some(text.split(',').map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect()),
            Json::Array(items) => Some(items.iter().filter_map(Json::as_str).map(str::to_owned).collect()),
            _ => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use shardwright_core::document::Origin;

    use super::*;

    /// DeepSpeed's defaults for stage 3.
    pub(crate) fn zero() -> Zero {
        let mut document = Document::default();
        document.set(&["deepspeed", "zero_optimization", "stage"], 3, Origin::Default);
        match Settings::from_document(&document, "zero3", None, false).engine {
            Engine::Zero(zero) => zero,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_nothing_says_is_assumed_and_listed() {
        let settings = Settings::from_document(&Document::default(), "vendor/name", None, false);
        assert_eq!((settings.seq_len, settings.micro_batch, settings.optimizer), (2048, 1, Optimizer::AdamW));
        assert_eq!(settings.assumed.len(), 3, "{:?}", settings.assumed);
        let reported = Settings::from_document(&Document::default(), "fsdp2", Some(512), false);
        assert_eq!((reported.seq_len, reported.assumed.len()), (512, 1));
        let mut accelerate = Document::default();
        accelerate.set(&["dialect"], "accelerate", Origin::Default);
        let settings = Settings::from_document(&accelerate, "fsdp2", Some(512), false);
        let checkpointing = |assumed: &[String]| assumed.iter().any(|a| a.contains("activation checkpointing"));
        assert!(!settings.checkpointing && checkpointing(&settings.assumed), "{:?}", settings.assumed);
    }
}
