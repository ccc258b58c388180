//! NEON: four elements at a time. Little-endian AArch64 only, where it is always there.

use std::{arch::aarch64::*, mem::MaybeUninit};

use crate::{
    fp8::{E4M3_NAN, Fp8, INFINITY, MAGNITUDE, QUIET},
    kernel::{Caster, Element, Isa, run},
};

pub(crate) struct Neon;

#[inline(always)]
unsafe fn store_fp8(v: float32x4_t, fp8: &Fp8, dst: *mut u8) {
    // SAFETY: the caller vouches for NEON and for four bytes.
    unsafe {
        let bits = vreinterpretq_s32_f32(v);
        let right = vdupq_n_s32(-fp8.shift.cast_signed());
        let shift = |x: int32x4_t| vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(x), right));
        let magnitude = vandq_s32(bits, vdupq_n_s32(MAGNITUDE));
        let even = vandq_s32(shift(magnitude), vdupq_n_s32(1));
        let rounded = vaddq_s32(magnitude, vaddq_s32(even, vdupq_n_s32(fp8.rounding())));
        let normal = vsubq_s32(shift(rounded), vdupq_n_s32(fp8.rebias));
        let magic = vdupq_n_f32(fp8.magic);
        let sum = vaddq_f32(vreinterpretq_f32_s32(magnitude), magic);
        let subnormal = vsubq_s32(vreinterpretq_s32_f32(sum), vreinterpretq_s32_f32(magic));
        let small = vcltq_s32(magnitude, vdupq_n_s32(fp8.min_normal));
        let finite = vminq_s32(vbslq_s32(small, subnormal, normal), vdupq_n_s32(fp8.max));
        let nan = vcgtq_s32(magnitude, vdupq_n_s32(INFINITY));
        let magnitude = vreinterpretq_u32_s32(vbslq_s32(nan, vdupq_n_s32(0x7f), finite));
        let sign = vandq_u32(vshrq_n_u32::<24>(vreinterpretq_u32_s32(bits)), vdupq_n_u32(0x80));
        let words = vmovn_u32(vorrq_u32(magnitude, sign));
        let bytes = vmovn_u16(vcombine_u16(words, words));
        dst.cast::<u32>().write_unaligned(vget_lane_u32::<0>(vreinterpret_u32_u8(bytes)));
    }
}

/// Four bytes, each widened to 16 bits.
#[inline(always)]
unsafe fn load_words(src: *const u8) -> uint16x4_t {
    // SAFETY: the caller vouches for NEON and for four bytes.
    unsafe { vget_low_u16(vmovl_u8(vcreate_u8(u64::from(src.cast::<u32>().read_unaligned())))) }
}

#[inline(always)]
unsafe fn widen_half(bits: uint16x4_t) -> float32x4_t {
    // SAFETY: the caller vouches for NEON.
    unsafe { vcvt_f32_f16(vreinterpret_f16_u16(bits)) }
}

// SAFETY: each load and each store moves four elements of its dtype, as bytes, which ask for no alignment.
unsafe impl Isa for Neon {
    type Vector = float32x4_t;
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn load_f64(src: *const u8) -> float32x4_t {
        // SAFETY: the caller vouches for NEON and for the bytes; so in every function below.
        unsafe {
            let (low, high) = (vreinterpretq_f64_u8(vld1q_u8(src)), vreinterpretq_f64_u8(vld1q_u8(src.add(16))));
            vcvt_high_f32_f64(vcvt_f32_f64(low), high)
        }
    }

    #[inline(always)]
    unsafe fn load_f32(src: *const u8) -> float32x4_t {
        // SAFETY: see above.
        unsafe { vreinterpretq_f32_u8(vld1q_u8(src)) }
    }

    #[inline(always)]
    unsafe fn load_f16(src: *const u8) -> float32x4_t {
        // SAFETY: see above.
        unsafe { widen_half(vreinterpret_u16_u8(vld1_u8(src))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(src: *const u8) -> float32x4_t {
        // SAFETY: see above.
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vreinterpret_u16_u8(vld1_u8(src)))) }
    }

