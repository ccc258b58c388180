//! Who gets what: the loaded ranks, by the part that they hold.

use shardwright_core::{GroupAxis, Layout, TensorPlan};

/// The loaded ranks by their coordinate along an axis, ascending.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) key: GroupKey,
    pub(super) members: Vec<Member>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GroupKey {
    /// All ranks hold the same.
    All,
    Axis(GroupAxis),
    Owner(GroupAxis, u32),
}

/// Ranks that hold the same part.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) coordinate: u32,
    /// Indices into the loaded ranks.
    pub(super) ranks: Vec<u32>,
}

impl GroupKey {
    pub(super) fn of(tensor: &TensorPlan) -> Self {
        match &tensor.placement.layout {
            Layout::Replicated => Self::All,
            Layout::Owner { coordinate } => Self::Owner(tensor.placement.axis, *coordinate),
            _ => Self::Axis(tensor.placement.axis),
        }
    }
}

impl Group {
    pub(super) fn new(key: GroupKey, ranks: &[u32]) -> Self {
        let coordinate = |rank: u32| match key {
            GroupKey::All => Some(0),
            GroupKey::Axis(axis) => Some(axis.coordinate(rank)),
            GroupKey::Owner(axis, owner) => (axis.coordinate(rank) == owner).then_some(owner),
        };
        let mut by_coordinate: Vec<(u32, u32)> = (0..).zip(ranks).filter_map(|(i, &r)| Some((coordinate(r)?, i))).collect();
        by_coordinate.sort_unstable();
        let members = by_coordinate
            .chunk_by(|a, b| a.0 == b.0)
            .map(|same| Member { coordinate: same[0].0, ranks: same.iter().map(|s| s.1).collect() })
            .collect();
        Self { key, members }
    }
}
