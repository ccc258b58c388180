//! The loop of every cast, generic over the instruction set and the two dtypes: load a vector as float32, store it as another dtype.
//!
//! What a load or a store does is an instruction set's business; which instruction set may run is [`crate::caster_at`]'s.

use std::{mem::MaybeUninit, ptr};

use crate::scalar;

/// Casts all elements of the first slice into the second, which it fills; both may have any alignment.
///
/// # Panics
/// Where the slices do not hold the same whole number of elements.
pub type Caster = fn(src: &[u8], dst: &mut [MaybeUninit<u8>]);

/// Elements that the widest vector holds, and bytes that as many of the largest dtype take.
const MAX_LANES: usize = 16;
const MAX_BYTES: usize = MAX_LANES * 8;

/// An instruction set: vectors of `LANES` float32, their loads from and stores to each dtype, unaligned.
///
/// # Safety
/// Loads read, and stores write, exactly `LANES` elements of their dtype from the pointer on; stores write every byte of them.
/// Calling any of these needs a CPU with the instruction set, and that many bytes behind the pointer.
pub(crate) unsafe trait Isa {
    type Vector: Copy;
    const LANES: usize;

    unsafe fn load_f64(src: *const u8) -> Self::Vector;
    unsafe fn load_f32(src: *const u8) -> Self::Vector;
    unsafe fn load_f16(src: *const u8) -> Self::Vector;
    unsafe fn load_bf16(src: *const u8) -> Self::Vector;
    unsafe fn load_e4m3(src: *const u8) -> Self::Vector;
    unsafe fn load_e5m2(src: *const u8) -> Self::Vector;

    unsafe fn store_f64(v: Self::Vector, dst: *mut u8);
    unsafe fn store_f32(v: Self::Vector, dst: *mut u8);
    unsafe fn store_f16(v: Self::Vector, dst: *mut u8);
    unsafe fn store_bf16(v: Self::Vector, dst: *mut u8);
    unsafe fn store_e4m3(v: Self::Vector, dst: *mut u8);
    unsafe fn store_e5m2(v: Self::Vector, dst: *mut u8);

    /// The cast from `A` to `B` compiled for this instruction set. Calling it needs a CPU that has it.
    fn caster<A: Element, B: Element>() -> Caster;
}

/// A dtype, as a type: picks its load and its store out of an instruction set.
pub(crate) trait Element {
    const SIZE: usize;
    unsafe fn load<I: Isa>(src: *const u8) -> I::Vector;
    unsafe fn store<I: Isa>(v: I::Vector, dst: *mut u8);
}

macro_rules! elements {
    ($($name:ident $size:literal $load:ident $store:ident,)*) => {$(
        pub(crate) struct $name;
        impl Element for $name {
            const SIZE: usize = $size;
            #[inline(always)]
            unsafe fn load<I: Isa>(src: *const u8) -> I::Vector {
                // SAFETY: the caller vouches for the CPU and the bytes.
                unsafe { I::$load(src) }
            }
            #[inline(always)]
            unsafe fn store<I: Isa>(v: I::Vector, dst: *mut u8) {
                // SAFETY: the caller vouches for the CPU and the bytes.
                unsafe { I::$store(v, dst) }
            }
        }
    )*};
}

elements! {
    F64 8 load_f64 store_f64,
    F32 4 load_f32 store_f32,
    F16 2 load_f16 store_f16,
    Bf16 2 load_bf16 store_bf16,
    E4m3 1 load_e4m3 store_e4m3,
    E5m2 1 load_e5m2 store_e5m2,
}

/// Casts `src` into `dst`: whole vectors, then the rest by way of the stack.
///
/// # Safety
/// The CPU must have `I`.
///
/// # Panics
/// Where the slices do not hold the same whole number of elements.
#[inline(always)]
pub(crate) unsafe fn run<I: Isa, A: Element, B: Element>(src: &[u8], dst: &mut [MaybeUninit<u8>]) {
    let count = src.len() / A::SIZE;
    assert!(src.len() == count * A::SIZE && dst.len() == count * B::SIZE, "buffers of unequal length");
    let (mut from, mut to) = (src.as_ptr(), dst.as_mut_ptr().cast::<u8>());
    for _ in 0..count / I::LANES {
        // SAFETY: `LANES` more elements are left in both slices, as asserted; the caller vouches for the CPU.
        unsafe {
            B::store::<I>(A::load::<I>(from), to);
            from = from.add(I::LANES * A::SIZE);
            to = to.add(I::LANES * B::SIZE);
        }
    }
    let rest = count % I::LANES;
    if rest > 0 {
        let (mut a, mut b) = ([0u8; MAX_BYTES], [0u8; MAX_BYTES]);
        // SAFETY: `rest` elements are left in both slices, and the buffers hold a vector of any dtype.
        unsafe {
            ptr::copy_nonoverlapping(from, a.as_mut_ptr(), rest * A::SIZE);
            B::store::<I>(A::load::<I>(a.as_ptr()), b.as_mut_ptr());
            ptr::copy_nonoverlapping(b.as_ptr(), to, rest * B::SIZE);
        }
    }
}

/// One element at a time, by the reference.
pub(crate) struct Scalar;

macro_rules! scalar {
    ($($load:ident $store:ident $bits:ty, $widen:expr, $narrow:expr;)*) => {
        // SAFETY: one element of the dtype is read or written, by the type of its bits.
        unsafe impl Isa for Scalar {
            type Vector = u32;
            const LANES: usize = 1;
            $(
                #[inline(always)]
                unsafe fn $load(src: *const u8) -> u32 {
                    // SAFETY: the caller vouches for the bytes.
                    $widen(<$bits>::from_le(unsafe { src.cast::<$bits>().read_unaligned() }))
                }
                #[inline(always)]
                unsafe fn $store(v: u32, dst: *mut u8) {
                    // SAFETY: the caller vouches for the bytes.
                    unsafe { dst.cast::<$bits>().write_unaligned(<$bits>::to_le($narrow(v))) }
                }
            )*
            fn caster<A: Element, B: Element>() -> Caster {
                // SAFETY: every CPU has these instructions.
                |src, dst| unsafe { run::<Self, A, B>(src, dst) }
            }
        }
    };
}

scalar! {
    load_f64 store_f64 u64, scalar::f32_from_f64, scalar::f64_from_f32;
    load_f32 store_f32 u32, std::convert::identity, std::convert::identity;
    load_f16 store_f16 u16, scalar::f32_from_f16, scalar::f16_from_f32;
    load_bf16 store_bf16 u16, scalar::f32_from_bf16, scalar::bf16_from_f32;
    load_e4m3 store_e4m3 u8, scalar::f32_from_e4m3, scalar::e4m3_from_f32;
    load_e5m2 store_e5m2 u8, scalar::f32_from_e5m2, scalar::e5m2_from_f32;
}
