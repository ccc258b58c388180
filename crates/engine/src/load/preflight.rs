//! The memory that a load will take, foretold, against the memory that there is.

use std::fmt;

use super::{layout::RankLayout, options::IoChoice};
use crate::{
    error::{EngineError, ErrorKind, Result},
    memory::{Available, HUGE_PAGE, bounds},
};

/// A prediction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Preflight {
    /// Bytes of all arenas, rounded up to whole pages.
    pub arena_bytes: u64,
    /// Bytes of all threads' buffers.
    pub staging_bytes: u64,
    /// Processes of this machine that load at the same time, this one included.
    pub processes: u64,
    /// What can be had, bound by bound; empty where the system does not say.
    pub bounds: Vec<Available>,
}

impl Preflight {
    pub(crate) fn of(layouts: &[RankLayout], choice: &IoChoice) -> Self {
        let rounded = |bytes: u64| if bytes < HUGE_PAGE as u64 { bytes } else { bytes.next_multiple_of(HUGE_PAGE as u64) };
        let arena_bytes = layouts.iter().flat_map(|l| &l.arenas).map(|a| rounded(a.1)).fold(0, u64::saturating_add);
        let staging_bytes = (choice.staging_bytes() * choice.workers()) as u64;
        Self { arena_bytes, staging_bytes, processes: choice.local_processes as u64, bounds: bounds() }
    }

    /// The peak that is predicted, in bytes.
    pub fn peak(&self) -> u64 {
        self.arena_bytes.saturating_add(self.staging_bytes)
    }

    /// The bound with the least left.
    fn tightest(&self) -> Option<&Available> {
        self.bounds.iter().min_by_key(|a| a.bytes)
    }

    /// Refuses what does not fit: this process into what is left, and all processes of this machine into what there is at all. (What the
    /// others have taken already is not left, so what is left cannot be divided among them.)
    ///
    /// # Errors
    /// [`ErrorKind::Memory`], with both numbers.
    pub fn check(&self) -> Result<()> {
        if let Some(least) = self.tightest().filter(|a| a.bytes < self.peak()) {
            return Err(EngineError::new(ErrorKind::Memory, "the shards do not fit into memory (--force overrides)")
                .expected(format_args!("{} for shards and {} for buffers", mib(self.arena_bytes), mib(self.staging_bytes)))
                .found(format_args!("{} by {}", mib(least.bytes), least.bound)));
        }
        let all = self.peak().saturating_mul(self.processes);
        if let Some(least) = self.bounds.iter().filter(|a| a.total < all).min_by_key(|a| a.total) {
            let what =
                format!("the shards of the {} processes of this machine do not fit into its memory (--force overrides)", self.processes);
            return Err(EngineError::new(ErrorKind::Memory, what)
                .expected(format_args!("{} if each takes {}", mib(all), mib(self.peak())))
                .found(format_args!("{} by {}", mib(least.total), least.bound)));
        }
        Ok(())
    }
}

/// One line.
impl fmt::Display for Preflight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory = {}: {} for shards, {} for buffers", mib(self.peak()), mib(self.arena_bytes), mib(self.staging_bytes))?;
        if self.processes > 1 {
            write!(f, ", in each of {} processes of this machine", self.processes)?;
        }
        match self.tightest() {
            Some(least) => write!(f, "; {} can be had by {}", mib(least.bytes), least.bound),
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
        let bounds = vec![Available::for_test(9 << 20, "memory.max"), Available::for_test(5 << 20, "MemAvailable")];
        let preflight = Preflight { arena_bytes: 7 << 20, staging_bytes: 1 << 20, processes: 1, bounds };
        let error = preflight.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Memory);
        assert!(
            ["7 MiB for shards", "1 MiB for buffers", "5 MiB by MemAvailable"].iter().all(|n| error.to_string().contains(n)),
            "{error}"
        );
        assert_eq!(preflight.to_string(), "memory = 8 MiB: 7 MiB for shards, 1 MiB for buffers; 5 MiB can be had by MemAvailable");
        assert!(Preflight { arena_bytes: 1 << 20, ..preflight.clone() }.check().is_ok());
        assert!(Preflight { bounds: Vec::new(), ..preflight }.check().is_ok());
    }

    /// Each of eight would fit alone, into what is left; together they would not fit into an empty machine.
    #[test]
    fn processes_that_fit_alone_and_not_together_are_refused() {
        let bound = Available { total: 64 << 20, ..Available::for_test(60 << 20, "MemAvailable") };
        let preflight = |processes| Preflight { arena_bytes: 9 << 20, staging_bytes: 0, processes, bounds: vec![bound.clone()] };
        assert!(preflight(7).check().is_ok());
        let error = preflight(8).check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Memory);
        for needle in ["8 processes of this machine", "72 MiB if each takes 9 MiB", "64 MiB by MemAvailable", "--force"] {
            assert!(error.to_string().contains(needle), "{error}");
        }
        assert!(preflight(8).to_string().contains("in each of 8 processes"));
    }
}
