//! Progress of work that many threads do in blocks: counts the bytes, and shows them.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use crate::progress::Progress;

/// One counter of bytes, updated from any thread.
#[derive(Debug)]
pub struct Counted {
    shown: Mutex<Progress>,
    done: AtomicU64,
    total: u64,
}

impl Counted {
    /// For `total` bytes of work.
    pub fn new(what: &'static str, total: u64) -> Self {
        let whole = [(what.to_owned(), total)];
        Self { shown: Mutex::new(Progress::new(what, whole.into_iter())), done: AtomicU64::new(0), total }
    }

    /// Adds to the bytes done. Where another thread is showing them, nothing else is needed.
    pub fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes).min(self.total);
        if let Ok(mut shown) = self.shown.try_lock() {
            shown.show([done].into_iter(), done, self.total);
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        self.shown.into_inner().unwrap_or_else(PoisonError::into_inner).finish();
    }
}
