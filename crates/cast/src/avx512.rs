//! AVX-512 (F, BW, DQ, VL): sixteen elements at a time; and the same with its bfloat16 instruction.
//!
//! Its float16 extension (FP16) has nothing to offer: float32 and float16 convert by AVX-512F already, and its direct float64 to float16
//! rounds once where torch rounds twice.

use std::{arch::x86_64::*, mem::MaybeUninit};

use crate::{
    fp8::{E4M3_NAN, Fp8, INFINITY, MAGNITUDE, QUIET},
    kernel::{Caster, Element, Isa, run},
};

/// AVX-512; `BF16` where the CPU has the bfloat16 instruction.
pub(crate) struct Avx512<const BF16: bool>;

#[inline(always)]
unsafe fn store_fp8(v: __m512, fp8: &Fp8, dst: *mut u8) {
    // SAFETY: the caller vouches for AVX-512 and for sixteen bytes.
    unsafe {
        let set = |x: i32| _mm512_set1_epi32(x);
        let bits = _mm512_castps_si512(v);
        let shift = _mm_cvtsi32_si128(fp8.shift.cast_signed());
        let magnitude = _mm512_and_si512(bits, set(MAGNITUDE));
        let even = _mm512_and_si512(_mm512_srl_epi32(magnitude, shift), set(1));
        let rounded = _mm512_add_epi32(magnitude, _mm512_add_epi32(even, set(fp8.rounding())));
        let normal = _mm512_sub_epi32(_mm512_srl_epi32(rounded, shift), set(fp8.rebias));
        let magic = _mm512_set1_ps(fp8.magic);
        let sum = _mm512_add_ps(_mm512_castsi512_ps(magnitude), magic);
        let small = _mm512_cmplt_epi32_mask(magnitude, set(fp8.min_normal));
        let finite = _mm512_mask_sub_epi32(normal, small, _mm512_castps_si512(sum), _mm512_castps_si512(magic));
        let nan = _mm512_cmpgt_epi32_mask(magnitude, set(INFINITY));
        let magnitude = _mm512_mask_mov_epi32(_mm512_min_epi32(finite, set(fp8.max)), nan, set(0x7f));
        let sign = _mm512_and_si512(_mm512_srli_epi32::<24>(bits), set(0x80));
        _mm_storeu_si128(dst.cast(), _mm512_cvtepi32_epi8(_mm512_or_si512(magnitude, sign)));
    }
}

/// Rounds by integers, which no denormal and no mode of the CPU disturbs.
#[inline(always)]
unsafe fn bf16_by_integers(v: __m512) -> __m256i {
    // SAFETY: the caller vouches for AVX-512.
    unsafe {
        let bits = _mm512_castps_si512(v);
        let even = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff)));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
        let either = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(QUIET));
        _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(either))
    }
}

/// Rounds by `vcvtneps2bf16`, which takes denormals for zero: vectors with any go the other way.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn bf16_by_instruction(v: __m512) -> __m256i {
    const DENORMAL: i32 = 0x20;
    if _mm512_fpclass_ps_mask::<DENORMAL>(v) == 0 {
        // SAFETY: both are 256 bits.
        return unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v)) };
    }
    // SAFETY: the caller vouches for AVX-512.
    unsafe { bf16_by_integers(v) }
}

// SAFETY: each load and each store moves sixteen elements of its dtype, and no alignment is asked for.
unsafe impl<const BF16: bool> Isa for Avx512<BF16> {
    type Vector = __m512;
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn load_f64(src: *const u8) -> __m512 {
        // SAFETY: the caller vouches for AVX-512 and for the bytes; so in every function below.
        unsafe {
            let (low, high) = (_mm512_loadu_pd(src.cast()), _mm512_loadu_pd(src.add(64).cast()));
            _mm512_insertf32x8::<1>(_mm512_castps256_ps512(_mm512_cvtpd_ps(low)), _mm512_cvtpd_ps(high))
        }
    }

    #[inline(always)]
    unsafe fn load_f32(src: *const u8) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(src.cast()) }
    }

    #[inline(always)]
    unsafe fn load_f16(src: *const u8) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(src.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(src: *const u8) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(src.cast())))) }
    }

    #[inline(always)]
    unsafe fn load_e4m3(src: *const u8) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let bytes = _mm_loadu_si128(src.cast());
            let words = _mm256_cvtepu8_epi16(bytes);
            // As float16 it is 2^8 times too small, subnormals included.
            let sign = _mm256_slli_epi16::<8>(_mm256_and_si256(words, _mm256_set1_epi16(0x80)));
            let half = _mm256_or_si256(sign, _mm256_slli_epi16::<7>(_mm256_and_si256(words, _mm256_set1_epi16(0x7f))));
            let value = _mm512_castps_si512(_mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0)));
            let nan = _mm_cmpeq_epi8_mask(_mm_and_si128(bytes, _mm_set1_epi8(0x7f)), _mm_set1_epi8(0x7f));
            _mm512_castsi512_ps(_mm512_mask_or_epi32(value, nan, value, _mm512_set1_epi32(E4M3_NAN)))
        }
    }

    #[inline(always)]
    unsafe fn load_e5m2(src: *const u8) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtph_ps(_mm256_slli_epi16::<8>(_mm256_cvtepu8_epi16(_mm_loadu_si128(src.cast())))) }
    }

    #[inline(always)]
    unsafe fn store_f64(v: __m512, dst: *mut u8) {
        // SAFETY: see above.
        unsafe {
            _mm512_storeu_pd(dst.cast(), _mm512_cvtps_pd(_mm512_castps512_ps256(v)));
            _mm512_storeu_pd(dst.add(64).cast(), _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(v)));
        }
    }

    #[inline(always)]
    unsafe fn store_f32(v: __m512, dst: *mut u8) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(dst.cast(), v) }
    }

    #[inline(always)]
    unsafe fn store_f16(v: __m512, dst: *mut u8) {
        // SAFETY: see above.
        unsafe { _mm256_storeu_si256(dst.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }

    #[inline(always)]
    unsafe fn store_bf16(v: __m512, dst: *mut u8) {
        // SAFETY: see above, and `BF16` vouches for that instruction.
        unsafe { _mm256_storeu_si256(dst.cast(), if BF16 { bf16_by_instruction(v) } else { bf16_by_integers(v) }) }
    }

    #[inline(always)]
    unsafe fn store_e4m3(v: __m512, dst: *mut u8) {
        // SAFETY: see above.
        unsafe { store_fp8(v, &Fp8::E4M3, dst) }
    }

    #[inline(always)]
    unsafe fn store_e5m2(v: __m512, dst: *mut u8) {
        // SAFETY: see above.
        unsafe { store_fp8(v, &Fp8::E5M2, dst) }
    }

    fn caster<A: Element, B: Element>() -> Caster {
        if BF16 {
            // SAFETY: handed out only where the CPU has AVX-512 and its bfloat16 instruction.
            |src, dst| unsafe { entry_bf16::<A, B>(src, dst) }
        } else {
            // SAFETY: handed out only where the CPU has AVX-512.
            |src, dst| unsafe { entry::<A, B>(src, dst) }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn entry<A: Element, B: Element>(src: &[u8], dst: &mut [MaybeUninit<u8>]) {
    // SAFETY: compiled for the features that the caller vouches for.
    unsafe { run::<Avx512<false>, A, B>(src, dst) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn entry_bf16<A: Element, B: Element>(src: &[u8], dst: &mut [MaybeUninit<u8>]) {
    // SAFETY: compiled for the features that the caller vouches for.
    unsafe { run::<Avx512<true>, A, B>(src, dst) }
}
