//! The same work on many items, on a few threads: results in the items' order, the first failure stops the rest. The load pipeline has
//! its own queue; this serves saving and verifying, whose items are files and tensors.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

/// As many threads as there are cores, but no more than items, and at most 8: beyond, the disk decides.
fn threads(items: usize) -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(items).clamp(1, 8)
}

/// Works on every item. Of several failures the one of the lowest item that failed is given.
pub(crate) fn map<T: Sync, R: Send, E: Send>(items: &[T], work: impl Fn(&T) -> Result<R, E> + Sync) -> Result<Vec<R>, E> {
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
    match threads(items.len()) {
        1 => run(),
        threads => std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(run)))),
    }
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
