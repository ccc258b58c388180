//! An opened checkpoint: its files, its tensors, and the model that they are of.

use std::path::{Path, PathBuf};

use shardwright_core::{Assembly, Model, ModelMeta, Name, TensorMeta};

use super::{config, find::ModelDir, named::Named, record::ModelRecord};
use crate::{
    error::{EngineError, ErrorKind, Result},
    file::{Stamp, unchanged},
};

/// An opened checkpoint: headers read and validated, no file held open.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub(super) dir: PathBuf,
    pub(super) files: Vec<CheckpointFile>,
    pub(super) model: Model,
    /// What the files hold; `None` where the model has the same tensors.
    pub(super) sources: Option<Vec<TensorMeta>>,
    /// How the model was found, where it is not simply the tensors.
    pub(super) record: Option<ModelRecord>,
    /// The tensors, where the files hold them in parts.
    pub(super) named: Option<Named>,
    pub(super) locations: Vec<Location>,
    pub(super) config_text: Option<String>,
    pub(super) warnings: Vec<String>,
}

/// One file of a checkpoint.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CheckpointFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its name inside the checkpoint.
    pub name: String,
    /// What it was when its header was read.
    pub stamp: Stamp,
    /// Where its tensor data starts, in bytes.
    pub data_start: u64,
}

/// Where a tensor lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Location {
    /// Index into [`Checkpoint::files`].
    pub file: usize,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Size in bytes.
    pub bytes: u64,
}

impl Checkpoint {
    /// The model's parameters and buffers, sorted by name, and the facts of `config.json`: what a plan is made over.
    pub fn model(&self) -> &ModelMeta {
        &self.model.meta
    }

    /// How the model's parameters are made of the checkpoint's tensors.
    pub fn assembled(&self) -> &Model {
        &self.model
    }

    /// What the files hold: the tensors, sorted by name, or the parts that they lie in.
    pub fn sources(&self) -> &[TensorMeta] {
        self.sources.as_deref().unwrap_or(&self.model.meta.tensors)
    }

    /// The name of what [`Checkpoint::sources`] has at that index, where it has something; a part's says which of its tensor it is.
    pub fn source_name(&self, source: usize) -> String {
        let sources = self.sources();
        let Some(TensorMeta { name, .. }) = sources.get(source) else { return String::new() };
        if self.is_safetensors() {
            return name.to_string();
        }
        // Parts of a tensor follow each other, under its name.
        let before = sources[..source].iter().rev().take_while(|s| s.name == *name).count();
        let behind = sources[source..].iter().take_while(|s| s.name == *name).count();
        match before + behind {
            1 => name.to_string(),
            all => format!("{name}, part {} of {all}", before + 1),
        }
    }

    /// The same files as parameters of a model's class instead of as the tensors that they are.
    ///
    /// # Errors
    /// [`ErrorKind::Checkpoint`] where the model's pieces do not lie inside of the tensors or do not fill each parameter exactly once.
    pub fn assemble(mut self, model: Model) -> Result<Self> {
        model.check(self.sources()).map_err(|e| EngineError::new(ErrorKind::Checkpoint, e.what).file(&self.dir).tensor(&e.tensor))?;
        let was = std::mem::replace(&mut self.model, model);
        self.sources.get_or_insert(was.meta.tensors);
        Ok(self)
    }

    /// How the model was found, where its class was looked for.
    pub fn record(&self) -> Option<&ModelRecord> {
        self.record.as_ref()
    }

    pub(crate) fn recorded(self, record: ModelRecord) -> Self {
        Self { record: Some(record), ..self }
    }

    /// The text of `config.json`, where there is one.
    pub fn config_text(&self) -> Option<&str> {
        self.config_text.as_deref()
    }

    /// `config.json` as a value, where there is one that is an object.
    pub(crate) fn config_value(&self) -> Option<serde_json::Value> {
        serde_json::from_str(&config::without_constants(self.config_text.as_deref()?)).ok().filter(serde_json::Value::is_object)
    }

    /// The files that hold tensors.
    pub fn files(&self) -> &[CheckpointFile] {
        &self.files
    }

    /// Where the tensor lies that [`Checkpoint::sources`] has at that index.
    pub fn location(&self, source: usize) -> Location {
        self.locations[source]
    }

    /// The directory that holds the files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of another file of the checkpoint's directory, such as its tokenizer.
    ///
    /// # Errors
    /// [`ErrorKind::Checkpoint`] where it is missing or a link that leaves the directory.
    pub fn side_file(&self, name: &str) -> Result<PathBuf> {
        ModelDir { dir: self.dir.clone(), file: None, config_text: None, index_first: false }.resolve(name)
    }

    /// Oddities that do not stop a load, such as an index whose `total_size` is off.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Checks that a file is still the one whose header was read.
    ///
    /// # Errors
    /// [`ErrorKind::Checkpoint`] where size, time of change or inode differ.
    pub fn check_unchanged(&self, file: usize) -> Result<()> {
        let file = &self.files[file];
        let meta = std::fs::metadata(&file.path).map_err(|e| EngineError::io("cannot look at the file again", &file.path, e))?;
        unchanged(&file.path, file.stamp, Stamp::of(&meta))
    }
}

impl Checkpoint {
    /// The tensors by the names that the checkpoint gives them; those of [`Checkpoint::sources`], unless they lie in parts.
    pub fn named(&self) -> &[TensorMeta] {
        self.named.as_ref().map_or_else(|| self.sources(), |named| named.tensors.as_slice())
    }

    /// Whether its files hold tensors whole, as safetensors files do.
    pub fn is_safetensors(&self) -> bool {
        self.named.is_none()
    }

    /// How `tensor` is made of [`Checkpoint::named`], as one over [`Checkpoint::sources`], which a load takes.
    ///
    /// # Errors
    /// [`ErrorKind::Checkpoint`] for what a load does not put together.
    pub fn over_sources(&self, tensor: &str, assembly: Assembly) -> Result<Assembly> {
        let Some(named) = &self.named else { return Ok(assembly) };
        named.compose(&assembly, self.sources()).map_err(|what| refuse(&self.dir, &tensor.into(), what))
    }

    /// Another model will be put in the place of its own.
    pub(crate) fn forget_assemblies(&mut self) {
        self.model.assemblies = Vec::new();
    }

    /// A model over [`Checkpoint::named`], as one over [`Checkpoint::sources`].
    pub(crate) fn over_parts(&self, mut model: Model) -> Result<Model> {
        let Some(named) = &self.named else { return Ok(model) };
        for (meta, assembly) in model.meta.tensors.iter().zip(&mut model.assemblies) {
            *assembly = named.compose(assembly, self.sources()).map_err(|what| refuse(&self.dir, &meta.name, what))?;
        }
        for unused in &mut model.unused {
            unused.source = named.places.first(unused.source).unwrap_or(0);
        }
        Ok(model)
    }
}

fn refuse(dir: &Path, tensor: &Name, what: &str) -> EngineError {
    let help = "convert the checkpoint first: `shardwright convert SOURCE TARGET --to hf`";
    EngineError::new(ErrorKind::Checkpoint, format!("{what}; {help}")).file(dir).tensor(tensor)
}
