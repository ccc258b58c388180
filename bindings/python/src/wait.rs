//! Long work without the interpreter: done on another thread, while this one asks for signals and reports progress.

use std::{
    sync::{Mutex, mpsc},
    time::Duration,
};

use pyo3::prelude::*;
use shardwright::engine::{CancelToken, EngineError};

use crate::errors;

/// How often signals are looked for.
const TICK: Duration = Duration::from_millis(40);

/// Bytes done and bytes to do, as the working thread last said.
#[derive(Debug, Default)]
pub struct Progress(Mutex<Option<(u64, u64)>>);

impl Progress {
    /// Notes how far the work has come.
    pub fn note(&self, done: u64, total: u64) {
        if let Ok(mut state) = self.0.lock() {
            *state = Some((done, total));
        }
    }

    fn take(&self) -> Option<(u64, u64)> {
        self.0.lock().ok().and_then(|mut state| state.take())
    }
}

/// Runs `work` with the interpreter let go. A signal, or an exception of `callback`, cancels it and is raised once it has ended.
pub fn run<T: Send>(
    py: Python<'_>,
    callback: Option<&Py<PyAny>>,
    work: impl FnOnce(&CancelToken, &Progress) -> Result<T, EngineError> + Send,
) -> PyResult<T> {
    let (cancel, progress) = (CancelToken::new(), Progress::default());
    let (sender, receiver) = mpsc::sync_channel(1);
    let (worker_cancel, worker_progress) = (cancel.clone(), &progress);
    py.detach(move || {
        let progress = worker_progress;
        std::thread::scope(|scope| {
            let worker = move || {
                // The receiver waits for as long as this thread runs.
                drop(sender.send(work(&worker_cancel, worker_progress)));
            };
            if let Err(e) = std::thread::Builder::new().name("shardwright".into()).spawn_scoped(scope, worker) {
                return Err(errors::raise("IoError", &format!("cannot start a thread: {e}")));
            }
            let mut raised = None;
            loop {
                let done = receiver.recv_timeout(TICK);
                if raised.is_none() {
                    let news = progress.take();
                    let asked = Python::attach(|py| {
                        if let (Some(callback), Some((done, total))) = (callback, news) {
                            callback.call1(py, (done, total))?;
                        }
                        py.check_signals()
                    });
                    if let Err(error) = asked {
                        cancel.cancel();
                        raised = Some(error);
                    }
                }
                match done {
                    Ok(result) => return raised.map_or_else(|| result.map_err(errors::engine), Err),
                    Err(mpsc::RecvTimeoutError::Timeout) => {}
                    Err(mpsc::RecvTimeoutError::Disconnected) => {
                        return Err(raised.unwrap_or_else(|| errors::raise("ShardwrightError", "the working thread ended early")));
                    }
                }
            }
        })
    })
}
