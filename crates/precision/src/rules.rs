//! What the engines' settings mean for the dtypes, a case a line. The policies apply these answers to tensors; the same functions answer
//! for the load and for the training that follows it.

use shardwright_core::{
    DType, Precision,
    strategy_config::{Mixed, PrecisionSummary, StorageDtype, Tuning},
};

/// The dtype that shards are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Each tensor's own dtype in the checkpoint.
    Checkpoint,
    /// One dtype.
    Fixed(DType),
}

impl Keep {
    /// The dtype of a shard of a tensor.
    pub fn of(self, checkpoint: DType) -> DType {
        match self {
            Self::Checkpoint => checkpoint,
            Self::Fixed(dtype) => dtype,
        }
    }

    /// The word for it in a resolved config.
    pub fn word(self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint",
            Self::Fixed(dtype) => dtype.torch_name(),
        }
    }
}

/// A case of a rule: the dtypes of every parameter, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Case {
    /// Such as `fsdp2.full.bf16`.
    pub name: &'static str,
    /// In a sentence.
    pub why: String,
    /// The dtype that shards of trainable parameters are stored in.
    pub trainable: Keep,
    /// The dtype that shards of frozen parameters are stored in.
    pub frozen: Keep,
    /// What is gathered and computed in; `Checkpoint` for the storage dtype, whatever that is.
    pub compute: Keep,
    /// What gradients are reduced in; `Checkpoint` for the storage dtype.
    pub reduce: Keep,
    /// What outputs are cast to; `None` for no cast.
    pub output: Option<DType>,
}

const BF16: DType = DType::BF16;
const FP32: DType = DType::F32;

impl Case {
    fn new(name: &'static str, why: &str, keep: [Keep; 2], compute: Keep, reduce: Keep) -> Self {
        Self { name, why: why.to_owned(), trainable: keep[0], frozen: keep[1], compute, reduce, output: None }
    }

    /// The dtypes of one parameter.
    pub fn decide(&self, checkpoint: DType, trainable: bool) -> Precision {
        let storage = if trainable { self.trainable } else { self.frozen }.of(checkpoint);
        Precision::new(storage, self.compute.of(storage), self.reduce.of(storage))
    }

    /// For `/precision` of a resolved config.
    pub fn summary(&self) -> PrecisionSummary {
        let (trainable, frozen) = (self.trainable.word(), self.frozen.word());
        let storage = if trainable == frozen { trainable.into() } else { serde_json::json!({"trainable": trainable, "frozen": frozen}) };
        let follows = |keep: Keep| match keep {
            Keep::Checkpoint => storage.clone(),
            Keep::Fixed(dtype) => dtype.torch_name().into(),
        };
        let (compute, reduce) = (follows(self.compute), follows(self.reduce));
        let summary = PrecisionSummary::of_words(storage.clone(), compute, reduce, self.name, &self.why);
        match self.output {
            Some(dtype) => summary.output(dtype.torch_name()),
            None => summary,
        }
    }

    /// With `shardwright.storage_dtype` in place of the engine's storage.
    #[must_use]
    pub fn stored_in(mut self, storage: Option<StorageDtype>) -> Self {
        let keep = match storage {
            None => return self,
            Some(StorageDtype::Checkpoint) => Keep::Checkpoint,
            Some(StorageDtype::Fixed(dtype)) => Keep::Fixed(dtype),
        };
        (self.trainable, self.frozen) = (keep, keep);
        self.why.push_str("; storage as shardwright.storage_dtype says");
        self
    }
}

