//! One rank's two files, staged: its tensors, then the manifest that lists them.

use serde::{Serialize, Serializer};

use super::{
    bytes::Supply,
    identity::SaveIdentity,
    saver::Saver,
    staged::{Stage, Staged, StagedFile},
};
use crate::{
    digest::{Hasher, Sha256},
    error::{EngineError, ErrorKind, Result},
    saved::{FileDigest, RankFiles, RankManifest, TensorDigest, VERSION, entries::Entries, header, seal},
};

/// A rank's files under temporary names, synced.
#[derive(Debug)]
pub(super) struct StagedRank {
    pub(super) files: RankFiles,
    pub(super) shard: Staged,
    pub(super) manifest: Staged,
    /// Digests of the tensors in its file, by their index in the plan, where they were asked for; aliases left out.
    pub(super) digests: Option<Vec<(usize, Sha256)>>,
}

impl Saver<'_> {
    pub(super) fn stage_rank(
        &self,
        stage: &Stage,
        identity: &SaveIdentity,
        number: u32,
        supply: &dyn Supply,
        keep_digests: bool,
    ) -> Result<StagedRank> {
        let world_size = self.plan.mesh.world_size();
        let watch = |bytes| self.watch(bytes);
        self.watch(0)?;
        let aliases = self.plan_aliases()?;
        let entries = self.entries(&aliases, number)?;
        let name = self.format.shard_name(number, world_size);
        let mut shard = stage.file(&name)?;
        let header = header::header(self.plan, number, &entries).map_err(|what| EngineError::new(ErrorKind::Plan, what))?;
        shard.write_all(|to| header.write(to))?;
        let mut tensors = Vec::with_capacity(entries.len());
        let (mut digest, mut digests) = (Hasher::default(), keep_digests.then(Vec::new));
        supply.supply(&entries, &mut |entry, bytes, last| {
            shard.write(bytes, &watch).map_err(|e| e.tensor(&entry.name))?;
            digest.update(bytes);
            if last {
                let padding = entry.bytes.saturating_sub(entry.valid_bytes().unwrap_or(0));
                write_zeros(&mut shard, padding).map_err(|e| e.tensor(&entry.name))?;
                let sha256 = std::mem::take(&mut digest).finish();
                if let Some(digests) = digests.as_mut().filter(|_| entry.name == self.plan.tensors[entry.tensor].name) {
                    digests.push((entry.tensor, sha256));
                }
                tensors.push(sha256);
            }
            Ok(())
        })?;
        let (shard, digest) = shard.sync()?;
        let shard_file = FileDigest::new(name, digest);

        let SaveIdentity { save, plan, source } = identity.clone();
        let tensors = Digests { entries: &entries, sha256: &tensors };
        let reported =
            RankManifest { shardwright: VERSION, rank: number, world_size, save, plan, source, shard: shard_file.clone(), tensors };
        let name = self.format.rank_manifest_name(number, world_size);
        let mut manifest = stage.file(&name)?;
        seal(&reported, &mut |bytes| manifest.write(bytes, &|_| Ok(())))?;
        let (manifest, digest) = manifest.sync()?;
        let manifest_file = FileDigest::new(name, digest);
        Ok(StagedRank { files: RankFiles { rank: number, shard: shard_file, manifest: manifest_file }, shard, manifest, digests })
    }
}

/// A digest of each entry, as a list of [`TensorDigest`]s: the names are the plan's.
struct Digests<'a> {
    entries: &'a Entries<'a>,
    sha256: &'a [Sha256],
}

impl Serialize for Digests<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(self.entries.iter().zip(self.sha256).map(|(entry, &sha256)| TensorDigest { name: entry.name, sha256 }))
    }
}

fn write_zeros(shard: &mut StagedFile, mut bytes: u64) -> Result<()> {
    const ZEROS: [u8; 4096] = [0; 4096];
    while bytes > 0 {
        let n = usize::try_from(bytes).map_or(ZEROS.len(), |b| b.min(ZEROS.len()));
        shard.write(&ZEROS[..n], &|_| Ok(()))?;
        bytes -= n as u64;
    }
    Ok(())
}
