//! The reference: what each dtype's bits mean in float32 and back, in integer arithmetic, one element at a time.
//!
//! It equals torch 2.15 on every input, NaN included, but for NaN to bfloat16, where torch's own scalar and vector code differ: here the
//! sign and the upper payload stay. No loop lives here.

/// A float dtype below float32: `MAN` mantissa bits, exponent bias `BIAS`.
struct Small<const MAN: u32, const BIAS: u32>;

const EXP_ALL: u32 = 0x7f80_0000;
const QUIET: u32 = 0x0040_0000;

impl<const MAN: u32, const BIAS: u32> Small<MAN, BIAS> {
    const SHIFT: u32 = 23 - MAN;
    /// The float32 bits of the smallest normal number.
    const MIN_NORMAL: u32 = (128 - BIAS) << 23;

    /// Rounds the magnitude of a float32 that is not NaN to the nearest, ties to even; overflow runs on into larger exponents.
    fn round(magnitude: u32) -> u32 {
        if magnitude >= Self::MIN_NORMAL {
            return shift_rne(magnitude, Self::SHIFT) - ((127 - BIAS) << MAN);
        }
        let exponent = magnitude >> 23;
        let significand = (magnitude & 0x007f_ffff) | 0x0080_0000;
        // In units of 2^(1-BIAS-MAN); what is shifted by more than 25 bits, float32's subnormals among it, rounds to zero.
        match 151 - BIAS - MAN - exponent {
            shift @ 1..=25 => shift_rne(significand, shift),
            _ => 0,
        }
    }

    /// The float32 bits of a finite magnitude.
    fn widen(magnitude: u32) -> u32 {
        if magnitude >> MAN == 0 {
            // Exact: a small integer times a power of two that is normal in float32.
            return ((magnitude as f32) * f32::from_bits((128 - BIAS - MAN) << 23)).to_bits();
        }
        (magnitude << Self::SHIFT) + ((127 - BIAS) << 23)
    }
}

/// `value >> shift`, rounded to the nearest, ties to even.
fn shift_rne(value: u32, shift: u32) -> u32 {
    (value + (1 << (shift - 1)) - 1 + ((value >> shift) & 1)) >> shift
}

/// The sign bit and the rest.
fn split(x: u32) -> (u32, u32) {
    (x & 0x8000_0000, x & 0x7fff_ffff)
}

#[expect(clippy::cast_possible_truncation, reason = "the results have 8 bits")]
pub(crate) fn e4m3_from_f32(x: u32) -> u8 {
    let (sign, magnitude) = split(x);
    // Beyond 448, infinity included, torch saturates.
    let bits = if magnitude > EXP_ALL { 0x7f } else { Small::<3, 7>::round(magnitude).min(0x7e) };
    ((sign >> 24) | bits) as u8
}

#[expect(clippy::cast_possible_truncation, reason = "the results have 8 bits")]
pub(crate) fn e5m2_from_f32(x: u32) -> u8 {
    let (sign, magnitude) = split(x);
    let bits = if magnitude > EXP_ALL { 0x7f } else { Small::<2, 15>::round(magnitude).min(0x7c) };
    ((sign >> 24) | bits) as u8
}

#[expect(clippy::cast_possible_truncation, reason = "the results have 16 bits")]
pub(crate) fn f16_from_f32(x: u32) -> u16 {
    let (sign, magnitude) = split(x);
    let bits = if magnitude > EXP_ALL { 0x7e00 | (magnitude >> 13) & 0x03ff } else { Small::<10, 15>::round(magnitude).min(0x7c00) };
    ((sign >> 16) | bits) as u16
}

#[expect(clippy::cast_possible_truncation, reason = "the results have 16 bits")]
pub(crate) fn bf16_from_f32(x: u32) -> u16 {
    let nan = x & 0x7fff_ffff > EXP_ALL;
    (if nan { (x | QUIET) >> 16 } else { x.wrapping_add(0x7fff + ((x >> 16) & 1)) >> 16 }) as u16
}

pub(crate) fn f32_from_e4m3(x: u8) -> u32 {
    let magnitude = u32::from(x & 0x7f);
    let bits = if magnitude == 0x7f { 0x7ff0_0000 } else { Small::<3, 7>::widen(magnitude) };
    (u32::from(x & 0x80) << 24) | bits
}

pub(crate) fn f32_from_e5m2(x: u8) -> u32 {
    f32_from_f16(u16::from(x) << 8)
}

pub(crate) fn f32_from_f16(x: u16) -> u32 {
    let magnitude = u32::from(x & 0x7fff);
    let bits = match magnitude {
        0x7c00 => EXP_ALL,
        0x7c01.. => EXP_ALL | QUIET | (magnitude << 13),
        _ => Small::<10, 15>::widen(magnitude),
    };
    (u32::from(x & 0x8000) << 16) | bits
}

pub(crate) fn f32_from_bf16(x: u16) -> u32 {
    u32::from(x) << 16
}

#[expect(clippy::cast_possible_truncation, reason = "float64 is meant to be rounded, and its upper half to be cut out")]
pub(crate) fn f32_from_f64(x: u64) -> u32 {
    let value = f64::from_bits(x);
    if value.is_nan() {
        // Spelt out: Rust leaves the payload of a NaN that goes through `as` open.
        return ((x >> 32) as u32 & 0x8000_0000) | EXP_ALL | QUIET | ((x >> 29) as u32 & 0x003f_ffff);
    }
    (value as f32).to_bits()
}

pub(crate) fn f64_from_f32(x: u32) -> u64 {
    let value = f32::from_bits(x);
    if value.is_nan() {
        let (sign, magnitude) = split(x);
        return (u64::from(sign) << 32) | 0x7ff8_0000_0000_0000 | (u64::from(magnitude & 0x007f_ffff) << 29);
    }
    f64::from(value).to_bits()
}
