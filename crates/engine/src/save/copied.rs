//! The small files that a model needs beside its tensors: its config and its tokenizer. Which they are, and their copies.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
};

use super::staged::{Stage, Staged, Watch};
use crate::{
    checkpoint::Checkpoint,
    error::{EngineError, ErrorKind, Result},
    file::{list, open_regular},
    saved::FileDigest,
};

/// Bytes read at once.
const BLOCK: usize = 1 << 16;

/// True for the names of config and tokenizer files, as transformers knows them.
pub(crate) fn is_copied(name: &str) -> bool {
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

/// A file to copy along.
#[derive(Clone, Debug)]
pub(super) struct CopiedFile {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
}

/// The files of a checkpoint's directory that are copied along, sorted by name. One that is not a regular file is refused: a copy without
/// it would lack, say, its tokenizer.
pub(super) fn find(checkpoint: &Checkpoint) -> Result<Vec<CopiedFile>> {
    let names = list(checkpoint.dir()).map_err(|e| EngineError::io("cannot list the model's directory", checkpoint.dir(), e))?;
    let file = |name: String| {
        let path = checkpoint.side_file(&name)?;
        let meta = fs::metadata(&path).map_err(|e| EngineError::io("cannot look at the file", &path, e))?;
        if !meta.is_file() {
            let what = "not a regular file, which a save would copy along; remove or replace it";
            return Err(EngineError::new(ErrorKind::Checkpoint, what).file(path));
        }
        Ok(CopiedFile { name, path, bytes: meta.len() })
    };
    names.into_iter().filter(|name| is_copied(name)).map(file).collect()
}

/// True where something is at `copy` that is not a copy of `original`.
pub(super) fn differs(original: &CopiedFile, copy: &Path) -> io::Result<bool> {
    let there = match fs::metadata(copy) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    if !there.is_file() || there.len() != original.bytes {
        return Ok(true);
    }
    let open = |path: &Path| File::open(path).map(|file| BufReader::with_capacity(BLOCK, file.take(original.bytes)));
    let (mut ours, mut theirs) = (open(&original.path)?, open(copy)?);
    loop {
        let (a, b) = (ours.fill_buf()?, theirs.fill_buf()?);
        let n = a.len().min(b.len());
        if n == 0 {
            return Ok(a.len() != b.len());
        }
        if a[..n] != b[..n] {
            return Ok(true);
        }
        ours.consume(n);
        theirs.consume(n);
    }
}

/// Stages a copy.
pub(super) fn copy(stage: &Stage, from: &CopiedFile, watch: Watch<'_>) -> Result<(Staged, FileDigest)> {
    let cannot = |e| EngineError::io("cannot read the file to copy", &from.path, e);
    let (source, _) = open_regular(&from.path)?;
    let mut source = source.take(from.bytes + 1); // it may grow meanwhile
    let mut file = stage.file(&from.name)?;
    let (mut block, mut copied) = (vec![0; BLOCK], 0);
    loop {
        match source.read(&mut block).map_err(cannot)? {
            0 => break,
            n => {
                file.write(&block[..n], watch)?;
                copied += n as u64;
            }
        }
    }
    if copied != from.bytes {
        let error = EngineError::new(ErrorKind::Checkpoint, "the file's size changed while it was being copied").file(&from.path);
        return Err(error.expected(format_args!("{} bytes", from.bytes)).found(copied));
    }
    let (staged, digest) = file.sync()?;
    Ok((staged, FileDigest::new(&from.name, digest)))
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
