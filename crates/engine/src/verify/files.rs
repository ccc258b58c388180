//! Every file against the manifest: is it there, has it its size and digest, does its header say what the plan says.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Seek as _},
    path::Path,
};

use super::{Verified, Verifier, mismatch, shard::Safetensors};
use crate::{
    digest::{Sha256, sha256_stream},
    error::{EngineError, ErrorKind, Result},
    filenames::{MANIFEST, SHARD_SUFFIX, TEMPORARY_PREFIX, is_rank_file},
    saved::{
        FileDigest, RankFiles, RankHead, RankManifest,
        aliases::Alias,
        entries::{self, Entries},
        header,
    },
};

const BLOCK: usize = 1 << 20;

/// A rank's file of tensors, by its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shard {
    /// As the rank's manifest says.
    Whole,
    /// Missing or otherwise than the rank's manifest says.
    Altered,
    /// The rank's manifest is not known to tell the truth.
    Unknown,
}

impl Verifier<'_> {
    /// Files that the manifest does not list: those that a reader would take for shards are problems, others are reported.
    pub(super) fn check_names(&self, found: &mut Verified) -> Result<()> {
        let cannot = |e| EngineError::io("cannot list the directory", &self.dir, e);
        let mut known: Vec<&str> = self.manifest.copied.iter().map(|f| f.name.as_str()).chain([MANIFEST]).collect();
        known.extend(self.manifest.ranks.iter().flat_map(|r| [r.shard.name.as_str(), r.manifest.name.as_str()]));
        known.sort_unstable();
        let mut names = fs::read_dir(&self.dir)
            .map_err(cannot)?
            .map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(cannot)?;
        names.sort_unstable();
        for name in names.into_iter().filter(|n| known.binary_search(&n.as_str()).is_err()) {
            let shard = name.ends_with(SHARD_SUFFIX);
            if is_rank_file(&name) || shard {
                let what =
                    if shard { "it is not in the manifest, and readers would take it for a shard" } else { "it is not in the manifest" };
                found.problem(mismatch(&self.dir.join(&name), what));
            } else if !name.starts_with(TEMPORARY_PREFIX) {
                found.unexpected.push(name);
            }
        }
        Ok(())
    }

    pub(super) fn check_copy(&self, reported: &FileDigest) -> Result<Verified> {
        let mut found = Verified::default();
        self.check_file(reported, &mut found, false)?;
        Ok(found)
    }

    /// A rank's manifest, then the digest of its tensors.
    pub(super) fn check_digests(&self, files: &RankFiles) -> Result<(Verified, Shard)> {
        let mut found = Verified::default();
        let rank = files.rank;
        let as_stated = match RankHead::read(&self.dir, self.manifest.format, rank, self.manifest.world_size) {
            Ok((head, digest)) if digest == files.manifest && head.shard == files.shard => true,
            Ok(_) => {
                found.problem(
                    mismatch(&self.dir.join(&files.manifest.name), "it is not the one that the directory's manifest lists").rank(rank),
                );
                false
            }
            Err(e) if e.kind() == ErrorKind::Checkpoint => {
                found.problem(EngineError::new(ErrorKind::Mismatch, e.to_string()).rank(rank));
                false
            }
            Err(e) => return Err(e),
        };
        let whole = self.check_file(&files.shard, &mut found, true)?;
        let shard = match (as_stated, whole) {
            (false, _) => Shard::Unknown,
            (true, true) => Shard::Whole,
            (true, false) => Shard::Altered,
        };
        Ok((found, shard))
    }

    /// What is to say of a rank's header, or of the tensors that were altered.
    pub(super) fn check_header_of(&self, files: &RankFiles, shard: Shard, found: &mut Verified) -> Result<()> {
        let path = self.dir.join(&files.shard.name);
        let read = || RankManifest::read(&self.dir, self.manifest.format, files.rank, self.manifest.world_size).map(|read| read.0);
        match shard {
            Shard::Whole => self.check_header(&path, files.rank, read, found),
            Shard::Altered if path.is_file() => self.name_altered(&path, &read()?, found),
            Shard::Altered | Shard::Unknown => Ok(()),
        }
    }

    fn entries<'e>(&'e self, aliases: &'e [Alias], rank: u32) -> Result<Entries<'e>> {
        entries::entries(&self.manifest.plan, aliases, rank).map_err(|what| EngineError::new(ErrorKind::Plan, what).rank(rank))
    }

    fn aliases(&self) -> Result<Vec<Alias>> {
        self.manifest.plan_aliases().map_err(|what| EngineError::new(ErrorKind::Plan, what))
    }

    /// Size and digest of one file; true where both are right.
    fn check_file(&self, reported: &FileDigest, found: &mut Verified, watched: bool) -> Result<bool> {
        let path = self.dir.join(&reported.name);
        let problem = match fs::metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => mismatch(&path, "it is missing"),
            Err(e) => return Err(EngineError::io("cannot look at the file", &path, e)),
            Ok(meta) if !meta.is_file() => mismatch(&path, "not a regular file"),
            Ok(meta) if meta.len() != reported.bytes => {
                mismatch(&path, "its size is not the manifest's").expected(format_args!("{} bytes", reported.bytes)).found(meta.len())
            }
            Ok(_) => {
                let (digest, bytes) = self.digest(&path, 0, reported.bytes, watched)?;
                (found.files, found.bytes) = (found.files + 1, found.bytes + bytes);
                if digest == reported.sha256 {
                    return Ok(true);
                }
                mismatch(&path, "its sha256 is not the manifest's").expected(reported.sha256).found(digest)
            }
        };
        found.problem(problem);
        Ok(false)
    }

    fn digest(&self, path: &Path, start: u64, bytes: u64, watched: bool) -> Result<(Sha256, u64)> {
        let mut stopped = None;
        let watch = |bytes| {
            self.watch(if watched { bytes } else { 0 }).map_err(|e| {
                stopped = Some(e);
                io::Error::other("stopped")
            })
        };
        let stream = File::open(path).and_then(|mut file| file.seek(io::SeekFrom::Start(start)).map(|_| file.take(bytes)));
        let digest = stream.and_then(|mut stream| sha256_stream(&mut stream, &mut vec![0; BLOCK], watch));
        digest.map_err(|e| stopped.unwrap_or_else(|| EngineError::io("cannot read the file", path, e)))
    }

    /// The header must say what the plan says this rank keeps. Only a forged manifest leads here with another.
    fn check_header(&self, path: &Path, rank: u32, reported: impl FnOnce() -> Result<RankManifest>, found: &mut Verified) -> Result<()> {
        let file = match Safetensors::open(path, ErrorKind::Mismatch) {
            Err(e) if e.kind() == ErrorKind::Mismatch => {
                found.problem(e.rank(rank));
                return Ok(());
            }
            other => other?,
        };
        let aliases = self.aliases()?;
        let expected = self.entries(&aliases, rank)?;
        // By name: the order of empty tensors, which all lie at one offset, is nobody's.
        let mut stored: Vec<&super::shard::StoredTensor> = file.tensors.iter().collect();
        stored.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let mut as_planned = vec![false; stored.len()];
        let read = header::each_part(&file.metadata, |name, part| {
            let at = stored.binary_search_by(|t| t.name.as_str().cmp(name));
            if let (Ok(at), Some(entry)) = (at, expected.entry(name)) {
                let stored = stored[at];
                as_planned[at] = (stored.dtype, &stored.shape, &part) == (entry.dtype, &entry.shape, &entry.part);
            }
        });
        if let Err(what) = read {
            found.problem(mismatch(path, what).rank(rank));
        }
        let same = expected.len() == stored.len() && as_planned.into_iter().all(|same| same);
        drop(stored);
        drop(file);
        let digests = reported()?.tensors.iter().map(|t| &t.name).eq(expected.names());
        if !(same && digests) {
            found.problem(mismatch(path, "its header does not list the tensors that the plan gives this rank").rank(rank));
        }
        Ok(())
    }

    /// Names the tensors by which a file differs from what was written, as far as its header can still be read.
    fn name_altered(&self, path: &Path, reported: &RankManifest, found: &mut Verified) -> Result<()> {
        let Ok(file) = Safetensors::open(path, ErrorKind::Mismatch) else { return Ok(()) };
        let aliases = self.aliases()?;
        let entries = self.entries(&aliases, reported.rank)?;
        let entry_of: BTreeMap<&str, _> =
            entries.iter().zip(&reported.tensors).map(|(entry, digest)| (digest.name.as_str(), (entry, digest.sha256))).collect();
        for tensor in &file.tensors {
            let Some((entry, expected)) = entry_of.get(tensor.name.as_str()) else { continue };
            let valid = match entry.part {
                entries::Part::Flat { valid, .. } => entry.dtype.bytes(valid).unwrap_or(0).min(tensor.bytes),
                entries::Part::SavedOffsets(_) => tensor.bytes,
            };
            let (is, _) = self.digest(path, tensor.start, valid, false)?;
            if is != *expected {
                let problem = mismatch(path, "its bytes are not those that were saved").tensor(&tensor.name).rank(reported.rank);
                found.problem(problem.expected(expected).found(is));
            }
        }
        Ok(())
    }
}
