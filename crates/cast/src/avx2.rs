//! AVX2 with F16C: eight elements at a time.

use std::arch::x86_64::*;

use crate::{
    fp8::{E4M3_NAN, Fp8, INFINITY, MAGNITUDE, QUIET},
    kernel::{Caster, Element, Isa, run},
};

pub(crate) struct Avx2;

impl Avx2 {
    #[inline(always)]
    unsafe fn store_fp8(v: __m256, fp8: &Fp8, dst: *mut u8) {
        // SAFETY: the caller vouches for AVX2 and for eight bytes.
        unsafe {
            let set = |x: i32| _mm256_set1_epi32(x);
            let bits = _mm256_castps_si256(v);
            let shift = _mm_cvtsi32_si128(fp8.shift.cast_signed());
            let magnitude = _mm256_and_si256(bits, set(MAGNITUDE));
            let even = _mm256_and_si256(_mm256_srl_epi32(magnitude, shift), set(1));
            let rounded = _mm256_add_epi32(magnitude, _mm256_add_epi32(even, set(fp8.rounding())));
            let normal = _mm256_sub_epi32(_mm256_srl_epi32(rounded, shift), set(fp8.rebias));
            let magic = _mm256_set1_ps(fp8.magic);
            let sum = _mm256_add_ps(_mm256_castsi256_ps(magnitude), magic);
            let subnormal = _mm256_sub_epi32(_mm256_castps_si256(sum), _mm256_castps_si256(magic));
            let small = _mm256_cmpgt_epi32(set(fp8.min_normal), magnitude);
            let finite = _mm256_min_epi32(_mm256_blendv_epi8(normal, subnormal, small), set(fp8.max));
            let nan = _mm256_and_si256(_mm256_cmpgt_epi32(magnitude, set(INFINITY)), set(0x7f));
            let sign = _mm256_and_si256(_mm256_srli_epi32::<24>(bits), set(0x80));
            let words = narrow(_mm256_or_si256(_mm256_or_si256(finite, nan), sign));
            _mm_storel_epi64(dst.cast(), _mm_packus_epi16(words, words));
        }
    }
}

/// Cuts eight 32-bit numbers below 65,536 down to 16 bits.
#[inline(always)]
unsafe fn narrow(x: __m256i) -> __m128i {
    // SAFETY: the caller vouches for AVX2.
    unsafe { _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x)) }
}

// SAFETY: each load and each store moves eight elements of its dtype, and no alignment is asked for.
unsafe impl Isa for Avx2 {
    type Vector = __m256;
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn load_f64(src: *const u8) -> __m256 {
        // SAFETY: the caller vouches for AVX2 and for the bytes; so in every function below.
        unsafe {
            let (low, high) = (_mm256_loadu_pd(src.cast()), _mm256_loadu_pd(src.add(32).cast()));
            _mm256_set_m128(_mm256_cvtpd_ps(high), _mm256_cvtpd_ps(low))
        }
    }

    #[inline(always)]
    unsafe fn load_f32(src: *const u8) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_loadu_ps(src.cast()) }
    }

    #[inline(always)]
    unsafe fn load_f16(src: *const u8) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(src.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(src: *const u8) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(src.cast())))) }
    }

    #[inline(always)]
    unsafe fn load_e4m3(src: *const u8) -> __m256 {
        // SAFETY: see above.
        unsafe {
            let bytes = _mm_loadl_epi64(src.cast());
            let words = _mm_cvtepu8_epi16(bytes);
            // As float16 it is 2^8 times too small, subnormals included.
            let sign = _mm_slli_epi16::<8>(_mm_and_si128(words, _mm_set1_epi16(0x80)));
            let half = _mm_or_si128(sign, _mm_slli_epi16::<7>(_mm_and_si128(words, _mm_set1_epi16(0x7f))));
            let value = _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0));
            let magnitude = _mm256_and_si256(_mm256_cvtepu8_epi32(bytes), _mm256_set1_epi32(0x7f));
            let nan = _mm256_and_si256(_mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f)), _mm256_set1_epi32(E4M3_NAN));
            _mm256_or_ps(value, _mm256_castsi256_ps(nan))
        }
    }

    #[inline(always)]
    unsafe fn load_e5m2(src: *const u8) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_cvtph_ps(_mm_unpacklo_epi8(_mm_setzero_si128(), _mm_loadl_epi64(src.cast()))) }
    }

    #[inline(always)]
    unsafe fn store_f64(v: __m256, dst: *mut u8) {
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_pd(dst.cast(), _mm256_cvtps_pd(_mm256_castps256_ps128(v)));
            _mm256_storeu_pd(dst.add(32).cast(), _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(v)));
        }
    }

    #[inline(always)]
    unsafe fn store_f32(v: __m256, dst: *mut u8) {
        // SAFETY: see above.
        unsafe { _mm256_storeu_ps(dst.cast(), v) }
    }

    #[inline(always)]
    unsafe fn store_f16(v: __m256, dst: *mut u8) {
        // SAFETY: see above.
        unsafe { _mm_storeu_si128(dst.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }

    #[inline(always)]
    unsafe fn store_bf16(v: __m256, dst: *mut u8) {
        // SAFETY: see above.
        unsafe {
            let bits = _mm256_castps_si256(v);
            let even = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(even, _mm256_set1_epi32(0x7fff)));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(QUIET));
            let upper = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
            _mm_storeu_si128(dst.cast(), narrow(upper));
        }
    }

    #[inline(always)]
    unsafe fn store_e4m3(v: __m256, dst: *mut u8) {
        // SAFETY: see above.
        unsafe { Self::store_fp8(v, &Fp8::E4M3, dst) }
    }

    #[inline(always)]
    unsafe fn store_e5m2(v: __m256, dst: *mut u8) {
        // SAFETY: see above.
        unsafe { Self::store_fp8(v, &Fp8::E5M2, dst) }
    }

    fn caster<A: Element, B: Element>() -> Caster {
        // SAFETY: handed out only where the CPU has AVX2 and F16C.
        |src, dst| unsafe { entry::<A, B>(src, dst) }
    }
}

#[target_feature(enable = "avx2,f16c")]
unsafe fn entry<A: Element, B: Element>(src: &[u8], dst: &mut [std::mem::MaybeUninit<u8>]) {
    // SAFETY: compiled for the features that the caller vouches for.
    unsafe { run::<Avx2, A, B>(src, dst) }
}
