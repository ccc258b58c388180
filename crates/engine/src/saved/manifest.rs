//! What a saved directory says of itself: one manifest a rank, written behind the rank's tensors, and one of the whole, written last.
//!
//! Both are JSON, sealed by their own SHA-256 (see `sealed`). What is read here is untrusted: sizes are bounded, the plan is validated again,
//! and every file name is derived from the rank or is a plain name, so that no path leads out of the directory. Nothing is written here.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use shardwright_core::{DType, ModelFacts, ModelMeta, Name, ShardPlan, TensorMeta};

use super::{
    aliases::{self, Alias},
    sealed,
};
use crate::{
    checkpoint::ModelRecord,
    digest::Sha256,
    error::{EngineError, ErrorKind, Result},
    filenames::{Format, MANIFEST, TEMPORARY_PREFIX, is_rank_file},
};

/// The version of what is written here; another is refused.
pub const VERSION: u32 = 2;

/// The manifest of a whole saved directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Manifest<P = ShardPlan> {
    /// [`VERSION`].
    pub shardwright: u32,
    /// How the shards are kept.
    pub format: Format,
    /// The strategy's name, as in the plan.
    pub strategy: String,
    /// Number of ranks, as in the plan.
    pub world_size: u32,
    /// Sizes of the mesh axes by name, as in the plan.
    pub mesh: BTreeMap<String, u32>,
    /// Each combination of dtypes in the plan, and how many tensors have it.
    pub precision: Vec<PrecisionCount>,
    /// The safetensors files of the checkpoint that was loaded.
    pub source: Vec<FileDigest>,
    /// Config and tokenizer files that were copied along.
    pub copied: Vec<FileDigest>,
    /// The files of each rank, rank 0 first.
    pub ranks: Vec<RankFiles>,
    /// Second names of tensors, under which the shards have them once more.
    #[serde(default)]
    pub aliases: BTreeMap<String, String>,
    /// How the model was found in the checkpoint; absent where its parameters are the checkpoint's tensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelRecord>,
    /// Where every tensor lies.
    pub plan: P,
}

/// How many tensors of a plan have these dtypes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct PrecisionCount {
    /// Of the shards.
    pub storage: DType,
    /// Of gathered parameters.
    pub compute: DType,
    /// Of reduced gradients.
    pub reduce: DType,
    /// Tensors.
    pub tensors: u64,
}

/// A file by name, size and digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct FileDigest {
    /// Its name in its directory.
    pub name: String,
    /// Size.
    pub bytes: u64,
    /// Of all its bytes.
    pub sha256: Sha256,
}

impl FileDigest {
    pub(crate) fn new(name: impl Into<String>, (sha256, bytes): (Sha256, u64)) -> Self {
        Self { name: name.into(), bytes, sha256 }
    }
}

/// The files of one rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RankFiles {
    /// From 0.
    pub rank: u32,
    /// Its tensors.
    pub shard: FileDigest,
    /// Its manifest.
    pub manifest: FileDigest,
}

/// The manifest of one rank, written behind its tensors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RankManifest<T = Vec<TensorDigest>> {
    /// [`VERSION`].
    pub shardwright: u32,
    /// From 0.
    pub rank: u32,
    /// Number of ranks.
    pub world_size: u32,
    /// What the ranks of one save agree on: a digest of the next two.
    pub save: Sha256,
    /// Digest of the plan.
    pub plan: Sha256,
    /// What identifies the source's files, on this machine and on any other that has a copy.
    pub source: Vec<SourceFile>,
    /// The rank's tensors.
    pub shard: FileDigest,
    /// Each of them, in the order of the file: its valid bytes in row-major order, padding left out.
    pub tensors: T,
}

/// What a copy of a checkpoint's file keeps, and what it takes little reading to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SourceFile {
    /// Its name in the checkpoint.
    pub name: String,
    /// Size.
    pub bytes: u64,
    /// SHA-256 of its header.
    pub header: Sha256,
    /// SHA-256 of a few bytes in the middle of each of its tensors, or of some of very many.
    pub samples: Sha256,
}

/// The digest of one rank's part of one tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct TensorDigest {
    /// Its name.
    pub name: Name,
    /// Of its valid bytes in row-major order.
    pub sha256: Sha256,
}

