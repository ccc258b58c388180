//! Picks the compiled cast for a SIMD level and two dtypes.

use shardwright_core::DType;

use crate::{
    kernel::{Bf16, Caster, E4m3, E5m2, Element, F16, F32, F64, Isa, Scalar},
    level::SimdLevel,
};

/// The cast at `level`, which the caller has found this CPU to have.
pub(crate) fn select(level: SimdLevel, from: DType, to: DType) -> Option<Caster> {
    match level {
        SimdLevel::Scalar => select_from::<Scalar>(from, to),
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        SimdLevel::Neon => select_from::<crate::neon::Neon>(from, to),
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx2 => select_from::<crate::avx2::Avx2>(from, to),
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx512 => select_from::<crate::avx512::Avx512<false>>(from, to),
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx512Bf16 => select_from::<crate::avx512::Avx512<true>>(from, to),
        // The levels of other machines.
        _ => None,
    }
}

fn select_from<I: Isa>(from: DType, to: DType) -> Option<Caster> {
    match from {
        DType::F64 => select_to::<I, F64>(to),
        DType::F32 => select_to::<I, F32>(to),
        DType::F16 => select_to::<I, F16>(to),
        DType::BF16 => select_to::<I, Bf16>(to),
        DType::F8E4M3 => select_to::<I, E4m3>(to),
        DType::F8E5M2 => select_to::<I, E5m2>(to),
        _ => None,
    }
}

fn select_to<I: Isa, A: Element>(to: DType) -> Option<Caster> {
    Some(match to {
        DType::F64 => I::caster::<A, F64>(),
        DType::F32 => I::caster::<A, F32>(),
        DType::F16 => I::caster::<A, F16>(),
        DType::BF16 => I::caster::<A, Bf16>(),
        DType::F8E4M3 => I::caster::<A, E4m3>(),
        DType::F8E5M2 => I::caster::<A, E5m2>(),
        _ => return None,
    })
}
