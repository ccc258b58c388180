//! Keeping loaded shards in a directory: who writes what, in which order, so that nothing half-written is ever taken for whole.
//!
//! A save stages its files in a hidden directory (`rank`, `staged`), then commits under a lock on the directory (`commit`): it takes the
//! old manifest away, gives the files their names, and, once every rank is there, writes the manifest last (`assemble`). Several
//! processes may each save some ranks; whichever comes last completes the directory. What is in which file: `entries`, `header`, `names`.

mod assemble;
mod commit;
mod copied;
pub mod entries;
pub mod header;
pub(crate) mod names;
mod rank;
mod refuse;
mod source;
mod staged;
mod stream;
mod supply;
pub mod tied;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock},
};

use shardwright_core::{Name, ShardPlan};

pub(crate) use self::copied::is_copied;
use self::source::SaveIdentity;
pub use self::{
    names::{Format, MANIFEST},
    rank::RankBytes,
    stream::Streamed,
};
use crate::{
    checkpoint::Checkpoint,
    error::{EngineError, ErrorKind, Result},
    load::{CancelToken, Loaded},
    manifest::FileDigest,
    parallel,
};

/// Saves a world's shards, or some ranks of it, into a directory.
pub struct Saver<'a> {
    plan: &'a ShardPlan,
    checkpoint: &'a Checkpoint,
    dir: PathBuf,
    format: Format,
    overwrite: bool,
    progress: &'a (dyn Fn(u64) + Sync),
    cancel: CancelToken,
    aliases: Vec<(Name, Name)>,
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
            aliases: tied::of_checkpoint(checkpoint),
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

    /// How many bytes [`Saver::progress`] will be called with at most for these ranks.
    ///
    /// # Errors
    /// As [`Saver::check`].
    pub fn bytes(&self, ranks: &[u32]) -> Result<u64> {
        let source = sum(self.checkpoint.files().iter().map(|f| f.stamp.size));
        let copied = sum(copied::find(self.checkpoint)?.iter().map(|file| file.bytes));
        Ok(self.shard_bytes(ranks)?.saturating_add(source).saturating_add(copied))
    }

    /// Bytes of the shards of these ranks, as they are written.
    fn shard_bytes(&self, ranks: &[u32]) -> Result<u64> {
        let aliases = self.plan_aliases()?;
        ranks.iter().try_fold(0, |all: u64, &rank| Ok(all.saturating_add(sum(self.entries(&aliases, rank)?.iter().map(|e| e.bytes)))))
    }

    /// Refuses early, before anything is loaded, what [`Saver::save`] would refuse: a directory that holds a save or files that would be
    /// taken for shards, one that cannot be written, too little space.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] and [`ErrorKind::Io`].
    pub fn check(&self, ranks: &[u32]) -> Result<()> {
        self.refuse(self.identity()?, ranks)?;
        let copied = sum(copied::find(self.checkpoint)?.iter().map(|file| file.bytes));
        refuse::check_space(&self.dir, self.shard_bytes(ranks)?.saturating_add(copied))
    }

    /// Saves all ranks of a load: [`Saver::save`].
    ///
    /// # Errors
    /// As there.
    pub fn save_loaded(&self, loaded: &Loaded<'_>) -> Result<Saved> {
        self.save(&loaded.ranks.iter().map(|rank| rank as &dyn RankBytes).collect::<Vec<_>>())
    }

    /// Saves these ranks, and completes the directory if they were the last.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] where a save is there already, [`ErrorKind::Io`] with file and cause where writing fails,
    /// [`ErrorKind::Checkpoint`] where the source has changed since it was opened, [`ErrorKind::Cancelled`]. Nothing is left behind then
    /// but what was there before, unless the commit had begun; a directory without its manifest is refused by verification.
    pub fn save(&self, ranks: &[&dyn RankBytes]) -> Result<Saved> {
        let identity = self.identity()?;
        let headers = Mutex::new(());
        let numbers: Vec<u32> = ranks.iter().map(|rank| rank.rank()).collect();
        self.stage_and_commit(identity, &numbers, |stage, at| {
            let supply = supply::Loaded { plan: self.plan, rank: ranks[at] };
            self.stage_rank(stage, identity, &headers, numbers[at], &supply, false).map_err(|e| e.rank(numbers[at]))
        })
    }

    /// Stages each of the ranks, given by its place in `ranks`, and commits them.
    fn stage_and_commit(
        &self,
        identity: &SaveIdentity,
        ranks: &[u32],
        stage_rank: impl Fn(&staged::Stage, usize) -> Result<rank::StagedRank> + Sync,
    ) -> Result<Saved> {
        let created = self.create_dir()?;
        let save = || {
            self.refuse(identity, ranks)?;
            staged::remove_leftovers(&self.dir);
            let stage = staged::Stage::create(&self.dir)?;
            let places: Vec<usize> = (0..ranks.len()).collect();
            let staged = parallel::map(&places, |&at| stage_rank(&stage, at))?;
            self.commit(&stage, identity, staged)
        };
        let saved = save();
        if saved.is_err() && created {
            let _ = fs::remove_dir(&self.dir); // if it is empty
        }
        saved
    }

    fn entries<'e>(&'e self, aliases: &'e [tied::Alias], rank: u32) -> Result<entries::Entries<'e>> {
        entries::entries(self.plan, aliases, rank).map_err(|what| EngineError::new(ErrorKind::Plan, what).rank(rank))
    }

    /// Tied weights are stored under each name in torch's format: its readers look for all of them. Nobody looks in flat partitions.
    fn plan_aliases(&self) -> Result<Vec<tied::Alias>> {
        let pairs = self.aliases.iter().filter(|_| self.format == Format::TorchDcp);
        let aliases = tied::of_plan(self.plan, pairs.map(|(alias, tensor)| (alias.as_str(), tensor.as_str())));
        aliases.map_err(|what| EngineError::new(ErrorKind::Plan, what))
    }

    /// Before and after every block.
    fn watch(&self, bytes: u64) -> Result<()> {
        (self.progress)(bytes);
        match self.cancel.is_cancelled() {
            true => Err(EngineError::new(ErrorKind::Cancelled, "the save was stopped").file(&self.dir)),
            false => Ok(()),
        }
    }

    /// Makes the directory, and says whether it was not there.
    fn create_dir(&self) -> Result<bool> {
        let existed = self.dir.is_dir();
        fs::create_dir_all(&self.dir).map_err(|e| EngineError::io("cannot make the directory", &self.dir, e))?;
        if !existed {
            let parent = self.dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            staged::sync_dir(parent)?;
        }
        Ok(!existed)
    }
}

impl std::fmt::Debug for Saver<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saver").field("dir", &self.dir).field("format", &self.format).finish_non_exhaustive()
    }
}

/// Sizes of files of holes may add up to more than 64 bits: then it is as much as can be said.
fn sum(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(0, u64::saturating_add)
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
