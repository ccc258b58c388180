//! The small files that a model needs beside its tensors: its config and its tokenizer. Which they are, and their copies.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use super::{
    refuse::list,
    staged::{Stage, Staged, Watch},
};
use crate::{
    checkpoint::Checkpoint,
    error::{EngineError, Result},
    manifest::FileDigest,
};

/// True for the names of config and tokenizer files, as transformers knows them.
fn is_copied(name: &str) -> bool {
    const NAMES: [&str; 8] = [
        "config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.json",
        "chat_template.jinja",
        "preprocessor_config.json",
        "processor_config.json",
    ];
    let stem = |prefix: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(['.', '_', '-']));
    let text = || ["json", "txt", "model", "jinja", "tiktoken", "bpe"].iter().any(|e| name.ends_with(&format!(".{e}")));
    NAMES.contains(&name)
        || ((stem("tokenizer") || stem("vocab") || stem("merges") || stem("chat_template")) && text())
        || name.ends_with(".model")
        || name.ends_with(".tiktoken")
}

/// The files of a checkpoint's directory that are copied along, sorted by name, with their paths.
pub(super) fn find(checkpoint: &Checkpoint) -> Result<Vec<(String, PathBuf)>> {
    let names = list(checkpoint.dir()).map_err(|e| EngineError::io("cannot list the model's directory", checkpoint.dir(), e))?;
    let regular = |name: &String| is_copied(name) && fs::metadata(checkpoint.dir().join(name)).is_ok_and(|m| m.is_file());
    names.into_iter().filter(regular).map(|name| checkpoint.side_file(&name).map(|path| (name, path))).collect()
}

/// True where `copy` is there and is not a copy of `original`.
pub(super) fn differs(original: &Path, copy: &Path) -> io::Result<bool> {
    let there = match fs::metadata(copy) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    Ok(there.len() != fs::metadata(original)?.len() || fs::read(copy)? != fs::read(original)?)
}

/// Stages a copy of `from` of that name.
pub(super) fn copy(stage: &Stage, from: &Path, name: &str, watch: Watch<'_>) -> Result<(Staged, FileDigest)> {
    let cannot = |e| EngineError::io("cannot read the file to copy", from, e);
    let mut source = File::open(from).map_err(cannot)?;
    let mut file = stage.file(name)?;
    let mut block = vec![0; 1 << 16];
    loop {
        match source.read(&mut block).map_err(cannot)? {
            0 => break,
            n => file.write(&block[..n], watch)?,
        }
    }
    let (staged, digest) = file.sync()?;
    Ok((staged, FileDigest::new(name, digest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_and_tokenizer_files_are_copied_and_no_weights() {
        let copied = "config.json generation_config.json tokenizer.json tokenizer_config.json tokenizer.model spiece.model vocab.json \
                      vocab.txt merges.txt special_tokens_map.json added_tokens.json chat_template.jinja qwen.tiktoken vocab-src.json";
        for name in copied.split_whitespace() {
            assert!(is_copied(name), "{name}");
        }
        let left = "model.safetensors model.safetensors.index.json pytorch_model.bin README.md training_args.bin tokenizer.safetensors vocabulary.json .gitattributes";
        for name in left.split_whitespace() {
            assert!(!is_copied(name), "{name}");
        }
    }
}