/// LLaMA-Factory under FSDP2: what is stored does not depend on `bf16`, what is computed does not depend on the tuning.
///
/// `model` is the dtype that the model is loaded in where the engine keeps the checkpoint's.
#[rustfmt::skip]
pub fn fsdp2(mixed: Mixed, tuning: Tuning, model: Option<DType>) -> Case {
    let own = model.map_or(Keep::Checkpoint, Keep::Fixed);
    let [half, full] = [Keep::Fixed(BF16), Keep::Fixed(FP32)];
    let fp16 = Keep::Fixed(DType::F16);
    let frozen_only = [own, own];
    let all_fp32 = [full, full];
    let trainable_fp32 = [full, own];
    use {Mixed::{Bf16, Fp16, No}, Tuning::{Freeze, Full, Inference, Lora}};
    match (tuning, mixed) {
        (Full, Bf16)      => Case::new("fsdp2.full.bf16",      "full tuning keeps float32, bf16 computes in bfloat16 and reduces in float32", all_fp32, half, full),
        (Full, No)        => Case::new("fsdp2.full.fp32",      "full tuning keeps float32, bf16 false computes and reduces in float32", all_fp32, full, full),
        (Lora, Bf16)      => Case::new("fsdp2.lora.bf16",      "LoRA keeps the model's own dtype, bf16 computes in bfloat16 and reduces in float32", frozen_only, half, full),
        (Lora, No)        => Case::new("fsdp2.lora.fp32",      "LoRA keeps the model's own dtype, bf16 false computes and reduces in float32", frozen_only, full, full),
        (Inference, Bf16) => Case::new("fsdp2.inference.bf16", "inference keeps the model's own dtype, bf16 computes in bfloat16", frozen_only, half, full),
        (Inference, No)   => Case::new("fsdp2.inference.fp32", "inference keeps the model's own dtype, bf16 false computes in float32", frozen_only, full, full),
        (Freeze { cast_trainable: true }, Bf16)  => Case::new("fsdp2.freeze.bf16", "freeze makes trainable parameters float32 and keeps the others' own dtype, bf16 computes in bfloat16 and reduces in float32", trainable_fp32, half, full),
        (Freeze { cast_trainable: true }, No)    => Case::new("fsdp2.freeze.fp32", "freeze makes trainable parameters float32 and keeps the others' own dtype, bf16 false computes and reduces in float32", trainable_fp32, full, full),
        (Freeze { cast_trainable: false }, Bf16) => Case::new("fsdp2.freeze-uncast.bf16", "freeze without cast_trainable_params_to_fp32 keeps the model's own dtype, bf16 computes in bfloat16 and reduces in float32", frozen_only, half, full),
        (Freeze { cast_trainable: false }, No)   => Case::new("fsdp2.freeze-uncast.fp32", "freeze without cast_trainable_params_to_fp32 keeps the model's own dtype, bf16 false computes and reduces in float32", frozen_only, full, full),
        (_, Fp16)         => Case::new("fsdp2.fp16",           "float16 computes and reduces in float16", all_fp32, fp16, fp16),
    }
}

/// LLaMA-Factory without `dist_config`: nothing casts for compute, so what is stored is what is computed with, whatever `bf16` says.
#[rustfmt::skip]
pub fn replicate(tuning: Tuning, model: Option<DType>) -> Case {
    let own = model.map_or(Keep::Checkpoint, Keep::Fixed);
    let full = Keep::Fixed(FP32);
    let same = Keep::Checkpoint;
    use Tuning::{Freeze, Full, Inference, Lora};
    match tuning {
        Full      => Case::new("replicate.full",      "full tuning makes the model float32, and without a dist_config nothing casts it for compute", [full, full], same, same),
        Lora      => Case::new("replicate.lora",      "LoRA keeps the model's own dtype, and without a dist_config nothing casts it for compute", [own, own], same, same),
        Inference => Case::new("replicate.inference", "inference keeps the model's own dtype", [own, own], same, same),
        Freeze { cast_trainable: true }  => Case::new("replicate.freeze", "freeze makes trainable parameters float32 and keeps the others' own dtype", [full, own], same, same),
        Freeze { cast_trainable: false } => Case::new("replicate.freeze-uncast", "freeze without cast_trainable_params_to_fp32 keeps the model's own dtype", [own, own], same, same),
    }
}

