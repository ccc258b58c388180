//! `inspect` and `verify` for Python; results as JSON, which the Python side makes objects of.

use std::{path::PathBuf, sync::Arc, sync::atomic::AtomicU64, sync::atomic::Ordering};

use pyo3::prelude::*;
use serde_json::json;
use shardwright::engine::{inspect as engine, verify::Verifier};

use crate::{checkpoint::Checkpoint, errors, wait};

/// What a checkpoint holds, as `shardwright inspect --format json` has it.
#[pyfunction]
pub fn inspect(checkpoint: &Checkpoint) -> PyResult<String> {
    let found = serde_json::to_string(&engine::inspect(&checkpoint.0));
    found.map_err(|e| errors::raise("ShardwrightError", &e.to_string()))
}

/// Files against their manifest, and elements against the source.
#[pyfunction]
#[pyo3(signature = (dir, against = None, *, progress = None))]
pub fn verify(py: Python<'_>, dir: PathBuf, against: Option<&Checkpoint>, progress: Option<Py<PyAny>>) -> PyResult<String> {
    let source = against.map(|c| Arc::clone(&c.0));
    let found = wait::run(py, progress.as_ref(), |cancel, progress| {
        let mut verifier = Verifier::open(dir)?;
        let source = source.map(|source| source.as_ref().clone().with_recorded_model(verifier.manifest().model.as_ref())).transpose()?;
        if let Some(source) = &source {
            verifier = verifier.against(source);
        }
        let (total, done) = (verifier.bytes(), AtomicU64::new(0));
        let add = |n| progress.note(done.fetch_add(n, Ordering::Relaxed) + n, total);
        let found = verifier.progress(&add).cancel(cancel).run()?;
        let problems: Vec<String> = found.problems.iter().map(ToString::to_string).collect();
        Ok(json!({
            "files": found.files,
            "bytes": found.bytes,
            "elements": found.elements,
            "problems": problems,
            "more_problems": found.more_problems,
            "unexpected": found.unexpected,
        }))
    })?;
    Ok(found.to_string())
}
