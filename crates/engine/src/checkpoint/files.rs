//! Which files of a directory are the checkpoint: one, those of an index, or all that there are; and whether any is missing.

use std::{collections::BTreeMap, io};

use super::{find::ModelDir, index};
use crate::{
    error::{EngineError, ErrorKind, Result},
    filenames::is_rank_file,
};

/// The one file of a small model.
const SINGLE: &str = "model.safetensors";
/// What PEFT calls an adapter's config.
const ADAPTER: &str = "adapter_config.json";
/// How other formats' files end, to say what was seen where nothing can be read.
const OTHER_FORMATS: [&str; 10] = [".bin", ".pt", ".pth", ".ckpt", ".gguf", ".distcp", ".h5", ".msgpack", ".npz", ".onnx"];

impl ModelDir {
    /// The names of the safetensors files, sorted, and the index where one decides.
    pub(super) fn file_names(&self) -> Result<(Vec<String>, Option<index::Index>)> {
        if let Some(file) = &self.file {
            return Ok((vec![file.clone()], None));
        }
        if self.dir.join(crate::filenames::MANIFEST).exists() {
            let what = "it holds a save of shards, and whole tensors beside it; keep one of the two there";
            return Err(EngineError::new(ErrorKind::Checkpoint, what).file(&self.dir));
        }
        let [single, indexed] = [SINGLE, index::INDEX].map(|name| self.dir.join(name).symlink_metadata().is_ok());
        if single && !(indexed && self.index_first) {
            return Ok((vec![SINGLE.into()], None));
        }
        if indexed {
            let index = index::read(&self.resolve(index::INDEX)?)?;
            self.all_there(&index)?;
            return Ok((index.files.clone(), Some(index)));
        }
        let all = self.list()?;
        let mut names: Vec<String> = all.iter().filter(|n| n.ends_with(".safetensors")).cloned().collect();
        if all.iter().any(|n| n == ADAPTER) && names.iter().all(|n| n.starts_with("adapter")) {
            return Err(self.adapter());
        }
        // Mistral's own layout beside Hugging Face's: the same weights under other names.
        let consolidated = |n: &String| n.starts_with("consolidated");
        if names.iter().any(consolidated) && !names.iter().all(consolidated) {
            names.retain(|n| !consolidated(n));
        }
        if names.is_empty() {
            let other: Vec<&str> = all.iter().filter(|n| OTHER_FORMATS.iter().any(|end| n.ends_with(end))).map(String::as_str).collect();
            let found = match other.as_slice() {
                [] => "none".to_owned(),
                [first] => format!("'{first}', which is not read here"),
                [first, more @ ..] => format!("'{first}' and {} more of such formats, which are not read here", more.len()),
            };
            return Err(EngineError::new(ErrorKind::Checkpoint, "no checkpoint here")
                .file(&self.dir)
                .expected("model.safetensors, model.safetensors.index.json or other *.safetensors")
                .found(found));
        }
        Ok((names, None))
    }

    /// Weights of the directory beside those that are read, which a user may have meant.
    pub(super) fn passed_over(&self, names: &[String]) -> Vec<String> {
        if self.file.is_some() {
            return Vec::new();
        }
        let there = |name: &str| self.dir.join(name).symlink_metadata().is_ok();
        let mut found = Vec::new();
        if there(SINGLE) && there(index::INDEX) {
            let [read, left, why] = if self.index_first {
                [index::INDEX, SINGLE, "as LLaMA-Factory's init_on_meta does"]
            } else {
                [SINGLE, index::INDEX, "as transformers does; under init_on_meta LLaMA-Factory's FSDP2 takes the index"]
            };
            found.push(format!("{}: '{read}' and '{left}' are both there: '{read}' is read, {why}", self.dir.display()));
        }
        let all = self.list().unwrap_or_default();
        let others = || all.iter().filter(|n| n.ends_with(".safetensors") && !names.contains(n));
        let mut left_out = |left: Vec<&String>, what: &str| {
            let [first, others @ ..] = left.as_slice() else { return };
            let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
            let read = names.first().map_or("", String::as_str);
            found.push(format!("{}: '{first}'{more} is left out: {what}; '{read}' is read", self.dir.display()));
        };
        left_out(others().filter(|n| n.starts_with("consolidated")).collect(), "the same weights under Mistral's own names, by that name");
        left_out(others().filter(|n| is_rank_file(n)).collect(), "shards of ranks, by that name");
        found
    }

