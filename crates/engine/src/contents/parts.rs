//! The tensors of a checkpoint that is not of plain safetensors, as a load reads them: contiguous parts of files, and how each tensor is made
//! of them.

use std::path::PathBuf;

use shardwright_core::{Assembly, Piece, TensorKind, TensorMeta, piece::Loop};

use super::{
    data::{Data, Extent},
    types::{Contents, Kind},
};
use crate::{
    checkpoint::{Location, Parts},
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
        self.in_parts(self.tensors.iter().map(|tensor| (tensor.name.clone(), kind(tensor.kind), &tensor.data)))
    }

    /// The optimizer's states, each by its parameter's name and its own.
    pub(crate) fn state_parts(&self) -> Result<Parts> {
        let states = self.optimizer.iter().flat_map(|optimizer| &optimizer.states);
        let named = states.flat_map(|of| of.tensors.iter().map(|(state, data)| (format!("{}.{state}", of.param), None, data)));
        let mut named: Vec<_> = named.collect();
        named.sort_by(|a, b| a.0.cmp(&b.0));
        self.in_parts(named.into_iter())
    }

    fn in_parts<'a>(&self, tensors: impl ExactSizeIterator<Item = (String, Option<TensorKind>, &'a Data)>) -> Result<Parts> {
        let paths: Vec<PathBuf> = self.files().cloned().collect();
        let mut numbers: Vec<Option<usize>> = vec![None; paths.len()];
        let mut out = Parts {
            files: Vec::new(),
            parts: Vec::new(),
            tensors: Vec::with_capacity(tensors.len()),
            assemblies: Vec::with_capacity(tensors.len()),
            notes: self.notes.clone(),
        };
        for (tensor, kind, data) in tensors {
            let error = |what: &str| EngineError::new(ErrorKind::Checkpoint, what).file(&self.path).tensor(&tensor);
            let mut meta = TensorMeta::new(tensor.as_str(), data.dtype, data.shape.clone());
            meta.kind = kind;
            let mut pieces = Vec::with_capacity(data.extents.len());
            for extent in &data.extents {
                let elements = span(extent).ok_or_else(|| error("a part's size overflows"))?;
                let bytes = data.dtype.bytes(elements).ok_or_else(|| error("a part's size overflows"))?;
                let file = *numbers[extent.file].get_or_insert_with(|| {
                    out.files.push(paths[extent.file].clone());
                    out.files.len() - 1
                });
                let source = u32::try_from(out.parts.len()).map_err(|_| error("the checkpoint has too many parts"))?;
                // A part has its tensor's name: there may be millions.
                out.parts.push((TensorMeta::new(&meta.name, data.dtype, vec![elements]), Location { file, offset: extent.offset, bytes }));
                let outer = extent.loops.iter().map(|l| Loop { size: l.size, source_stride: l.source, target_stride: l.target });
                let run = Loop { size: extent.run, source_stride: 1, target_stride: 1 };
                let mut loops: Vec<Loop> = outer.chain([run]).filter(|l| l.size > 1).collect();
                loops.shrink_to_fit();
                pieces.push(Piece { source, source_offset: 0, target_offset: extent.start, loops });
            }
            let assembly = match (&pieces[..], &data.extents[..]) {
                ([piece], [extent]) if extent.loops.is_empty() => Assembly::Whole(piece.source),
                _ => Assembly::Pieces(pieces),
            };
            out.tensors.push(meta);
            out.assemblies.push(assembly);
        }
        Ok(out)
    }
}

/// Elements of the file from the extent's first to its last.
fn span(extent: &Extent) -> Option<u64> {
    extent.loops.iter().try_fold(extent.run, |end, l| end.checked_add(l.size.checked_sub(1)?.checked_mul(l.source)?))
}
