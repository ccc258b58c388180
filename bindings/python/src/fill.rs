//! `fill` and `casts` for Python: arguments checked and handed on.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use pyo3::{prelude::*, types::PyDict};
use shardwright::{
    cast,
    core::{Assembly as Pieces, DType, Loop, Name, Piece},
    engine::{
        Checkpoint as Engine, EngineError, IoOptions, ReadMethod,
        device::{DeviceOptions, DeviceRequest, Devices, choose, probe},
        load::{Destination, Item as Wanted, Part, Progress, fill as read, fill_on_device},
    },
};

use crate::{checkpoint::Checkpoint, errors, memory, wait};

/// A loop of a strided box: size, source stride, target stride.
type LoopOf = (u64, u64, u64);

/// How a parameter is made: one whole tensor, or pieces (source, source offset, target offset, loops).
#[derive(FromPyObject, IntoPyObject)]
pub enum Assembly {
    Whole(String),
    Pieces(Vec<(String, u64, u64, Vec<LoopOf>)>),
}

/// An assembly over sources by index, as one over their names.
pub fn assembly(of: &Pieces, name: impl Fn(u32) -> String) -> Assembly {
    let loops = |piece: &Piece| piece.loops.iter().map(|l| (l.size, l.source_stride, l.target_stride)).collect();
    match of {
        Pieces::Whole(source) => Assembly::Whole(name(*source)),
        Pieces::Pieces(pieces) => {
            Assembly::Pieces(pieces.iter().map(|p| (name(p.source), p.source_offset, p.target_offset, loops(p))).collect())
        }
    }
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

/// Devices that were filled before, by ordinal: their kernels are compiled once.
static OPEN: Mutex<BTreeMap<u32, Devices>> = Mutex::new(BTreeMap::new());

fn opened_device(ordinal: u32) -> Result<Devices, EngineError> {
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(devices) = open.get(&ordinal) {
        return Ok(devices.clone());
    }
    choose(DeviceRequest::Cuda(Some(ordinal)), probe, None, &[0])?;
    let devices = Devices::open(&[ordinal])?;
    open.insert(ordinal, devices.clone());
    Ok(devices)
}

/// Why memory on this CUDA device is not filled, if so: no driver, a device that is too old, or none of that number.
#[pyfunction]
pub fn device_refused(py: Python<'_>, device: u32) -> Option<String> {
    py.detach(|| opened_device(device)).err().map(|e| e.to_string())
}

fn item(checkpoint: &Engine, item: Item, seen: &mut HashMap<String, u64>) -> PyResult<Wanted> {
    let (name, shape, assembly, rounded, ranges, flat, address, bytes, to) = item;
    let refuse = |what: &str| errors::raise("PlanError", &format!("tensor '{name}': {what}"));
    let sources = checkpoint.named();
    let find = |source: &str| {
        let found = sources.binary_search_by(|t| t.name.as_str().cmp(source));
        let index = found.map_err(|_| refuse(&format!("the checkpoint has no tensor '{source}'")))?;
        u32::try_from(index).map_err(|_| refuse("the checkpoint has too many tensors"))
    };
    let assembly = match assembly {
        Assembly::Whole(source) => Pieces::Whole(find(&source)?),
        Assembly::Pieces(pieces) => {
            let piece = |(source, source_offset, target_offset, loops): (String, u64, u64, Vec<LoopOf>)| {
                let kept = loops.into_iter().filter(|l| l.0 != 1);
                let loops = kept.map(|(size, source_stride, target_stride)| Loop { size, source_stride, target_stride }).collect();
                Ok(Piece { source: find(&source)?, source_offset, target_offset, loops })
            };
            Pieces::Pieces(pieces.into_iter().map(piece).collect::<PyResult<_>>()?)
        }
    };
    // What lies in parts is found by its name, and read by its parts.
    let assembly = checkpoint.over_sources(&name, assembly).map_err(errors::engine)?;
    let part = match flat {
        Some((first, end)) => Part::Flat(first..end),
        None => Part::Box(ranges.into_iter().map(|(first, end)| first..end).collect()),
    };
    let rounded = rounded.as_deref().map(dtype).transpose()?;
    let to = Destination { address, bytes, dtype: dtype(&to)? };
    // Several parts of one tensor, as a distributed checkpoint's reader wants them, have names of their own.
    let count = seen.entry(name.clone()).and_modify(|n| *n += 1).or_insert(1);
    let unique = if *count == 1 { name } else { format!("{name} (part {count})") };
    Ok(Wanted { name: Name::from(unique.as_str()), shape, assembly, rounded, part, to })
}

/// Fills each item's memory and returns what it took.
///
/// Addresses are those of `tensor.data_ptr()`, on the CUDA device of that number if one is given: the caller keeps the tensors alive, and nothing
/// else may use their memory meanwhile.
#[pyfunction]
#[pyo3(signature = (
    checkpoint, items, *, threads = None, block_size = None, direct = false, device = None, local_processes = None, progress = None
))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
pub fn fill<'py>(
    py: Python<'py>,
    checkpoint: &Checkpoint,
    items: Vec<Item>,
    threads: Option<usize>,
    block_size: Option<usize>,
    direct: bool,
    device: Option<u32>,
    local_processes: Option<u32>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let method = direct.then_some(ReadMethod::Direct);
    let io = IoOptions { threads, block_size, method, local_processes, ..IoOptions::default() };
    let opened = Arc::clone(&checkpoint.0);
    let mut seen = HashMap::with_capacity(items.len());
    let items = items.into_iter().map(|i| item(&opened, i, &mut seen)).collect::<PyResult<Vec<_>>>()?;
    let items = if device.is_some() { memory::distinct(items)? } else { memory::check(items)? };
    let stats = wait::run(py, progress.as_ref(), |cancel, progress| {
        let note = |p: &Progress<'_>| progress.note(p.read, p.total);
        let Some(ordinal) = device else {
            // SAFETY: `memory::check` saw that the memory is writable and that no two parts overlap; the Python side takes address and size
            // from tensors that it holds and that nothing else uses before it returns.
            return unsafe { read(&opened, &items, &io, Some(&note), cancel) };
        };
        let devices = opened_device(ordinal)?;
        // SAFETY: as above, but that the engine itself asks whether the memory is on the device; the Python side has waited for all work there.
        let stats = unsafe { fill_on_device(&opened, &items, (&devices, DeviceOptions::default()), &io, Some(&note), cancel) };
        devices.release_ring(); // the training wants the memory
        stats
    })?;
    let out = PyDict::new(py);
    out.set_item("bytes_read", stats.bytes_read)?;
    out.set_item("bytes_needed", stats.bytes_needed)?;
    out.set_item("threads", stats.threads)?;
    out.set_item("seconds", stats.seconds)?;
    Ok(out)
}
