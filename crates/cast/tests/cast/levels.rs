//! Every level that this CPU has gives the reference's bits, for any alignment and any length, and the contract of buffers is checked.

use std::mem::MaybeUninit;

use proptest::prelude::*;
use shardwright_cast::{CastError, SimdLevel, cast, caster, caster_at, level};
use shardwright_core::DType;

use crate::{DTYPES, cast_at, inputs::inputs, pairs, size};

fn levels() -> impl Iterator<Item = SimdLevel> {
    SimdLevel::ALL.iter().copied().filter(|l| l.is_available())
}

/// Asserts that `level` casts `src` as the reference does, naming the first element that differs.
fn check(level: SimdLevel, from: DType, to: DType, src: &[u8]) {
    let (ours, reference) = (cast_at(level, from, to, src), cast_at(SimdLevel::Scalar, from, to, src));
    if ours != reference {
        let (a, b) = (size(from), size(to));
        let i = (0..src.len() / a).find(|i| ours[i * b..][..b] != reference[i * b..][..b]).unwrap();
        let (input, got, want) = (&src[i * a..][..a], &ours[i * b..][..b], &reference[i * b..][..b]);
        panic!("{level}: {from} to {to}: element {i}, bytes {input:02x?}, became {got:02x?}, expected {want:02x?}");
    }
}

#[test]
fn every_level_equals_the_reference_on_all_inputs_of_small_dtypes_and_all_boundaries_of_large_ones() {
    for (from, to) in pairs() {
        let src = inputs(from);
        for level in levels() {
            check(level, from, to, &src);
        }
    }
}

#[test]
fn buffers_may_lie_anywhere_and_end_anywhere() {
    for (from, to) in pairs() {
        let (a, b) = (size(from), size(to));
        let src = inputs(from);
        for level in levels() {
            let caster = caster_at(level, from, to).unwrap();
            for count in (0..70).chain([127, 129, 1023]).filter(|n| n * a < src.len() - 8) {
                for (skip_src, skip_dst) in [(0, 1), (1, 0), (3, 7), (7, 5)] {
                    let part = &src[skip_src..][..count * a];
                    let mut out = vec![MaybeUninit::new(0xA5); count * b + 16];
                    caster(part, &mut out[skip_dst..][..count * b]);
                    // SAFETY: it was made of initialised bytes, and casts write no others.
                    let out: Vec<u8> = out.into_iter().map(|x| unsafe { x.assume_init() }).collect();
                    assert_eq!(
                        out[skip_dst..][..count * b],
                        cast_at(SimdLevel::Scalar, from, to, part),
                        "{level}: {from} to {to}, {count}"
                    );
                    // Into and out of allocations of just that size, where a sanitizer sees a byte too many.
                    let aligned = part.to_vec();
                    assert_eq!(cast_at(level, from, to, &aligned), out[skip_dst..][..count * b]);
                    assert!(out[..skip_dst].iter().chain(&out[skip_dst + count * b..]).all(|&x| x == 0xA5), "{level}: wrote outside");
                }
            }
        }
    }
}

#[test]
fn equal_dtypes_are_copied_bit_for_bit() {
    for dtype in DType::ALL.iter().copied().filter(|d| d.bits() >= 8) {
        let src: Vec<u8> = (0..=255).rev().collect();
        let mut out = vec![MaybeUninit::uninit(); 256];
        caster(dtype, dtype).unwrap()(&src, &mut out);
        // SAFETY: a caster fills its destination.
        assert_eq!(out.into_iter().map(|x| unsafe { x.assume_init() }).collect::<Vec<_>>(), src);
    }
}

#[test]
fn what_cannot_be_cast_is_refused_as_core_says() {
    for &from in DType::ALL {
        for &to in DType::ALL {
            let whole_bytes = from.bits() >= 8 || from != to;
            assert_eq!(caster(from, to).is_some(), from.casts_to(to) && whole_bytes, "{from} to {to}");
        }
    }
    let unsupported = CastError::Unsupported { from: DType::I64, to: DType::F32 };
    assert_eq!(cast(DType::I64, DType::F32, &[0; 8], &mut [0; 4]), Err(unsupported));
    for (src, dst) in [(3, 4), (4, 4), (2, 8), (4, 6), (0, 4)] {
        let refused = cast(DType::BF16, DType::F32, &vec![0; src], &mut vec![0; dst]);
        assert_eq!(refused, Err(CastError::Size { from: DType::BF16, to: DType::F32, src, dst }));
    }
    let mut one = [0; 4];
    cast(DType::BF16, DType::F32, &[0x80, 0x3f], &mut one).unwrap();
    assert_eq!(f32::from_le_bytes(one), 1.0);
}

#[test]
#[should_panic(expected = "unequal length")]
fn a_caster_does_not_write_past_its_destination() {
    caster(DType::BF16, DType::F32).unwrap()(&[0; 64], &mut [MaybeUninit::uninit(); 124]);
}

#[test]
fn the_best_level_is_one_that_this_cpu_has() {
    assert!(level().is_available());
    assert!(levels().all(|l| l <= level()));
}

proptest! {
    #[test]
    fn every_level_equals_the_reference_on_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..1024), a in 0..6usize, b in 0..6usize) {
        let (from, to) = (DTYPES[a], DTYPES[b]);
        let whole = &bytes[..bytes.len() / size(from) * size(from)];
        for level in levels() {
            check(level, from, to, whole);
        }
    }

    #[test]
    fn what_widens_comes_back(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        for small in [DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2] {
            let whole = &bytes[..bytes.len() / 2 * 2];
            for wide in [DType::F32, DType::F64] {
                for level in levels() {
                    let back = cast_at(level, wide, small, &cast_at(level, small, wide, whole));
                    // But for a NaN, which may come back quiet.
                    let nan = |x: &[u8]| { let wide = cast_at(SimdLevel::Scalar, small, DType::F32, x); f32::from_le_bytes(wide.try_into().unwrap()).is_nan() };
                    for (x, y) in whole.chunks(size(small)).zip(back.chunks(size(small))) {
                        prop_assert!(x == y || (nan(x) && nan(y)), "{} {} {:?} {:?}", level, small, x, y);
                    }
                }
            }
        }
    }
}
