//! Tiling by counting: which rank holds which element, walked one by one, or by interval where there are too many to walk.
//! Shares no arithmetic with `check`.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ops::Range,
};

use super::violation::{Found, Rule};
use crate::{Cut, Layout, Padding, Region, TensorPlan};

/// Elements beyond which a tensor is held against intervals instead of walked.
const WALKED: u64 = 1 << 14;

/// Every group of the world as its ranks, ascending: ranks that differ along the axes of the cuts alone.
pub(super) fn groups(cuts: &[Cut], world_size: u32) -> Vec<Vec<u32>> {
    let mut groups: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    for rank in 0..world_size {
        groups.entry(first_of_group(cuts, rank)).or_default().push(rank);
    }
    groups.into_values().collect()
}

/// The rank with a 0 in place of each of its coordinates.
fn first_of_group(cuts: &[Cut], rank: u32) -> u64 {
    cuts.iter().fold(u64::from(rank), |rank, cut| {
        let (stride, size) = (u64::from(cut.axis.stride), u64::from(cut.axis.size));
        rank / (stride * size) * (stride * size) + rank % stride
    })
}

/// The row-major flat indices of a region's elements, ascending, for tensors small enough to walk.
pub fn elements(region: &Region, shape: &[u64]) -> Vec<u64> {
    // A zero anywhere wins over huge dims beside it.
    let numel: u64 = if shape.contains(&0) { 0 } else { shape.iter().product() };
    match region {
        Region::Empty => Vec::new(),
        Region::Whole => (0..numel).collect(),
        Region::Flat { range } => range.clone().filter(|&flat| flat < numel).collect(),
        Region::Dim { dim, range } => {
            let under: u64 = if numel == 0 { 1 } else { shape[dim + 1..].iter().product() };
            (0..numel).filter(|&flat| range.contains(&(flat / under % shape[*dim]))).collect()
        }
        Region::Box { ranges } => {
            (0..numel).filter(|&flat| index(shape, flat).iter().zip(ranges).all(|(at, range)| range.contains(at))).collect()
        }
    }
}

/// The index per dim of a flat element.
fn index(shape: &[u64], mut flat: u64) -> Vec<u64> {
    let mut index = vec![0; shape.len()];
    for (at, size) in index.iter_mut().zip(shape).rev() {
        (*at, flat) = (flat % size, flat / size);
    }
    index
}

/// Holds one tensor's placement against the rules of tiling and padding.
pub(super) fn tiling(tensor: &TensorPlan, world_size: u32, aligned: u64) -> Result<(), Found> {
    let found = |rule: Rule, what: String| Err((rule, format!("tensor '{}' {} {:?}: {what}", tensor.name, tensor.source, tensor.shape)));
    if let Err(what) = well_formed(tensor) {
        return found(Rule::Gap, what);
    }
    if tensor.placement.is_replicated() {
        return Ok(());
    }
    let mut seen: HashSet<Vec<Region>> = HashSet::new();
    let size: u64 = tensor.placement.cuts.iter().map(|cut| u64::from(cut.axis.size)).product();
    for group in groups(&tensor.placement.cuts, world_size) {
        if group.len() as u64 != size {
            return found(Rule::Gap, format!("the group of {} is not of its {size} ranks", ranks(&group)));
        }
        let regions: Vec<Region> = group.iter().map(|&rank| tensor.region(rank)).collect();
        if let Err((rule, what)) = padding(tensor, &group, &regions, aligned) {
            return found(rule, what);
        }
        // Groups that hold the same regions tile alike: one of them is walked.
        if seen.insert(regions.clone()) {
            let numel = crate::model::numel(&tensor.shape);
            let tiled = match numel {
                Some(n) if n <= WALKED => walk(&tensor.shape, n, &group, &regions),
                _ => sweep(tensor, &group, &regions),
            };
            if let Err((rule, what)) = tiled {
                return found(rule, what);
            }
        }
    }
    Ok(())
}

