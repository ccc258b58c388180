//! From a model's parameters back to the names and shapes that files on the hub have: the inverse of the transforms.
//!
//! Inverted are renames whose target holds all that the pattern matched (of prefixes that files may have or not, those of vision towers), experts
//! that were merged, alone or joined in equal parts, and tensors that were cut into equal parts. Whether the result is right is for
//! [`crate::assemble`] to say, which must make the same parameters of it.

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use shardwright_core::TensorMeta;

use crate::{
    data::Data,
    inverse::{Inverse, literal},
    ops::Op,
    rename::Transform,
    tree::Tree,
};

/// Which transforms are inverted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inverted {
    /// All that can be.
    All,
    /// Renames of texts, and experts.
    Texts,
    /// Experts.
    Experts,
}

/// What files on the hub may hold of which transformers makes these parameters, the likeliest first; `None` where the architecture is not known.
pub fn hub_tensors(model: &[TensorMeta], config: &Value, class: &str) -> Option<Vec<Vec<TensorMeta>>> {
    let data = Data::embedded();
    let tree = Tree::new(data, class, config["model_type"].as_str().unwrap_or_default(), config, false)?;
    let mut transforms: Vec<(String, Transform)> = Vec::new();
    let mut seen: Vec<String> = Vec::new();
    for (path, class, model_type, _) in tree.models() {
        let (by_class, by_type) = (data.get(">", &class), || data.get(">", &model_type));
        let key = if by_class.is_some() { class } else { model_type.clone() };
        let covered = seen.contains(&key);
        let Some(rows) = by_class.or_else(by_type).filter(|_| !covered) else { continue };
        seen.push(key);
        let prefix = if path.is_empty() { String::new() } else { format!("{path}.") };
        transforms.extend(rows.as_array().into_iter().flatten().filter_map(|row| Some((prefix.clone(), Transform::new(row).ok()?))));
    }
    // Of tied names files have the one that the other is tied to.
    let line = data.get("!", class);
    let mut model = model.to_vec();
    for (alias, name) in line.iter().filter_map(|line| line["tied"].as_object()).flatten() {
        if let Some(name) = name.as_str().filter(|name| model.iter().all(|t| t.name != **name))
            && let Some(tensor) = model.iter_mut().find(|t| t.name == **alias)
        {
            tensor.name = name.into();
        }
    }
    let mut candidates: Vec<Vec<TensorMeta>> = Vec::new();
    for which in [Inverted::All, Inverted::Texts, Inverted::Experts] {
        let found = inverted(&model, &transforms, which);
        if !candidates.contains(&found) {
            candidates.push(found);
        }
    }
    Some(candidates)
}

fn inverted(model: &[TensorMeta], transforms: &[(String, Transform)], which: Inverted) -> Vec<TensorMeta> {
    let mut out = Vec::with_capacity(model.len());
    for tensor in model {
        let split = transforms.iter().find_map(|(prefix, transform)| {
            let halves = || halves(tensor, prefix, transform).filter(|_| which == Inverted::All);
            experts(tensor, prefix, transform).or_else(halves)
        });
        out.extend(split.unwrap_or_else(|| vec![tensor.clone()]));
    }
    // Names are changed first, then converted.
    let (converters, renames): (Vec<_>, Vec<_>) = transforms.iter().rev().partition(|(_, transform)| transform.operations().is_some());
    for (prefix, transform) in converters.into_iter().chain(renames) {
        if which == Inverted::All {
            join(&mut out, prefix, transform);
        }
        let Some(Inverses { renames, exchanged }) = inverses(prefix, transform, which) else { continue };
        for tensor in &mut out {
            let Some(rest) = tensor.name.strip_prefix(prefix.as_str()) else { continue };
            let Some(before) = renames.iter().find_map(|inverse| inverse.apply(rest)) else { continue };
            tensor.name = format!("{prefix}{before}").into();
            for (a, b) in &exchanged {
                if tensor.shape.len() > *a.max(b) {
                    tensor.shape.swap(*a, *b);
                }
            }
        }
    }
    out.sort_by(|a, b| a.name.cmp(&b.name));
    out
}

