//! What happens to a tensor's elements on their way: nothing, a cast, or a rounding and a cast.

use std::mem::MaybeUninit;

use shardwright_cast::{Caster, caster};
use shardwright_core::{DType, TensorPlan};

use crate::error::{EngineError, ErrorKind, Result};

/// Elements that are rounded at once, on the stack.
const ROUNDED: usize = 2048;

/// How elements change.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Conversion {
    Cast(Caster),
    /// To a dtype of 2 bytes at most and from there to the storage dtype; sizes in bytes of an element at each stage.
    Rounded {
        first: Caster,
        then: Caster,
        sizes: (u8, u8, u8),
    },
}

impl Conversion {
    /// What the plan asks for; `None` where the bytes stay as they are.
    pub(super) fn of(plan: &TensorPlan) -> Result<Option<Self>> {
        let (from, to) = (plan.source, plan.precision.storage);
        let cast = |from: DType, to: DType| {
            let none = || EngineError::new(ErrorKind::Plan, format!("there is no cast from {from} to {to}")).tensor(&plan.name);
            caster(from, to).ok_or_else(none)
        };
        let size = |d: DType| u8::try_from(d.bits() / 8).unwrap_or(u8::MAX);
        match plan.rounded.filter(|&through| through != from && through != to) {
            Some(through) => {
                let sizes = (size(from), size(through), size(to));
                Ok(Some(Self::Rounded { first: cast(from, through)?, then: cast(through, to)?, sizes }))
            }
            None if from == to => Ok(None),
            None => cast(from, to).map(|cast| Some(Self::Cast(cast))),
        }
    }

    /// Converts all elements of the first slice into the second, which it fills.
    pub(crate) fn apply(&self, from: &[u8], to: &mut [MaybeUninit<u8>]) {
        match self {
            Self::Cast(cast) => cast(from, to),
            Self::Rounded { first, then, sizes } => {
                let (from_size, size, to_size) = (usize::from(sizes.0), usize::from(sizes.1), usize::from(sizes.2));
                let mut rounded = [MaybeUninit::uninit(); ROUNDED * 8];
                for (from, to) in from.chunks(ROUNDED * from_size).zip(to.chunks_mut(ROUNDED * to_size)) {
                    let rounded = &mut rounded[..from.len() / from_size * size];
                    first(from, rounded);
                    // SAFETY: a cast fills its destination.
                    let rounded = unsafe { std::slice::from_raw_parts(rounded.as_ptr().cast::<u8>(), rounded.len()) };
                    then(rounded, to);
                }
            }
        }
    }
}
