//! `fill` and `casts` for Python: arguments checked and handed on.

use std::sync::Arc;

use pyo3::{prelude::*, types::PyDict};
use shardwright::{
    cast,
    core::{DType, model::numel},
    engine::{Checkpoint as Engine, IoOptions, ReadMethod},
};

use crate::{
    checkpoint::Checkpoint,
    errors,
    transfer::{self, Loop, Piece, Region},
    wait,
};

/// How a parameter is made: one whole tensor, or pieces (source, source offset, target offset, loops).
#[derive(FromPyObject)]
pub enum Assembly {
    Whole(String),
    Pieces(Vec<(String, u64, u64, Vec<Loop>)>),
}

/// Name, shape, assembly, dtype to round through, ranges by dim, flat range, address, bytes, dtype.
type Item = (String, Vec<u64>, Assembly, Option<String>, Vec<(u64, u64)>, Option<(u64, u64)>, usize, u64, String);

fn dtype(name: &str) -> PyResult<DType> {
    DType::from_spelling(name).ok_or_else(|| errors::raise("ConfigError", &format!("no such dtype: {name}")))
}

/// Whether elements of one dtype can be turned into another.
#[pyfunction]
pub fn casts(from: &str, to: &str) -> PyResult<bool> {
    Ok(cast::caster(dtype(from)?, dtype(to)?).is_some())
}

fn item(checkpoint: &Engine, item: Item) -> PyResult<transfer::Item> {
    let (name, shape, assembly, rounded, ranges, flat, address, bytes, to) = item;
    let refuse = |what: &str| errors::raise("PlanError", &format!("tensor '{name}': {what}"));
    let tensors = &checkpoint.model().tensors;
    let find = |source: &str| {
        let found = tensors.binary_search_by(|t| t.name.as_str().cmp(source));
        found.map_err(|_| refuse(&format!("the checkpoint has no tensor '{source}'")))
    };
    let pieces = match assembly {
        Assembly::Whole(source) => {
            let source = find(&source)?;
            // An empty tensor has no piece.
            match numel(&tensors[source].shape) {
                Some(0) => Vec::new(),
                Some(1) => vec![Piece { source, from: 0, to: 0, loops: Vec::new() }],
                Some(n) => vec![Piece { source, from: 0, to: 0, loops: vec![(n, 1, 1)] }],
                None => return Err(refuse("its size overflows")),
            }
        }
        Assembly::Pieces(pieces) => pieces
            .into_iter()
            .map(|(source, from, to, mut loops)| {
                loops.retain(|l| l.0 != 1);
                Ok(Piece { source: find(&source)?, from, to, loops })
            })
            .collect::<PyResult<_>>()?,
    };
    let region = match flat {
        Some((first, end)) => Region::Flat(first..end),
        None => Region::Box(ranges.into_iter().map(|(first, end)| first..end).collect()),
    };
    let rounded = rounded.as_deref().map(dtype).transpose()?;
    Ok(transfer::Item { dtype: dtype(&to)?, name, shape, pieces, rounded, region, address, bytes })
}

/// Fills each item's memory and returns what it took.
///
/// Addresses are those of `tensor.data_ptr()`: the caller keeps the tensors alive, and nothing else may use their memory meanwhile.
#[pyfunction]
#[pyo3(signature = (checkpoint, items, *, threads = None, block_size = None, direct = false, local_processes = None, progress = None))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
pub fn fill<'py>(
    py: Python<'py>,
    checkpoint: &Checkpoint,
    items: Vec<Item>,
    threads: Option<usize>,
    block_size: Option<usize>,
    direct: bool,
    local_processes: Option<u32>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let method = direct.then_some(ReadMethod::Direct);
    let io = IoOptions { threads, block_size, method, local_processes, ..IoOptions::default() };
    let opened = Arc::clone(&checkpoint.0);
    let items = items.into_iter().map(|i| item(&opened, i)).collect::<PyResult<Vec<_>>>()?;
    let stats = wait::run(py, progress.as_ref(), |cancel, progress| {
        // SAFETY: the Python side takes address and size from tensors that it holds and that nothing else uses before it returns.
        unsafe { transfer::fill(&opened, &items, &io, progress, cancel) }
    })?;
    let out = PyDict::new(py);
    out.set_item("bytes_read", stats.bytes_read)?;
    out.set_item("bytes_needed", stats.bytes_needed)?;
    out.set_item("threads", stats.threads)?;
    out.set_item("seconds", stats.seconds)?;
    Ok(out)
}
