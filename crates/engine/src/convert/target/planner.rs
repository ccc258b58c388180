//! What the plans of all targets share.

use std::sync::Arc;

use shardwright_core::{DType, GroupAxis, Placement};

use crate::{
    contents::{Contents, Data, Kind, Tensor},
    convert::{
        files::{FilePlan, Part},
        options::ConvertOptions,
    },
    error::{EngineError, ErrorKind, Result},
};

/// The files of a target, and what is lost on the way to it.
#[derive(Debug, Default)]
pub(in crate::convert) struct Planned<'a> {
    pub(in crate::convert) files: Vec<FilePlan<'a>>,
    pub(in crate::convert) lost: Vec<String>,
}

#[derive(Clone)]
pub(super) struct Planner<'a> {
    pub(super) contents: &'a Contents,
    pub(super) options: Arc<ConvertOptions>,
}

impl<'a> Planner<'a> {
    /// The dtype that a tensor of the model gets: parameters may be cast, buffers stay.
    pub(super) fn dtype(&self, tensor: &Tensor) -> DType {
        match (self.options.dtype, tensor.kind) {
            (Some(dtype), Kind::Trained | Kind::Frozen) if tensor.data.dtype.is_float() => dtype,
            _ => tensor.data.dtype,
        }
    }

    /// The tensors, and under their own names the tied ones.
    pub(super) fn with_aliases(&self) -> Vec<(&'a str, &'a Tensor)> {
        let mut all: Vec<(&str, &Tensor)> = self.contents.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
        all.extend(self.aliases());
        all.sort_by_key(|(name, _)| *name);
        all
    }

    /// Tied names with the tensor that each is tied to, in the end.
    pub(super) fn aliases(&self) -> Vec<(&'a str, &'a Tensor)> {
        let target = |name: &str| self.contents.aliases.iter().find(|(alias, _)| alias == name).map(|(_, to)| to.as_str());
        let resolve = |(alias, to): &'a (String, String)| {
            let mut to = to.as_str();
            for _ in 0..self.contents.aliases.len() {
                to = target(to).unwrap_or(to);
            }
            Some((alias.as_str(), self.contents.tensor(to)?))
        };
        self.contents.aliases.iter().filter_map(resolve).collect()
    }

    /// Ranks that share one copy of the model; the others hold the same parts, which are written once.
    pub(super) fn ranks(&self) -> u64 {
        u64::from(self.options.ranks / self.options.replicas.max(1))
    }

    /// Says what of the values beside the tensors is not carried.
    pub(super) fn lose_values(&self, lost: &mut Vec<String>, kept: &[&str]) {
        let names: Vec<&str> = self.contents.values.iter().map(|(name, _)| name.as_str()).filter(|n| !kept.contains(n)).collect();
        if !names.is_empty() {
            lost.push(format!("values beside the tensors: {}", names.join(", ")));
        }
    }
}

/// All of a tensor.
pub(super) fn all(data: &Data) -> Vec<Part<'_>> {
    vec![Part::Elements(data, 0..data.numel())]
}

/// The ranks that share a tensor.
fn axis(ranks: u64) -> GroupAxis {
    GroupAxis { stride: 1, size: u32::try_from(ranks).unwrap_or(u32::MAX) }
}

/// A rank's rows of a tensor, as torch.chunk cuts it: offsets, sizes, elements. `None` where it has none.
pub(super) fn chunk<'a>(data: &'a Data, ranks: u64, rank: u64) -> Option<(Vec<u64>, Vec<u64>, Vec<Part<'a>>)> {
    let shape = &data.shape;
    if shape.is_empty() {
        return (rank == 0).then(|| (Vec::new(), Vec::new(), all(data)));
    }
    let region = Placement::chunked(axis(ranks), shape, 0).ok()?.region_at(shape, u32::try_from(rank).ok()?);
    let elements = region.as_run(shape).filter(|run| !run.is_empty())?;
    Some((region.offsets(shape)?, region.local_shape(shape)?, vec![Part::Elements(data, elements)]))
}

/// A rank's flat partition of a tensor, padded with zeros: the elements of one, and what they are.
pub(super) fn partition(data: &Data, ranks: u64, rank: u64) -> Result<(u64, Vec<Part<'_>>)> {
    let of_tensor = |what: String| EngineError::new(ErrorKind::Checkpoint, what);
    let rank = u32::try_from(rank).map_err(|e| of_tensor(e.to_string()))?;
    let placement = Placement::flat(axis(ranks), &data.shape).map_err(of_tensor)?;
    let elements = placement.region_at(&data.shape, rank).as_run(&data.shape).unwrap_or_default();
    let (partition, held) = (placement.padded_numel(&data.shape, rank), elements.end - elements.start);
    let mut parts = vec![Part::Elements(data, elements)];
    if held < partition {
        parts.push(Part::Zeros(partition - held));
    }
    Ok((partition, parts))
}

pub(super) fn missing_optimizer() -> EngineError {
    EngineError::new(
        ErrorKind::Config,
        "the source has no optimizer states, and DeepSpeed's checkpoints are resumed from them; convert to hf or dcp instead",
    )
}
