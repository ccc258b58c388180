//! What to save, where to, and how: what all steps of a save share.

use std::{path::PathBuf, sync::OnceLock};

use shardwright_core::{Name, ShardPlan};

use super::identity::SaveIdentity;
use crate::{
    checkpoint::Checkpoint,
    error::{EngineError, ErrorKind, Result},
    filenames::Format,
    load::CancelToken,
    saved::{
        FileDigest,
        aliases::{self, Alias},
        entries::{self, Entries},
    },
};

/// Saves a world's shards, or some ranks of it, into a directory.
pub struct Saver<'a> {
    pub(super) plan: &'a ShardPlan,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) dir: PathBuf,
    pub(super) format: Format,
    pub(super) overwrite: bool,
    pub(super) progress: &'a (dyn Fn(u64) + Sync),
    pub(super) cancel: CancelToken,
    pub(super) aliases: Vec<(Name, Name)>,
    identity: OnceLock<SaveIdentity>,
}

/// What a save wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Saved {
    /// The shard files written, by rank.
    pub files: Vec<FileDigest>,
    /// The ranks that no process has saved yet; where there are none, the directory is complete.
    pub missing: Vec<u32>,
}

impl<'a> Saver<'a> {
    /// A saver of `plan`'s shards of `checkpoint` into `dir`, which is made if need be.
    pub fn new(plan: &'a ShardPlan, checkpoint: &'a Checkpoint, dir: impl Into<PathBuf>) -> Self {
        let format = Format::of(plan);
        Self {
            plan,
            checkpoint,
            dir: dir.into(),
            format,
            overwrite: false,
            progress: &|_| {},
            cancel: CancelToken::new(),
            aliases: aliases::of_checkpoint(checkpoint),
            identity: OnceLock::new(),
        }
    }

    /// Whether a save that is there already may be replaced.
    #[must_use]
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Pairs of a second name and the tensor that the model has under it too, instead of those of the model's class.
    #[must_use]
    pub fn aliases(mut self, aliases: Vec<(Name, Name)>) -> Self {
        self.aliases = aliases;
        self
    }

    /// Called for every block: how many bytes more were written or, at the end, read from the source for its digest.
    #[must_use]
    pub fn progress(mut self, progress: &'a (dyn Fn(u64) + Sync)) -> Self {
        self.progress = progress;
        self
    }

    /// Stops it, at the next block, when that token is cancelled.
    #[must_use]
    pub fn cancel(mut self, cancel: &CancelToken) -> Self {
        self.cancel = cancel.clone();
        self
    }

    /// Bytes of the shards of these ranks, as they are written.
    pub(super) fn shard_bytes(&self, ranks: &[u32]) -> Result<u64> {
        let aliases = self.plan_aliases()?;
        ranks.iter().try_fold(0, |all: u64, &rank| Ok(all.saturating_add(sum(self.entries(&aliases, rank)?.iter().map(|e| e.bytes)))))
    }

    pub(super) fn entries<'e>(&'e self, aliases: &'e [Alias], rank: u32) -> Result<Entries<'e>> {
        entries::entries(self.plan, aliases, rank).map_err(|what| EngineError::new(ErrorKind::Plan, what).rank(rank))
    }

    /// Tied weights are stored under each name in torch's format: its readers look for all of them. Nobody looks in flat partitions.
    pub(super) fn plan_aliases(&self) -> Result<Vec<Alias>> {
        let pairs = self.aliases.iter().filter(|_| self.format == Format::TorchDcp);
        let aliases = aliases::of_plan(self.plan, pairs.map(|(alias, tensor)| (alias.as_str(), tensor.as_str())));
        aliases.map_err(|what| EngineError::new(ErrorKind::Plan, what))
    }

    /// Before and after every block.
    pub(super) fn watch(&self, bytes: u64) -> Result<()> {
        (self.progress)(bytes);
        match self.cancel.is_cancelled() {
            true => Err(EngineError::new(ErrorKind::Cancelled, "the save was stopped").file(&self.dir)),
            false => Ok(()),
        }
    }

    /// Computed once: the files must not change during a load and its save.
    pub(super) fn identity(&self) -> Result<&SaveIdentity> {
        if let Some(known) = self.identity.get() {
            return Ok(known);
        }
        let identity = SaveIdentity::new(self.plan, &self.aliases, self.checkpoint)?;
        Ok(self.identity.get_or_init(|| identity))
    }
}

impl std::fmt::Debug for Saver<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saver").field("dir", &self.dir).field("format", &self.format).finish_non_exhaustive()
    }
}

/// Sizes of files of holes may add up to more than 64 bits: then it is as much as can be said.
pub(super) fn sum(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(0, u64::saturating_add)
}
