//! Who gets what: the loaded ranks, by the part that they hold.

use shardwright_core::{Cut, GroupAxis, Layout, TensorPlan};

/// The loaded ranks by the part that they hold, in the order of the parts in the tensor.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) key: GroupKey,
    pub(super) members: Vec<Member>,
}

/// What decides who holds what: the axes of a tensor's cuts, none where all ranks hold the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GroupKey(Vec<Along>);

/// One cut.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Along {
    axis: GroupAxis,
    /// The coordinate that has everything.
    owner: Option<u32>,
    /// The dim, where cuts leave boxes: outer dims come first in a tensor, whatever the order of the cuts.
    dim: Option<usize>,
}

/// Ranks that hold the same part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) coordinate: u32,
    /// Indices into the loaded ranks.
    pub(super) ranks: Vec<u32>,
}

impl GroupKey {
    pub(super) fn of(tensor: &TensorPlan) -> Self {
        let cuts = &tensor.placement.cuts;
        let along = |cut: &Cut| Along {
            axis: cut.axis,
            owner: if let Layout::Owner { coordinate } = cut.layout { Some(coordinate) } else { None },
            dim: cut.layout.dim().filter(|_| cuts.len() > 1 && !tensor.placement.is_flat()),
        };
        Self(cuts.iter().map(along).collect())
    }

    /// The coordinate of a rank, as [`shardwright_core::Placement::coordinate`] has it; `None` for ranks that hold nothing.
    fn coordinate(&self, rank: u32) -> Option<u32> {
        self.0.iter().try_fold(0, |outer: u32, along| {
            let at = along.axis.coordinate(rank);
            along.owner.is_none_or(|owner| owner == at).then(|| outer * along.axis.size + at)
        })
    }
}

impl Group {
    pub(super) fn new(key: GroupKey, ranks: &[u32]) -> Self {
        let mut outermost_first: Vec<&Along> = key.0.iter().collect();
        outermost_first.sort_by_key(|along| along.dim);
        let place = |rank| outermost_first.iter().fold(0, |outer: u32, along| outer * along.axis.size + along.axis.coordinate(rank));
        let mut by_place: Vec<(u32, u32, u32)> = (0..).zip(ranks).filter_map(|(i, &r)| Some((place(r), key.coordinate(r)?, i))).collect();
        by_place.sort_unstable();
        let members = by_place
            .chunk_by(|a, b| a.0 == b.0)
            .map(|same| Member { coordinate: same[0].1, ranks: same.iter().map(|s| s.2).collect() })
            .collect();
        Self { key, members }
    }
}
