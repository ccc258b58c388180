//! The SIMD levels: which there are, and which of them this CPU has.

use std::fmt;

/// A set of CPU instructions that casts can be made of. All levels give the same bits.
///
/// x86's levels take the default floating-point environment for granted, as all of Rust does: a thread on which a library has set
/// flush-to-zero would lose subnormals from float32 to float64 and from float64 to float32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum SimdLevel {
    /// Plain Rust, one element at a time: the reference, and the fallback anywhere.
    Scalar,
    /// 128-bit vectors of AArch64.
    Neon,
    /// 256-bit vectors of x86 and its float16 conversions.
    Avx2,
    /// 512-bit vectors of x86: AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with its bfloat16 instructions.
    Avx512Bf16,
}

impl SimdLevel {
    /// Every level, slower ones first.
    pub const ALL: &'static [Self] = &[Self::Scalar, Self::Neon, Self::Avx2, Self::Avx512, Self::Avx512Bf16];

    /// True where this CPU has the level's instructions (and the operating system saves their registers).
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Self::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 | Self::Avx512Bf16 => false,
            #[cfg(not(all(target_arch = "aarch64", target_endian = "little")))]
            Self::Neon => false,
        }
    }

    /// The fastest level that this CPU has.
    pub fn best() -> Self {
        Self::ALL.iter().rev().copied().find(|l| l.is_available()).unwrap_or(Self::Scalar)
    }

    /// A short name, such as `avx2+f16c`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Neon => "neon",
            Self::Avx2 => "avx2+f16c",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512+bf16",
        }
    }
}

impl fmt::Display for SimdLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
