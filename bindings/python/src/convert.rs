//! `convert` and `diff` for Python.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use pyo3::prelude::*;
use serde_json::json;
use shardwright::{
    core::DType,
    engine::{
        EngineError, HubEnv,
        convert::{Contents, Conversion, ConvertOptions, Differences, Names, Target, check_free, diff as compare, read_back},
    },
};

use crate::{errors, wait};

pub(crate) fn open(path: &Path, ties: &[(String, String)]) -> Result<Contents, EngineError> {
    Contents::find(path, &HubEnv::from_process())?.tied(ties)
}

/// Converts a checkpoint of any format to another.
#[pyfunction]
#[pyo3(signature = (source, target, to, *, ranks = 1, replicas = 1, dtype = None, params_only = false, names = None, max_file_size = None,
    sub_group_size = None, tag = None, config = None, ties = Vec::new(), verify = false, dry_run = false, progress = None))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
pub fn convert(
    py: Python<'_>,
    source: PathBuf,
    target: PathBuf,
    to: &str,
    ranks: u32,
    replicas: u32,
    dtype: Option<&str>,
    params_only: bool,
    names: Option<&str>,
    max_file_size: Option<u64>,
    sub_group_size: Option<u64>,
    tag: Option<String>,
    config: Option<PathBuf>,
    ties: Vec<(String, String)>,
    verify: bool,
    dry_run: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let wrong = |what: String| errors::raise("ConfigError", &what);
    let to = match to {
        "hf" => Target::Hf,
        "hf-sharded" => Target::HfSharded,
        "dcp" => Target::Dcp,
        "zero3" => Target::Zero3,
        "zero3-universal" => Target::Universal,
        other => return Err(wrong(format!("to={other:?}: expected one of hf, hf-sharded, dcp, zero3, zero3-universal"))),
    };
    let mut options = ConvertOptions::new(to);
    options.ranks = ranks;
    options.replicas = replicas;
    options.tag = tag;
    options.names = match names {
        None => None,
        Some("model") => Some(Names::Model),
        Some("hub") => Some(Names::Hub),
        Some(other) => return Err(wrong(format!("names={other:?}: expected model or hub"))),
    };
    options.params_only = params_only;
    options.config = config;
    options.max_file_size = max_file_size.unwrap_or(options.max_file_size);
    options.sub_group_size = sub_group_size.unwrap_or(options.sub_group_size);
    options.dtype = match dtype {
        Some(name) => Some(DType::from_spelling(name).ok_or_else(|| wrong(format!("dtype={name:?}: expected a dtype such as bfloat16")))?),
        None => None,
    };
    let done = wait::run(py, progress.as_ref(), |cancel, progress| {
        if !dry_run {
            check_free(&target)?;
        }
        let mut contents = open(&source, &ties)?;
        if options.names == Some(Names::Model) {
            contents = contents.with_model_names()?;
        }
        let plan = Conversion::plan(&contents, &options)?;
        let files: Vec<_> = plan.files().map(|(name, bytes)| json!({"name": name, "bytes": bytes})).collect();
        let (lost, total, size) = (plan.lost().to_vec(), plan.source_bytes(), plan.bytes());
        let (started, done) = (Instant::now(), AtomicU64::new(0));
        let to_verify = if verify { contents.bytes().saturating_mul(2) } else { 0 };
        let watch = |n| progress.note(done.fetch_add(n, Ordering::Relaxed) + n, total.saturating_add(to_verify));
        if !dry_run {
            plan.run(&target, &watch, cancel)?;
        }
        let seconds = started.elapsed().as_secs_f64();
        let verified = match verify && !dry_run {
            true => {
                let found = read_back(&contents, &options, &target, &ties, &watch, cancel)?;
                json!({"elements": found.elements, "right": found.is_right(), "problems": problems(&found)})
            }
            false => json!(null),
        };
        let format = contents.format.to_string();
        Ok(json!({"format": format, "files": files, "bytes": size, "source_bytes": total, "lost": lost, "notes": contents.notes,
            "seconds": seconds, "verified": verified}))
    })?;
    Ok(done.to_string())
}

/// How two checkpoints of any formats differ.
#[pyfunction]
#[pyo3(signature = (first, second, *, common = false, ties = Vec::new(), progress = None))]
pub fn diff(
    py: Python<'_>,
    first: PathBuf,
    second: PathBuf,
    common: bool,
    ties: Vec<(String, String)>,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let done = wait::run(py, progress.as_ref(), |cancel, progress| {
        let (a, b) = (open(&first, &ties)?, open(&second, &ties)?);
        let (total, done) = (a.bytes().saturating_add(b.bytes()), AtomicU64::new(0));
        let found = compare(&a, &b, common, &|n| progress.note(done.fetch_add(n, Ordering::Relaxed) + n, total), cancel)?;
        let different = found.different.iter().map(|(name, difference)| (name.clone(), difference.text("the first", "the second").into()));
        let different: serde_json::Map<String, serde_json::Value> = different.collect();
        Ok(json!({"equal": found.equal, "cast": found.cast, "elements": found.elements, "different": different, "notes": found.notes}))
    })?;
    Ok(done.to_string())
}

/// What differs from the source, a line each.
pub(crate) fn problems(found: &Differences) -> Vec<String> {
    let different = found.different.iter().map(|(name, difference)| format!("'{name}': {}", difference.text("the source", "the target")));
    different.chain(found.notes.iter().cloned()).collect()
}
