//! What stands in a save's way: another save, files that would be taken for shards, a disk that is too small.

use std::io;

use super::{copied, identity::SaveIdentity, saver::Saver};
use crate::{
    error::{EngineError, ErrorKind, Result},
    file::list,
    filenames::{MANIFEST, RANK_MANIFEST_SUFFIX, SHARD_SUFFIX, is_rank_file},
    saved::RankHead,
};

impl Saver<'_> {
    /// As [`Saver::refuse`], before the directory is locked for the commit. Another process's commit may be half done at that moment, its
    /// old manifest gone and old shards still there, so a refusal counts only once the directory was looked at under the lock.
    pub(super) fn refuse_early(&self, identity: &SaveIdentity, ranks: &[u32]) -> Result<()> {
        match self.refuse(identity, ranks) {
            Err(e) if e.kind() == ErrorKind::Exists && self.dir.is_dir() => {
                let _locked = self.lock()?;
                self.refuse(identity, ranks)
            }
            other => other,
        }
    }

    /// Refuses a directory that this save of `ranks` may not write into.
    ///
    /// An unfinished save of a world of this size may be that of this very job, whose other ranks read another copy of the model or another
    /// config. Unless this process saves every rank, such files are never replaced: the ranks would delete each other's for ever.
    pub(super) fn refuse(&self, identity: &SaveIdentity, ranks: &[u32]) -> Result<()> {
        let names = match list(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
                return Err(EngineError::new(ErrorKind::Exists, "it exists already and is not a directory").file(&self.dir));
            }
            other => other.map_err(|e| EngineError::io("cannot list the directory", &self.dir, e))?,
        };
        let exists = |what: String| Err(EngineError::new(ErrorKind::Exists, what).file(&self.dir));
        if let Some(foreign) = names.iter().find(|n| n.ends_with(SHARD_SUFFIX) && !is_rank_file(n)) {
            return exists(format!(
                "it holds '{foreign}', which readers of shards would take for one of them; save into another directory"
            ));
        }
        let complete = names.iter().any(|n| n == MANIFEST);
        if complete && !self.overwrite {
            return exists("it holds a save already; --overwrite replaces it".into());
        }
        let every_rank = ranks.len() as u64 == u64::from(self.plan.mesh.world_size());
        if !complete
            && !every_rank
            && let Some((name, difference)) = names.iter().find_map(|name| Some((name, self.conflict(name, identity)?)))
        {
            return exists(format!(
                "it holds '{name}' of an unfinished save of as many ranks, which this one cannot join: {difference}. Let every rank read the \
                 same model with the same config; or remove the directory, if that save is an old one"
            ));
        }
        if self.overwrite {
            return Ok(());
        }
        if let Some(other) = names.iter().find(|n| is_rank_file(n) && !self.belongs(n, identity)) {
            return exists(format!("it holds '{other}' of an unfinished save of another plan or source; --overwrite replaces it"));
        }
        for file in copied::find(self.checkpoint)? {
            let copy = self.dir.join(&file.name);
            if copied::differs(&file, &copy).map_err(|e| EngineError::io("cannot read the file", &copy, e))? {
                return exists(format!("it holds another '{}' than the model's; --overwrite replaces it", file.name));
            }
        }
        Ok(())
    }

    /// How this save differs from the one whose rank's manifest that is, where both are of as many ranks.
    fn conflict(&self, name: &str, identity: &SaveIdentity) -> Option<String> {
        if !is_rank_file(name) || !name.ends_with(RANK_MANIFEST_SUFFIX) {
            return None;
        }
        let other = RankHead::peek(&self.dir.join(name))?;
        (other.world_size == self.plan.mesh.world_size() && other.save != identity.save).then(|| identity.difference(&other))
    }

    /// True for a rank's file of this very save.
    pub(super) fn belongs(&self, name: &str, identity: &SaveIdentity) -> bool {
        let world_size = self.plan.mesh.world_size();
        let number = name.split('-').nth(1).and_then(|n| n.split('.').next()?.parse::<u32>().ok());
        let Some(rank) = number.and_then(|n| n.checked_sub(1)).filter(|&rank| rank < world_size) else { return false };
        if name == self.format.shard_name(rank, world_size) {
            return !self.dir.join(self.format.rank_manifest_name(rank, world_size)).exists() || self.manifest_belongs(rank, identity);
        }
        name.ends_with(RANK_MANIFEST_SUFFIX)
            && name == self.format.rank_manifest_name(rank, world_size)
            && self.manifest_belongs(rank, identity)
    }

    fn manifest_belongs(&self, rank: u32, identity: &SaveIdentity) -> bool {
        RankHead::read(&self.dir, self.format, rank, self.plan.mesh.world_size()).is_ok_and(|(m, _)| m.save == identity.save)
    }
}
