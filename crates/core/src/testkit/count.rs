//! Tiling by counting: which rank holds which element, walked one by one, or by interval where there are too many to walk.
//! Shares no arithmetic with `check` nor with `Region::runs`.

use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
};

use super::violation::{Found, Rule};
use crate::{GroupAxis, Layout, Padding, Placement, Region, TensorPlan};

/// Elements beyond which a tensor is held against intervals instead of walked.
const WALKED: u64 = 1 << 14;

/// Every group of the world as its ranks, ascending.
pub(super) fn groups(axis: GroupAxis, world_size: u32) -> Vec<Vec<u32>> {
    let mut groups: BTreeMap<(u64, u64), Vec<u32>> = BTreeMap::new();
    let (stride, size) = (u64::from(axis.stride), u64::from(axis.size));
    for rank in 0..world_size {
        let key = (u64::from(rank) / (stride * size), u64::from(rank) % stride);
        groups.entry(key).or_default().push(rank);
    }
    groups.into_values().collect()
}

/// The row-major flat indices of a region's elements, ascending, for tensors small enough to walk.
pub(super) fn elements(region: &Region, shape: &[u64]) -> Vec<u64> {
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
    if tensor.placement == Placement::replicated() {
        return Ok(());
    }
    let mut seen: HashSet<Vec<Region>> = HashSet::new();
    for group in groups(tensor.placement.axis, world_size) {
        if group.len() != tensor.placement.axis.size as usize {
            return found(Rule::Gap, format!("the group of {} is short of its {} ranks", ranks(&group), tensor.placement.axis.size));
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
    let axis = tensor.placement.axis;
    let dims = tensor.shape.len();
    if axis.stride == 0 || axis.size == 0 || axis.stride.checked_mul(axis.size).is_none() {
        return Err(format!("its groups are of {} ranks at stride {}", axis.size, axis.stride));
    }
    match &tensor.placement.layout {
        Layout::Dim { dim, .. } | Layout::Bounds { dim, .. } if *dim >= dims => Err(format!("dim {dim} is cut, but it has {dims}")),
        Layout::Bounds { bounds, .. } if u64::try_from(bounds.len()).ok() != Some(u64::from(axis.size) + 1) => {
            Err(format!("{} bounds for groups of {} ranks", bounds.len(), axis.size))
        }
        Layout::Bounds { dim, bounds } if bounds.iter().any(|&b| b > tensor.shape[*dim]) => {
            Err(format!("its bounds {bounds:?} reach beyond dim {dim}"))
        }
        _ => Ok(()),
    }
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

/// Regions as intervals: of indices of one dim, or of flat elements.
fn sweep(tensor: &TensorPlan, group: &[u32], regions: &[Region]) -> Result<(), Found> {
    let (size, what) = match &tensor.placement.layout {
        Layout::Dim { dim, .. } | Layout::Bounds { dim, .. } => (tensor.shape[*dim], format!("index of dim {dim}")),
        _ => (tensor.numel(), "element".to_owned()),
    };
    if tensor.shape.contains(&0) {
        return Ok(());
    }
    let mut intervals: Vec<(Range<u64>, u32)> = group
        .iter()
        .zip(regions)
        .filter_map(|(&rank, region)| match region {
            Region::Dim { range, .. } | Region::Flat { range } => Some((range.clone(), rank)),
            Region::Whole => Some((0..size, rank)),
            Region::Empty => None,
        })
        .filter(|(range, _)| !range.is_empty())
        .collect();
    intervals.sort_by_key(|(range, rank)| (range.start, *rank));
    let mut next = 0;
    let mut last = 0;
    for (range, rank) in intervals {
        if range.start < next {
            return Err((Rule::Overlap, format!("{what} {} is on rank {last} and on rank {rank}", range.start)));
        }
        if range.start > next {
            return Err((Rule::Gap, format!("{what} {next} is on no rank of {}", ranks(group))));
        }
        (next, last) = (range.end, rank);
    }
    if next == size { Ok(()) } else { Err((Rule::Gap, format!("{what} {next} is on no rank of {}", ranks(group)))) }
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
    let (largest, fullest) = (padded.iter().max().copied().unwrap_or(0), valid.iter().max().copied().unwrap_or(0));
    if let Some(at) = padded.iter().position(|&p| tensor.placement.padding == Padding::ToFirst && p != largest) {
        return broken(format!("rank {} has a buffer of {} elements, but another of its group one of {largest}", group[at], padded[at]));
    }
    let needed = if aligned == 1 { fullest } else { fullest.max(1).checked_next_multiple_of(aligned).unwrap_or(u64::MAX) };
    if largest > needed {
        return broken(format!("buffers of {largest} elements, of which no rank fills more than {fullest}"));
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
