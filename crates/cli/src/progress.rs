//! Progress while bytes move: a bar per rank up to a handful, one bar above, plain lines where standard error is no terminal.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::table::bytes;

/// More parts than this share one bar.
const HANDFUL: usize = 8;
/// Where there is no terminal, a line at most this often; short work stays silent.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Shows how far a piece of work is, by bytes, as a whole or in parts.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    shown: Shown,
}

#[derive(Debug)]
enum Shown {
    /// A bar for each part.
    Parts(MultiProgress, Vec<ProgressBar>),
    /// One bar for all.
    Sum(ProgressBar),
    Lines {
        started: Instant,
        last: Instant,
    },
}

impl Progress {
    /// For work in parts, each with a label and a size in bytes.
    pub fn new(what: &'static str, parts: impl ExactSizeIterator<Item = (String, u64)>) -> Self {
        let now = Instant::now();
        let shown = if !std::io::stderr().is_terminal() {
            Shown::Lines { started: now, last: now }
        } else if parts.len() <= HANDFUL {
            let all = MultiProgress::new();
            let bars = parts.map(|(label, size)| all.add(bar(label, size))).collect();
            Shown::Parts(all, bars)
        } else {
            Shown::Sum(bar(what.to_owned(), 0))
        };
        Self { what, shown }
    }

    /// Shows the bytes done of each part, and of the whole.
    pub fn show(&mut self, parts: impl Iterator<Item = u64>, done: u64, total: u64) {
        match &mut self.shown {
            Shown::Parts(_, bars) => bars.iter().zip(parts).for_each(|(bar, done)| bar.set_position(done)),
            Shown::Sum(bar) => {
                bar.set_length(total);
                bar.set_position(done);
            }
            Shown::Lines { started, last } if last.elapsed() >= LINE_EVERY => {
                *last = Instant::now();
                let percent = done.saturating_mul(100).checked_div(total).unwrap_or(100);
                let elapsed = started.elapsed();
                let left = match left(elapsed, done, total) {
                    Some(seconds) => format!(", about {seconds} s left"),
                    None => String::new(),
                };
                let (what, done, total, seconds) = (self.what, bytes(done), bytes(total), elapsed.as_secs());
                // A closed standard error must not stop the work.
                drop(writeln!(std::io::stderr(), "{what}: {done} of {total} ({percent} %) after {seconds} s{left}"));
            }
            Shown::Lines { .. } => {}
        }
    }

    /// Takes the bars away.
    pub fn finish(self) {
        match self.shown {
            Shown::Parts(all, bars) => {
                bars.iter().for_each(ProgressBar::finish_and_clear);
                drop(all.clear());
            }
            Shown::Sum(bar) => bar.finish_and_clear(),
            Shown::Lines { .. } => {}
        }
    }
}

/// Seconds that the rest takes at the speed so far, once a half percent tells it.
fn left(elapsed: Duration, done: u64, total: u64) -> Option<u128> {
    if done < total / 200 {
        return None;
    }
    let rest = u128::from(total.checked_sub(done)?);
    (elapsed.as_millis() * rest / 1000).checked_div(u128::from(done))
}

fn bar(label: String, size: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{prefix:>10} {bar:32} {decimal_bytes:>9} / {decimal_total_bytes:9} {decimal_bytes_per_sec:>12} {eta:>5} left",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(size).with_style(style).with_prefix(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_reported_once_something_is_done() {
        let after = |done| left(Duration::from_millis(1500), done, 400);
        assert_eq!([after(0), after(1), after(100), after(300), after(400), after(401)], [None, None, Some(4), Some(0), Some(0), None]);
    }
}
