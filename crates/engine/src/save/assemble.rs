//! The end of a save: once the files of every rank are there, config and tokenizer are copied and the manifest is written.

use std::{
    fs::{self, File},
    io,
};

use super::{
    copied,
    identity::SaveIdentity,
    rank::StagedRank,
    saver::Saver,
    staged::{Stage, Staged, sync_dir},
};
use crate::{
    digest::sha256_stream,
    error::{EngineError, Result},
    filenames::MANIFEST,
    saved::{FileDigest, Manifest, RankFiles, RankHead, seal},
};

/// What a complete directory needs beside its shards: digests of the source's files, and staged copies of config and tokenizer.
#[derive(Debug)]
pub(super) struct Completion {
    source: Vec<FileDigest>,
    copied: Vec<(Staged, FileDigest)>,
}

impl Saver<'_> {
    /// The completion, if no other process has to save a rank yet: made before the commit, which is then short.
    pub(super) fn complete_early(&self, stage: &Stage, identity: &SaveIdentity, staged: &[StagedRank]) -> Result<Option<Completion>> {
        let ours = |rank| staged.iter().any(|s| s.files.rank == rank);
        let all = (0..self.plan.mesh.world_size()).all(|rank| ours(rank) || self.saved_rank(rank, identity).is_some());
        if all { self.completion(stage).map(Some) } else { Ok(None) }
    }

    fn completion(&self, stage: &Stage) -> Result<Completion> {
        let source = self.source_digests()?;
        let copy = |file: copied::CopiedFile| copied::copy(stage, &file, &|bytes| self.watch(bytes));
        let copied = copied::find(self.checkpoint)?.into_iter().map(copy).collect::<Result<_>>()?;
        Ok(Completion { source, copied })
    }

    /// Completes the directory, or says which ranks it lacks. The directory is locked.
    pub(super) fn assemble(&self, stage: &Stage, identity: &SaveIdentity, early: Option<Completion>) -> Result<Vec<u32>> {
        let (mut ranks, mut missing) = (Vec::new(), Vec::new());
        for rank in 0..self.plan.mesh.world_size() {
            match self.saved_rank(rank, identity) {
                Some(files) => ranks.push(files),
                None => missing.push(rank),
            }
        }
        if !missing.is_empty() {
            return Ok(missing);
        }
        let Completion { source, copied } = early.map_or_else(|| self.completion(stage), Ok)?;
        let copied = copied.into_iter().map(|(staged, reported)| staged.rename().map(|()| reported)).collect::<Result<_>>()?;
        sync_dir(&self.dir)?;
        let mut file = stage.file(MANIFEST)?;
        let mut manifest = Manifest::new(self.plan, &self.plan_aliases()?, source, copied, ranks);
        manifest.model = self.checkpoint.record().cloned();
        seal(&manifest, &mut |bytes| file.write(bytes, &|_| Ok(())))?;
        file.sync()?.0.rename()?;
        sync_dir(&self.dir)?;
        Ok(missing)
    }

    /// The files of a rank that this save, or another process of it, has written.
    fn saved_rank(&self, rank: u32, identity: &SaveIdentity) -> Option<RankFiles> {
        let (reported, manifest) = RankHead::read(&self.dir, self.format, rank, self.plan.mesh.world_size()).ok()?;
        let there = fs::metadata(self.dir.join(&reported.shard.name)).is_ok_and(|m| m.is_file() && m.len() == reported.shard.bytes);
        (reported.save == identity.save && there).then_some(RankFiles { rank, shard: reported.shard, manifest })
    }

    /// Reads the source once more, whole, for the digests of its files; they must still be those that were loaded.
    fn source_digests(&self) -> Result<Vec<FileDigest>> {
        let mut block = vec![0; 1 << 20];
        let mut digests = Vec::new();
        for (index, file) in self.checkpoint.files().iter().enumerate() {
            let mut stopped = None;
            let watch = |bytes| {
                self.watch(bytes).map_err(|e| {
                    stopped = Some(e);
                    io::Error::other("stopped")
                })
            };
            let digest = File::open(&file.path).and_then(|mut f| sha256_stream(&mut f, &mut block, watch));
            let cannot = |e| stopped.unwrap_or_else(|| EngineError::io("cannot read the file for its digest", &file.path, e));
            let digest = digest.map_err(cannot)?;
            self.checkpoint.check_unchanged(index)?;
            digests.push(FileDigest::new(&file.name, digest));
        }
        Ok(digests)
    }
}
