//! The moment of a save: staged files get their names while the directory is locked and has no manifest.

use std::{
    fs::{self, File, TryLockError},
    path::Path,
    time::Duration,
};

use super::{
    identity::SaveIdentity,
    rank::StagedRank,
    saver::{Saved, Saver},
    staged::{self, Stage, Staged, remove, sync_dir},
};
use crate::{
    error::{EngineError, Result},
    file::list,
    filenames::{MANIFEST, is_rank_file},
    parallel,
};

impl Saver<'_> {
    /// Stages each of the ranks, given by its place in `ranks`, and commits them.
    pub(super) fn stage_and_commit(
        &self,
        identity: &SaveIdentity,
        ranks: &[u32],
        stage_rank: impl Fn(&Stage, usize) -> Result<StagedRank> + Sync,
    ) -> Result<Saved> {
        let created = self.create_dir()?;
        let save = || {
            self.refuse_early(identity, ranks)?;
            staged::remove_leftovers(&self.dir);
            let stage = Stage::create(&self.dir)?;
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

    /// Makes the directory, and says whether it was not there.
    fn create_dir(&self) -> Result<bool> {
        let existed = self.dir.is_dir();
        fs::create_dir_all(&self.dir).map_err(|e| EngineError::io("cannot make the directory", &self.dir, e))?;
        if !existed {
            let parent = self.dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            sync_dir(parent)?;
        }
        Ok(!existed)
    }

    /// Gives the staged files their names; the manifest goes first and comes last, so that at no time it tells of files that are not there.
    fn commit(&self, stage: &Stage, identity: &SaveIdentity, staged: Vec<StagedRank>) -> Result<Saved> {
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
    pub(super) fn lock(&self) -> Result<File> {
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
