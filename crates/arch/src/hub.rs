//! From a model's parameters back to the names and shapes that files on the hub have: the transforms the other way round.
//!
//! Only what can be turned round is: renames of fixed texts, and experts that were merged, alone or joined in equal parts. Whether the result
//! is right is for [`crate::assemble`] to say, which must make the same parameters of it.

use serde_json::Value;
use shardwright_core::TensorMeta;

use crate::{data::Data, ops::Op, rename::Transform, tree::Tree};

/// The files' tensors of which transformers makes these parameters; `None` where the architecture is not known.
pub fn hub_tensors(model: &[TensorMeta], config: &Value, class: &str) -> Option<Vec<TensorMeta>> {
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
    let mut out = Vec::with_capacity(model.len());
    for tensor in model {
        let split = transforms.iter().find_map(|(prefix, transform)| experts(tensor, prefix, transform));
        out.extend(split.unwrap_or_else(|| vec![tensor.clone()]));
    }
    for tensor in &mut out {
        for (prefix, transform) in transforms.iter().rev() {
            if let Some(name) = renamed(&tensor.name, prefix, transform) {
                tensor.name = name.into();
            }
        }
    }
    out.sort_by(|a, b| a.name.cmp(&b.name));
    Some(out)
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
    if !rows.is_multiple_of(parts) || transform.sources.iter().any(|s| s.matches('*').count() != 1) {
        return None;
    }
    let mut out = Vec::new();
    for expert in 0..*count {
        for source in &transform.sources {
            let mut shape = vec![rows / parts];
            shape.extend(inner);
            out.push(TensorMeta::new(format!("{prefix}{before}{}", source.replace('*', &expert.to_string())), tensor.dtype, shape));
        }
    }
    Some(out)
}

/// The name before a rename of a fixed text.
fn renamed(name: &str, prefix: &str, transform: &Transform) -> Option<String> {
    let ([source], [target], true) = (transform.sources.as_slice(), transform.targets.as_slice(), transform.is_rename()) else {
        return None;
    };
    let rest = name.strip_prefix(prefix)?;
    let (anchored, source) = source.strip_prefix('^').map_or((false, source.as_str()), |s| (true, s));
    let fixed = |text: &str| !text.chars().any(|c| "\\()[]*+?|$^".contains(c)) && !text.is_empty();
    if !fixed(source) || !fixed(target) {
        return None;
    }
    let before = match anchored {
        true => format!("{source}{}", rest.strip_prefix(target.as_str()).filter(|r| r.is_empty() || r.starts_with('.'))?),
        false if rest.contains(target.as_str()) => rest.replacen(target.as_str(), source, 1),
        false => return None,
    };
    Some(format!("{prefix}{before}"))
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
        let found = hub_tensors(&model, &config, "MixtralForCausalLM").unwrap();
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
