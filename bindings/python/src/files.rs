//! `inspect` and `verify` for Python; results as JSON, which the Python side makes objects of.

use std::{path::PathBuf, sync::Arc, sync::atomic::AtomicU64, sync::atomic::Ordering};

use pyo3::prelude::*;
use serde_json::json;
use shardwright::engine::{
    contents,
    convert::{bytes_to_verify, verify as verify_converted},
    inspect as engine,
    verify::{Verifier, is_save as is_saved},
};

use crate::{checkpoint::Checkpoint, convert, errors, wait};

/// What a checkpoint holds, as `shardwright inspect --format json` has it.
#[pyfunction]
pub fn inspect(checkpoint: &Checkpoint) -> PyResult<String> {
    let found = serde_json::to_string(&engine::inspect(&checkpoint.0));
    found.map_err(|e| errors::raise("ShardwrightError", &e.to_string()))
}

/// True for what `inspect_contents` is for: another format than whole safetensors.
#[pyfunction]
pub fn is_other_format(path: PathBuf) -> bool {
    contents::is_other_format(&path)
}

/// What a checkpoint of any format holds, as `shardwright inspect --format json` has it.
#[pyfunction]
pub fn inspect_contents(py: Python<'_>, path: PathBuf) -> PyResult<String> {
    let found = py.detach(|| convert::open(&path, &[])).map_err(errors::engine)?;
    let found = serde_json::to_string(&engine::inspect_contents(&found));
    found.map_err(|e| errors::raise("ShardwrightError", &e.to_string()))
}

/// True for a directory that `verify` is for; `verify_contents` is for others.
#[pyfunction]
pub fn is_save(dir: PathBuf) -> bool {
    is_saved(&dir)
}

/// Files of any format against their own checksums, and elements against the source.
#[pyfunction]
#[pyo3(signature = (dir, against = None, *, ties = Vec::new(), progress = None))]
pub fn verify_contents(
    py: Python<'_>,
    dir: PathBuf,
    against: Option<PathBuf>,
    ties: Vec<(String, String)>,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let found = wait::run(py, progress.as_ref(), |cancel, progress| {
        let target = convert::open(&dir, &[])?;
        let source = against.map(|source| convert::open(&source, &ties)).transpose()?;
        let (total, done) = (bytes_to_verify(&target, source.as_ref()), AtomicU64::new(0));
        let add = |n| progress.note(done.fetch_add(n, Ordering::Relaxed) + n, total);
        let checked = verify_converted(target, source, &add, cancel)?;
        let mut problems = checked.found.as_ref().map(convert::problems).unwrap_or_default();
        if problems.is_empty() && !checked.is_right() {
            problems.push("there is nothing that both hold".to_owned());
        }
        Ok(json!({
            "files": checked.sums.files,
            "bytes": checked.sums.bytes,
            "elements": checked.found.as_ref().map_or(0, |found| found.elements),
            "problems": problems,
            "more_problems": 0,
            "unexpected": [],
            "bytes_with_checksums": checked.sums.summed,
        }))
    })?;
    Ok(found.to_string())
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
            "bytes_with_checksums": found.bytes,
        }))
    })?;
    Ok(found.to_string())
}
