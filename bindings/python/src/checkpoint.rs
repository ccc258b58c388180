//! A checkpoint, opened once and shared by the calls that read it.

use std::{path::PathBuf, sync::Arc};

use pyo3::prelude::*;
use shardwright::engine::{Checkpoint as Engine, HubEnv};

use crate::errors;

/// A checkpoint whose headers were read and checked.
#[pyclass(frozen, module = "shardwright._native")]
#[derive(Debug)]
pub struct Checkpoint(pub Arc<Engine>);

#[pymethods]
impl Checkpoint {
    /// Opens a directory, a file, or a hub id in the local cache.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let found = py.detach(|| {
            if path.exists() {
                return Engine::open(&path);
            }
            Engine::find(&path.to_string_lossy(), &[] as &[PathBuf], &HubEnv::from_process())
        });
        Ok(Self(Arc::new(found.map_err(errors::engine)?)))
    }

    /// The directory of its files.
    #[getter]
    fn dir(&self) -> PathBuf {
        self.0.dir().to_owned()
    }

    /// The text of `config.json`.
    #[getter]
    fn config_text(&self) -> Option<&str> {
        self.0.config_text()
    }

    /// Oddities that do not stop a load.
    #[getter]
    fn warnings(&self) -> Vec<String> {
        self.0.warnings().to_vec()
    }

    /// The files, with their sizes in bytes.
    fn files(&self) -> Vec<(PathBuf, u64)> {
        self.0.files().iter().map(|f| (f.path.clone(), f.stamp.size)).collect()
    }

    /// Name, dtype and shape of each tensor, sorted by name.
    fn tensors(&self) -> Vec<(String, &'static str, Vec<u64>)> {
        let tensors = &self.0.model().tensors;
        tensors.iter().map(|t| (t.name.to_string(), t.dtype.torch_name(), t.shape.clone())).collect()
    }
}
