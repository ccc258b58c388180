//! Bit-exact casts between the six float dtypes of checkpoints: what can be cast, at which SIMD level, and the calls to do it.
//!
//! The meaning of a cast is in `scalar`; `kernel` loops over it or over a SIMD level's own loads and stores; `select` picks. Every cast goes through
//! float32, as torch's do: float64 to a 16-bit dtype rounds twice. No dtype is decided here.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod fp8;
mod kernel;
mod level;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
mod scalar;
mod select;

use std::mem::MaybeUninit;

use shardwright_core::DType;

pub use self::{kernel::Caster, level::SimdLevel};

/// Why [`cast`] refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CastError {
    /// There is no cast between these dtypes.
    #[error("no cast from {from} to {to}, expected both among float64, float32, float16, bfloat16, float8_e4m3fn and float8_e5m2")]
    Unsupported {
        /// Source dtype.
        from: DType,
        /// Destination dtype.
        to: DType,
    },
    /// The buffers do not hold the same whole number of elements.
    #[error("{src} bytes of {from} do not fill {dst} bytes of {to}")]
    Size {
        /// Source dtype.
        from: DType,
        /// Destination dtype.
        to: DType,
        /// Source length in bytes.
        src: usize,
        /// Destination length in bytes.
        dst: usize,
    },
}

/// The best level of this CPU, which [`caster`] uses.
pub fn level() -> SimdLevel {
    SimdLevel::best()
}

/// The fastest cast from `from` to `to` on this CPU, to be chosen once and called often; `None` where there is no such cast.
/// Equal dtypes of whole bytes are copied.
pub fn caster(from: DType, to: DType) -> Option<Caster> {
    caster_at(SimdLevel::best(), from, to)
}

/// As [`caster`], at `level`; `None` also where this CPU lacks that level.
pub fn caster_at(level: SimdLevel, from: DType, to: DType) -> Option<Caster> {
    if from == to {
        return from.bits().is_multiple_of(8).then_some(copy as Caster);
    }
    level.is_available().then(|| select::select(level, from, to)).flatten()
}

/// Casts once, checking sizes instead of panicking.
///
/// # Errors
/// [`CastError`] where the dtypes have no cast or the buffers do not fit each other.
pub fn cast(from: DType, to: DType, src: &[u8], dst: &mut [u8]) -> Result<(), CastError> {
    cast_at(SimdLevel::best(), from, to, src, dst)
}

/// As [`cast`], at `level`: [`SimdLevel::Scalar`] is the reference that a check can use.
///
/// # Errors
/// As there, and where this CPU lacks that level.
pub fn cast_at(level: SimdLevel, from: DType, to: DType, src: &[u8], dst: &mut [u8]) -> Result<(), CastError> {
    let caster = caster_at(level, from, to).ok_or(CastError::Unsupported { from, to })?;
    let count = |len: usize, dtype: DType| {
        let (len, size) = (len as u64, dtype.bits() / 8);
        len.is_multiple_of(size).then_some(len / size)
    };
    match (count(src.len(), from), count(dst.len(), to)) {
        (Some(a), Some(b)) if a == b => caster(src, as_uninit(dst)),
        _ => return Err(CastError::Size { from, to, src: src.len(), dst: dst.len() }),
    }
    Ok(())
}

fn copy(src: &[u8], dst: &mut [MaybeUninit<u8>]) {
    dst.write_copy_of_slice(src);
}

fn as_uninit(bytes: &mut [u8]) -> &mut [MaybeUninit<u8>] {
    let len = bytes.len();
    // SAFETY: the same bytes under the same borrow; casts write initialised bytes only.
    unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), len) }
}
