//! The model's names and the hub's: a checkpoint's tensors as parameters of the model's class, and back as files on the hub hold them.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use shardwright_arch::{Assembled, Made, Reason};
use shardwright_core::{Assembly, DType, Globs, Model, Piece, TensorKind, TensorMeta};

use crate::{
    architecture::ModelOptions,
    checkpoint::{Checkpoint, ModelDir},
    contents::{
        Contents, Kind, Tensor,
        data::{Data, Extent, Files, Loop},
        sorted,
    },
    error::{EngineError, ErrorKind, Result},
};

/// Runs of one tensor of a target, at most: where more are needed, the tensor is scattered over the source element for element.
const MOST_RUNS: u64 = 1 << 20;

/// Whose names the tensors of a target have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Names {
    /// Those of the model's class in transformers, experts stacked.
    Model,
    /// Those of files on the hub, experts apart.
    Hub,
}

/// A tensor of the hub's, as runs of the model's tensors.
#[derive(Clone, Debug)]
pub(super) struct OfHub {
    pub(super) meta: TensorMeta,
    pub(super) kind: Kind,
    /// Index into the contents' tensors, first element, elements.
    pub(super) runs: Vec<(usize, u64, u64)>,
}

/// A run of a hub's tensor: its first element there, index of the model's tensor, first element in that, elements.
type FromModel = (u64, usize, u64, u64);

impl Contents {
    /// The tensors by the names of the model's class, as `config.json` beside them tells it: experts stacked, parts joined. A checkpoint with
    /// an optimizer, and one whose architecture is not known, has its own names.
    ///
    /// # Errors
    /// [`ErrorKind::Checkpoint`] where the tensors are not those of the model that `config.json` describes.
    pub fn with_model_names(mut self) -> Result<Self> {
        if self.optimizer.is_some() || !self.path.join("config.json").is_file() {
            return Ok(self);
        }
        let checkpoint = Checkpoint::open(&self.path)?;
        let found = checkpoint.find_model(&ModelOptions::new("llm"))?;
        if found.class.is_none() {
            return Ok(self);
        }
        let checkpoint = checkpoint.assemble(found.model)?;
        let mut files = Files::default();
        let numbers: Vec<usize> = checkpoint.files().iter().map(|f| files.add(f.path.clone())).collect();
        let Model { meta, assemblies, aliases, .. } = checkpoint.assembled();
        let mut tensors = Vec::with_capacity(meta.tensors.len());
        for (meta, assembly) in meta.tensors.iter().zip(assemblies) {
            let extent = |piece: &Piece| {
                let at = checkpoint.location(piece.source as usize);
                let offset = at.offset + piece.source_offset * (meta.dtype.bits() / 8);
                let (run, outer) = piece.contiguous();
                let mut loops: Vec<Loop> =
                    outer.iter().map(|l| Loop { size: l.size, source: l.source_stride, target: l.target_stride }).collect();
                loops.sort_by_key(|l| std::cmp::Reverse(l.target));
                Extent { file: numbers[at.file], offset, start: piece.target_offset, loops, run }
            };
            let extents = match assembly {
                Assembly::Whole(source) => {
                    let at = checkpoint.location(*source as usize);
                    vec![Extent::flat(numbers[at.file], at.offset, 0, meta.numel().unwrap_or(0))]
                }
                Assembly::Pieces(pieces) => pieces.iter().map(extent).collect(),
            };
            let kind = if meta.kind == Some(TensorKind::Buffer) { Kind::Buffer } else { Kind::Trained };
            let data = Data::new(meta.dtype, meta.shape.clone(), extents).map_err(|e| e.file(&self.path).tensor(&meta.name))?;
            tensors.push(Tensor { name: meta.name.to_string(), kind, data });
        }
        self.notes.extend(found.warnings);
        self.tensors = sorted(&self.path, tensors)?;
        self.aliases = aliases.iter().map(|(alias, name)| (alias.to_string(), name.to_string())).collect();
        self.files = files;
        Ok(self)
    }

    /// The tensors as files on the hub hold them, by the `config.json` in `dir`; those that have the hub's names already as they are.
    pub(super) fn of_hub(&self, dir: &Path) -> Result<Vec<OfHub>> {
        self.arranged_as_on_hub(dir).map(|found| found.unwrap_or_else(|| self.as_they_are()))
    }

    /// Whether the tensors have the hub's names already, by the `config.json` in `dir`.
    pub(super) fn is_of_hub(&self, dir: &Path) -> Result<bool> {
        self.arranged_as_on_hub(dir).map(|found| found.is_none())
    }

    fn as_they_are(&self) -> Vec<OfHub> {
        let whole = |(index, tensor): (usize, &Tensor)| {
            let runs = vec![(index, 0, tensor.data.numel())];
            OfHub { meta: meta(tensor), kind: tensor.kind, runs }
        };
        self.tensors.iter().enumerate().map(whole).collect()
    }

