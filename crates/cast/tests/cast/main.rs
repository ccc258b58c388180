//! The casts: the scalar reference against a table that torch made, every SIMD level against the reference, and the contract of buffers.

mod inputs;
mod levels;
mod torch;

use shardwright_cast::{SimdLevel, caster_at};
use shardwright_core::DType;

/// The dtypes with casts between them.
const DTYPES: [DType; 6] = [DType::F64, DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2];

fn size(dtype: DType) -> usize {
    usize::try_from(dtype.bits() / 8).unwrap()
}

/// Every ordered pair of distinct dtypes.
fn pairs() -> impl Iterator<Item = (DType, DType)> {
    DTYPES.into_iter().flat_map(|a| DTYPES.into_iter().filter(move |&b| a != b).map(move |b| (a, b)))
}

/// Casts a whole buffer at `level`.
fn cast_at(level: SimdLevel, from: DType, to: DType, src: &[u8]) -> Vec<u8> {
    let len = src.len() / size(from) * size(to);
    let mut out = Vec::with_capacity(len);
    caster_at(level, from, to).unwrap()(src, &mut out.spare_capacity_mut()[..len]);
    // SAFETY: a caster fills its destination.
    unsafe { out.set_len(len) };
    out
}
