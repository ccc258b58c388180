//! Which expert a tensor belongs to, by its name: the one thing that a checkpoint says about experts.

use std::collections::BTreeMap;

use shardwright_core::TensorMeta;

/// What a tensor is to the experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role<'n> {
    /// One expert's own tensor: `…experts.5.up_proj.weight`.
    One {
        /// The list it is in: `…experts`.
        list: &'n str,
        /// Its place there, 5.
        index: u64,
    },
    /// A tensor of all experts of a list, a slice of dim 0 each: `…experts.gate_up_proj`, 3-D, or its 2-D bias.
    All {
        /// The list it is in.
        list: &'n str,
    },
    /// No expert's: routers, shared experts, attention, norms.
    None,
}

/// The role of a tensor, where `experts` is what lists of experts are called.
pub fn role<'n>(tensor: &'n TensorMeta, experts: &str) -> Role<'n> {
    let name = tensor.name.as_str();
    let mut at = 0;
    for segment in name.split('.') {
        let end = at + segment.len();
        if segment == experts && end < name.len() {
            let (list, rest) = (&name[..end], &name[end + 1..]);
            return match rest.split('.').next().and_then(|next| next.parse().ok()) {
                Some(index) => Role::One { list, index },
                None if tensor.shape.len() >= 2 => Role::All { list },
                None => Role::None,
            };
        }
        at = end + 1;
    }
    Role::None
}

/// The number of experts of each list whose experts have tensors of their own: the largest index and one.
pub fn counts<'n>(tensors: &'n [TensorMeta], experts: &str) -> BTreeMap<&'n str, u64> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for tensor in tensors {
        if let Role::One { list, index } = role(tensor, experts) {
            let count = counts.entry(list).or_default();
            *count = (*count).max(index.saturating_add(1));
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use shardwright_core::DType;

    use super::*;

    #[test]
    fn names_and_shapes_tell_experts_from_the_rest() {
        let tensor = |name: &str, shape: &[u64]| TensorMeta::new(name, DType::BF16, shape);
        let one = tensor("model.layers.3.mlp.experts.17.up_proj.weight", &[4, 4]);
        assert_eq!(role(&one, "experts"), Role::One { list: "model.layers.3.mlp.experts", index: 17 });
        let all = tensor("model.layers.3.mlp.experts.gate_up_proj", &[8, 4, 4]);
        assert_eq!(role(&all, "experts"), Role::All { list: "model.layers.3.mlp.experts" });
        for (name, shape) in [
            ("model.layers.3.mlp.gate.weight", &[8, 4][..]),
            ("model.layers.3.mlp.shared_experts.up_proj.weight", &[4, 4]),
            ("model.layers.3.mlp.experts.e_score_correction_bias", &[8]),
            ("experts", &[8, 4, 4]),
        ] {
            assert_eq!(role(&tensor(name, shape), "experts"), Role::None, "{name}");
        }
    }
}
