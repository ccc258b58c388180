//! `resolve`, `plan` and `load` for Python: the command line's own steps, with objects in place of printed text. Results that are data cross as
//! JSON, of which the Python side makes objects; tensors stay where they were loaded.

use std::{path::PathBuf, sync::Arc};

use pyo3::{exceptions::PyBufferError, ffi, prelude::*};
use serde_json::json;
use shardwright::{
    config::Resolved,
    core::ShardPlan,
    engine::{
        Loader, RankShards, World, WorldFlags,
        device::dlpack::{ManagedTensor, Raw},
        load::all_ranks,
    },
};
use shardwright_cli::{Prepared, Stopped, prepare, resolve_config};

use crate::{errors, plugin::registry, wait};

fn stopped(stopped: Stopped) -> PyErr {
    errors::exit(stopped.code, &stopped.text)
}

fn text<T: shardwright::core::serde::Serialize>(value: &T) -> PyResult<String> {
    serde_json::to_string(value).map_err(|e| errors::raise("ShardwrightError", &e.to_string()))
}

/// What a config means.
#[pyclass(frozen, module = "shardwright._native")]
pub struct Resolution {
    json: String,
    /// Errors and warnings as the command line prints them.
    #[pyo3(get)]
    findings: String,
    resolved: Option<Resolved>,
}

#[pymethods]
impl Resolution {
    /// Everything, as `shardwright resolve --format json` has it.
    fn json(&self) -> &str {
        &self.json
    }

    /// Whether nothing is wrong.
    #[getter]
    fn ok(&self) -> bool {
        self.resolved.is_some()
    }

    /// Where a value comes from.
    fn explain(&self, key: &str) -> PyResult<String> {
        let resolved = self.resolved.as_ref().ok_or_else(|| errors::raise("ConfigError", &self.findings))?;
        resolved.explain(key).map_err(|d| {
            let help = d.help.as_ref().map(|h| format!("; {h}")).unwrap_or_default();
            errors::raise("ConfigError", &format!("{}{help}", d.message))
        })
    }

    /// The lock, as `shardwright resolve --lock` writes it.
    fn lock(&self) -> PyResult<String> {
        let resolved = self.resolved.as_ref().ok_or_else(|| errors::raise("ConfigError", &self.findings))?;
        text(&resolved.lock())
    }
}

/// Resolves a config.
#[pyfunction]
#[pyo3(signature = (config, overrides = Vec::new(), *, world_size = None))]
pub fn resolve(py: Python<'_>, config: PathBuf, overrides: Vec<String>, world_size: Option<u32>) -> PyResult<Resolution> {
    let registry = registry()?;
    let done = py.detach(|| resolve_config(&config, &overrides, WorldFlags { rank: None, world_size }, &registry));
    let (outcome, findings) = done.map_err(stopped)?;
    Ok(Resolution { json: text(&outcome.to_json())?, findings, resolved: outcome.resolved })
}

/// A validated plan, with the checkpoint that it is for.
#[pyclass(frozen, module = "shardwright._native")]
pub struct Plan(Arc<Prepared>);

/// Resolves a config, opens the checkpoint, and plans.
#[pyfunction]
#[pyo3(signature = (config, overrides = Vec::new(), *, rank = None, world_size = None))]
pub fn plan(py: Python<'_>, config: PathBuf, overrides: Vec<String>, rank: Option<u32>, world_size: Option<u32>) -> PyResult<Plan> {
    let registry = registry()?;
    let done = py.detach(|| prepare(&config, &overrides, WorldFlags { rank, world_size }, &registry));
    Ok(Plan(Arc::new(done.map_err(stopped)?)))
}

#[pymethods]
impl Plan {
    /// The plan as data.
    fn json(&self) -> PyResult<String> {
        text(&self.0.plan)
    }

    /// Warnings.
    #[getter]
    fn notes(&self) -> Vec<String> {
        self.0.notes.clone()
    }

    /// This process's rank, where a launcher or the caller says.
    #[getter]
    fn rank(&self) -> Option<u32> {
        self.0.world.rank
    }

