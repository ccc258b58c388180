//! A checkpoint, opened once and shared by the calls that read it.

use std::{path::PathBuf, sync::Arc};

use pyo3::prelude::*;
use serde_json::{Value as Json, json};
use shardwright::{
    config::TransformersVersion,
    engine::{self, Checkpoint as Engine, HubEnv, contents::Optimizer},
    formats::pickle::Plain,
};

use crate::{
    errors,
    fill::{self, Assembly},
};

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

    /// How the architecture data makes the parameters of a class: the first of the `architectures` in `config`, the JSON of the model's config.
    fn recipes(&self, py: Python<'_>, config: &str, transformers: &str) -> PyResult<Recipes> {
        let config: Json = serde_json::from_str(config).map_err(|e| errors::raise("ConfigError", &format!("the model's config: {e}")))?;
        let found = py.detach(|| self.0.find_class(&config, TransformersVersion::parse(transformers))).map_err(errors::engine)?;
        let sources = self.0.named();
        let name = |source: u32| sources.get(source as usize).map_or_else(String::new, |t| t.name.to_string());
        let model = found.model;
        let made = model.meta.tensors.iter().zip(&model.assemblies);
        Ok((
            found.class,
            made.map(|(meta, assembly)| {
                let float32 = meta.keep_fp32 || meta.made_fp32;
                (meta.name.to_string(), meta.shape.clone(), fill::assembly(assembly, name), float32)
            })
            .collect(),
            model.unused.iter().map(|u| name(u.source)).collect(),
            model.aliases.iter().map(|(alias, of)| (alias.to_string(), of.to_string())).collect(),
        ))
    }
}

/// The class, where the data has it; name, shape and assembly of each parameter, and whether the class keeps it in float32; the tensors that fill
/// nothing; tied names, each with the parameter's own.
type Recipes = (Option<String>, Vec<(String, Vec<u64>, Assembly, bool)>, Vec<String>, Vec<(String, String)>);

/// The version of transformers whose classes the data describes, for an installed one.
#[pyfunction]
pub fn architecture_version(transformers: &str) -> String {
    engine::architecture::architecture_version(TransformersVersion::parse(transformers))
}

/// The states of a checkpoint's optimizer as tensors `PARAMETER.STATE`, and, as JSON, its groups and which parameter has which states.
#[pyfunction]
pub fn open_optimizer(py: Python<'_>, path: PathBuf) -> PyResult<(Checkpoint, String)> {
    let (opened, optimizer) = py.detach(|| Engine::open_optimizer(&path)).map_err(errors::engine)?;
    Ok((Checkpoint(Arc::new(opened)), describe(&optimizer)))
}

fn describe(optimizer: &Optimizer) -> String {
    let groups = optimizer.groups.iter().map(|group| {
        let values: serde_json::Map<_, _> = group.values.iter().map(|(key, value)| (key.clone(), plain(value))).collect();
        json!({ "params": group.params, "values": values })
    });
    let states = optimizer.states.iter().map(|state| {
        let names: Vec<&str> = state.tensors.iter().map(|(name, _)| name.as_str()).collect();
        json!({ "param": state.param, "step": state.step, "names": names })
    });
    json!({ "groups": groups.collect::<Vec<_>>(), "states": states.collect::<Vec<_>>() }).to_string()
}

fn plain(value: &Plain) -> Json {
    match value {
        Plain::None => Json::Null,
        Plain::Bool(b) => Json::from(*b),
        Plain::Int(i) => Json::from(*i),
        Plain::Float(f) => Json::from(*f),
        Plain::Str(text) => Json::from(text.as_str()),
        Plain::Tuple(items) | Plain::List(items) => items.iter().map(plain).collect(),
        // No hyperparameter is one.
        Plain::Dict(_) => Json::Null,
    }
}
