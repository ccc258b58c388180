//! Runs the same work over many items on a few threads: results in the items' order, the first failure stops the rest. Where the system
//! grants fewer threads than asked for, or none, the threads there are do the work. The load pipeline has a queue of its own; this serves
//! headers, saves, verification and reports, whose items are files, ranks and tensors.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// Most threads: beyond, the disk decides.
const MOST: usize = 8;

/// A lock that a panicking worker cannot poison for the others.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One thread per core, but no more than items, and at most [`MOST`].
pub(crate) fn threads(items: usize) -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(items).clamp(1, MOST)
}

/// Works on every item. Of several failures, returns that of the lowest item that failed.
pub(crate) fn map<T: Sync, R: Send, E: Send>(items: &[T], work: impl Fn(&T) -> Result<R, E> + Sync) -> Result<Vec<R>, E> {
    map_on(threads(items.len()), items, work)
}

/// [`map`] on at most that many threads, this one included.
pub(crate) fn map_on<T: Sync, R: Send, E: Send>(
    threads: usize,
    items: &[T],
    work: impl Fn(&T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Result<R, E>)>> = Mutex::new(Vec::with_capacity(items.len()));
    let run = || {
        while let Some((at, item)) = Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, items.get(at)?))) {
            let result = work(item);
            if result.is_err() {
                next.store(items.len(), Ordering::Relaxed);
            }
            done.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            if thread::Builder::new().spawn_scoped(scope, run).is_err() {
                break; // the threads there are do the work
            }
        }
        run();
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order_and_a_failure_stops_the_rest() {
        let items: Vec<u32> = (0..1000).collect();
        assert_eq!(map(&items, |i| Ok::<_, ()>(i * 2)).unwrap(), items.iter().map(|i| i * 2).collect::<Vec<_>>());
        let worked = AtomicUsize::new(0);
        let failed = map(&items, |&i| {
            worked.fetch_add(1, Ordering::Relaxed);
            if i >= 3 { Err(i) } else { Ok(()) }
        });
        assert!(failed.is_err());
        assert!(worked.into_inner() < 100);
    }
}
