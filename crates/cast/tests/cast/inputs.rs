//! The inputs of the torch table, made as `data/torch_casts.py` makes them.

use shardwright_cast::SimdLevel;
use shardwright_core::DType;

/// All inputs of an 8- or 16-bit dtype; of float32 and float64 those around every boundary of a smaller dtype, and pseudo-random ones.
pub(crate) fn inputs(dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F64 => bytes(inputs64().into_iter().map(u64::to_le_bytes)),
        DType::F32 => bytes(inputs32().into_iter().map(u32::to_le_bytes)),
        DType::F16 | DType::BF16 => bytes((0..=u16::MAX).map(u16::to_le_bytes)),
        _ => (0..=u8::MAX).collect(),
    }
}

fn bytes<const N: usize>(elements: impl Iterator<Item = [u8; N]>) -> Vec<u8> {
    elements.flatten().collect()
}

pub(crate) fn splitmix64(count: u64) -> impl Iterator<Item = u64> {
    (1..=count).map(|i| {
        let z = i.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

fn inputs32() -> Vec<u32> {
    let mut all = Vec::new();
    for offset in [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
        all.extend((0..0x1_0000u32).map(|upper| (upper << 16) + offset));
    }
    let half = super::cast_at(SimdLevel::Scalar, DType::F16, DType::F32, &inputs(DType::F16));
    let half: Vec<u32> = half.as_chunks().0.iter().map(|c| u32::from_le_bytes(*c)).collect();
    for offset in [0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF] {
        all.extend(half.iter().filter(|b| f32::from_bits(**b).is_finite()).map(|b| b + offset));
    }
    all.extend(splitmix64(1 << 18).map(|z| u32::try_from(z >> 32).unwrap()));
    all
}

fn inputs64() -> Vec<u64> {
    let wide: Vec<u64> = inputs32().into_iter().map(f32::from_bits).filter(|x| x.is_finite()).map(|x| f64::from(x).to_bits()).collect();
    let mut all = Vec::new();
    for offset in [0, 1, (1 << 28) - 1, 1 << 28, (1 << 28) + 1] {
        all.extend(wide.iter().map(|b| b + offset));
    }
    all.extend(splitmix64(1 << 18));
    all.extend(splitmix64(1 << 18).map(|z| (z & 0x800F_FFFF_FFFF_FFFF) | ((1023 - 160 + (z >> 52) % 300) << 52)));
    all
}