    /// An adapter is not a model.
    fn adapter(&self) -> EngineError {
        let text =
            self.resolve(ADAPTER).and_then(|path| crate::file::read_bounded(&path, 16 << 20, "too long for a config")).unwrap_or_default();
        let config: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let kind = config["peft_type"].as_str().unwrap_or("PEFT");
        let base =
            config["base_model_name_or_path"].as_str().map_or(String::new(), |b| format!(" of '{}'", shardwright_core::text::shown(b)));
        let what =
            format!("it holds a {kind} adapter{base}, not a model; give the base model as `model`, or merge the adapter into it first");
        EngineError::new(ErrorKind::Checkpoint, what).file(self.dir.join(ADAPTER))
    }

    /// Where no index lists the files, their numbers do.
    pub(super) fn none_missing(&self, names: &[String]) -> Result<()> {
        let Some(missing) = missing(names).filter(|_| self.file.is_none()) else { return Ok(()) };
        Err(EngineError::new(ErrorKind::Checkpoint, "a file of the checkpoint is missing")
            .file(&self.dir)
            .expected(format_args!("'{missing}', as the other files' names say"))
            .found(format_args!("{} files and no {}", names.len(), index::INDEX)))
    }

    /// Every file that the index names.
    fn all_there(&self, index: &index::Index) -> Result<()> {
        for (number, name) in index.files.iter().enumerate() {
            let path = self.dir.join(name);
            let error = match std::fs::metadata(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => e,
                _ => continue, // whatever else is wrong, opening it will say
            };
            let what = if path.is_symlink() { "a file of the index is a link to nothing" } else { "a file of the index is missing" };
            let count = index.weights.iter().filter(|w| w.1 == number).count();
            let first = index.weights.iter().find(|w| w.1 == number).map_or("", |w| w.0.as_str());
            return Err(EngineError::new(ErrorKind::Checkpoint, what)
                .file(path)
                .tensor(first)
                .expected(format_args!("{count} tensors in it by {}", index.path.display()))
                .cause(error));
        }
        Ok(())
    }
}

/// The first file that is missing from a numbered set, `NAME-00002-of-00005.safetensors`. Numbers start at 1, or at 0, and have the five
/// digits or more of Hugging Face's: `step-5-of-10` is no part.
fn missing(names: &[String]) -> Option<String> {
    let mut sets: BTreeMap<(&str, &str), Vec<(u64, usize)>> = BTreeMap::new();
    for name in names {
        let stem = name.strip_suffix(".safetensors")?;
        let Some((rest, total)) = stem.rsplit_once("-of-") else { continue };
        let Some((prefix, number)) = rest.rsplit_once('-') else { continue };
        let digits = |text: &str| (5..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        if digits(number) && digits(total) {
            sets.entry((prefix, total)).or_default().push((number.parse().ok()?, number.len()));
        }
    }
    sets.into_iter().find_map(|((prefix, total), mut found)| {
        found.sort_unstable();
        found.dedup_by_key(|f| f.0);
        let first = u64::from(found[0].0 != 0);
        let count: u64 = total.parse().ok()?;
        let gap =
            (first..first + count).zip(found.iter().map(|f| Some(f.0)).chain(std::iter::repeat(None))).find(|(due, is)| Some(*due) != *is);
        gap.map(|(due, _)| format!("{prefix}-{due:0width$}-of-{total}.safetensors", width = found[0].1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_gap_of_a_numbered_set_is_found() {
        let gap = |names: &[&str]| missing(&names.iter().map(|n| format!("{n}.safetensors")).collect::<Vec<_>>());
        assert_eq!(gap(&["model-00001-of-00002", "model-00002-of-00002"]), None);
        assert_eq!(gap(&["model-00000-of-00002", "model-00001-of-00002"]), None);
        assert_eq!(gap(&["a", "model-1-of-x", "x-of-3", "-of-", "model-step-5-of-10"]), None);
        assert_eq!(gap(&["model-00001-of-00003", "model-00003-of-00003"]).unwrap(), "model-00002-of-00003.safetensors");
        assert_eq!(gap(&["model-00002-of-00002"]).unwrap(), "model-00001-of-00002.safetensors");
        assert_eq!(gap(&["a-00001-of-00001", "b-00001-of-00002"]).unwrap(), "b-00002-of-00002.safetensors");
        assert_eq!(gap(&["model-00001-of-999999999"]).unwrap(), "model-00002-of-999999999.safetensors");
    }
}
