//! Directories of torch's distributed checkpoints: `model/` and `optimizer/`, with the keys of `get_model_state_dict` and
//! `get_optimizer_state_dict`, which is what LLaMA-Factory resumes from.

use std::{borrow::Cow, sync::Arc};

use shardwright_core::DType;
use shardwright_formats::{
    build::Value,
    dcp::{Chunk, Path, Place, Writer},
    pickle::Plain,
    torch_file,
};

use super::planner::{Planned, Planner, chunk};
use crate::{
    contents::Data,
    convert::files::{FilePlan, Forms, OutFile, Part},
    error::{EngineError, ErrorKind, Result},
};

/// One of the directories: a file for each rank, and the metadata.
#[derive(Clone, Copy)]
enum Directory {
    Model,
    Optimizer,
}

impl Directory {
    fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Optimizer => "optimizer",
        }
    }
}

/// What stands under one name.
struct Item<'a> {
    name: Cow<'a, str>,
    path: Path,
    what: What<'a>,
}

enum What<'a> {
    Tensor(&'a Data, DType),
    /// Of a parameter: torch keeps it as a tensor.
    Step(f32),
    Value(&'a Plain),
    Params(&'a [String]),
}

/// What a rank's file has of an item.
enum Piece<'a> {
    Tensor { dtype: DType, offsets: Vec<u64>, sizes: Vec<u64>, parts: Vec<Part<'a>> },
    Value(Vec<u8>),
}

impl<'a> Item<'a> {
    /// The rows that a rank has of a tensor; the first rank has the steps and values.
    fn piece(&self, ranks: u64, rank: u64) -> Result<Option<Piece<'a>>> {
        let value =
            |value: &Value| torch_file::small(value).map(Piece::Value).map_err(|e| EngineError::new(ErrorKind::Checkpoint, e.to_string()));
        Ok(match self.what {
            What::Tensor(data, dtype) => {
                chunk(data, ranks, rank).map(|(offsets, sizes, parts)| Piece::Tensor { dtype, offsets, sizes, parts })
            }
            _ if rank > 0 => None,
            What::Step(step) => {
                Some(Piece::Tensor { dtype: DType::F32, offsets: Vec::new(), sizes: Vec::new(), parts: vec![Part::Number(step)] })
            }
            What::Value(plain) => Some(value(&Value::plain(plain))?),
            What::Params(names) => Some(value(&Value::list(names.iter().map(|name| Value::str(name))))?),
        })
    }
}

impl<'a> Piece<'a> {
    fn size(&self, forms: &mut Forms) -> Result<u64> {
        match self {
            Self::Tensor { dtype, sizes, .. } => forms.size(*dtype, sizes),
            Self::Value(bytes) => Ok(bytes.len() as u64),
        }
    }

    fn add(self, file: &mut OutFile<'a>) -> Result<()> {
        match self {
            Self::Tensor { dtype, sizes, parts, .. } => file.tensor(dtype, &sizes, parts).map(drop),
            Self::Value(bytes) => {
                file.append(bytes);
                Ok(())
            }
        }
    }
}

fn text(key: &str) -> Plain {
    Plain::Str(key.to_owned())
}

fn file_of(rank: u64) -> String {
    format!("__{rank}_0.distcp")
}

impl<'a> Planner<'a> {
    pub(super) fn dcp(&self) -> Result<Planned<'a>> {
        let mut files = self.directory(Directory::Model)?;
        let mut lost = Vec::new();
        match &self.contents.optimizer {
            Some(_) if self.options.params_only => lost.push("the optimizer, because of --params-only".to_owned()),
            Some(_) => files.extend(self.directory(Directory::Optimizer)?),
            None => {}
        }
        self.lose_values(&mut lost, &[]);
        Ok(Planned { files, lost })
    }

    /// The data files, the metadata last. Each is planned anew when it is written: there may be millions of items.
    fn directory(&self, directory: Directory) -> Result<Vec<FilePlan<'a>>> {
        let mut files = Vec::new();
        for rank in 0..self.ranks() {
            let planner = self.clone();
            let file = FilePlan::deferred(move || planner.data(directory, rank))?;
            if file.size > 0 {
                files.push(file);
            }
        }
        let planner = self.clone();
        files.push(FilePlan::deferred(move || planner.metadata(directory))?);
        Ok(files)
    }

    /// A rank's file.
    fn data(&self, directory: Directory, rank: u64) -> Result<OutFile<'a>> {
        let mut file = OutFile::new(format!("{}/{}", directory.name(), file_of(rank)));
        self.items(directory, &mut |item| item.piece(self.ranks(), rank)?.map_or(Ok(()), |piece| piece.add(&mut file)))?;
        Ok(file)
    }

    fn metadata(&self, directory: Directory) -> Result<OutFile<'a>> {
        let mut writer = Writer::default();
        let mut ends: Vec<(Arc<str>, u64)> = (0..self.ranks()).map(|rank| (file_of(rank).into(), 0)).collect();
        let aliases = match directory {
            Directory::Model => self.aliases(),
            Directory::Optimizer => Vec::new(),
        };
        let (mut tied, mut forms) = (Vec::new(), Forms::default());
        self.items(directory, &mut |item| {
            let mut chunks = Vec::new();
            for (rank, (file, end)) in (0..).zip(&mut ends) {
                let Some(piece) = item.piece(self.ranks(), rank)? else { continue };
                let place = Place { file: Arc::clone(file), offset: *end, length: piece.size(&mut forms)? };
                *end = end.saturating_add(place.length);
                match piece {
                    Piece::Tensor { offsets, sizes, .. } => chunks.push(Chunk { offsets, sizes, place }),
                    Piece::Value(_) => writer.value(&item.name, &item.path, &place),
                }
            }
            let (dtype, shape) = match item.what {
                What::Tensor(data, dtype) => (dtype, data.shape.as_slice()),
                What::Step(_) => (DType::F32, [].as_slice()),
                What::Value(_) | What::Params(_) => return Ok(()),
            };
            writer.tensor(&item.name, &item.path, dtype, shape, &chunks);
            // The same bytes under another name.
            let names = aliases.iter().filter(|(_, of)| of.name == *item.name);
            tied.extend(names.map(|(alias, _)| (*alias, dtype, shape.to_vec(), chunks.clone())));
            Ok(())
        })?;
        tied.iter().for_each(|(alias, dtype, shape, chunks)| writer.tensor(alias, &[text(alias)], *dtype, shape, chunks));
        let mut file = OutFile::new(format!("{}/.metadata", directory.name()));
        writer.finish().into_iter().for_each(|piece| file.append(piece));
        Ok(file)
    }

    /// What a directory has, in the order of its files.
    fn items(&self, directory: Directory, see: &mut dyn FnMut(Item<'a>) -> Result<()>) -> Result<()> {
        match directory {
            Directory::Model => self.contents.tensors.iter().try_for_each(|tensor| {
                let what = What::Tensor(&tensor.data, self.dtype(tensor));
                see(Item { name: tensor.name.as_str().into(), path: vec![text(&tensor.name)], what })
            }),
            Directory::Optimizer => self.contents.optimizer.as_ref().map_or(Ok(()), |optimizer| Self::states(optimizer, see)),
        }
    }

    fn states(optimizer: &'a crate::contents::Optimizer, see: &mut dyn FnMut(Item<'a>) -> Result<()>) -> Result<()> {
        for state in &optimizer.states {
            let mut item = |key: &str, what| {
                see(Item {
                    name: format!("state.{}.{key}", state.param).into(),
                    path: vec![text("state"), text(&state.param), text(key)],
                    what,
                })
            };
            state.tensors.iter().try_for_each(|(key, data)| item(key, What::Tensor(data, data.dtype)))?;
            #[expect(clippy::cast_possible_truncation, reason = "torch keeps steps as float32")]
            item("step", What::Step(state.step as f32))?;
        }
        for (number, group) in optimizer.groups.iter().enumerate() {
            let mut item = |key: &str, what| {
                let path = vec![text("param_groups"), Plain::Int(i64::try_from(number).unwrap_or(0)), text(key)];
                see(Item { name: format!("param_groups.{number}.{key}").into(), path, what })
            };
            group.values.iter().try_for_each(|(key, value)| item(key, What::Value(value)))?;
            item("params", What::Params(&group.params))?;
        }
        Ok(())
    }
}
