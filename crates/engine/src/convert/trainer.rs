//! Small files that trainers keep beside the tensors, for resuming: counters, schedulers, data loaders, random numbers. They are copied as
//! they are; nothing of them is read.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::error::{EngineError, Result};

/// A file to copy along.
pub(super) struct TrainerFile {
    /// Relative to the checkpoint.
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// Whether it is one rank's own state.
    pub(super) of_rank: bool,
}

/// Of LLaMA-Factory, transformers' Trainer and accelerate.
const WHOLE: [&str; 8] = [
    "metadata.json",
    "CHECKPOINT_COMPLETE",
    "trainer_state.json",
    "training_args.bin",
    "scheduler.pt",
    "scheduler.bin",
    "scaler.pt",
    "rng_state.pth",
];
/// Names before and after the number of a rank.
const OF_RANKS: [(&str, &str); 4] =
    [("rng_state_", ".pth"), ("random_states_", ".pkl"), ("dataloader/rank_", ".pt"), ("rng_state/rank_", ".pt")];

/// The trainer's files in a checkpoint's directory, sorted by name.
pub(super) fn files(dir: &Path) -> Result<Vec<TrainerFile>> {
    let mut out = Vec::new();
    for sub in ["", "dataloader", "rng_state"] {
        let at = dir.join(sub);
        if !at.is_dir() {
            continue;
        }
        let cannot = |e| EngineError::io("cannot list the directory", &at, e);
        for entry in fs::read_dir(&at).map_err(cannot)? {
            let Ok(file) = entry.map_err(cannot)?.file_name().into_string() else { continue };
            let name = if sub.is_empty() { file } else { format!("{sub}/{file}") };
            let path = dir.join(&name);
            let of_rank = is_of_rank(&name);
            if (of_rank || WHOLE.contains(&name.as_str())) && !path.is_dir() {
                out.push(TrainerFile { name, path, of_rank });
            }
        }
    }
    out.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(out)
}

fn is_of_rank(name: &str) -> bool {
    let number = |(before, after): &(&str, &str)| name.strip_prefix(before)?.strip_suffix(after);
    OF_RANKS.iter().filter_map(number).any(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trainers_files_are_distinguished_from_others() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("dataloader")).unwrap();
        for name in ["metadata.json", "rng_state_0.pth", "rng_state_.pth", "dataloader/rank_12.pt", "dataloader/other", "model.bin"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        let found: Vec<_> = files(dir.path()).unwrap().into_iter().map(|f| (f.name, f.of_rank)).collect();
        let expected = [("dataloader/rank_12.pt", true), ("metadata.json", false), ("rng_state_0.pth", true)];
        assert_eq!(found, expected.map(|(name, of_rank)| (name.to_owned(), of_rank)));
    }
}
