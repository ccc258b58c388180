//! What the suite plans: awkward shapes, awkward worlds, small models of known architectures, and random ones from a fixed seed.

use crate::{DType, TensorMeta};

/// Every world of the suite as (replicate, shard): 1, 2, 3, 4, 7, 8, 64 and 1,000 ranks, with and without replicas.
pub(super) const MESHES: &[(u32, u32)] =
    &[(1, 1), (1, 2), (2, 1), (1, 3), (1, 4), (2, 2), (4, 1), (1, 7), (7, 1), (1, 8), (2, 4), (4, 2), (1, 64), (8, 8), (1, 1000), (4, 250)];

/// A small, fixed generator of numbers (xorshift64*): the suite must be the same on every machine.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 33) % n
    }

    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len() as u64).rev() {
            let j = self.below(i + 1);
            items.swap(usize::try_from(i).unwrap_or(0), usize::try_from(j).unwrap_or(0));
        }
    }
}

/// Empty, 0-d, 1 element, odd, 3-D and more; none beyond a few hundred elements.
const SHAPES: &[&[u64]] = &[
    &[],
    &[0],
    &[1],
    &[2],
    &[3],
    &[5],
    &[9],
    &[64],
    &[65],
    &[257],
    &[0, 4],
    &[4, 0],
    &[1, 1],
    &[1, 9],
    &[7, 5],
    &[8, 8],
    &[13, 3],
    &[5, 3, 2],
    &[1, 3, 7],
    &[8, 2, 3],
    &[3, 0, 2],
    &[2, 3, 2, 3],
];

/// Shapes whose elements cannot be walked, two of them of huge dims and no elements.
const HUGE: &[&[u64]] =
    &[&[1 << 40], &[(1 << 31) + 1, 1 << 20], &[128, 1 << 24, (1 << 13) + 1], &[0, 1 << 62, 1 << 62], &[1 << 62, 1 << 62, 0]];

/// One tensor of every shape, in turn of every float dtype.
pub(super) fn shapes() -> Vec<TensorMeta> {
    let dtypes = [DType::F32, DType::BF16, DType::F16, DType::F64, DType::F8E4M3];
    let all = SHAPES.iter().chain(HUGE).enumerate();
    all.map(|(i, shape)| TensorMeta::new(format!("shapes.{i:02}.weight"), dtypes[i % dtypes.len()], *shape)).collect()
}

/// A decoder of two layers with a tied embedding, an integer buffer, a bool one and a float one.
pub(super) fn decoder() -> Vec<TensorMeta> {
    let mut tensors = vec![
        TensorMeta::new("model.embed_tokens.weight", DType::BF16, [11, 6]),
        TensorMeta::new("model.norm.weight", DType::BF16, [6]),
        TensorMeta::new("model.rotary_emb.inv_freq", DType::F32, [3]),
        TensorMeta::new("model.position_ids", DType::I64, [1, 16]),
        TensorMeta::new("model.causal_mask", DType::Bool, [4, 4]),
    ];
    for layer in 0..2 {
        for (part, shape) in [
            ("input_layernorm.weight", &[6][..]),
            ("self_attn.q_proj.weight", &[6, 6]),
            ("self_attn.k_proj.weight", &[3, 6]),
            ("self_attn.q_proj.bias", &[6]),
            ("mlp.up_proj.weight", &[10, 6]),
            ("mlp.down_proj.weight", &[6, 10]),
        ] {
            tensors.push(TensorMeta::new(format!("model.layers.{layer}.{part}"), DType::BF16, shape));
        }
    }
    tensors
}

/// Mixtures of experts: a tensor an expert in layer 0, all experts in one tensor in layer 1, and 5 of them in layer 2.
pub(super) fn experts() -> Vec<TensorMeta> {
    let mut tensors = vec![TensorMeta::new("lm_head.weight", DType::BF16, [9, 4])];
    for (layer, count) in [(0, 8u64), (2, 5)] {
        tensors.push(TensorMeta::new(format!("model.layers.{layer}.mlp.gate.weight"), DType::BF16, [count, 4]));
        for expert in 0..count {
            let name = |part: &str| format!("model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight");
            tensors.push(TensorMeta::new(name("up"), DType::BF16, [3, 4]));
            tensors.push(TensorMeta::new(name("down"), DType::BF16, [4, 3]));
        }
    }
    tensors.push(TensorMeta::new("model.layers.1.mlp.experts.gate_up_proj", DType::BF16, [8, 4, 6]));
    tensors.push(TensorMeta::new("model.layers.1.mlp.experts.down_proj", DType::BF16, [8, 3, 4]));
    tensors
}

/// Up to eight tensors of up to three dims of up to twelve.
pub(super) fn random(seed: u64) -> Vec<TensorMeta> {
    let mut random = Random::new(seed);
    let count = 1 + random.below(8);
    let dtypes = [DType::F32, DType::BF16, DType::F16, DType::BF16];
    (0..count)
        .map(|i| {
            let dims = random.below(3) + 1;
            let shape: Vec<u64> = (0..dims).map(|_| random.below(13)).collect();
            let dtype = dtypes[usize::try_from(random.below(4)).unwrap_or(0)];
            TensorMeta::new(format!("model.layers.{}.t{i}.weight", random.below(3)), dtype, shape)
        })
        .collect()
}

/// The name of a model's tensor of that number.
type Naming = fn(u32) -> String;

/// The ways in which models grow, for counting steps: more layers, more experts in a layer, more tensors without a module.
pub(super) const GROWTHS: &[(&str, Naming)] = &[
    ("layers", |i| format!("model.layers.{}.t{}.weight", i / 8, i % 8)),
    ("experts", |i| format!("model.layers.0.mlp.experts.{i}.up_proj.weight")),
    ("bare tensors", |i| format!("t{i}")),
];

/// A model of that many tensors.
pub(super) fn wide(count: u32, name: impl Fn(u32) -> String) -> Vec<TensorMeta> {
    (0..count).map(|i| TensorMeta::new(name(i), DType::BF16, [1 << 20, 1 << 10])).collect()
}