/// accelerate under FSDP2: one dtype for compute, reduction and output, trainable parameters upcast to float32 before they are sharded.
#[rustfmt::skip]
pub fn accelerate_fsdp2(mixed: Mixed, tuning: Tuning, model: Option<DType>) -> Case {
    let own = model.map_or(Keep::Checkpoint, Keep::Fixed);
    let upcast = [Keep::Fixed(FP32), own];
    let as_is = [own, own];
    let trains = !matches!(tuning, Tuning::Inference | Tuning::Lora);
    let stored = if trains { upcast } else { as_is };
    let with_output = |case: Case, output| Case { output: Some(output), ..case };
    match mixed {
        Mixed::Bf16 => with_output(Case::new("accelerate.fsdp2.bf16", "accelerate's bf16 computes, reduces and returns bfloat16; trainable parameters are upcast to float32 before sharding", stored, Keep::Fixed(BF16), Keep::Fixed(BF16)), BF16),
        Mixed::Fp16 => with_output(Case::new("accelerate.fsdp2.fp16", "accelerate's fp16 computes, reduces and returns float16; trainable parameters are upcast to float32 before sharding", stored, Keep::Fixed(DType::F16), Keep::Fixed(DType::F16)), DType::F16),
        Mixed::No   => Case::new("accelerate.fsdp2.no", "without mixed precision the model keeps its own dtype throughout", as_is, Keep::Checkpoint, Keep::Checkpoint),
    }
}

/// accelerate without sharding: autocast computes, and what is stored stays what it is.
#[rustfmt::skip]
pub fn accelerate_replicate(mixed: Mixed, model: Option<DType>) -> Case {
    let own = [model.map_or(Keep::Checkpoint, Keep::Fixed); 2];
    let same = Keep::Checkpoint;
    match mixed {
        Mixed::Bf16 => Case::new("accelerate.replicate.bf16", "autocast computes in bfloat16, and the model keeps its own dtype", own, Keep::Fixed(BF16), same),
        Mixed::Fp16 => Case::new("accelerate.replicate.fp16", "autocast computes in float16, and the model keeps its own dtype", own, Keep::Fixed(DType::F16), same),
        Mixed::No   => Case::new("accelerate.replicate.no",   "without mixed precision the model keeps its own dtype throughout", own, same, same),
    }
}

/// `enabled` of a `bf16` or `fp16` section of a DeepSpeed config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// True, or the string in any case.
    On,
    /// False, or the string in any case.
    Off,
    /// "auto", absent, or anything else.
    Auto,
}

/// fp16 is enabled, and nothing opted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("DeepSpeed only supports bf16 mixed precision for now, fp16 is not supported.")]
pub struct Fp16Refused;

/// LLaMA-Factory's merged inference for DeepSpeed, and the one dtype for storage and compute that follows from it.
///
/// # Errors
/// fp16 is on and `fp16_allowed` is not.
#[rustfmt::skip]
pub fn deepspeed(bf16: Switch, fp16: Switch, fp16_allowed: bool) -> Result<Case, Fp16Refused> {
    use Switch::{Auto, Off, On};
    Ok(match (bf16, fp16) {
        (_, On) if !fp16_allowed => return Err(Fp16Refused),
        (On, On)    => uniform("deepspeed.both",           "bf16 and fp16 are both on: DeepSpeed prefers bf16", BF16),
        (_, On)     => uniform("deepspeed.fp16",           "fp16 is on, and shardwright.zero3_fp16 allows it", DType::F16),
        (On, _)     => uniform("deepspeed.bf16",           "bf16 is on", BF16),
        (Off, _)    => uniform("deepspeed.fp32",           "bf16 is off", FP32),
        (Auto, Off) => uniform("deepspeed.auto-fp16-off",  "bf16 is left open and fp16 is off, which means float32", FP32),
        (Auto, Auto)=> uniform("deepspeed.auto",           "bf16 and fp16 are both left open, which means bf16", BF16),
    })
}

/// What accelerate or DeepSpeed refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Both are on.
    #[error("bf16 and fp16 are both enabled, which DeepSpeed refuses")]
    Both,
    /// The one that `mixed_precision` does not name is on.
    #[error("mixed_precision is {0}, but the DeepSpeed config enables {1}, which accelerate refuses")]
    Other(&'static str, &'static str),
}

