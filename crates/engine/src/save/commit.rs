//! The moment of a save: staged files get their names while the directory is locked and has no manifest.

use std::{
    fs::{File, TryLockError},
    time::Duration,
};

use super::{
    Saved, Saver,
    names::{MANIFEST, is_rank_file},
    rank::StagedRank,
    refuse::list,
    source::SaveIdentity,
    staged::{Stage, Staged, remove, sync_dir},
};
use crate::error::{EngineError, Result};

impl Saver<'_> {
    /// Gives the staged files their names; the manifest goes first and comes last, so that at no time it tells of files that are not there.
    pub(super) fn commit(&self, stage: &Stage, identity: &SaveIdentity, staged: Vec<StagedRank>) -> Result<Saved> {
        let early = self.complete_early(stage, identity, &staged)?;
        let _locked = self.lock()?;
        let ranks: Vec<u32> = staged.iter().map(|rank| rank.files.rank).collect();
        self.refuse(identity, &ranks)?; // another save may have come between
        self.watch(0)?;
        let world_size = self.plan.mesh.world_size();
        remove(&self.dir.join(MANIFEST))?;
        for rank in &staged {
            remove(&self.dir.join(self.format.rank_manifest_name(rank.files.rank, world_size)))?;
        }
        self.remove_overwritten(identity)?;
        sync_dir(&self.dir)?;

        let (mut files, mut manifests) = (Vec::new(), Vec::new());
        for StagedRank { files: reported, shard, manifest, .. } in staged {
            shard.rename()?;
            files.push(reported);
            manifests.push(manifest);
        }
        sync_dir(&self.dir)?;
        manifests.into_iter().try_for_each(Staged::rename)?;
        sync_dir(&self.dir)?;
        let missing = self.assemble(stage, identity, early)?;
        Ok(Saved { files: files.into_iter().map(|f| f.shard).collect(), missing })
    }

    /// Locks the directory until the file is dropped, as only one process may commit at a time. Where locks are not supported, processes
    /// of equal saves still agree on every byte.
    fn lock(&self) -> Result<File> {
        let directory = File::open(&self.dir).map_err(|e| EngineError::io("cannot open the directory", &self.dir, e))?;
        while let Err(TryLockError::WouldBlock) = directory.try_lock() {
            self.watch(0)?;
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(directory)
    }

    /// Removes what an overwritten save has left and this one will not replace.
    fn remove_overwritten(&self, identity: &SaveIdentity) -> Result<()> {
        let names = list(&self.dir).map_err(|e| EngineError::io("cannot list the directory", &self.dir, e))?;
        let overwritten: Vec<_> = names.iter().filter(|n| is_rank_file(n) && !self.belongs(n, identity)).collect();
        overwritten.into_iter().try_for_each(|name| remove(&self.dir.join(name)))
    }
}
