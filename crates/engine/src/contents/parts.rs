//! The tensors of a checkpoint that is not of plain safetensors, as a load reads them: contiguous parts of files, and how each tensor is made
//! of them.

use std::path::PathBuf;

use shardwright_core::{TensorKind, TensorMeta, piece::Loop};

use super::{
    data::{Data, Extent},
    types::{Contents, Kind},
};
use crate::{
    checkpoint::{Location, Parts, Places},
    error::{EngineError, ErrorKind, Result},
};

impl Contents {
    /// The model's tensors. An optimizer's states are left aside; a trained parameter of DeepSpeed's is its fp32 master.
    pub(crate) fn parts(&self) -> Result<Parts> {
        let kind = |kind| match kind {
            Kind::Buffer => Some(TensorKind::Buffer),
            Kind::Frozen => Some(TensorKind::Parameter),
            Kind::Trained => self.optimizer.is_some().then_some(TensorKind::Parameter),
        };
        let count = self.tensors.iter().map(|tensor| tensor.data.extents.len()).sum();
        self.in_parts(count, self.tensors.iter().map(|tensor| (tensor.name.clone(), kind(tensor.kind), &tensor.data)))
    }

    /// The optimizer's states, each by its parameter's name and its own.
    pub(crate) fn state_parts(&self) -> Result<Parts> {
        let states = self.optimizer.iter().flat_map(|optimizer| &optimizer.states);
        let named = states.flat_map(|of| of.tensors.iter().map(|(state, data)| (format!("{}.{state}", of.param), None, data)));
        let mut named: Vec<_> = named.collect();
        named.sort_by(|a, b| a.0.cmp(&b.0));
        let count = named.iter().map(|(.., data)| data.extents.len()).sum();
        self.in_parts(count, named.into_iter())
    }

    /// `count` parts.
    fn in_parts<'a>(&self, count: usize, tensors: impl ExactSizeIterator<Item = (String, Option<TensorKind>, &'a Data)>) -> Result<Parts> {
        let paths: Vec<PathBuf> = self.files().cloned().collect();
        let mut numbers: Vec<Option<usize>> = vec![None; paths.len()];
        let mut out = Parts {
            files: Vec::new(),
            sources: Vec::with_capacity(count),
            locations: Vec::with_capacity(count),
            tensors: Vec::with_capacity(tensors.len()),
            places: Places::with_capacity(tensors.len()),
            notes: self.notes.clone(),
        };
        for (tensor, kind, data) in tensors {
            let error = |what: &str| EngineError::new(ErrorKind::Checkpoint, what).file(&self.path).tensor(&tensor);
            let mut meta = TensorMeta::new(tensor.as_str(), data.dtype, data.shape.clone());
            meta.kind = kind;
            for extent in &data.extents {
                let elements = span(extent).ok_or_else(|| error("a part's size overflows"))?;
                let bytes = data.dtype.bytes(elements).ok_or_else(|| error("a part's size overflows"))?;
                let file = *numbers[extent.file].get_or_insert_with(|| {
                    out.files.push(paths[extent.file].clone());
                    out.files.len() - 1
                });
                // A part has its tensor's name: there may be millions.
                out.sources.push(TensorMeta::new(&meta.name, data.dtype, vec![elements]));
                out.locations.push(Location { file, offset: extent.offset, bytes });
            }
            // Runs that tile a tensor follow each other.
            let added = match data.extents.iter().all(|extent| extent.loops.is_empty()) {
                true => out.places.add_runs(data.extents.len()),
                false => out.places.add_boxes(data.extents.iter().map(|extent| (extent.start, loops(extent)))),
            };
            added.ok_or_else(|| error("the checkpoint has too many parts"))?;
            out.tensors.push(meta);
        }
        Ok(out)
    }
}

/// An extent's loops, of which its run is the innermost.
fn loops(extent: &Extent) -> Vec<Loop> {
    let outer = extent.loops.iter().map(|l| Loop { size: l.size, source_stride: l.source, target_stride: l.target });
    let run = Loop { size: extent.run, source_stride: 1, target_stride: 1 };
    let mut loops: Vec<Loop> = outer.chain([run]).filter(|l| l.size > 1).collect();
    loops.shrink_to_fit();
    loops
}

/// Elements of the file from the extent's first to its last.
fn span(extent: &Extent) -> Option<u64> {
    extent.loops.iter().try_fold(extent.run, |end, l| end.checked_add(l.size.checked_sub(1)?.checked_mul(l.source)?))
}
