//! A checkpoint as its headers describe it: which files, which tensors, where each lies. No tensor data is read here.
//!
//! `find` turns a path or a hub id into a directory, `files` says which of its files count, `config` reads `config.json`, `index`
//! `model.safetensors.index.json`, `header` one file's header.

mod config;
mod files;
mod find;
mod header;
mod index;
mod parts;
mod record;

use std::{
    collections::BTreeMap,
    fs::{File, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use shardwright_core::{Model, ModelFacts, ModelMeta, TensorMeta};

pub use self::find::{HubEnv, ModelDir};
use self::header::Kept;
pub use self::header::parse_header;
pub use self::index::parse_index;
pub use self::record::ModelRecord;
use crate::error::{EngineError, ErrorKind, Result};

/// An opened checkpoint: headers read and validated, no file held open.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    files: Vec<CheckpointFile>,
    model: Model,
    /// What the files hold; `None` where the model has the same tensors.
    sources: Option<Vec<TensorMeta>>,
    /// How the model was found, where it is not simply the tensors.
    record: Option<ModelRecord>,
    /// The tensors, where the files hold them in parts.
    named: Option<parts::Named>,
    locations: Vec<Location>,
    config_text: Option<String>,
    warnings: Vec<String>,
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

/// What identifies a file's content without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stamp {
    /// Size in bytes.
    pub size: u64,
    /// Time of the last change, in seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Device and inode.
    pub inode: (u64, u64),
}

impl Stamp {
    /// The stamp that this metadata shows.
    pub fn of(meta: &Metadata) -> Self {
        Self { size: meta.len(), mtime: (meta.mtime(), meta.mtime_nsec()), inode: (meta.dev(), meta.ino()) }
    }
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
    /// Opens a directory, or a single `.safetensors` file. Directories of `pytorch_model.bin`, of torch's distributed checkpoints and of
    /// DeepSpeed's are opened too: their tensors are read where they lie, for any world.
    ///
    /// # Errors
    /// [`ErrorKind::Checkpoint`] for anything missing or malformed, naming file, tensor, expected and found; [`ErrorKind::Io`] where the
    /// operating system refuses to read.
    pub fn open(path: &Path) -> Result<Self> {
        ModelDir::open(path)?.checkpoint()
    }

    /// Finds `model`, a path relative to one of `base_dirs` or a hub id in the local cache, and opens it.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], and where nothing is found, with all the places that were tried.
    pub fn find(model: &str, base_dirs: &[impl AsRef<Path>], env: &HubEnv) -> Result<Self> {
        ModelDir::find(model, base_dirs, env)?.checkpoint()
    }

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

/// Compares what a file was with what it is.
pub(crate) fn unchanged(path: &Path, was: Stamp, is: Stamp) -> Result<()> {
    let error = |what: &str| EngineError::new(ErrorKind::Checkpoint, what).file(path);
    if was.inode != is.inode {
        return Err(error("the file was replaced while it was being read")
            .expected(format_args!("inode {}", was.inode.1))
            .found(is.inode.1));
    }
    if was.size != is.size {
        return Err(error("the file's size changed while it was being read").expected(format_args!("{} bytes", was.size)).found(is.size));
    }
    if was.mtime != is.mtime {
        return Err(error("the file was written to while it was being read"));
    }
    Ok(())
}

/// One file with what its header says.
struct OpenedFile {
    file: CheckpointFile,
    entries: Vec<header::Entry>,
}

fn open_file(dir: &ModelDir, name: &str) -> Result<OpenedFile> {
    let path = dir.resolve(name)?;
    let (file, meta) = open_regular(&path)?;
    let stamp = Stamp::of(&meta);
    let header::Header { data_start, entries, kept } = header::read(&file, &path, stamp.size)?;
    // torch's writer, and ours, call a rank's file so.
    let of_a_rank = || name.rsplit('/').next().is_some_and(|name| name.starts_with("shard-"));
    if kept == Kept::Parts || kept == Kept::AtTheStart && of_a_rank() {
        let what = "it holds one rank's shards, as a save for one world leaves them, not whole tensors";
        return Err(EngineError::new(ErrorKind::Checkpoint, what).file(path));
    }
    Ok(OpenedFile { file: CheckpointFile { path, name: name.to_owned(), stamp, data_start }, entries })
}

/// Opens a file that must be one: a pipe would be waited for without end, so nothing is waited for before the file is known to be none.
pub(crate) fn open_regular(path: &Path) -> Result<(File, Metadata)> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(|e| cannot_open(path, e))?;
    let meta = file.metadata().map_err(|e| EngineError::io("cannot look at the file", path, e))?;
    if !meta.is_file() {
        return Err(EngineError::new(ErrorKind::Checkpoint, "not a regular file").file(path));
    }
    Ok((file, meta))
}

/// All of a regular file of at most `most` bytes.
pub(crate) fn read_bounded(path: &Path, most: u64, too_long: &str) -> Result<Vec<u8>> {
    let (file, meta) = open_regular(path)?;
    let refuse =
        |found| EngineError::new(ErrorKind::Checkpoint, too_long).file(path).expected(format_args!("at most {most} bytes")).found(found);
    if meta.len() > most {
        return Err(refuse(meta.len()));
    }
    let mut bytes = Vec::new();
    // It may have grown since.
    file.take(most + 1).read_to_end(&mut bytes).map_err(|e| EngineError::io("cannot read the file", path, e))?;
    if bytes.len() as u64 > most { Err(refuse(bytes.len() as u64)) } else { Ok(bytes) }
}

/// Missing is a fault of the checkpoint, all else of the operating system.
fn cannot_open(path: &Path, error: io::Error) -> EngineError {
    let kind = if error.kind() == io::ErrorKind::NotFound { ErrorKind::Checkpoint } else { ErrorKind::Io };
    EngineError::new(kind, "cannot open the file").file(path).cause(error)
}

/// Reads all headers, on as many threads as pay.
fn open_files(dir: &ModelDir, names: &[String]) -> Result<Vec<OpenedFile>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(names.len() / 8).clamp(1, 8);
    crate::parallel::map_on(threads, names, |name| open_file(dir, name))
}

