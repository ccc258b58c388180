//! Steps of planning, counted for the conformance kit and for nobody else: a look at a tensor's name or size, a question to a glob. Without the
//! feature `testkit` counting is nothing at all.

#[cfg(any(test, feature = "testkit"))]
mod counter {
    use std::cell::Cell;

    thread_local! {
        static STEPS: Cell<u64> = const { Cell::new(0) };
    }

    pub(crate) fn count(steps: u64) {
        STEPS.set(STEPS.get().saturating_add(steps));
    }

    /// What `run` answers, and the steps that it took.
    pub(crate) fn of<T>(run: impl FnOnce() -> T) -> (T, u64) {
        let before = STEPS.get();
        let answer = run();
        (answer, STEPS.get().saturating_sub(before))
    }
}

#[cfg(any(test, feature = "testkit"))]
pub(crate) use counter::{count, of};

#[cfg(not(any(test, feature = "testkit")))]
pub(crate) const fn count(_: u64) {}
