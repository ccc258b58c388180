//! The `--save` of `load`: the early refusal, the save with its progress, and the sentence that reports it.

use std::path::Path;

use shardwright_core::ShardPlan;
use shardwright_engine::{
    Checkpoint,
    load::{CancelToken, IoOptions, Loaded},
    save::{Saved, Saver, Streamed},
};

use crate::{counted::Counted, exit::Failure, table::bytes};

/// Where shards are written, once that is known to be possible: asked before anything is loaded.
#[derive(Debug)]
pub struct Target<'a> {
    dir: &'a Path,
    saver: Saver<'a>,
    bytes: u64,
}

impl<'a> Target<'a> {
    /// The target of `--save DIR` for these ranks.
    pub fn new(dir: &'a Path, overwrite: bool, plan: &'a ShardPlan, checkpoint: &'a Checkpoint, ranks: &[u32]) -> Result<Self, Failure> {
        let saver = Saver::new(plan, checkpoint, dir).overwrite(overwrite);
        saver.check(ranks)?;
        let bytes = saver.bytes(ranks)?;
        Ok(Self { dir, saver, bytes })
    }

    /// Saves what is loaded, and says what was saved.
    pub fn save(self, loaded: &Loaded<'_>, cancel: &CancelToken) -> Result<String, Failure> {
        let counted = Counted::new("save", self.bytes);
        let add = |n| counted.add(n);
        let saved = self.saver.progress(&add).cancel(cancel).save_loaded(loaded);
        counted.finish();
        Ok(sentence(self.dir, &saved?))
    }

    /// Saves these ranks from the checkpoint, and says what was saved.
    pub fn stream(self, ranks: &[u32], io: &IoOptions, digests: bool, cancel: &CancelToken) -> Result<(Streamed, String), Failure> {
        let counted = Counted::new("save", self.bytes);
        let add = |n| counted.add(n);
        let streamed = self.saver.progress(&add).cancel(cancel).stream(ranks, io, digests);
        counted.finish();
        let streamed = streamed?;
        let said = sentence(self.dir, &streamed.saved);
        Ok((streamed, said))
    }
}

fn sentence(dir: &Path, saved: &Saved) -> String {
    let size = bytes(saved.files.iter().map(|f| f.bytes).sum());
    let files = match saved.files.as_slice() {
        [one] => format!("{} ({size})", one.name),
        many => format!("{} files of shards ({size})", many.len()),
    };
    let shown = |ranks: &[u32]| ranks.iter().take(8).map(u32::to_string).collect::<Vec<_>>().join(", ");
    let rest = match saved.missing.as_slice() {
        [] => "the directory is complete".to_owned(),
        [one] => format!("rank {one} is still to come"),
        many => format!("ranks {}{} are still to come", shown(many), if many.len() > 8 { ", …" } else { "" }),
    };
    format!("saved {files} to {}; {rest}\n", dir.display())
}
