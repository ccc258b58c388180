//! Checkpoints of other formats than safetensors: torch's distributed ones, DeepSpeed's, `pytorch_model.bin`. Their tensors lie in parts.

use std::path::Path;

use shardwright_core::{Assembly, Model, ModelFacts, ModelMeta, Name, Piece, TensorMeta, piece::Loop};

use super::{Checkpoint, CheckpointFile, Location, ModelDir, Stamp, config, open_regular};
use crate::{
    convert::{Contents, Parts, is_parted},
    error::{EngineError, ErrorKind, Result},
};

/// The tensors that a checkpoint in parts has, and how each is made of what the files hold.
#[derive(Clone, Debug)]
pub(super) struct Named {
    tensors: Vec<TensorMeta>,
    assemblies: Vec<Assembly>,
}

impl ModelDir {
    /// The checkpoint, where it is one in parts.
    pub(super) fn parted(&self) -> Result<Option<Checkpoint>> {
        if self.file.is_some() || !is_parted(&self.dir) {
            return Ok(None);
        }
        let Parts { files, parts, tensors, assemblies, notes } = Parts::of(&Contents::open(&self.dir)?)?;
        let mut starts = vec![u64::MAX; files.len()];
        for (_, at) in &parts {
            starts[at.file] = starts[at.file].min(at.offset);
        }
        let file = |(path, start): (std::path::PathBuf, u64)| {
            let (_, meta) = open_regular(&path)?;
            let name = path.strip_prefix(&self.dir).unwrap_or(&path).to_string_lossy().into_owned();
            Ok(CheckpointFile { path, name, stamp: Stamp::of(&meta), data_start: start })
        };
        let files = files.into_iter().zip(starts).map(file).collect::<Result<Vec<_>>>()?;
        let facts = self.config()?.map_or_else(ModelFacts::default, |config| config::facts(&config));
        let (sources, locations): (Vec<TensorMeta>, Vec<Location>) = parts.into_iter().unzip();
        let meta = ModelMeta::new(tensors.clone(), facts)
            .map_err(|name| EngineError::new(ErrorKind::Checkpoint, "the tensor occurs twice").file(&self.dir).tensor(name))?;
        let model = Model { meta, assemblies: assemblies.clone(), ..Model::default() };
        model.check(&sources).map_err(|e| EngineError::new(ErrorKind::Checkpoint, e.what).file(&self.dir).tensor(&e.tensor))?;
        Ok(Some(Checkpoint {
            dir: self.dir.clone(),
            files,
            model,
            sources: Some(sources),
            record: None,
            named: Some(Named { tensors, assemblies }),
            locations,
            config_text: self.config_text.clone(),
            warnings: notes,
        }))
    }
}

impl Checkpoint {
    /// The tensors by the names that the checkpoint gives them; those of [`Checkpoint::sources`], unless they lie in parts.
    pub(crate) fn named(&self) -> &[TensorMeta] {
        self.named.as_ref().map_or_else(|| self.sources(), |named| named.tensors.as_slice())
    }

    /// Whether its files hold tensors whole, as safetensors files do.
    pub fn is_safetensors(&self) -> bool {
        self.named.is_none()
    }

    /// A model over [`Checkpoint::named`], as one over [`Checkpoint::sources`].
    pub(crate) fn over_parts(&self, mut model: Model) -> Result<Model> {
        let Some(named) = &self.named else { return Ok(model) };
        for (meta, assembly) in model.meta.tensors.iter().zip(&mut model.assemblies) {
            *assembly = named.compose(assembly).map_err(|what| refuse(&self.dir, &meta.name, what))?;
        }
        for unused in &mut model.unused {
            unused.source = named.assemblies.get(unused.source as usize).and_then(Assembly::first).unwrap_or(0);
        }
        Ok(model)
    }
}

fn refuse(dir: &Path, tensor: &Name, what: &str) -> EngineError {
    let help = "convert the checkpoint first: `shardwright convert SOURCE TARGET --to hf`";
    EngineError::new(ErrorKind::Checkpoint, format!("{what}; {help}")).file(dir).tensor(tensor)
}

impl Named {
    /// The assembly over parts that an assembly over named tensors is.
    fn compose(&self, assembly: &Assembly) -> Result<Assembly, &'static str> {
        let of = |source: u32| self.assemblies.get(source as usize).ok_or("a source is not there");
        let pieces = match assembly {
            Assembly::Whole(source) => return of(*source).cloned(),
            Assembly::Pieces(pieces) => pieces,
        };
        let mut out = Vec::with_capacity(pieces.len());
        for piece in pieces {
            match of(piece.source)? {
                Assembly::Whole(part) => out.push(Piece { source: *part, ..piece.clone() }),
                Assembly::Pieces(parts) => within(piece, parts, &mut out)?,
            }
        }
        Ok(Assembly::Pieces(out))
    }
}

/// A run of a tensor that lies in runs: the part of it in each.
fn within(piece: &Piece, parts: &[Piece], out: &mut Vec<Piece>) -> Result<(), &'static str> {
    const WHAT: &str = "it is put together from a tensor that lies in parts itself, which a load does not do";
    let (length, outer) = piece.contiguous();
    if !outer.is_empty() {
        return Err(WHAT);
    }
    for part in parts {
        let (size, outer) = part.contiguous();
        if !outer.is_empty() {
            return Err(WHAT);
        }
        // Elements of the tensor between the two.
        let start = piece.source_offset.max(part.target_offset);
        let end = (piece.source_offset + length).min(part.target_offset + size);
        if start < end {
            out.push(Piece {
                source: part.source,
                source_offset: part.source_offset + start - part.target_offset,
                target_offset: piece.target_offset + start - piece.source_offset,
                loops: vec![Loop { size: end - start, source_stride: 1, target_stride: 1 }],
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(source: u32, source_offset: u64, target_offset: u64, size: u64) -> Piece {
        Piece { source, source_offset, target_offset, loops: vec![Loop { size, source_stride: 1, target_stride: 1 }] }
    }

    #[test]
    fn runs_of_a_tensor_in_runs_are_split_at_its_parts() {
        let named =
            Named { tensors: Vec::new(), assemblies: vec![Assembly::Pieces(vec![run(0, 0, 0, 4), run(1, 0, 4, 4)]), Assembly::Whole(7)] };
        let both = Assembly::Pieces(vec![run(0, 2, 10, 4), run(1, 0, 0, 10)]);
        let expected = vec![run(0, 2, 10, 2), run(1, 0, 12, 2), run(7, 0, 0, 10)];
        assert_eq!(named.compose(&both).unwrap(), Assembly::Pieces(expected));
        let columns = Piece { loops: vec![Loop { size: 2, source_stride: 4, target_stride: 1 }], ..run(0, 0, 0, 0) };
        assert!(named.compose(&Assembly::Pieces(vec![columns])).is_err());
    }
}
