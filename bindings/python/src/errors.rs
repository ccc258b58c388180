//! Errors of the engine as Python exceptions: a class for each kind, the text unchanged.

use pyo3::{exceptions::PyRuntimeError, prelude::*, types::PyAny};
use shardwright::engine::{EngineError, ErrorKind};

/// An exception of `shardwright._errors`, by class name.
pub fn raise(class: &str, text: &str) -> PyErr {
    Python::attach(|py| {
        let made = || -> PyResult<Bound<'_, PyAny>> { py.import("shardwright._errors")?.getattr(class)?.call1((text,)) };
        made().map_or_else(|_| PyRuntimeError::new_err(text.to_owned()), PyErr::from_value)
    })
}

/// The exception for an engine's error.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub fn engine(error: EngineError) -> PyErr {
    let class = match error.kind() {
        ErrorKind::Config => "ConfigError",
        ErrorKind::Checkpoint => "CheckpointError",
        ErrorKind::Plan => "PlanError",
        ErrorKind::World => "WorldError",
        ErrorKind::Memory => "OutOfMemoryError",
        ErrorKind::Exists => "ExistsError",
        ErrorKind::Mismatch => "MismatchError",
        ErrorKind::Cancelled => "CancelledError",
        ErrorKind::Device => "DeviceError",
        _ => "IoError",
    };
    raise(class, &error.to_string())
}