    /// Number of ranks.
    #[getter]
    fn world_size(&self) -> u32 {
        self.0.plan.mesh.world_size()
    }

    /// What a rank holds of each tensor: region, local shape (none of a flat part), elements, and elements with padding.
    fn shards(&self, rank: u32) -> PyResult<String> {
        let plan = &self.0.plan;
        if rank >= plan.mesh.world_size() {
            return Err(errors::raise("WorldError", &format!("rank {rank}: expected a rank below {}", plan.mesh.world_size())));
        }
        let shards = plan.tensors.iter().map(|t| {
            let region = t.region(rank);
            let shape = region.local_shape(&t.shape);
            json!({"name": t.name.as_str(), "region": region, "shape": shape, "numel": t.valid_numel(rank), "padded": t.padded_numel(rank)})
        });
        text(&shards.collect::<Vec<_>>())
    }

    /// Loads these ranks; by default this process's, or all.
    #[pyo3(signature = (ranks = None, *, threads = None, force = false, progress = None))]
    fn load(
        &self,
        py: Python<'_>,
        ranks: Option<Vec<u32>>,
        threads: Option<usize>,
        force: bool,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<(Vec<Shards>, f64)> {
        let prepared = Arc::clone(&self.0);
        let mut io = prepared.io.clone();
        io.threads = threads.or(io.threads);
        io.force |= force;
        let ranks = match (ranks, prepared.world.rank) {
            (Some(ranks), _) => ranks,
            (None, Some(rank)) => vec![rank],
            (None, None) => all_ranks(prepared.plan.mesh.world_size()).map_err(errors::engine)?,
        };
        let loaded = wait::run(py, progress.as_ref(), |cancel, progress| {
            let note = |p: &shardwright::engine::load::Progress<'_>| progress.note(p.read, p.total);
            Loader::new(&prepared.plan, &prepared.checkpoint).ranks(&ranks).io(io).cancel(cancel).progress(&note).load()
        })?;
        let seconds = loaded.stats.seconds;
        let own = |shards: RankShards<'_>| {
            // SAFETY: `Loading` keeps the plan that these shards refer to, at one address, for as long as they live: its fields are dropped in
            // order, and no reference with this lifetime leaves it.
            let shards = unsafe { std::mem::transmute::<RankShards<'_>, RankShards<'static>>(shards) };
            Shards(Arc::new(Loading { shards, prepared: Arc::clone(&prepared) }))
        };
        Ok((loaded.ranks.into_iter().map(own).collect(), seconds))
    }
}

/// One rank's shards, and what they refer to.
struct Loading {
    shards: RankShards<'static>,
    prepared: Arc<Prepared>,
}

impl Loading {
    fn plan(&self) -> &ShardPlan {
        &self.prepared.plan
    }
}

/// One rank's shards.
#[pyclass(frozen, module = "shardwright._native")]
pub struct Shards(Arc<Loading>);

#[pymethods]
impl Shards {
    /// The rank.
    #[getter]
    fn rank(&self) -> u32 {
        self.0.shards.rank()
    }

    /// Source bytes that were read for it.
    #[getter]
    fn bytes_read(&self) -> u64 {
        self.0.shards.stats().bytes_read
    }

    /// Names, in the plan's order.
    fn names(&self) -> Vec<&str> {
        self.0.plan().tensors.iter().map(|t| t.name.as_str()).collect()
    }

    /// The shard of the tensor at that index.
    fn tensor(&self, index: usize) -> PyResult<Tensor> {
        if index >= self.0.shards.len() {
            return Err(errors::raise("PlanError", &format!("no tensor {index} of {}", self.0.shards.len())));
        }
        Ok(Tensor { loading: Arc::clone(&self.0), index })
    }
}

/// What a rank holds of a tensor, in the memory that it was loaded into.
#[pyclass(frozen, module = "shardwright._native")]
pub struct Tensor {
    loading: Arc<Loading>,
    index: usize,
}

const CAPSULE: &std::ffi::CStr = c"dltensor";

