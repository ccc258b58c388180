//! Progress while bytes move: a bar per rank up to a handful, one bar above, plain lines where standard error is no terminal.

use std::{
    io::{IsTerminal, Write},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::table::bytes;

/// More ranks than this share one bar.
const HANDFUL: usize = 8;
/// Where there is no terminal, a line at most this often; short work stays silent.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Shows how far a piece of work is. Calls may come from any thread.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    done: AtomicU64,
    total: u64,
    shown: Shown,
}

#[derive(Debug)]
enum Shown {
    /// One bar a rank, by position in the list of ranks, or a single one for all.
    Bars { bars: Vec<ProgressBar>, all: MultiProgress },
    Lines { started: Instant, last: Mutex<Instant> },
}

impl Progress {
    /// For work in `lanes` of so many bytes each, named by `label`, such as `rank 3`.
    pub fn new(what: &'static str, lanes: &[(String, u64)]) -> Self {
        let total = lanes.iter().map(|(_, bytes)| bytes).sum();
        let shown = if std::io::stderr().is_terminal() { bars(what, lanes, total) } else { lines() };
        Self { what, done: AtomicU64::new(0), total, shown }
    }

    /// `bytes` more are done in lane number `lane`.
    pub fn add(&self, lane: usize, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        match &self.shown {
            Shown::Bars { bars, .. } => {
                if let Some(bar) = bars.get(lane).or(bars.first()) {
                    bar.inc(bytes);
                }
            }
            Shown::Lines { started, last } => {
                // Whoever finds the lock taken leaves the line to its holder.
                if let Ok(mut last) = last.try_lock()
                    && last.elapsed() >= LINE_EVERY
                {
                    *last = Instant::now();
                    self.line(done, started.elapsed());
                }
            }
        }
    }

    /// Takes the bars away.
    pub fn finish(&self) {
        if let Shown::Bars { bars, all } = &self.shown {
            bars.iter().for_each(ProgressBar::finish_and_clear);
            drop(all.clear());
        }
    }

    fn line(&self, done: u64, elapsed: Duration) {
        let percent = done.saturating_mul(100).checked_div(self.total).unwrap_or(100);
        let (done, total) = (bytes(done), bytes(self.total));
        // A closed standard error must not stop the work.
        drop(writeln!(std::io::stderr(), "{}: {done} of {total} ({percent} %) after {:.0} s", self.what, elapsed.as_secs_f64()));
    }
}

fn lines() -> Shown {
    let now = Instant::now();
    Shown::Lines { started: now, last: Mutex::new(now) }
}

fn bars(what: &'static str, lanes: &[(String, u64)], total: u64) -> Shown {
    let style = ProgressStyle::with_template("{prefix:>10} {bar:32} {decimal_bytes:>9} / {decimal_total_bytes:9} {decimal_bytes_per_sec:>12}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let all = MultiProgress::new();
    let bar = |label: &str, length: u64| all.add(ProgressBar::new(length).with_style(style.clone()).with_prefix(label.to_owned()));
    let bars = if lanes.len() <= HANDFUL { lanes.iter().map(|(label, bytes)| bar(label, *bytes)).collect() } else { vec![bar(what, total)] };
    Shown::Bars { bars, all }
}
