//! Recognises a checkpoint by what it holds, and describes it as [`Contents`].

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    common::list,
    dcp, deepspeed, safetensors, torch_save,
    types::{Contents, Format},
    universal,
};
use crate::{
    checkpoint::led_out,
    error::{EngineError, ErrorKind, Result},
    file::check_finished,
};

impl Contents {
    /// Opens a checkpoint of any format: a directory, or a file.
    ///
    /// # Errors
    /// [`ErrorKind::Checkpoint`] where nothing is recognised or something is malformed, [`ErrorKind::Io`] where it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let is_dir =
            fs::metadata(path).map_err(|e| EngineError::new(ErrorKind::Checkpoint, "cannot open it").file(path).cause(e))?.is_dir();
        if !is_dir {
            return match path.extension().and_then(|e| e.to_str()) {
                Some("safetensors") => safetensors::open(path),
                _ => torch_save::open(path, &[path.to_owned()]),
            };
        }
        check_finished(path)?;
        let mut contents = Self::in_dir(path)?;
        if contents.format != Format::Safetensors || contents.ranks.is_some() {
            contents.notes.extend(led_out(path, contents.files.paths().map(PathBuf::as_path)));
        }
        Ok(contents)
    }

    fn in_dir(path: &Path) -> Result<Self> {
        let names = list(path)?;
        let has = |name: &str| names.iter().any(|n| n == name);
        if let Some(found) = dcp::find(path, &names) {
            return dcp::open(path, &found);
        }
        if let Some(tag) = universal::find(path, &names)? {
            return universal::open(path, &tag);
        }
        if let Some(tag) = deepspeed::find(path, &names)? {
            return deepspeed::open(path, &tag);
        }
        if names.iter().any(|n| n.ends_with(".safetensors")) || has("model.safetensors.index.json") {
            return safetensors::open(path);
        }
        if let Some(files) = torch_save::find(path, &names)? {
            return torch_save::open(path, &files);
        }
        Err(EngineError::new(ErrorKind::Checkpoint, "no checkpoint is recognised in it").file(path).expected(
            "safetensors files, pytorch_model.bin, .metadata of torch's distributed checkpoints (here or under model/), \
             or DeepSpeed's *_model_states.pt (here or under the tag that `latest` names)",
        ))
    }
}

/// True for a path that [`crate::Checkpoint`] does not open: another format, or safetensors of ranks.
pub fn is_other_format(path: &Path) -> bool {
    if !path.is_dir() {
        return path.is_file() && path.extension().is_none_or(|e| e != "safetensors");
    }
    let Ok(names) = list(path) else { return false };
    let of_ranks = !safetensors::rank_files(path, &names).is_empty();
    let plain = names.iter().any(|n| n.ends_with(".safetensors") || n == "model.safetensors.index.json");
    let deep = ["latest", "latest_universal", ".metadata"].iter().any(|name| names.iter().any(|n| n == name));
    let bin = names.iter().any(|n| n.starts_with("pytorch_model.bin") || n.ends_with("_model_states.pt"));
    of_ranks || !plain && (deep || bin || dcp::find(path, &names).is_some())
}

/// True for a directory whose tensors lie in other files than safetensors, or in those of ranks, which [`crate::Checkpoint`] reads in parts.
pub(crate) fn is_parted(dir: &Path) -> bool {
    let Ok(names) = list(dir) else { return false };
    let has = |name: &str| names.iter().any(|n| n == name);
    if !safetensors::rank_files(dir, &names).is_empty() {
        return true;
    }
    if names.iter().any(|n| n.ends_with(".safetensors")) || has("model.safetensors.index.json") {
        return false;
    }
    let bin = has("pytorch_model.bin") || has("pytorch_model.bin.index.json");
    bin || has("latest")
        || has("latest_universal")
        || names.iter().any(|n| n.ends_with("_model_states.pt"))
        || dcp::find(dir, &names).is_some()
}

/// The items of a torch distributed checkpoint, each a file of `torch.save` in a stretch of a file.
pub(crate) fn dcp_items(path: &Path) -> Result<Vec<(PathBuf, (u64, u64))>> {
    let dirs = dcp::find(path, &list(path)?).unwrap_or_default();
    Ok(dirs.iter().map(|dir| dcp::items(dir)).collect::<Result<Vec<_>>>()?.concat())
}
