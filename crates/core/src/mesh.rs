//! Ranks and the axes they are arranged in. Pure arithmetic; who this process is lives in the engine.

use serde::{Deserialize, Serialize};

/// One axis of a [`Mesh`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MeshAxis {
    /// Such as `mp_shard`.
    pub name: String,
    /// Number of ranks along it, at least 1.
    pub size: u32,
}

/// All ranks of a run as a grid, outermost axis first: rank = row-major index.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Axes")]
pub struct Mesh {
    axes: Vec<MeshAxis>,
}

/// A [`Mesh`] as read, before it is known to be one.
#[derive(Deserialize)]
struct Axes {
    axes: Vec<MeshAxis>,
}

impl TryFrom<Axes> for Mesh {
    type Error = String;

    fn try_from(read: Axes) -> Result<Self, String> {
        Self::new(read.axes.into_iter().map(|a| (a.name, a.size)))
    }
}

/// The largest world: far more than any there is, and few enough to count them all.
pub const MAX_RANKS: u32 = 1 << 20;

/// The name of the outer axis of a built-in strategy's mesh: along it, ranks hold equal shards.
pub const MP_REPLICATE: &str = "mp_replicate";
/// The name of the inner axis of a built-in strategy's mesh: along it, tensors are cut.
pub const MP_SHARD: &str = "mp_shard";

impl Mesh {
    /// A mesh of named axes, outermost first.
    ///
    /// # Errors
    /// An axis of size 0, a name twice, or a world beyond [`MAX_RANKS`].
    pub fn new<N: Into<String>>(axes: impl IntoIterator<Item = (N, u32)>) -> Result<Self, String> {
        let axes: Vec<MeshAxis> = axes.into_iter().map(|(name, size)| MeshAxis { name: name.into(), size }).collect();
        let mut world = 1u32;
        for (i, axis) in axes.iter().enumerate() {
            if axis.size == 0 {
                return Err(format!("mesh axis '{}' has size 0, expected at least 1", axis.name));
            }
            if axes[..i].iter().any(|a| a.name == axis.name) {
                return Err(format!("mesh axis '{}' occurs twice", axis.name));
            }
            let product = world.checked_mul(axis.size).filter(|&ranks| ranks <= MAX_RANKS);
            world = product.ok_or_else(|| format!("the mesh has more than {MAX_RANKS} ranks"))?;
        }
        Ok(Self { axes })
    }

    /// The 2-D mesh of FSDP2 and LLaMA-Factory: `replicate` groups of `shard` consecutive ranks.
    ///
    /// # Errors
    /// As [`Mesh::new`].
    pub fn replicate_shard(replicate: u32, shard: u32) -> Result<Self, String> {
        Self::new([(MP_REPLICATE, replicate), (MP_SHARD, shard)])
    }

    /// Number of ranks.
    pub fn world_size(&self) -> u32 {
        self.axes.iter().map(|a| a.size).product()
    }

    /// The axes, outermost first.
    pub fn axes(&self) -> &[MeshAxis] {
        &self.axes
    }

    /// Size of the named axis; 1 where the mesh has none of that name.
    pub fn size_of(&self, name: &str) -> u32 {
        self.axes.iter().find(|a| a.name == name).map_or(1, |a| a.size)
    }

    /// The group axis that runs along the named mesh axis.
    pub fn axis(&self, name: &str) -> Option<GroupAxis> {
        let at = self.axes.iter().position(|a| a.name == name)?;
        Some(GroupAxis { stride: self.axes[at + 1..].iter().map(|a| a.size).product(), size: self.axes[at].size })
    }

    /// The group axis that runs over all ranks.
    pub fn all_ranks(&self) -> GroupAxis {
        GroupAxis { stride: 1, size: self.world_size() }
    }
}

/// How ranks form groups that share a tensor: a rank's coordinate in its group is `rank / stride % size`, and ranks that
/// agree in all else are one group. Every group holds the whole tensor once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GroupAxis {
    /// Distance between neighbours of a group, in ranks.
    pub stride: u32,
    /// Ranks in a group.
    pub size: u32,
}

impl GroupAxis {
    /// The coordinate of `rank` in its group, below `size`.
    pub fn coordinate(self, rank: u32) -> u32 {
        rank / self.stride % self.size
    }

    /// True where groups of this axis divide a world evenly; groups of one rank always do.
    pub fn divides(self, world_size: u32) -> bool {
        (self.size == 1 && self.stride > 0)
            || self.stride.checked_mul(self.size).is_some_and(|span| span > 0 && world_size.is_multiple_of(span))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_ranks_are_consecutive_and_replicas_are_apart() {
        let mesh = Mesh::replicate_shard(2, 3).unwrap();
        let shard = mesh.axis(MP_SHARD).unwrap();
        let replicate = mesh.axis(MP_REPLICATE).unwrap();
        assert_eq!((0..6).map(|r| shard.coordinate(r)).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2]);
        assert_eq!((0..6).map(|r| replicate.coordinate(r)).collect::<Vec<_>>(), [0, 0, 0, 1, 1, 1]);
        assert!(Mesh::replicate_shard(0, 3).is_err());
        assert!(Mesh::replicate_shard(u32::MAX, 2).is_err());
    }

    #[test]
    fn a_mesh_that_is_read_is_checked_as_one_that_is_made() {
        let mesh = Mesh::replicate_shard(2, 3).unwrap();
        let text = serde_json::to_string(&mesh).unwrap();
        assert_eq!(serde_json::from_str::<Mesh>(&text).unwrap(), mesh);
        assert!(serde_json::from_str::<Mesh>(&text.replace("3", "0")).unwrap_err().to_string().contains("size 0"));
    }

    #[test]
    fn a_world_that_nobody_has_is_refused() {
        assert!(Mesh::replicate_shard(1024, 1024).is_ok());
        for (replicate, shard) in [(1024, 1025), (65_536, 65_536), (1, u32::MAX)] {
            assert!(Mesh::replicate_shard(replicate, shard).unwrap_err().contains("1048576"));
        }
    }
}