impl ModelDir {
    /// Reads the headers: the checkpoint that lies here.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn checkpoint(self) -> Result<Checkpoint> {
        crate::convert::check_finished(&self.dir)?;
        if let Some(parted) = self.parted()? {
            return Ok(parted);
        }
        let (names, index) = self.file_names()?;
        let opened = open_files(&self, &names)?; // what the files are comes before how many
        if index.is_none() {
            self.none_missing(&names)?;
        }
        let mut files = Vec::with_capacity(opened.len());
        let mut tensors = Vec::with_capacity(opened.iter().map(|o| o.entries.len()).sum());
        for (number, OpenedFile { file, entries }) in opened.into_iter().enumerate() {
            let placed = entries.into_iter().map(|e| {
                let location = Location { file: number, offset: file.data_start + e.start, bytes: e.end - e.start };
                (TensorMeta::new(e.name, e.dtype, e.shape), location)
            });
            tensors.extend(placed);
            files.push(file);
        }
        if tensors.is_empty() {
            let names: Vec<&str> = files.iter().map(|f| f.name.as_str()).collect();
            return Err(EngineError::new(ErrorKind::Checkpoint, "the checkpoint has no tensors").file(&self.dir).found(
                match names.as_slice() {
                    [] => "an index that names no file".to_owned(),
                    names => format!("none in {}", names.join(", ")),
                },
            ));
        }
        // Names come in long ascending runs, file by file: the stable sort merges runs.
        tensors.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        if let Some(pair) = tensors.windows(2).find(|w| w[0].0.name == w[1].0.name) {
            let (first, second) = (&files[pair[0].1.file], &files[pair[1].1.file]);
            return Err(EngineError::new(ErrorKind::Checkpoint, format!("the tensor is in '{}' and in '{}'", first.name, second.name))
                .file(&self.dir)
                .tensor(&pair[0].0.name));
        }
        let linked: Vec<(&str, PathBuf)> = names.iter().filter_map(|n| Some((n.as_str(), self.outside(n)?))).collect();
        let led_out = linked.first().map(|(name, to)| match linked.len() {
            1 => format!("{}: a link that leads out of the checkpoint's directory, to {}", self.dir.join(name).display(), to.display()),
            n => format!("{}: {n} files are links that lead out of the directory, '{name}' to {}", self.dir.display(), to.display()),
        });
        let mut warnings = index.map_or_else(|| Ok(Vec::new()), |index| check_index(&index, &files, &tensors))?;
        warnings.extend(led_out);
        warnings.extend(self.passed_over(&names));
        let config = self.config()?;
        if let Some((key, expected, found)) = config.as_ref().and_then(config::wrong_type) {
            let path = self.dir.join(find::CONFIG);
            warnings.push(format!("{}: '{key}' is not used: expected {expected}, found {found}", path.display()));
        }
        let facts = config.map_or_else(ModelFacts::default, |config| config::facts(&config));
        let (metas, locations) = tensors.into_iter().unzip();
        let model = ModelMeta::new(metas, facts)
            .map_err(|name| EngineError::new(ErrorKind::Checkpoint, "the tensor occurs twice").file(&self.dir).tensor(name))?;
        Ok(Checkpoint {
            dir: self.dir,
            files,
            model: Model::identity(model),
            sources: None,
            record: None,
            named: None,
            locations,
            config_text: self.config_text,
            warnings,
        })
    }

    /// What `config.json` says. A fact of an unexpected type counts as absent; [`Checkpoint::warnings`] names it.
    ///
    /// # Errors
    /// [`ErrorKind::Checkpoint`] where it is no JSON object.
    pub fn facts(&self) -> Result<ModelFacts> {
        Ok(self.config()?.map_or_else(ModelFacts::default, |config| config::facts(&config)))
    }

    pub(crate) fn config_value(&self) -> Result<Option<serde_json::Value>> {
        self.config()
    }

    fn config(&self) -> Result<Option<serde_json::Value>> {
        let Some(text) = &self.config_text else { return Ok(None) };
        let error = |what: String| EngineError::new(ErrorKind::Checkpoint, what).file(self.dir.join(find::CONFIG));
        let value = serde_json::from_str(&config::without_constants(text)).map_err(|e| error(format!("not valid JSON: {e}")))?;
        match config::kind(&value) {
            kind if kind == "an object" => Ok(Some(value)),
            other => Err(error("no model's config".into()).expected("an object").found(other)),
        }
    }
}

