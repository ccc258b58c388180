//! One case of the suite: a section, a mesh and a model, small enough to be described in a sentence.

use std::fmt;

use crate::{Mesh, ModelFacts, ModelMeta, TensorMeta};

/// A section, a mesh and a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Case {
    /// The strategy's section as YAML, without its name; empty for the default.
    pub(super) section: String,
    /// Groups of ranks that hold equal shards.
    pub(super) replicate: u32,
    /// Ranks in each such group.
    pub(super) shard: u32,
    /// The model's tensors.
    pub(super) tensors: Vec<TensorMeta>,
}

impl Case {
    pub(super) fn new(section: &str, (replicate, shard): (u32, u32), tensors: Vec<TensorMeta>) -> Self {
        Self { section: section.to_owned(), replicate, shard, tensors }
    }

    /// Number of ranks.
    pub(super) fn world_size(&self) -> u32 {
        self.replicate * self.shard
    }

    pub(super) fn mesh(&self) -> Mesh {
        Mesh::replicate_shard(self.replicate, self.shard).expect("the corpus has sound meshes only")
    }

    pub(super) fn model(&self) -> ModelMeta {
        ModelMeta::new(self.tensors.clone(), ModelFacts::default()).expect("the corpus has each name once")
    }
}

impl Case {
    /// The world in words.
    pub(super) fn ranks(&self) -> String {
        let plural = if self.world_size() == 1 { "" } else { "s" };
        format!("{} rank{plural} (mp_replicate {} × mp_shard {})", self.world_size(), self.replicate, self.shard)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.ranks())?;
        for (i, tensor) in self.tensors.iter().take(4).enumerate() {
            write!(f, "{} '{}' {} {:?}", if i == 0 { ", tensors" } else { "," }, tensor.name, tensor.dtype, tensor.shape)?;
        }
        if self.tensors.len() > 4 {
            write!(f, " and {} more", self.tensors.len() - 4)?;
        }
        if self.section.is_empty() { Ok(()) } else { write!(f, ", section {{{}}}", self.section.trim().replace('\n', ", ")) }
    }
}