impl Manifest {
    /// Reads and validates the manifest of a directory.
    ///
    /// # Errors
    /// [`ErrorKind::Checkpoint`] where it is missing, torn, garbled or contradicts itself; [`ErrorKind::Io`] where it cannot be read.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        let manifest: Self = sealed::read(&path)?.0;
        manifest.check().map_err(|what| EngineError::new(ErrorKind::Checkpoint, what).file(path))?;
        Ok(manifest)
    }

    /// The second names of tensors, as [`entries`](super::entries::entries) takes them.
    pub(crate) fn plan_aliases(&self) -> Result<Vec<Alias>, String> {
        aliases::of_plan(&self.plan, self.aliases.iter().map(|(alias, tensor)| (alias.as_str(), tensor.as_str())))
    }

    fn check(&self) -> Result<(), String> {
        check_version(self.shardwright)?;
        check_plan(&self.plan)?;
        let aliases = self.plan_aliases().map_err(|what| format!("its aliases do not hold: {what}"))?;
        let stated = (&self.format, &self.strategy, &self.world_size, &self.mesh, &self.precision);
        let planned = Manifest::new(&self.plan, &aliases, Vec::new(), Vec::new(), Vec::new());
        if stated != (&planned.format, &planned.strategy, &planned.world_size, &planned.mesh, &planned.precision) {
            return Err("its format, strategy, world size, mesh or precision is not that of its plan".into());
        }
        if self.ranks.len() as u64 != u64::from(self.world_size) {
            return Err(format!("it lists the files of {} ranks, expected {}", self.ranks.len(), self.world_size));
        }
        (0..).zip(&self.ranks).try_for_each(|(rank, files)| check_names(self.format, self.world_size, rank, files))?;
        let mut seen = BTreeSet::new();
        for file in &self.copied {
            let name = file.name.as_str();
            if !is_plain(name) || name == MANIFEST || name.starts_with(TEMPORARY_PREFIX) || is_rank_file(name) || !seen.insert(name) {
                return Err(format!("it lists '{name}' among the copied files, which is not a valid name for one"));
            }
        }
        Ok(())
    }
}

impl<'a> Manifest<&'a ShardPlan> {
    /// A manifest that says of its plan what there is to say.
    pub(crate) fn new(
        plan: &'a ShardPlan,
        aliases: &[Alias],
        source: Vec<FileDigest>,
        copied: Vec<FileDigest>,
        ranks: Vec<RankFiles>,
    ) -> Self {
        let alias = |alias: &Alias| (alias.name.to_string(), plan.tensors[alias.tensor].name.to_string());
        Self {
            shardwright: VERSION,
            format: Format::of(plan),
            strategy: plan.strategy.clone(),
            world_size: plan.mesh.world_size(),
            mesh: plan.mesh.axes().iter().map(|a| (a.name.clone(), a.size)).collect(),
            precision: count_precisions(plan),
            source,
            copied,
            ranks,
            aliases: aliases.iter().map(alias).collect(),
            model: None,
            plan,
        }
    }
}

/// What a rank's manifest says before its tensors, which are many.
pub(crate) type RankHead = RankManifest<IgnoredAny>;

impl<T: DeserializeOwned> RankManifest<T> {
    /// What a rank's manifest says, whatever that is; `None` where it is not one.
    pub(crate) fn peek(path: &Path) -> Option<Self> {
        sealed::read(path).ok().map(|(manifest, _)| manifest)
    }

    /// Reads the manifest of one rank of a saved directory, and gives its own size and digest.
    pub(crate) fn read(dir: &Path, format: Format, rank: u32, world_size: u32) -> Result<(Self, FileDigest)> {
        let name = format.rank_manifest_name(rank, world_size);
        let path = dir.join(&name);
        let (manifest, digest): (Self, _) = sealed::read(&path)?;
        let wrong = |what: String| EngineError::new(ErrorKind::Checkpoint, what).file(&path);
        check_version(manifest.shardwright).map_err(wrong)?;
        let shard = format.shard_name(rank, world_size);
        if (manifest.rank, manifest.world_size, &manifest.shard.name) != (rank, world_size, &shard) {
            let reported = format!("rank {} of {} and '{}'", manifest.rank, manifest.world_size, manifest.shard.name);
            return Err(wrong(format!("it is the manifest of {reported}, expected rank {rank} of {world_size} and '{shard}'")));
        }
        Ok((manifest, FileDigest::new(name, digest)))
    }
}

fn check_version(found: u32) -> Result<(), String> {
    match found {
        VERSION => Ok(()),
        _ => Err(format!("it has version {found}, expected {VERSION}")),
    }
}

/// Validates the plan as if it were just made, for the model that it describes.
fn check_plan(plan: &ShardPlan) -> Result<(), String> {
    let tensors = plan.tensors.iter().map(|t| TensorMeta::new(t.name.clone(), t.source, t.shape.clone())).collect();
    let model = ModelMeta::new(tensors, ModelFacts::default()).map_err(|name| format!("its plan has tensor '{name}' twice"))?;
    plan.check(&model).map_err(|e| format!("its plan does not hold: {e}"))
}

fn check_names(format: Format, world_size: u32, rank: u32, files: &RankFiles) -> Result<(), String> {
    let expected = (rank, format.shard_name(rank, world_size), format.rank_manifest_name(rank, world_size));
    if (files.rank, &files.shard.name, &files.manifest.name) == (expected.0, &expected.1, &expected.2) {
        return Ok(());
    }
    let found = format!("rank {}, '{}', '{}'", files.rank, files.shard.name, files.manifest.name);
    Err(format!("it lists {found}, expected rank {}, '{}', '{}'", expected.0, expected.1, expected.2))
}

/// True for a name that stays in its directory.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

fn count_precisions(plan: &ShardPlan) -> Vec<PrecisionCount> {
    let mut counts = BTreeMap::new();
    for p in plan.tensors.iter().map(|t| t.precision) {
        *counts.entry((p.storage, p.compute, p.reduce)).or_insert(0) += 1;
    }
    counts.into_iter().map(|((storage, compute, reduce), tensors)| PrecisionCount { storage, compute, reduce, tensors }).collect()
}