/// Frees a tensor that no consumer took: one that did has renamed the capsule.
unsafe extern "C" fn free_capsule(capsule: *mut ffi::PyObject) {
    // SAFETY: called by the interpreter for a capsule that `capsule` made; the pointer is the one that `into_raw` gave.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, CAPSULE.as_ptr()) == 1 {
            let raw = ffi::PyCapsule_GetPointer(capsule, CAPSULE.as_ptr()).cast::<Raw>();
            if let Some(delete) = raw.as_ref().and_then(|r| r.deleter) {
                delete(raw);
            }
        }
    }
}

fn capsule(py: Python<'_>, tensor: ManagedTensor) -> PyResult<Py<PyAny>> {
    let raw = tensor.into_raw();
    // SAFETY: a fresh pointer that the capsule owns from here on; where none is made, the tensor is freed here.
    unsafe {
        let made = ffi::PyCapsule_New(raw.cast(), CAPSULE.as_ptr(), Some(free_capsule));
        if made.is_null() {
            if let Some(delete) = (*raw).deleter {
                delete(raw);
            }
            return Err(PyErr::fetch(py));
        }
        Ok(Bound::from_owned_ptr(py, made).unbind())
    }
}

#[pymethods]
impl Tensor {
    /// Its name.
    #[getter]
    fn name(&self) -> &str {
        &self.loading.plan().tensors[self.index].name
    }

    /// "parameter" or "buffer".
    #[getter]
    fn kind(&self) -> PyResult<String> {
        Ok(text(&self.loading.plan().tensors[self.index].kind)?.trim_matches('"').to_owned())
    }

    /// torch's name of its dtype.
    #[getter]
    fn dtype(&self) -> &'static str {
        self.loading.shards.tensor(self.index).dtype.torch_name()
    }

    /// The whole tensor's shape.
    #[getter]
    fn global_shape(&self) -> Vec<u64> {
        self.loading.plan().tensors[self.index].shape.clone()
    }

    /// The part's shape; of a flat part, its number of elements.
    #[getter]
    fn shape(&self) -> Vec<u64> {
        let view = self.loading.shards.tensor(self.index);
        view.local_shape.unwrap_or_else(|| vec![view.region.numel(&self.loading.plan().tensors[self.index].shape)])
    }

    /// The part, as data.
    #[getter]
    fn region(&self) -> PyResult<String> {
        text(&self.loading.shards.tensor(self.index).region)
    }

    /// Where its first byte is, and how many there are; this object keeps them.
    #[getter]
    fn memory(&self) -> (usize, usize) {
        let bytes = self.loading.shards.tensor(self.index).bytes;
        (bytes.as_ptr().expose_provenance(), bytes.len())
    }

    /// The DLPack device: the host.
    fn __dlpack_device__(&self) -> (i32, i32) {
        (1, 0)
    }

    /// A DLPack capsule over the same memory, which it keeps.
    #[pyo3(signature = (*, stream = None, max_version = None, dl_device = None, copy = None))]
    fn __dlpack__(
        &self,
        py: Python<'_>,
        stream: Option<Py<PyAny>>,
        max_version: Option<Py<PyAny>>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Py<PyAny>> {
        drop((stream, max_version));
        if copy == Some(true) {
            return Err(PyBufferError::new_err("a copy is not made here; take the tensor and clone it"));
        }
        if dl_device.is_some_and(|d| d != (1, 0)) {
            return Err(PyBufferError::new_err("the tensor is in host memory"));
        }
        let tensor = self.loading.shards.dlpack(self.index);
        let tensor = tensor.ok_or_else(|| PyBufferError::new_err(format!("DLPack has no dtype for {}; use memoryview()", self.dtype())))?;
        capsule(py, tensor)
    }
}

/// This process's rank and the number of ranks, as the launcher says.
#[pyfunction]
pub fn world() -> PyResult<(Option<u32>, Option<u32>)> {
    let world = World::from_process(WorldFlags::default()).map_err(errors::engine)?;
    Ok((world.rank, world.size))
}