/// What must hold before a region can be asked for at all.
fn well_formed(tensor: &TensorPlan) -> Result<(), String> {
    let dims = tensor.shape.len();
    let mut flat = false;
    for (at, Cut { axis, layout }) in tensor.placement.cuts.iter().enumerate() {
        if axis.stride == 0 || axis.size == 0 || axis.stride.checked_mul(axis.size).is_none() {
            return Err(format!("its groups are of {} ranks at stride {}", axis.size, axis.stride));
        }
        flat |= layout.is_flat();
        match layout {
            Layout::Dim { .. } | Layout::Chunk { .. } | Layout::Bounds { .. } if flat => {
                return Err("a dim is cut after flat elements".into());
            }
            Layout::Dim { dim, .. } | Layout::Chunk { dim } | Layout::Bounds { dim, .. } if *dim >= dims => {
                return Err(format!("dim {dim} is cut, but it has {dims}"));
            }
            Layout::Bounds { bounds, .. } if u64::try_from(bounds.len()).ok() != Some(u64::from(axis.size) + 1) => {
                return Err(format!("{} bounds for groups of {} ranks", bounds.len(), axis.size));
            }
            Layout::Bounds { dim, bounds } if at == 0 && bounds.iter().any(|&b| b > tensor.shape[*dim]) => {
                return Err(format!("its bounds {bounds:?} reach beyond dim {dim}"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn walk(shape: &[u64], numel: u64, group: &[u32], regions: &[Region]) -> Result<(), Found> {
    let mut holder: Vec<Option<u32>> = vec![None; usize::try_from(numel).unwrap_or(usize::MAX)];
    for (&rank, region) in group.iter().zip(regions) {
        for flat in elements(region, shape) {
            let at = &mut holder[usize::try_from(flat).unwrap_or(usize::MAX)];
            if let Some(other) = at.replace(rank) {
                return Err((Rule::Overlap, format!("element {:?} is on rank {other} and on rank {rank}", index(shape, flat))));
            }
        }
    }
    match holder.iter().position(Option::is_none) {
        Some(flat) => Err((Rule::Gap, format!("element {:?} is on no rank of {}", index(shape, flat as u64), ranks(group)))),
        None => Ok(()),
    }
}

/// Regions as boxes of indices, or as intervals of flat elements, on the grid of all their ends: each cell is in one region.
fn sweep(tensor: &TensorPlan, group: &[u32], regions: &[Region]) -> Result<(), Found> {
    let shape = &tensor.shape;
    if shape.contains(&0) {
        return Ok(());
    }
    let flat = regions.iter().any(|region| matches!(region, Region::Flat { .. }));
    let space: Vec<u64> = if flat { vec![tensor.numel()] } else { shape.clone() };
    let whole = || space.iter().map(|&size| 0..size).collect::<Vec<Range<u64>>>();
    let boxes: Vec<(u32, Vec<Range<u64>>)> = group
        .iter()
        .zip(regions)
        .filter_map(|(&rank, region)| {
            let ranges = match region {
                Region::Empty => return None,
                Region::Whole => whole(),
                Region::Flat { range } => vec![range.clone()],
                Region::Box { ranges } => ranges.clone(),
                Region::Dim { dim, range } => {
                    let mut ranges = whole();
                    ranges[*dim] = range.clone();
                    ranges
                }
            };
            ranges.iter().all(|range| !range.is_empty()).then_some((rank, ranges))
        })
        .collect();
    let ends: Vec<Vec<u64>> = (0..space.len())
        .map(|dim| {
            let ends = boxes.iter().flat_map(|(_, ranges)| [ranges[dim].start, ranges[dim].end]);
            let ends: BTreeSet<u64> = ends.chain([0, space[dim]]).collect();
            ends.into_iter().collect()
        })
        .collect();
    let cells = |dim: usize, range: &Range<u64>| {
        let at = |end: u64| ends[dim].partition_point(|&e| e < end) as u64;
        at(range.start)..at(range.end)
    };
    let grid: Vec<u64> = ends.iter().map(|ends| ends.len() as u64 - 1).collect();
    let corner =
        |cell: u64| index(&grid, cell).iter().zip(&ends).map(|(&at, ends)| ends[usize::try_from(at).unwrap_or(0)]).collect::<Vec<_>>();
    let mut holder: BTreeMap<u64, u32> = BTreeMap::new();
    for (rank, ranges) in &boxes {
        let held: Vec<Range<u64>> = ranges.iter().enumerate().map(|(dim, range)| cells(dim, range)).collect();
        for cell in product(&held, &grid) {
            if let Some(other) = holder.insert(cell, *rank) {
                return Err((Rule::Overlap, format!("element {:?} is on rank {other} and on rank {rank}", corner(cell))));
            }
        }
    }
    match (0..grid.iter().product()).find(|cell| !holder.contains_key(cell)) {
        Some(cell) => Err((Rule::Gap, format!("element {:?} is on no rank of {}", corner(cell), ranks(group)))),
        None => Ok(()),
    }
}

/// The row-major flat indices of a box.
fn product(ranges: &[Range<u64>], shape: &[u64]) -> Vec<u64> {
    ranges
        .iter()
        .zip(shape)
        .fold(vec![0], |cells, (range, size)| cells.iter().flat_map(|cell| range.clone().map(move |at| cell * size + at)).collect())
}

fn padding(tensor: &TensorPlan, group: &[u32], regions: &[Region], aligned: u64) -> Result<(), Found> {
    let broken = |what: String| Err((Rule::Padding, what));
    let valid: Vec<u64> = regions.iter().map(|r| r.numel(&tensor.shape)).collect();
    let padded: Vec<u64> = group.iter().map(|&rank| tensor.padded_numel(rank)).collect();
    for ((rank, valid), padded) in group.iter().zip(&valid).zip(&padded) {
        if padded < valid {
            return broken(format!("rank {rank} holds {valid} elements in a buffer of {padded}"));
        }
        if tensor.placement.padding == Padding::None && padded != valid {
            return broken(format!("rank {rank} holds {valid} elements in a buffer of {padded}, without padding"));
        }
    }
    // Ranks that differ along the axis of the last cut alone share one size; along the others, what is left to cut may differ.
    let last = &tensor.placement.cuts[tensor.placement.cuts.len().saturating_sub(1)..];
    let mut groups: BTreeMap<u64, Vec<(u32, u64, u64)>> = BTreeMap::new();
    for ((&rank, &valid), &padded) in group.iter().zip(&valid).zip(&padded) {
        groups.entry(first_of_group(last, rank)).or_default().push((rank, valid, padded));
    }
    for sizes in groups.values() {
        let largest = sizes.iter().map(|s| s.2).max().unwrap_or(0);
        let fullest = sizes.iter().map(|s| s.1).max().unwrap_or(0);
        if let Some((rank, _, padded)) = sizes.iter().find(|s| tensor.placement.padding == Padding::ToFirst && s.2 != largest) {
            return broken(format!("rank {rank} has a buffer of {padded} elements, but another of its group one of {largest}"));
        }
        let needed = if aligned == 1 { fullest } else { fullest.max(1).checked_next_multiple_of(aligned).unwrap_or(u64::MAX) };
        if largest > needed {
            return broken(format!("buffers of {largest} elements, of which no rank fills more than {fullest}"));
        }
    }
    Ok(())
}

/// `ranks 0, 1, 2, … 7`.
fn ranks(group: &[u32]) -> String {
    match group {
        [a, b, c, .., last] if group.len() > 4 => format!("ranks {a}, {b}, {c}, … {last}"),
        _ => format!("ranks {}", group.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")),
    }
}
