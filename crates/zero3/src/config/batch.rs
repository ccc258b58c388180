//! DeepSpeed's batch triple: what is given decides the rest. Source: `deepspeed/runtime/config.py`, `_set_batch_related_parameters` and
//! `_batch_assertion`; the divisions are theirs.

/// train_batch_size = train_micro_batch_size_per_gpu · gradient_accumulation_steps · world size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Samples of an optimizer step, all ranks together.
    pub train: u64,
    /// Samples of a forward pass of one rank.
    pub micro: u64,
    /// Forward passes of an optimizer step.
    pub accumulation: u64,
}

/// Why there is no triple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchError {
    /// Neither train_batch_size nor train_micro_batch_size_per_gpu is given.
    Missing,
    /// One of the three is 0, given or by division.
    NotPositive(Batch),
    /// The product is not the train batch.
    NotEqual(Batch),
    /// A product beyond 64 bits.
    TooLarge,
}

/// Infers what is not given, and checks.
///
/// # Errors
/// As DeepSpeed asserts.
pub fn infer(train: Option<u64>, micro: Option<u64>, accumulation: Option<u64>, world: u64) -> Result<Batch, BatchError> {
    let div = |a: u64, b: u64| a.checked_div(b).unwrap_or(0);
    let product = |factors: [u64; 3]| factors.into_iter().try_fold(1u64, u64::checked_mul).ok_or(BatchError::TooLarge);
    let batch = match (train, micro, accumulation) {
        (Some(train), Some(micro), Some(accumulation)) => Batch { train, micro, accumulation },
        (Some(train), Some(micro), None) => Batch { train, micro, accumulation: div(div(train, micro), world) },
        (Some(train), None, Some(accumulation)) => Batch { train, micro: div(div(train, world), accumulation), accumulation },
        (None, Some(micro), Some(accumulation)) => Batch { train: product([micro, accumulation, world])?, micro, accumulation },
        (Some(train), None, None) => Batch { train, micro: div(train, world), accumulation: 1 },
        (None, Some(micro), None) => Batch { train: product([micro, 1, world])?, micro, accumulation: 1 },
        (None, None, _) => return Err(BatchError::Missing),
    };
    if batch.train == 0 || batch.micro == 0 || batch.accumulation == 0 {
        return Err(BatchError::NotPositive(batch));
    }
    if product([batch.micro, batch.accumulation, world])? == batch.train { Ok(batch) } else { Err(BatchError::NotEqual(batch)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_triple_is_deepspeeds() {
        let of = |t, m, a, w| infer(t, m, a, w).map(|b| [b.train, b.micro, b.accumulation]);
        assert_eq!(of(None, Some(4), Some(2), 4), Ok([32, 4, 2]));
        assert_eq!(of(Some(12), None, Some(1), 4), Ok([12, 3, 1]));
        assert_eq!(of(Some(24), Some(3), None, 1), Ok([24, 3, 8]));
        assert_eq!(of(Some(8), None, None, 1), Ok([8, 8, 1]));
        assert_eq!(of(None, None, Some(2), 4), Err(BatchError::Missing));
        assert!(matches!(of(Some(8), Some(3), None, 4), Err(BatchError::NotPositive(_))));
        assert!(matches!(of(Some(24), Some(3), Some(1), 1), Err(BatchError::NotEqual(_))));
        assert_eq!(of(None, Some(u64::MAX), Some(2), 4), Err(BatchError::TooLarge));
        assert!(of(Some(8), Some(0), None, 4).is_err());
    }
}
