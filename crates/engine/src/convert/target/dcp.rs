//! Directories of torch's distributed checkpoints: `model/` and `optimizer/`, with the keys of `get_model_state_dict` and
//! `get_optimizer_state_dict`, which is what LLaMA-Factory resumes from.

use shardwright_core::DType;
use shardwright_formats::{
    build::Value,
    dcp::{Chunk, Metadata, Path, Place, Tensor, write},
    pickle::Plain,
    torch_file,
};

use super::planner::{Planned, Planner, chunk};
use crate::{
    contents::Data,
    convert::write::{OutFile, Part},
    error::Result,
};

/// One directory: a file for each rank, and the metadata.
struct Directory<'a> {
    name: &'static str,
    files: Vec<OutFile<'a>>,
    metadata: Metadata,
}

impl<'a> Directory<'a> {
    fn new(name: &'static str, ranks: u64) -> Self {
        let files = (0..ranks).map(|rank| OutFile::new(format!("{name}/__{rank}_0.distcp"))).collect();
        Self { name, files, metadata: Metadata::default() }
    }

    fn place(&self, rank: usize, offset: u64, length: u64) -> Place {
        Place { file: format!("__{rank}_0.distcp"), offset, length }
    }

    /// A tensor in one item for each rank that has rows of it.
    fn tensor(&mut self, name: &str, path: Path, data: &'a Data, dtype: DType) -> Result<()> {
        let ranks = self.files.len() as u64;
        let mut chunks = Vec::new();
        for rank in 0..self.files.len() {
            let Some((offsets, sizes, parts)) = chunk(data, ranks, rank as u64) else { continue };
            chunks.push(self.chunk(rank, dtype, offsets, sizes, parts)?);
        }
        let tensor = Tensor { name: name.to_owned(), dtype, shape: data.shape.clone(), chunks };
        self.metadata.tensors.push(tensor);
        self.metadata.paths.insert(name.to_owned(), path);
        Ok(())
    }

    fn chunk(&mut self, rank: usize, dtype: DType, offsets: Vec<u64>, sizes: Vec<u64>, parts: Vec<Part<'a>>) -> Result<Chunk> {
        let offset = self.files[rank].size;
        let length = self.files[rank].tensor(dtype, &sizes, parts)?;
        Ok(Chunk { offsets, sizes, place: self.place(rank, offset, length) })
    }

    fn step(&mut self, name: &str, path: Path, step: f64) -> Result<()> {
        let offset = self.files[0].size;
        #[expect(clippy::cast_possible_truncation, reason = "torch keeps steps as float32")]
        let length = self.files[0].tensor(DType::F32, &[], vec![Part::Number(step as f32)])?;
        let chunk = Chunk { offsets: Vec::new(), sizes: Vec::new(), place: self.place(0, offset, length) };
        self.metadata.tensors.push(Tensor { name: name.to_owned(), dtype: DType::F32, shape: Vec::new(), chunks: vec![chunk] });
        self.metadata.paths.insert(name.to_owned(), path);
        Ok(())
    }

    fn value(&mut self, name: &str, path: Path, value: &Plain) -> Result<()> {
        let bytes = torch_file::small(&Value::plain(value))
            .map_err(|e| crate::error::EngineError::new(crate::error::ErrorKind::Checkpoint, e.to_string()))?;
        let place = self.place(0, self.files[0].size, bytes.len() as u64);
        self.files[0].append(bytes);
        self.metadata.values.push((name.to_owned(), place));
        self.metadata.paths.insert(name.to_owned(), path);
        Ok(())
    }

    /// The data files, the metadata last.
    fn finish(self) -> Vec<OutFile<'a>> {
        let metadata = OutFile::literal(format!("{}/.metadata", self.name), write(&self.metadata));
        self.files.into_iter().filter(|f| f.size > 0).chain([metadata]).collect()
    }
}

fn text(key: &str) -> Plain {
    Plain::Str(key.to_owned())
}

impl<'a> Planner<'a, '_> {
    pub(super) fn dcp(&self) -> Result<Planned<'a>> {
        let mut model = Directory::new("model", self.ranks());
        for tensor in &self.contents.tensors {
            model.tensor(&tensor.name, vec![text(&tensor.name)], &tensor.data, self.dtype(tensor))?;
        }
        for (alias, tensor) in self.aliases() {
            // The same bytes under another name.
            if let Some(of) = model.metadata.tensors.iter().find(|t| t.name == tensor.name) {
                let of = Tensor { name: alias.to_owned(), ..of.clone() };
                model.metadata.tensors.push(of);
                model.metadata.paths.insert(alias.to_owned(), vec![text(alias)]);
            }
        }
        let mut files = model.finish();
        let mut lost = Vec::new();
        match &self.contents.optimizer {
            Some(_) if self.options.params_only => lost.push("the optimizer, because of --params-only".to_owned()),
            Some(_) => files.extend(self.optimizer()?.finish()),
            None => {}
        }
        self.lose_values(&mut lost, &[]);
        Ok(Planned { files, lost })
    }

    fn optimizer(&self) -> Result<Directory<'a>> {
        let mut out = Directory::new("optimizer", self.ranks());
        let Some(optimizer) = &self.contents.optimizer else { return Ok(out) };
        for state in &optimizer.states {
            let name = |key: &str| (format!("state.{}.{key}", state.param), vec![text("state"), text(&state.param), text(key)]);
            for (key, data) in &state.tensors {
                let (name, path) = name(key);
                out.tensor(&name, path, data, data.dtype)?;
            }
            let (name, path) = name("step");
            out.step(&name, path, state.step)?;
        }
        for (number, group) in optimizer.groups.iter().enumerate() {
            let params = Plain::List(group.params.iter().map(|p| text(p)).collect());
            let params = ("params".to_owned(), params);
            for (key, value) in group.values.iter().chain([&params]) {
                let path = vec![text("param_groups"), Plain::Int(i64::try_from(number).unwrap_or(0)), text(key)];
                out.value(&format!("param_groups.{number}.{key}"), path, value)?;
            }
        }
        Ok(out)
    }
}
