//! Watching the workers: progress, cancellation, stalls, and the one error that is reported.

use std::{
    sync::{Arc, atomic::Ordering, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    fault::{Fault, FaultKind, Place},
    shared::Shared,
    staging::Staging,
    to_device,
    worker::{Transport, Worker},
};
use crate::{
    checkpoint::Checkpoint,
    error::{EngineError, ErrorKind, Result},
    load::stats::{CancelToken, Progress},
    memory::Arena,
    parallel::lock,
    source::ReadFailure,
};

/// How often the watcher looks.
const TICK: Duration = Duration::from_millis(50);
/// How long workers have to stop before they are left behind.
const GRACE: Duration = Duration::from_secs(1);

/// The running workers.
pub(super) struct Crew {
    handles: Vec<JoinHandle<()>>,
    /// Disconnected when all workers have ended.
    alive: mpsc::Receiver<()>,
    /// The one worker, which whoever watches lets work, where the system grants no thread at all.
    here: Option<Box<Worker>>,
}

impl Crew {
    /// Starts them. Where the system refuses more threads, those that it granted do the work, or this one.
    pub(super) fn start(shared: &Arc<Shared>, cancel: &CancelToken) -> Result<Self> {
        let (sender, alive) = mpsc::channel();
        let (mut handles, mut here) = (Vec::new(), None);
        // All that can fail comes before the first worker starts: nobody would stop it.
        let transports = (0..shared.choice.workers()).map(|_| transport(shared)).collect::<Result<Vec<_>>>()?;
        for (number, own) in transports.into_iter().enumerate() {
            let worker = |transport, cancel| Worker { number, shared: Arc::clone(shared), transport, runs: Vec::new(), cancel };
            let ready = worker(own, None);
            let sender = sender.clone();
            let spawned = thread::Builder::new().name(format!("shardwright-io-{number}")).spawn(move || {
                let _alive = sender; // dropped when the worker has ended, however it ends, and has let go of all that it held
                let mut worker = ready; // a local of its own, so that it goes before the sender
                worker.work();
            });
            match spawned {
                Ok(handle) => handles.push(handle),
                Err(_) => {
                    if number == 0 {
                        here = Some(Box::new(worker(transport(shared)?, Some(cancel.clone()))));
                    }
                    break;
                }
            }
        }
        Ok(Self { handles, alive, here })
    }

    /// Number of workers.
    pub(super) fn len(&self) -> usize {
        self.handles.len().max(1)
    }
}

/// # Errors
/// [`ErrorKind::Cancelled`], with how far it came.
pub(super) fn not_cancelled(cancel: &CancelToken, placed: u64, total: u64) -> Result<()> {
    if cancel.is_cancelled() {
        let what = format!("the load was stopped after {placed} of {total} bytes; nothing is kept of it");
        return Err(EngineError::new(ErrorKind::Cancelled, what));
    }
    Ok(())
}

fn transport(shared: &Shared) -> Result<Transport> {
    let memory = Arena::new(shared.choice.staging_bytes())
        .and_then(|memory| Ok((memory, Arena::new(shared.schedule.spare_bytes(shared.choice.block_size))?)));
    let (memory, spare) = memory.map_err(|e| EngineError::new(ErrorKind::Memory, "cannot map a staging buffer").cause(e))?;
    let staging = Staging { memory, spare };
    Ok(match &shared.device {
        None => Transport::Host(staging),
        Some(target) => Transport::Device(to_device::Transport::new(target, staging)?),
    })
}

/// What the watcher needs.
pub(super) struct Watch<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) shared: &'a Shared,
    pub(super) cancel: &'a CancelToken,
    pub(super) progress: Option<&'a (dyn Fn(&Progress<'_>) + Sync)>,
    pub(super) total: u64,
}

impl Watch<'_> {
    /// Until all bytes are in place, or the first failure.
    pub(super) fn until_done(&self, crew: Crew) -> Result<()> {
        let mut moved = (0, Instant::now());
        let mut leaving: Option<(Instant, Option<EngineError>)> = None;
        if let Some(mut worker) = crew.here {
            worker.work(); // which stops by itself when it is cancelled
            leaving = self.reason_to_leave(&mut moved).map(|error| (Instant::now(), error));
        }
        while let Err(mpsc::RecvTimeoutError::Timeout) = crew.alive.recv_timeout(TICK) {
            self.tell();
            match &leaving {
                Some((since, _)) if since.elapsed() > GRACE && self.shared.places.outlive_workers() => break,
                Some(_) => {}
                None => leaving = self.reason_to_leave(&mut moved).map(|error| (Instant::now(), error)),
            }
            if leaving.is_some() {
                self.shared.stop.store(true, Ordering::Relaxed);
            }
        }
        if let Some(fault) = lock(&self.shared.fault).take() {
            return Err(self.describe(fault));
        }
        if let Some((_, Some(error))) = leaving
            && self.shared.counters.total_placed() < self.total
        {
            return Err(error);
        }
        for handle in crew.handles {
            handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        self.tell();
        Ok(())
    }

    /// `Some(None)` where a worker has failed already.
    fn reason_to_leave(&self, moved: &mut (u64, Instant)) -> Option<Option<EngineError>> {
        if lock(&self.shared.fault).is_some() {
            return Some(None);
        }
        let placed = self.shared.counters.total_placed();
        if let Err(error) = not_cancelled(self.cancel, placed, self.total) {
            return Some(Some(error));
        }
        if placed != moved.0 {
            *moved = (placed, Instant::now());
        }
        (moved.1.elapsed() > self.shared.choice.stall_timeout).then(|| Some(self.stalled()))
    }

    fn stalled(&self) -> EngineError {
        let seconds = self.shared.choice.stall_timeout.as_secs_f64();
        let error = EngineError::new(ErrorKind::Io, format!("a read has not come back, and no byte has arrived, for {seconds} seconds"));
        match self.shared.under_way.iter().find_map(|w| *lock(w)) {
            Some(at) => self.locate(at, error),
            None => error,
        }
    }

    fn locate(&self, at: Place, error: EngineError) -> EngineError {
        let error = error.file(&self.shared.files[at.file as usize].file.path).offset(at.offset);
        let error = match at.tensor {
            Some(tensor) => error.tensor(&self.checkpoint.model().tensors[tensor as usize].name),
            None => error,
        };
        match at.rank {
            Some(rank) => error.rank(self.shared.counters.rank(rank)),
            None => error,
        }
    }

    fn describe(&self, fault: Fault) -> EngineError {
        let changed = self.checkpoint.check_unchanged(fault.at.file as usize).err();
        match fault.error {
            FaultKind::Read(ReadFailure::Failed { error, .. }) => {
                self.locate(fault.at, EngineError::new(ErrorKind::Io, "cannot read").cause(error))
            }
            FaultKind::Read(ReadFailure::Ended { missing, .. }) => {
                let what = changed.map_or_else(|| "the file ended too early".into(), |c| format!("the file ended too early ({c})"));
                let error = EngineError::new(ErrorKind::Checkpoint, what).expected(format_args!("{missing} bytes more"));
                self.locate(fault.at, error)
            }
            FaultKind::Device(error) => self.locate(fault.at, error),
            FaultKind::Other(error) => error,
        }
    }

    /// Calls the progress callback.
    fn tell(&self) {
        let Some(progress) = self.progress else { return };
        let counters = &self.shared.counters;
        let ranks = counters.progress();
        progress(&Progress { ranks: &ranks, read: counters.total_placed(), total: self.total, elapsed: counters.started().elapsed() });
    }
}
