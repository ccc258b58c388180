//! `pytorch_model.bin`, alone or with an index, and other files of `torch.save` that hold a state dict.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use shardwright_formats::torch_file::TorchFile;

use super::{
    common::{self, malformed},
    data::{Bytes, Files},
    types::{Contents, Format, Kind, Tensor},
};
use crate::{
    checkpoint::parse_index,
    error::{EngineError, ErrorKind, Result},
    file::read_bounded,
};

const INDEX: &str = "pytorch_model.bin.index.json";
const MAX_INDEX: u64 = 100_000_000;

/// The files of a directory, where it has some.
pub(super) fn find(path: &Path, names: &[String]) -> Result<Option<Vec<PathBuf>>> {
    let index = path.join(INDEX);
    if names.iter().any(|n| n == INDEX) {
        let bytes = read_bounded(&index, MAX_INDEX, "the index is too long")?;
        let parsed = parse_index(&bytes).map_err(|e| e.file(&index))?;
        return Ok(Some(parsed.files.iter().map(|name| path.join(name)).collect()));
    }
    let one = names.iter().find(|n| *n == "pytorch_model.bin");
    Ok(one.map(|name| vec![path.join(name)]))
}

pub(super) fn open(path: &Path, paths: &[PathBuf]) -> Result<Contents> {
    let (mut files, mut tensors, mut notes) = (Files::default(), Vec::new(), Vec::new());
    let mut aliases = Vec::new();
    for file_path in paths {
        let source = Bytes::open(file_path)?;
        let file = TorchFile::open(&source).map_err(malformed(file_path))?;
        let pickle = &file.pickle;
        let mut root = pickle.root();
        // Trainers wrap the state dict.
        for key in ["state_dict", "model", "module"] {
            root = pickle.get(root, key).filter(|id| pickle.dict(*id).is_some()).unwrap_or(root);
        }
        let entries = pickle
            .dict(root)
            .ok_or_else(|| EngineError::new(ErrorKind::Checkpoint, "the file holds something else than a state dict").file(file_path))?;
        let number = files.add(file_path.clone());
        // Names of one place are tied.
        let mut places: std::collections::BTreeMap<(u64, Vec<u64>, Vec<u64>), String> = std::collections::BTreeMap::new();
        let mut seen = BTreeSet::new();
        for (key, value) in entries.iter().rev() {
            let Some(name) = pickle.str(*key) else { continue };
            if !seen.insert(name) {
                continue;
            }
            let found = file.tensor(&source, *value).map_err(|e| malformed(file_path)(e).tensor(name))?;
            match found {
                None => notes.push(format!("'{name}' is not a tensor and is not carried")),
                Some(found) => {
                    files.expect(number, 0, &found);
                    let key = (found.offset, found.shape.clone(), found.strides.clone());
                    if found.span > 0
                        && let Some(first) = places.insert(key, name.to_owned())
                    {
                        aliases.push((first, name.to_owned()));
                    }
                    let data = common::whole(number, &found).map_err(|e| e.file(file_path).tensor(name))?;
                    tensors.push(Tensor { name: name.to_owned(), kind: Kind::Trained, data });
                }
            }
        }
    }
    tensors.retain(|t| !aliases.iter().any(|(alias, _)| *alias == t.name));
    let mut contents = Contents::of_tensors(path, Format::TorchSave, common::sorted(path, tensors)?, files);
    contents.notes = notes;
    contents.aliases = aliases;
    common::classify(&mut contents)?;
    Ok(contents)
}
