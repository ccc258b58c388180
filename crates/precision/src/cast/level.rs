//! The SIMD levels: which there are, and which of them this CPU has.

use std::fmt;

/// A set of CPU instructions that casts can be made of. All levels give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum SimdLevel {
    /// Plain Rust on integers: the reference, and the fallback anywhere.
    Scalar,
}

impl SimdLevel {
    /// Every level, slower ones first.
    pub const ALL: &'static [Self] = &[Self::Scalar];

    /// True where this CPU has the level's instructions (and the operating system saves their registers).
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
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
        }
    }
}

impl fmt::Display for SimdLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