/// Every name of the index must be in its file; a wrong `total_size` and tensors that the index leaves out are reported.
fn check_index(index: &index::Index, files: &[CheckpointFile], tensors: &[(TensorMeta, Location)]) -> Result<Vec<String>> {
    let by_name: BTreeMap<&str, usize> = files.iter().enumerate().map(|(i, f)| (f.name.as_str(), i)).collect();
    let find = |name: &str| tensors.binary_search_by(|t| t.0.name.as_str().cmp(name)).ok().map(|i| tensors[i].1.file);
    for (tensor, file) in &index.weights {
        let file = index.files[*file].as_str();
        let found = find(tensor);
        if found == by_name.get(file).copied() {
            continue;
        }
        let elsewhere = found.map_or_else(|| "no such tensor".to_owned(), |f| format!("it in '{}'", files[f].name));
        return Err(EngineError::new(ErrorKind::Checkpoint, "the index names a tensor that the file lacks")
            .file(&index.path)
            .tensor(tensor)
            .expected(format_args!("it in '{file}'"))
            .found(elsewhere));
    }
    let mut warnings = Vec::new();
    if index.weights.len() < tensors.len() {
        let missing = tensors.len() - index.weights.len();
        let listed = |t: &(TensorMeta, Location)| index.weights.binary_search_by(|w| w.0.as_str().cmp(&t.0.name)).is_ok();
        let first = tensors.iter().find(|t| !listed(t)).map_or("", |t| t.0.name.as_str());
        let path = index.path.display();
        warnings.push(format!("{path}: not in the index, but loaded too: '{first}'{}", and_more(missing - 1)));
    }
    // Sizes of files of holes add up to more than 64 bits.
    let total: u128 = tensors.iter().map(|t| u128::from(t.1.bytes)).sum();
    if let Some(said) = index.total_size.filter(|&said| u128::from(said) != total) {
        warnings.push(format!("{}: metadata.total_size is {said}, but the tensors have {total} bytes", index.path.display()));
    }
    Ok(warnings)
}

fn and_more(count: usize) -> String {
    if count == 0 { String::new() } else { format!(" and {count} more tensors of the files") }
}

#[cfg(test)]
mod tests;