    /// The model's tensors as files on the hub hold them; `None` where these are no model's tensors, but those of the hub.
    fn arranged_as_on_hub(&self, dir: &Path) -> Result<Option<Vec<OfHub>>> {
        let path: PathBuf = dir.join("config.json");
        let error = |what: &str| EngineError::new(ErrorKind::Config, what).file(&path);
        let found = ModelDir::open(dir)?;
        let config =
            found.config_value()?.ok_or_else(|| error("the hub's names need the model's config.json, in SOURCE or --config DIR"))?;
        let metas: Vec<TensorMeta> = self.tensors.iter().map(meta).collect();
        let none = Globs::default();
        let options = shardwright_arch::Options {
            class: shardwright_arch::Use::Llm,
            exclude: &none,
            tied_in_each_group: false,
            same: None,
            transformers: 5,
            own: None,
        };
        let model = shardwright_arch::assemble(&metas, &config, &options);
        let class = model.class.clone().ok_or_else(|| error("the architecture is not known, so neither are its names on the hub"))?;
        let candidates = shardwright_arch::hub_tensors(&metas, &config, &class).ok_or_else(|| error("the architecture is not known"))?;
        let mut refused = None;
        for hub in candidates {
            // What the engine makes of them must be what there is.
            let made = shardwright_arch::assemble(&hub, &config, &options);
            match self.arranged(hub, made) {
                Ok(arranged) => return Ok(Some(arranged)),
                Err((what, tensor)) => {
                    let e = error(&format!("the hub's names are not known for it: {what}"));
                    refused.get_or_insert(if tensor.is_empty() { e } else { e.tensor(&tensor) });
                }
            }
        }
        match makes_all(&model, &metas) {
            true => Ok(None),
            false => Err(refused.unwrap_or_else(|| error("the architecture is not known"))),
        }
    }

    /// Tensors of the hub's, each as runs of these tensors, where they make exactly these; else why not, and for which tensor.
    fn arranged(&self, hub: Vec<TensorMeta>, made: Assembled) -> std::result::Result<Vec<OfHub>, (String, String)> {
        let wrong = |what: &str, tensor: &str| (what.to_owned(), tensor.to_owned());
        if let Some(misfit) = made.misfits.first() {
            return Err(wrong(&misfit.to_string(), ""));
        }
        let mut runs: Vec<Vec<FromModel>> = vec![Vec::new(); hub.len()];
        let mut kinds = vec![Kind::Trained; hub.len()];
        let mut from = BTreeSet::new();
        for tensor in made.tensors {
            let own = |t: &Tensor| t.name.as_str().cmp(tensor.name.as_str());
            let index = self.tensors.binary_search_by(own).map_err(|_| wrong("they make another parameter", &tensor.name))?;
            from.insert(index);
            if self.tensors[index].data.shape != tensor.shape {
                return Err(wrong("they make another shape", &tensor.name));
            }
            let pieces = match tensor.assembly {
                Assembly::Whole(source) => {
                    let numel = self.tensors[index].data.numel();
                    runs[source as usize].push((0, index, 0, numel));
                    kinds[source as usize] = self.tensors[index].kind;
                    continue;
                }
                Assembly::Pieces(pieces) => pieces,
            };
            for piece in pieces {
                kinds[piece.source as usize] = self.tensors[index].kind;
                let (run, outer) = piece.contiguous();
                let count = outer.iter().try_fold(1u64, |n, l| n.checked_mul(l.size)).filter(|n| *n <= MOST_RUNS);
                let count = count.ok_or_else(|| wrong("its hub's form is scattered over it", &tensor.name))?;
                for number in 0..count {
                    let (mut rest, mut source, mut target) = (number, piece.source_offset, piece.target_offset);
                    for step in outer.iter().rev() {
                        let at = rest % step.size;
                        rest /= step.size;
                        (source, target) = (source + at * step.source_stride, target + at * step.target_stride);
                    }
                    runs[piece.source as usize].push((source, index, target, run));
                }
            }
        }
        if let Some(lost) = (0..self.tensors.len()).find(|i| !from.contains(i)) {
            return Err(wrong("nothing there makes it", &self.tensors[lost].name));
        }
        let tensor = |meta: TensorMeta, mut runs: Vec<FromModel>, kind: Kind| {
            runs.sort_unstable();
            let mut at = 0;
            for (start, _, _, length) in &runs {
                if *start != at {
                    return Err(wrong("its elements are not all in the model", &meta.name));
                }
                at += length;
            }
            match meta.numel() == Some(at) {
                true => Ok(OfHub { meta, kind, runs: runs.into_iter().map(|(_, index, from, length)| (index, from, length)).collect() }),
                false => Err(wrong("its elements are not all in the model", &meta.name)),
            }
        };
        hub.into_iter().zip(runs).zip(kinds).map(|((meta, runs), kind)| tensor(meta, runs, kind)).collect()
    }
}

/// Whether the tensors make the whole model, and either some are renamed or rearranged for it, or only those that its class ignores are left over.
fn makes_all(model: &Assembled, tensors: &[TensorMeta]) -> bool {
    let unwanted = |reason: &Reason| matches!(reason, Reason::Ignored | Reason::MadeAnew | Reason::TiedTo(_));
    let other = |made: &Made| !matches!(made.assembly, Assembly::Whole(source) if tensors[source as usize].name == *made.name);
    let whole = model.misfits.is_empty() && model.missing.is_empty();
    whole && (model.unused.iter().all(|unused| unwanted(&unused.reason)) || model.tensors.iter().any(other))
}

fn meta(tensor: &Tensor) -> TensorMeta {
    let dtype: DType = tensor.data.dtype;
    TensorMeta::new(tensor.name.as_str(), dtype, tensor.data.shape.clone())
}