/// The inverse of a transform of one tensor into one.
struct Inverses {
    /// The first that fits gives the name.
    renames: Vec<Inverse>,
    /// Pairs of dims to exchange.
    exchanged: Vec<(usize, usize)>,
}

fn inverses(prefix: &str, transform: &Transform, which: Inverted) -> Option<Inverses> {
    let renames = || transform.sources.iter().zip(&transform.targets).filter_map(|(source, target)| Inverse::new(source, target)).collect();
    let (mut renames, exchanged): (Vec<Inverse>, _) = match (which, transform.operations()) {
        (Inverted::Experts, _) => return None,
        (Inverted::Texts, None) if transform.is_rename() && transform.sources.len() == 1 => (renames(), Vec::new()),
        (Inverted::All, None) if transform.is_rename() || transform.is_group() || is_vision_model(prefix, transform) => {
            (renames(), Vec::new())
        }
        (Inverted::All, Some(ops)) if transform.sources.len() == 1 && transform.targets.len() == 1 => {
            if !ops.iter().all(|op| matches!(op.name(), "Transpose" | "PermuteForRope")) {
                return None;
            }
            (renames(), ops.iter().filter_map(Op::exchanged).collect())
        }
        _ => return None,
    };
    renames.retain(|inverse| which == Inverted::All || inverse.is_literal);
    (!renames.is_empty()).then_some(Inverses { renames, exchanged })
}

/// Files may have a prefix or not, and mostly do not. Those of vision towers have one: until version 5 the tower's class had such a module.
fn is_vision_model(prefix: &str, transform: &Transform) -> bool {
    transform.is_prefix() && transform.sources == [r"^vision_model\.(.+)"] && !prefix.is_empty() && !prefix.ends_with("vision_model.")
}

/// Joins what the transform has cut into equal parts.
fn join(tensors: &mut Vec<TensorMeta>, prefix: &str, transform: &Transform) {
    let ([source], [first, others @ ..]) = (transform.sources.as_slice(), transform.targets.as_slice()) else { return };
    let ops = transform.operations().unwrap_or_default();
    let cut = ops.first().filter(|op| op.name() == "Chunk" && ops[1..].iter().all(|op| op.name() == "PermuteForRope"));
    let (Some(cut), false) = (cut, others.is_empty()) else { return };
    let others = others.iter().map(|other| literal(other)).collect::<Option<Vec<_>>>();
    let (Some(source), Some(first), Some(others)) = (literal(source), literal(first), others) else { return };
    let dim = cut.dim();
    let (mut joined, mut gone) = (Vec::new(), HashSet::new());
    let by_name: HashMap<&str, &TensorMeta> = tensors.iter().map(|t| (&*t.name, t)).collect();
    for tensor in tensors.iter() {
        let Some(before) = tensor.name.strip_prefix(prefix).filter(|rest| rest.contains(&first)) else { continue };
        let with = |other: &str| format!("{prefix}{}", before.replacen(&first, other, 1));
        let names: Vec<String> = others.iter().map(|other| with(other)).collect();
        let is_there = |name: &String| by_name.get(name.as_str()).is_some_and(|t| t.shape == tensor.shape && t.dtype == tensor.dtype);
        if dim < tensor.shape.len() && names.iter().all(is_there) {
            let mut shape = tensor.shape.clone();
            shape[dim] = shape[dim].saturating_mul(names.len() as u64 + 1);
            joined.push(TensorMeta::new(with(&source), tensor.dtype, shape));
            gone.extend(names.into_iter().chain([tensor.name.to_string()]));
        }
    }
    tensors.retain(|t| !gone.contains(&*t.name));
    tensors.extend(joined);
}

/// The two halves of a gate and what it gates, where the transform has joined them.
fn halves(tensor: &TensorMeta, prefix: &str, transform: &Transform) -> Option<Vec<TensorMeta>> {
    let ([target], [gate, up]) = (transform.targets.as_slice(), transform.sources.as_slice()) else { return None };
    let [op] = transform.operations()? else { return None };
    let (target, gate, up) = (literal(target)?, literal(gate)?, literal(up)?);
    if op.name() != "Concatenate" || !gate.contains("gate") || !up.contains("up") {
        return None;
    }
    let (before, after) = tensor.name.strip_prefix(prefix)?.split_once(&target)?;
    let mut shape = tensor.shape.clone();
    let size = shape.get_mut(op.dim()).filter(|size| size.is_multiple_of(2))?;
    *size /= 2;
    Some([gate, up].map(|half| TensorMeta::new(format!("{prefix}{before}{half}{after}"), tensor.dtype, shape.clone())).into())
}

