//! The names by which this program knows its own files: of a saved directory, from the format, the rank and the world size alone, and of work
//! that is under way.

use serde::{Deserialize, Serialize};
use shardwright_core::ShardPlan;

/// The manifest of the whole directory: there, and only there, once every rank is saved.
pub const MANIFEST: &str = "shardwright.manifest.json";
/// How the hidden directories begin in which files lie until they are whole.
pub(crate) const TEMPORARY_PREFIX: &str = ".shardwright-tmp-";
/// How the manifest of one rank ends.
pub(crate) const RANK_MANIFEST_SUFFIX: &str = ".manifest.json";
/// Files whose bytes are on the disk, a name a line; the first line says of which conversion.
pub(crate) const JOURNAL: &str = ".shardwright-journal";
/// How every file of tensors ends.
pub(crate) const SHARD_SUFFIX: &str = ".safetensors";

/// How shards are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// PyTorch's sharded safetensors: every tensor a box, read by `torch.distributed.checkpoint`'s `HuggingFaceStorageReader`.
    TorchDcp,
    /// A safetensors file a rank whose tensors are padded flat partitions, described in its metadata.
    Flat,
}

impl Format {
    /// The format that can hold a plan: torch's own, unless a tensor is cut into flat partitions, which it has no words for.
    pub fn of(plan: &ShardPlan) -> Self {
        if plan.tensors.iter().any(|t| t.placement.is_flat()) { Self::Flat } else { Self::TorchDcp }
    }

    /// What both names of a rank's files begin with.
    fn stem(self, rank: u32, world_size: u32) -> String {
        let number = u64::from(rank) + 1;
        match self {
            Self::TorchDcp => format!("shard-{number:05}-model-00001-of-00001"),
            Self::Flat => format!("partition-{number:05}-of-{world_size:05}"),
        }
    }

    /// The name of a rank's tensors.
    pub fn shard_name(self, rank: u32, world_size: u32) -> String {
        self.stem(rank, world_size) + SHARD_SUFFIX
    }

    /// The name of a rank's manifest, beside its tensors.
    pub fn rank_manifest_name(self, rank: u32, world_size: u32) -> String {
        self.stem(rank, world_size) + RANK_MANIFEST_SUFFIX
    }
}

/// True for a name that some save gives to a rank's tensors or manifest, whatever its world size.
pub(crate) fn is_rank_file(name: &str) -> bool {
    let Some(stem) = name.strip_suffix(RANK_MANIFEST_SUFFIX).or_else(|| name.strip_suffix(SHARD_SUFFIX)) else { return false };
    let number = |text: &str| text.len() >= 5 && text.bytes().all(|b| b.is_ascii_digit());
    let numbers = |text: &str, between: &str| text.split_once(between).is_some_and(|(a, b)| number(a) && number(b));
    match (stem.strip_prefix("shard-"), stem.strip_prefix("partition-")) {
        (Some(rest), _) => rest.split_once("-model-").is_some_and(|(rank, model)| number(rank) && numbers(model, "-of-")),
        (_, Some(rest)) => numbers(rest, "-of-"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// torch 2.15's `_gen_file_name(1, 1, shard_index)`.
    #[test]
    fn shards_are_named_as_torch_names_them() {
        assert_eq!(Format::TorchDcp.shard_name(2, 4), "shard-00003-model-00001-of-00001.safetensors");
        assert_eq!(Format::Flat.shard_name(2, 4), "partition-00003-of-00004.safetensors");
        assert_eq!(Format::TorchDcp.rank_manifest_name(0, 4), "shard-00001-model-00001-of-00001.manifest.json");
    }

    #[test]
    fn own_names_are_known_again_and_a_models_are_not() {
        for format in [Format::TorchDcp, Format::Flat] {
            for rank in [0, 41, 99_999, 1_234_567] {
                assert!(is_rank_file(&format.shard_name(rank, 2_000_000)));
                assert!(is_rank_file(&format.rank_manifest_name(rank, 2_000_000)));
            }
        }
        for other in
            ["model.safetensors", "model-00001-of-00002.safetensors", MANIFEST, "shard-x-model-00001-of-00001.safetensors", "shard-"]
        {
            assert!(!is_rank_file(other), "{other}");
        }
    }
}
