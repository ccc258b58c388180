//! Opens a checkpoint of safetensors files: headers, index and config, held against each other.

use std::collections::BTreeMap;

use shardwright_core::{Model, ModelFacts, ModelMeta, TensorMeta};

use super::{
    config,
    find::{CONFIG, ModelDir, led_out},
    header::{self, Kept},
    index,
    types::{Checkpoint, CheckpointFile, Location},
};
use crate::{
    error::{EngineError, ErrorKind, Result},
    file::{Stamp, open_regular},
};

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

/// Reads all headers, on as many threads as pay.
fn open_files(dir: &ModelDir, names: &[String]) -> Result<Vec<OpenedFile>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(names.len() / 8).clamp(1, 8);
    crate::parallel::map_on(threads, names, |name| open_file(dir, name))
}

impl ModelDir {
    /// Reads the headers of safetensors files: the checkpoint that lies here.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub(crate) fn safetensors(self) -> Result<Checkpoint> {
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
        let named_alone = self.file.is_some(); // by the user
        let led_out = if named_alone { None } else { led_out(&self.dir, files.iter().map(|f| f.path.as_path())) };
        let mut warnings = index.map_or_else(|| Ok(Vec::new()), |index| check_index(&index, &files, &tensors))?;
        warnings.extend(led_out);
        warnings.extend(self.passed_over(&names));
        let config = self.config_value()?;
        if let Some((key, expected, found)) = config.as_ref().and_then(config::wrong_type) {
            let path = self.dir.join(CONFIG);
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
