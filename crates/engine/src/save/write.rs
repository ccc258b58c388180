//! Saving what is in memory, and what can be said before.

use super::{
    bytes::RankBytes,
    copied,
    saver::{Saved, Saver, sum},
    supply,
};
use crate::{error::Result, file::check_space, load::Loaded};

impl Saver<'_> {
    /// How many bytes [`Saver::progress`] will be called with at most for these ranks.
    ///
    /// # Errors
    /// As [`Saver::check`].
    pub fn bytes(&self, ranks: &[u32]) -> Result<u64> {
        let source = sum(self.checkpoint.files().iter().map(|f| f.stamp.size));
        let copied = sum(copied::find(self.checkpoint)?.iter().map(|file| file.bytes));
        Ok(self.shard_bytes(ranks)?.saturating_add(source).saturating_add(copied))
    }

    /// Refuses early, before anything is loaded, what [`Saver::save`] would refuse: a directory that holds a save or files that would be
    /// taken for shards, one that cannot be written, too little space.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] and [`ErrorKind::Io`].
    ///
    /// [`ErrorKind::Exists`]: crate::ErrorKind::Exists
    /// [`ErrorKind::Io`]: crate::ErrorKind::Io
    pub fn check(&self, ranks: &[u32]) -> Result<()> {
        self.refuse_early(self.identity()?, ranks)?;
        let copied = sum(copied::find(self.checkpoint)?.iter().map(|file| file.bytes));
        // The old files of an overwrite stay until the new ones are whole, so they count as taken.
        check_space(&self.dir, self.shard_bytes(ranks)?.saturating_add(copied), "the shards")
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
    ///
    /// [`ErrorKind::Exists`]: crate::ErrorKind::Exists
    /// [`ErrorKind::Io`]: crate::ErrorKind::Io
    /// [`ErrorKind::Checkpoint`]: crate::ErrorKind::Checkpoint
    /// [`ErrorKind::Cancelled`]: crate::ErrorKind::Cancelled
    pub fn save(&self, ranks: &[&dyn RankBytes]) -> Result<Saved> {
        let identity = self.identity()?;
        let numbers: Vec<u32> = ranks.iter().map(|rank| rank.rank()).collect();
        self.stage_and_commit(identity, &numbers, |stage, at| {
            let supply = supply::Loaded { plan: self.plan, rank: ranks[at] };
            self.stage_rank(stage, identity, numbers[at], &supply, false).map_err(|e| e.rank(numbers[at]))
        })
    }
}
