//! What a save is a save of: the plan, and what identifies the source's files on every machine that has a copy of them.

use std::{io, os::unix::fs::FileExt as _};

use serde_json::json;
use shardwright_core::{Name, ShardPlan};

use crate::{
    checkpoint::Checkpoint,
    digest::{Hasher, Sha256, sha256},
    error::{EngineError, ErrorKind, Result},
    file::open_regular,
    filenames::Format,
    saved::{RankHead, SourceFile, VERSION},
};

/// Tensors whose bytes are sampled, spread evenly over a checkpoint that has more.
const MOST_SAMPLES: usize = 1024;
/// Bytes sampled in the middle of a tensor.
const SAMPLE: usize = 64;
/// The header is digested in blocks of this many bytes.
const BLOCK: u64 = 1 << 16;

/// Equal for two saves whose files may stand side by side: same plan, same source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SaveIdentity {
    /// Digest of the other two.
    pub(super) save: Sha256,
    pub(super) plan: Sha256,
    pub(super) source: Vec<SourceFile>,
}

impl SaveIdentity {
    pub(super) fn new(of: &ShardPlan, aliases: &[(Name, Name)], checkpoint: &Checkpoint) -> Result<Self> {
        let cannot = |e| EngineError::new(ErrorKind::Plan, format!("cannot write the plan: {e}"));
        let mut digest = Hasher::default();
        serde_json::to_writer(&mut digest, of).map_err(cannot)?;
        let (plan, source) = (digest.finish(), source_files(checkpoint)?);
        let agreed = serde_json::to_vec(&json!([VERSION, Format::of(of), plan, source, aliases])).map_err(cannot)?;
        Ok(Self { save: sha256(&agreed), plan, source })
    }

    /// What a rank's manifest has otherwise, in words.
    pub(super) fn difference(&self, other: &RankHead) -> String {
        if other.plan != self.plan {
            return "its plan is another: config, world size or strategy differ".into();
        }
        let of = |files: &[SourceFile], name: &str| files.iter().find(|f| f.name == name).cloned();
        for ours in &self.source {
            let name = &ours.name;
            let Some(theirs) = of(&other.source, name) else { return format!("its source has no file '{name}', this one's has") };
            if theirs.bytes != ours.bytes {
                return format!("its source's '{name}' has {} bytes, this one's {}", theirs.bytes, ours.bytes);
            }
            if theirs.header != ours.header {
                return format!("its source's '{name}' has another header than this one's");
            }
            if theirs.samples != ours.samples {
                return format!("its source's '{name}' has other tensor data than this one's, under the same header");
            }
        }
        match other.source.iter().find(|f| of(&self.source, &f.name).is_none()) {
            Some(more) => format!("its source has a file '{}', this one's has not", more.name),
            None => "it was written by another version of shardwright".into(),
        }
    }
}

/// Size, digest of the header, and digest of a few bytes of many tensors: what a copy of the file keeps, unlike the time of its last change.
fn source_files(checkpoint: &Checkpoint) -> Result<Vec<SourceFile>> {
    let mut tensors: Vec<Vec<usize>> = vec![Vec::new(); checkpoint.files().len()];
    let count = checkpoint.sources().len();
    for tensor in (0..count).step_by(count.div_ceil(MOST_SAMPLES).max(1)) {
        tensors[checkpoint.location(tensor).file].push(tensor);
    }
    let identify = |(index, tensors): (usize, Vec<usize>)| {
        let file = &checkpoint.files()[index];
        let (open, _) = open_regular(&file.path)?;
        let digests = header_digest(&open, file.data_start).and_then(|header| {
            let mut samples = Hasher::default();
            for place in tensors.into_iter().map(|tensor| checkpoint.location(tensor)) {
                let mut bytes = [0; SAMPLE];
                let wanted = place.bytes.min(SAMPLE as u64);
                let part = &mut bytes[..usize::try_from(wanted).unwrap_or(0)];
                open.read_exact_at(part, place.offset + (place.bytes - wanted) / 2)?;
                samples.update(part);
            }
            Ok((header, samples.finish()))
        });
        checkpoint.check_unchanged(index)?;
        let (header, samples) = digests.map_err(|e| EngineError::io("cannot read the file", &file.path, e))?;
        Ok(SourceFile { name: file.name.clone(), bytes: file.stamp.size, header, samples })
    };
    tensors.into_iter().enumerate().map(identify).collect()
}

fn header_digest(file: &std::fs::File, length: u64) -> io::Result<Sha256> {
    let (mut hasher, mut at) = (Hasher::default(), 0);
    let mut block = vec![0; usize::try_from(length.min(BLOCK)).unwrap_or(0)];
    while at < length {
        let part = &mut block[..usize::try_from((length - at).min(BLOCK)).unwrap_or(0)];
        file.read_exact_at(part, at)?;
        hasher.update(part);
        at += part.len() as u64;
    }
    Ok(hasher.finish())
}
