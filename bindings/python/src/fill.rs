//! Fills memory of the caller's: the elements of each parameter that this rank holds, made from a checkpoint's tensors.

use std::{sync::Arc, time::Instant};

use pyo3::{prelude::*, types::PyDict};
use shardwright::{
    core::{DType, model::numel},
    engine::{CancelToken, Checkpoint as Engine, EngineError, ErrorKind},
    precision::cast::cast,
};

use crate::{
    checkpoint::Checkpoint,
    errors,
    wait::{self, Progress},
};

type Box_ = Vec<(u64, u64)>;
type Piece = (String, u64, u64, Vec<(u64, u64, u64)>);

/// How a parameter is made.
#[derive(FromPyObject)]
pub enum Assembly {
    Whole(String),
    Pieces(Vec<Piece>),
}

/// One parameter: name, shape, assembly, dtype to round through, ranges by dim, flat range in them, address, bytes, dtype.
pub type Item = (String, Vec<u64>, Assembly, Option<String>, Box_, Option<(u64, u64)>, usize, u64, String);

fn dtype(name: &str) -> PyResult<DType> {
    DType::from_spelling(name).ok_or_else(|| errors::raise("ConfigError", &format!("no such dtype: {name}")))
}

/// Whether bytes of one dtype can be turned into another.
#[pyfunction]
pub fn casts(from: &str, to: &str) -> PyResult<bool> {
    Ok(shardwright::precision::cast::caster(dtype(from)?, dtype(to)?).is_some())
}

/// Fills each item's memory and returns what it took.
#[pyfunction]
#[pyo3(signature = (checkpoint, items, *, threads = None, block_size = None, queue_depth = None, method = None, local_processes = None, progress = None))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
pub fn fill<'py>(
    py: Python<'py>,
    checkpoint: &Checkpoint,
    items: Vec<Item>,
    threads: Option<usize>,
    block_size: Option<usize>,
    queue_depth: Option<usize>,
    method: Option<&str>,
    local_processes: Option<u32>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let _ = (threads, block_size, queue_depth, method, local_processes);
    let opened = Arc::clone(&checkpoint.0);
    let started = Instant::now();
    let read = wait::run(py, progress.as_ref(), |cancel, progress| work(&opened, &items, cancel, progress))?;
    let stats = PyDict::new(py);
    stats.set_item("bytes_read", read)?;
    stats.set_item("bytes_needed", read)?;
    stats.set_item("seconds", started.elapsed().as_secs_f64())?;
    Ok(stats)
}

/// TEMPORARY
fn work(checkpoint: &Engine, items: &[Item], cancel: &CancelToken, progress: &Progress) -> Result<u64, EngineError> {
    let mut read = 0;
    let model = checkpoint.model();
    let load = |name: &str| -> Result<(DType, Vec<u8>), EngineError> {
        let index = model.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).map_err(|_| EngineError::new(ErrorKind::Plan, "no such tensor").tensor(name))?;
        let place = checkpoint.location(index);
        let file = &checkpoint.files()[place.file];
        let mut bytes = vec![0; usize::try_from(place.bytes).unwrap()];
        use std::os::unix::fs::FileExt;
        let f = std::fs::File::open(&file.path).map_err(|e| EngineError::io("open", &file.path, e))?;
        f.read_exact_at(&mut bytes, place.offset).map_err(|e| EngineError::io("read", &file.path, e))?;
        Ok((model.tensors[index].dtype, bytes))
    };
    for (k, (name, shape, assembly, rounded, ranges, flat, address, bytes, to)) in items.iter().enumerate() {
        if cancel.is_cancelled() {
            return Err(EngineError::new(ErrorKind::Cancelled, "cancelled"));
        }
        let n = usize::try_from(numel(shape).unwrap()).unwrap();
        let (from, full) = match assembly {
            Assembly::Whole(source) => { let r = load(source)?; read += r.1.len() as u64; r }
            Assembly::Pieces(pieces) => {
                let mut cache = std::collections::BTreeMap::new();
                let mut from = DType::F32;
                let mut out = Vec::new();
                for (source, so, t, loops) in pieces {
                    if !cache.contains_key(source) { let r = load(source)?; read += r.1.len() as u64; cache.insert(source.clone(), r); }
                    let (d, data) = &cache[source];
                    from = *d;
                    let e = usize::try_from(d.bits() / 8).unwrap();
                    out.resize(n * e, 0xEE);
                    let total: u64 = loops.iter().map(|l| l.0).product();
                    for i in 0..total {
                        let (mut r, mut s, mut g) = (i, *so, *t);
                        for l in loops.iter().rev() { let c = r % l.0; r /= l.0; s += c * l.1; g += c * l.2; }
                        let (s, g) = (usize::try_from(s).unwrap() * e, usize::try_from(g).unwrap() * e);
                        out[g..g + e].copy_from_slice(&data[s..s + e]);
                    }
                }
                (from, out)
            }
        };
        let e = usize::try_from(from.bits() / 8).unwrap();
        if full.len() != n * e { return Err(EngineError::new(ErrorKind::Plan, "shapes differ").tensor(name)); }
        let mut local = Vec::new();
        if flat.is_some() || ranges.is_empty() {
            let (a, b) = flat.unwrap_or((0, n as u64));
            local.extend_from_slice(&full[usize::try_from(a).unwrap() * e..usize::try_from(b).unwrap() * e]);
        } else {
            for i in 0..n as u64 {
                let mut r = i; let mut inside = true;
                for (d, range) in shape.iter().zip(ranges).rev() { let c = r % d; r /= d; inside &= range.0 <= c && c < range.1; }
                if inside { let i = usize::try_from(i).unwrap() * e; local.extend_from_slice(&full[i..i + e]); }
            }
        }
        let to = DType::from_spelling(to).unwrap();
        let count = local.len() / e;
        let mut from = from;
        if let Some(r) = rounded { let r = DType::from_spelling(r).unwrap(); let mut v = vec![0; count * usize::try_from(r.bits() / 8).unwrap()]; cast(from, r, &local, &mut v).unwrap(); local = v; from = r; }
        let mut out = vec![0; usize::try_from(*bytes).unwrap()];
        let used = count * usize::try_from(to.bits() / 8).unwrap();
        cast(from, to, &local, &mut out[..used]).unwrap();
        // SAFETY: temporary
        unsafe { std::ptr::copy_nonoverlapping(out.as_ptr(), *address as *mut u8, out.len()) };
        progress.note(k as u64 + 1, items.len() as u64);
    }
    Ok(read)
}