/// accelerate's reading of the same: its `mixed_precision` fills what is left open, and what is on stays on.
///
/// # Errors
/// Settings that contradict each other.
#[rustfmt::skip]
pub fn accelerate_deepspeed(bf16: Switch, fp16: Switch, mixed: Mixed) -> Result<Case, Conflict> {
    use {Mixed::{Bf16, Fp16}, Switch::{Auto, On}};
    Ok(match (bf16, fp16, mixed) {
        (On, On, _)       => return Err(Conflict::Both),
        (On, _, Fp16)     => return Err(Conflict::Other("fp16", "bf16")),
        (_, On, Bf16)     => return Err(Conflict::Other("bf16", "fp16")),
        (On, _, _)        => uniform("accelerate.deepspeed.bf16",       "bf16 is on", BF16),
        (_, On, _)        => uniform("accelerate.deepspeed.fp16",       "fp16 is on", DType::F16),
        (Auto, _, Bf16)   => uniform("accelerate.deepspeed.auto-bf16",  "mixed_precision bf16 fills bf16, which is left open", BF16),
        (_, Auto, Fp16)   => uniform("accelerate.deepspeed.auto-fp16",  "mixed_precision fp16 fills fp16, which is left open", DType::F16),
        _                 => uniform("accelerate.deepspeed.no",         "neither bf16 nor fp16 is on", FP32),
    })
}

/// One dtype for everything.
pub fn uniform(name: &'static str, why: &str, dtype: DType) -> Case {
    let keep = Keep::Fixed(dtype);
    Case::new(name, &format!("{why}: storage, compute and reduction are {dtype}"), [keep, keep], keep, keep)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_and_compute_are_separate_under_fsdp2() {
        let decide = |mixed, tuning, trainable| {
            let p = fsdp2(mixed, tuning, None).decide(DType::F16, trainable);
            [p.storage, p.compute, p.reduce]
        };
        let (f32, bf16, own) = (DType::F32, DType::BF16, DType::F16);
        let freeze = Tuning::Freeze { cast_trainable: true };
        assert_eq!(decide(Mixed::Bf16, Tuning::Full, true), [f32, bf16, f32]);
        assert_eq!(decide(Mixed::No, Tuning::Full, true), [f32, f32, f32]);
        assert_eq!(decide(Mixed::Bf16, Tuning::Lora, false), [own, bf16, f32]);
        assert_eq!(decide(Mixed::Bf16, Tuning::Inference, false), [own, bf16, f32]);
        assert_eq!(decide(Mixed::Bf16, freeze, true), [f32, bf16, f32]);
        assert_eq!(decide(Mixed::Bf16, freeze, false), [own, bf16, f32]);
        assert_eq!(decide(Mixed::No, Tuning::Freeze { cast_trainable: false }, true), [own, f32, f32]);
    }

    #[test]
    fn the_merged_inference_of_deepspeed() {
        use Switch::{Auto, Off, On};
        let infer = |b, f| deepspeed(b, f, false).map(|case| case.decide(DType::F64, true));
        let (bf16, fp32) = (Ok(Precision::uniform(BF16)), Ok(Precision::uniform(FP32)));
        for b in [On, Off, Auto] {
            assert_eq!(infer(b, On), Err(Fp16Refused));
        }
        assert_eq!([infer(On, Off), infer(On, Auto), infer(Auto, Auto)], [bf16; 3]);
        assert_eq!([infer(Off, Off), infer(Off, Auto), infer(Auto, Off)], [fp32; 3]);
        assert_eq!(deepspeed(Auto, On, true).unwrap().decide(FP32, true), Precision::uniform(DType::F16));
    }

    #[test]
    fn without_a_dist_config_compute_follows_storage() {
        assert_eq!(replicate(Tuning::Full, None).decide(BF16, true), Precision::uniform(FP32));
        assert_eq!(replicate(Tuning::Lora, None).decide(BF16, false), Precision::uniform(BF16));
    }
}