    #[inline(always)]
    unsafe fn load_e4m3(src: *const u8) -> float32x4_t {
        // SAFETY: see above.
        unsafe {
            let words = load_words(src);
            let (sign, magnitude) = (vand_u16(words, vdup_n_u16(0x80)), vand_u16(words, vdup_n_u16(0x7f)));
            // As float16 it is 2^8 times too small, subnormals included.
            let half = vorr_u16(vshl_n_u16::<8>(sign), vshl_n_u16::<7>(magnitude));
            let value = vmulq_n_f32(widen_half(half), 256.0);
            let nan = vceqq_u32(vmovl_u16(magnitude), vdupq_n_u32(0x7f));
            let nan = vandq_u32(nan, vdupq_n_u32(E4M3_NAN.cast_unsigned()));
            vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(value), nan))
        }
    }

    #[inline(always)]
    unsafe fn load_e5m2(src: *const u8) -> float32x4_t {
        // SAFETY: see above.
        unsafe {
            let words = load_words(src);
            // Made quiet by hand: to float16 and back, the compiler drops the conversions that would.
            let nan = vcgt_u16(vand_u16(words, vdup_n_u16(0x7f)), vdup_n_u16(0x7c));
            widen_half(vshl_n_u16::<8>(vorr_u16(words, vand_u16(nan, vdup_n_u16(2)))))
        }
    }

    #[inline(always)]
    unsafe fn store_f64(v: float32x4_t, dst: *mut u8) {
        // SAFETY: see above.
        unsafe {
            vst1q_u8(dst, vreinterpretq_u8_f64(vcvt_f64_f32(vget_low_f32(v))));
            vst1q_u8(dst.add(16), vreinterpretq_u8_f64(vcvt_high_f64_f32(v)));
        }
    }

    #[inline(always)]
    unsafe fn store_f32(v: float32x4_t, dst: *mut u8) {
        // SAFETY: see above.
        unsafe { vst1q_u8(dst, vreinterpretq_u8_f32(v)) }
    }

    #[inline(always)]
    unsafe fn store_f16(v: float32x4_t, dst: *mut u8) {
        // SAFETY: see above.
        unsafe { vst1_u8(dst, vreinterpret_u8_f16(vcvt_f16_f32(v))) }
    }

    #[inline(always)]
    unsafe fn store_bf16(v: float32x4_t, dst: *mut u8) {
        // SAFETY: see above.
        unsafe {
            let bits = vreinterpretq_u32_f32(v);
            let even = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let rounded = vaddq_u32(bits, vaddq_u32(even, vdupq_n_u32(0x7fff)));
            let number = vceqq_f32(v, v);
            let either = vbslq_u32(number, rounded, vorrq_u32(bits, vdupq_n_u32(QUIET.cast_unsigned())));
            vst1_u8(dst, vreinterpret_u8_u16(vshrn_n_u32::<16>(either)));
        }
    }

    #[inline(always)]
    unsafe fn store_e4m3(v: float32x4_t, dst: *mut u8) {
        // SAFETY: see above.
        unsafe { store_fp8(v, &Fp8::E4M3, dst) }
    }

    #[inline(always)]
    unsafe fn store_e5m2(v: float32x4_t, dst: *mut u8) {
        // SAFETY: see above.
        unsafe { store_fp8(v, &Fp8::E5M2, dst) }
    }

    fn caster<A: Element, B: Element>() -> Caster {
        // SAFETY: handed out only where the CPU has NEON.
        |src, dst| unsafe { entry::<A, B>(src, dst) }
    }
}

#[target_feature(enable = "neon")]
unsafe fn entry<A: Element, B: Element>(src: &[u8], dst: &mut [MaybeUninit<u8>]) {
    // SAFETY: compiled for the features that the caller vouches for.
    unsafe { run::<Neon, A, B>(src, dst) }
}
