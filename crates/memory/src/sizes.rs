//! Sizes of a plan's tensors and parameter groups, and the order in which a forward pass uses them.

use std::collections::BTreeSet;

use shardwright_core::{DType, ShardPlan, TensorKind, TensorPlan};

/// Bytes of elements, rounded up for dtypes below a byte.
pub(crate) fn bytes(dtype: DType, elements: u64) -> u64 {
    dtype.bytes(elements).unwrap_or(u64::MAX)
}

/// The stack and the number of the block that a name is in: `model.layers.3.mlp` is in block 3 of `model.layers`.
pub(crate) fn block_of(name: &str) -> Option<(&str, u64)> {
    let mut start = 0;
    for part in name.split('.') {
        if !part.is_empty() && part.len() < 10 && part.bytes().all(|b| b.is_ascii_digit()) {
            return Some((name[..start].trim_end_matches('.'), part.parse().ok()?));
        }
        start += part.len() + 1;
    }
    None
}

/// How many blocks occur in names.
pub(crate) fn count_blocks<'a>(names: impl Iterator<Item = &'a str>) -> u64 {
    names.filter_map(block_of).collect::<BTreeSet<_>>().len() as u64
}

/// The place of a module in a forward pass, as far as names tell: embeddings, then blocks by number, then the rest, the output last.
pub(crate) fn order(name: &str) -> (u8, &str, u64) {
    match block_of(name) {
        Some((stack, number)) => (1, stack, number),
        None if is_embedding(name) => (0, name, 0),
        None if ["head", "score", "classifier", "output"].iter().any(|part| name.contains(part)) => (3, name, 0),
        None => (2, name, 0),
    }
}

fn is_embedding(name: &str) -> bool {
    ["embed", "wte", "wpe", "shared"].iter().any(|part| name.contains(part)) && !name.contains("lm_head")
}

/// Whether a parameter belongs to the feed-forward half of its block.
fn is_feed_forward(name: &str) -> bool {
    ["mlp", "expert", "feed_forward", "ffn", "intermediate.dense", "fc1", "fc2", "block_sparse_moe", "post_attention_layernorm"]
        .iter()
        .any(|part| name.contains(part))
        || (name.contains(".output.dense") && !name.contains("attention"))
}

/// Whether Muon orthogonalises it: a matrix of a block.
pub(crate) fn is_matrix(tensor: &TensorPlan) -> bool {
    tensor.shape.len() == 2 && block_of(&tensor.name).is_some()
}

/// Ranks that gather the tensor: those along the axis of its last cut. What cuts before it took away, such as tensor parallelism, stays away.
pub(crate) fn group_ranks(tensor: &TensorPlan) -> u64 {
    tensor.placement.cuts.last().map_or(1, |cut| u64::from(cut.axis.size.max(1)))
}

/// Elements of the tensor as it is gathered: the padded shards of all ranks that gather it.
pub(crate) fn gathered_numel(tensor: &TensorPlan) -> u64 {
    tensor.padded_numel(0).saturating_mul(group_ranks(tensor))
}

/// Adds, and stays at the largest number where there is none larger: sizes come from files.
pub(crate) fn grow(sum: &mut u64, by: u64) {
    *sum = sum.saturating_add(by);
}

/// A parameter group, in bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct GroupSize {
    /// Index into the plan's parameter groups.
    pub index: usize,
    /// The block that it is, as a number among all blocks in order.
    pub block: Option<usize>,
    /// Gathered, in the compute dtype.
    pub gathered: u64,
    /// What a rank puts into the gather.
    pub gather_input: u64,
    /// The shard on its own device, in the storage dtype.
    pub shard: u64,
    /// Gradients of the whole parameter group, in the compute dtype, of the feed-forward half and of the rest.
    pub gradients: [u64; 2],
    /// Input of the reduce-scatter.
    pub reduce: u64,
    /// Its output.
    pub reduced: u64,
    /// Gradients of the shard, in the storage dtype.
    pub sharded_gradients: u64,
    /// Ranks of a group.
    pub group: u64,
}

/// All parameter groups in the order of a forward pass; the root, which is gathered around all others, comes last.
pub(crate) fn units(plan: &ShardPlan) -> Vec<GroupSize> {
    let mut order_of: Vec<usize> = (0..plan.groups.len()).collect();
    order_of.sort_by_key(|&u| (plan.groups[u].name.is_empty(), order(&plan.groups[u].name)));
    let mut blocks = 0;
    let mut sizes = Vec::with_capacity(order_of.len());
    for index in order_of {
        let group = &plan.groups[index];
        let mut size = GroupSize { index, group: 1, ..GroupSize::default() };
        if block_of(&group.name).is_some() {
            size.block = Some(blocks);
            blocks += 1;
        }
        for &t in &group.tensors {
            let tensor = &plan.tensors[t];
            let (shard, whole) = (tensor.padded_numel(0), gathered_numel(tensor));
            let precision = tensor.precision;
            size.group = size.group.max(group_ranks(tensor));
            grow(&mut size.gathered, bytes(precision.compute, whole));
            grow(&mut size.gather_input, bytes(precision.compute, shard));
            grow(&mut size.shard, bytes(precision.storage, shard));
            if tensor.trainable {
                let half = usize::from(!is_feed_forward(&tensor.name));
                grow(&mut size.gradients[half], bytes(precision.compute, tensor.numel()));
                grow(&mut size.reduce, bytes(precision.reduce, whole));
                grow(&mut size.reduced, bytes(precision.reduce, shard));
                grow(&mut size.sharded_gradients, bytes(precision.storage, shard));
            }
        }
        sizes.push(size);
    }
    sizes
}

/// The width of the compute dtype of most parameters.
pub(crate) fn compute_width(plan: &ShardPlan) -> u64 {
    let parameters = plan.tensors.iter().filter(|t| t.kind == TensorKind::Parameter);
    parameters.max_by_key(|t| t.numel()).map_or(4, |t| bytes(t.precision.compute, 1))
}

/// Bytes of all buffers, whole on every rank.
pub(crate) fn buffers(plan: &ShardPlan) -> u64 {
    plan.tensors.iter().filter(|t| t.kind == TensorKind::Buffer).map(|t| bytes(t.precision.storage, t.numel())).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_of_a_name_is_its_block() {
        assert_eq!(block_of("model.layers.3.mlp.experts.5.up_proj.weight"), Some(("model.layers", 3)));
        assert_eq!(block_of("h.11.ln_1.weight"), Some(("h", 11)));
        assert_eq!(block_of("lm_head.weight"), None);
        assert!(order("model.embed_tokens") < order("model.layers.2") && order("model.layers.2") < order("model.layers.10"));
        assert!(order("model.layers.10") < order("model.norm"));
    }
}
