//! From a case that breaks a rule to the smallest one that still does: fewer ranks, fewer tensors, smaller shapes.

use super::{case::Case, corpus::MESHES, violation::Found};
use crate::{DType, TensorMeta};

/// Attempts after which the smallest case so far is reported.
const PATIENCE: usize = 2000;

/// Greedily takes the first smaller case that breaks the same rule, until none does.
pub(super) fn smallest(case: Case, found: Found, breaks: impl Fn(&Case) -> Option<Found>) -> (Case, Found) {
    let (mut case, mut found) = (case, found);
    let mut attempts = 0;
    'shrinking: loop {
        for smaller in smaller(&case) {
            attempts += 1;
            if attempts > PATIENCE {
                return (case, found);
            }
            if let Some(again) = breaks(&smaller).filter(|(rule, _)| *rule == found.0) {
                (case, found) = (smaller, again);
                continue 'shrinking;
            }
        }
        return (case, found);
    }
}

/// Candidates, the smallest first.
fn smaller(case: &Case) -> Vec<Case> {
    let with = |tensors: Vec<TensorMeta>| Case { tensors, ..case.clone() };
    let mut all = Vec::new();
    if !case.tensors.is_empty() {
        all.push(with(Vec::new()));
    }
    if case.tensors.len() > 1 {
        all.extend(case.tensors.iter().map(|t| with(vec![t.clone()])));
        let (first, second) = case.tensors.split_at(case.tensors.len() / 2);
        all.extend([with(first.to_vec()), with(second.to_vec())]);
        all.extend((0..case.tensors.len()).map(|i| with([&case.tensors[..i], &case.tensors[i + 1..]].concat())));
    }
    let fewer = |m: &&(u32, u32)| m.0 * m.1 < case.world_size() || (m.0 * m.1 == case.world_size() && m.0 < case.replicate);
    all.extend(MESHES.iter().filter(fewer).map(|&(replicate, shard)| Case { replicate, shard, ..case.clone() }));
    for (i, tensor) in case.tensors.iter().enumerate() {
        for simpler in simpler(tensor, case.tensors.len() == 1) {
            let mut tensors = case.tensors.clone();
            tensors[i] = simpler;
            all.push(with(tensors));
        }
    }
    all
}

/// The tensor with a dim less, a smaller dim, a plainer dtype or name.
fn simpler(tensor: &TensorMeta, alone: bool) -> Vec<TensorMeta> {
    let mut all = Vec::new();
    for dim in 0..tensor.shape.len() {
        let mut fewer = tensor.clone();
        fewer.shape.remove(dim);
        all.push(fewer);
        let size = tensor.shape[dim];
        for less in [1, 2, size / 2, size.saturating_sub(1)] {
            if less > 0 && less < size {
                let mut smaller = tensor.clone();
                smaller.shape[dim] = less;
                all.push(smaller);
            }
        }
    }
    if tensor.dtype.is_float() && tensor.dtype != DType::F32 {
        all.push(TensorMeta { dtype: DType::F32, ..tensor.clone() });
    }
    if alone && tensor.name != "w" {
        all.push(TensorMeta { name: "w".into(), ..tensor.clone() });
    }
    all
}
