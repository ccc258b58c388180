//! The memory that a load will take, foretold, against the memory that there is.

use std::fmt;

use super::{layout::RankLayout, options::IoChoice};
use crate::{
    error::{EngineError, ErrorKind, Result},
    memory::{Available, HUGE_PAGE, available},
};

/// A prediction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Preflight {
    /// Bytes of all arenas, rounded up to whole pages.
    pub arena_bytes: u64,
    /// Bytes of all threads' buffers.
    pub staging_bytes: u64,
    /// What can be had; `None` where the system does not say.
    pub available: Option<Available>,
}

impl Preflight {
    pub(crate) fn of(layouts: &[RankLayout], choice: &IoChoice) -> Self {
        let rounded = |bytes: u64| if bytes < HUGE_PAGE as u64 { bytes } else { bytes.next_multiple_of(HUGE_PAGE as u64) };
        let arena_bytes = layouts.iter().flat_map(|l| &l.arenas).map(|a| rounded(a.1)).fold(0, u64::saturating_add);
        let staging_bytes = (choice.staging_bytes() * choice.workers()) as u64;
        Self { arena_bytes, staging_bytes, available: available() }
    }

    /// The peak that is predicted, in bytes.
    pub fn peak(&self) -> u64 {
        self.arena_bytes.saturating_add(self.staging_bytes)
    }

    /// Refuses what does not fit.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`], with both numbers.
    pub fn check(&self) -> Result<()> {
        match &self.available {
            Some(available) if available.bytes < self.peak() => {
                Err(EngineError::new(ErrorKind::Memory, "the shards do not fit into memory (force overrides)")
                    .expected(format_args!("{} for shards and {} for buffers", mib(self.arena_bytes), mib(self.staging_bytes)))
                    .found(format_args!("{} by {}", mib(available.bytes), available.bound)))
            }
            _ => Ok(()),
        }
    }
}

/// One line.
impl fmt::Display for Preflight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory = {}: {} for shards, {} for buffers", mib(self.peak()), mib(self.arena_bytes), mib(self.staging_bytes))?;
        match &self.available {
            Some(available) => write!(f, "; {} can be had by {}", mib(available.bytes), available.bound),
            None => f.write_str("; the system does not say how much can be had"),
        }
    }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        let available = Some(Available::for_test(5 << 20, "MemAvailable"));
        let preflight = Preflight { arena_bytes: 7 << 20, staging_bytes: 1 << 20, available };
        let error = preflight.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Memory);
        assert!(
            ["7 MiB for shards", "1 MiB for buffers", "5 MiB by MemAvailable"].iter().all(|n| error.to_string().contains(n)),
            "{error}"
        );
        assert_eq!(preflight.to_string(), "memory = 8 MiB: 7 MiB for shards, 1 MiB for buffers; 5 MiB can be had by MemAvailable");
        assert!(Preflight { arena_bytes: 1 << 20, ..preflight.clone() }.check().is_ok());
        assert!(Preflight { available: None, ..preflight }.check().is_ok());
    }
}
