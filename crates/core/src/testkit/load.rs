//! A load, checked: a random checkpoint goes through somebody's loader, and what the ranks hold is held against it, element by element.

use std::collections::BTreeMap;

use super::{
    case::Case,
    corpus::Random,
    count::elements,
    rules::caught,
    violation::{Found, Rule},
};
use crate::{DType, ModelMeta, PlanInput, Precision, PrecisionPolicy, ShardPlan, ShardStrategy, TensorKind, TensorMeta, TensorPlan};

/// Loads a checkpoint by a plan. The engine's `testkit` has the real one.
pub trait Loader {
    /// Loads `checkpoint` (each tensor's bytes, row-major and little-endian, by name) for every rank of `plan`. The answer has, for each
    /// rank, the buffer of each of the plan's tensors, padding included, in the storage dtype.
    ///
    /// # Errors
    /// Whatever stopped it, in words.
    fn load(&self, plan: &ShardPlan, checkpoint: &BTreeMap<String, Vec<u8>>) -> Result<Vec<Vec<Vec<u8>>>, String>;
}

/// Parameters as the checkpoint has them, or bfloat16 ones widened to float32: a cast that is a shift, so that no cast kernel is trusted.
#[derive(Clone, Copy, Debug)]
enum Stored {
    AsIs,
    Widened,
}

impl PrecisionPolicy for Stored {
    fn decide(&self, param: &TensorMeta, _trainable: bool) -> Precision {
        match self {
            Self::Widened if param.dtype == DType::BF16 => Precision::uniform(DType::F32),
            _ => Precision::uniform(param.dtype),
        }
    }
}

/// Loads the case both ways and compares every rank's buffers with the checkpoint.
pub(super) fn holds(loader: &dyn Loader, strategy: &dyn ShardStrategy, case: &Case) -> Result<(), Found> {
    let (model, mesh) = (case.model(), case.mesh());
    let checkpoint = checkpoint(&model);
    for stored in [Stored::AsIs, Stored::Widened] {
        let Ok(plan) = crate::plan_checked(strategy, &PlanInput::new(&model, &mesh, &stored)) else { continue };
        let loaded = caught("loading", || loader.load(&plan, &checkpoint))?;
        let ranks = loaded.map_err(|e| (Rule::Load, format!("the load failed: {e}")))?;
        compare(&plan, &checkpoint, &ranks).map_err(|what| (Rule::Load, what))?;
    }
    Ok(())
}

/// Bytes for every tensor, from a fixed seed. Booleans are 0 or 1.
fn checkpoint(model: &ModelMeta) -> BTreeMap<String, Vec<u8>> {
    let mut random = Random::new(model.tensors.len() as u64 + 1);
    let mut byte = |dtype: DType| {
        let byte = random.next().to_le_bytes()[5];
        if dtype == DType::Bool { byte & 1 } else { byte }
    };
    let mut bytes = |tensor: &TensorMeta| (0..tensor.bytes().unwrap_or(0)).map(|_| byte(tensor.dtype)).collect();
    let contents: Vec<Vec<u8>> = model.tensors.iter().map(&mut bytes).collect();
    model.tensors.iter().map(|t| t.name.to_string()).zip(contents).collect()
}

fn compare(plan: &ShardPlan, checkpoint: &BTreeMap<String, Vec<u8>>, ranks: &[Vec<Vec<u8>>]) -> Result<(), String> {
    if ranks.len() != plan.mesh.world_size() as usize {
        return Err(format!("{} ranks were loaded, expected {}", ranks.len(), plan.mesh.world_size()));
    }
    for (rank, buffers) in (0u32..).zip(ranks) {
        if buffers.len() != plan.tensors.len() {
            return Err(format!("rank {rank} has {} tensors, expected {}", buffers.len(), plan.tensors.len()));
        }
        for (tensor, buffer) in plan.tensors.iter().zip(buffers) {
            let what = |what: String| format!("rank {rank}, tensor '{}': {what}", tensor.name);
            buffer_holds(tensor, rank, &expected(tensor, &checkpoint[tensor.name.as_str()]), buffer).map_err(what)?;
        }
    }
    Ok(())
}

/// The whole tensor in its storage dtype.
fn expected(tensor: &TensorPlan, source: &[u8]) -> Vec<u8> {
    if tensor.source == tensor.precision.storage || tensor.kind == TensorKind::Buffer {
        return source.to_vec();
    }
    source.chunks_exact(2).flat_map(|b| [0, 0, b[0], b[1]]).collect()
}

fn buffer_holds(tensor: &TensorPlan, rank: u32, whole: &[u8], buffer: &[u8]) -> Result<(), String> {
    let size = usize::try_from(tensor.precision.storage.bits() / 8).unwrap_or(1);
    let held = elements(&tensor.region(rank), &tensor.shape);
    let expected = usize::try_from(tensor.padded_numel(rank)).unwrap_or(usize::MAX).saturating_mul(size);
    if buffer.len() != expected {
        return Err(format!("its buffer has {} bytes, expected {expected}", buffer.len()));
    }
    let (valid, padding) = buffer.split_at(held.len() * size);
    for (at, (&flat, found)) in held.iter().zip(valid.chunks_exact(size)).enumerate() {
        let flat = usize::try_from(flat).unwrap_or(usize::MAX);
        let expected = &whole[flat * size..(flat + 1) * size];
        if found != expected {
            return Err(format!("element {at} of its shard is {found:02x?}, but element {flat} of the checkpoint is {expected:02x?}"));
        }
    }
    match padding.iter().position(|&b| b != 0) {
        Some(at) => Err(format!("byte {at} of its padding is {:#04x}, expected zero", padding[at])),
        None => Ok(()),
    }
}