/// The tensors of each expert, where the transform has merged them.
fn experts(tensor: &TensorMeta, prefix: &str, transform: &Transform) -> Option<Vec<TensorMeta>> {
    let ([target], rest) = (transform.targets.as_slice(), tensor.name.strip_prefix(prefix)?) else { return None };
    let names: Vec<&str> = transform.operations()?.iter().map(Op::name).collect();
    let dim = |at: usize| transform.operations().and_then(|ops| ops.get(at)).map_or(0, Op::dim);
    let joined = match names.as_slice() {
        ["MergeModulelist"] if transform.sources.len() == 1 => false,
        ["MergeModulelist", "Concatenate"] if dim(1) == 1 => true,
        _ => return None,
    };
    let before = rest.strip_suffix(target.as_str())?;
    let boundary = before.is_empty() || before.ends_with('.') || target.starts_with('.');
    let ([count, rows, inner @ ..], true, 0) = (tensor.shape.as_slice(), boundary, dim(0)) else { return None };
    let parts = if joined { transform.sources.len() as u64 } else { 1 };
    // A star stands for the expert's number.
    let sources = transform.sources.iter().map(|source| {
        let (head, tail) = source.split_once('*')?;
        Some((literal(head)?, literal(tail)?))
    });
    let sources = sources.collect::<Option<Vec<_>>>().filter(|_| rows.is_multiple_of(parts))?;
    let mut out = Vec::new();
    for expert in 0..*count {
        for (head, tail) in &sources {
            let mut shape = vec![rows / parts];
            shape.extend(inner);
            out.push(TensorMeta::new(format!("{prefix}{before}{head}{expert}{tail}"), tensor.dtype, shape));
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use shardwright_core::{DType, Globs};

    use super::*;
    use crate::{Options, Use, assemble};

    #[test]
    fn experts_come_apart_and_renames_go_back_as_assemble_expects() {
        let config = json!({ "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_hidden_layers": 1, "hidden_size": 4,
            "intermediate_size": 6, "num_local_experts": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 8 });
        let tensor = |name: &str, shape: &[u64]| TensorMeta::new(name, DType::BF16, shape.to_vec());
        let model = [
            tensor("model.layers.0.mlp.experts.down_proj", &[2, 4, 6]),
            tensor("model.layers.0.mlp.experts.gate_up_proj", &[2, 12, 4]),
            tensor("model.layers.0.mlp.gate.weight", &[2, 4]),
        ];
        let found = hub_tensors(&model, &config, "MixtralForCausalLM").unwrap().remove(0);
        let names: Vec<String> = found.iter().map(|t| format!("{} {:?}", t.name, t.shape)).collect();
        let expert = |e: u32, w: &str, shape: &str| format!("model.layers.0.block_sparse_moe.experts.{e}.{w}.weight {shape}");
        let mut expected = vec!["model.layers.0.block_sparse_moe.gate.weight [2, 4]".to_owned()];
        for e in 0..2 {
            expected.extend([expert(e, "w1", "[6, 4]"), expert(e, "w2", "[4, 6]"), expert(e, "w3", "[6, 4]")]);
        }
        expected.sort();
        assert_eq!(names, expected);
        let none = Globs::default();
        let options = Options { class: Use::Llm, exclude: &none, tied_in_each_group: false, same: None, transformers: 5, own: None };
        let made = assemble(&found, &config, &options);
        assert!(made.misfits.is_empty() && made.unused.is_empty(), "{:?} {:?}", made.misfits, made.unused);
        let back: Vec<(String, Vec<u64>)> = made.tensors.into_iter().map(|t| (t.name, t.shape)).collect();
        assert_eq!(back, model.map(|t| (t.name.to_string(), t.shape)));
    }
}
