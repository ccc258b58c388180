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

/// The exception for the exit code of a command.
pub fn exit(code: u8, text: &str) -> PyErr {
    let class = match code {
        2 | 3 => "ConfigError",
        4 => "CheckpointError",
        5 => "PlanError",
        7 => "OutOfMemoryError",
        8 => "MismatchError",
        10 => "DeviceError",
        130 => "CancelledError",
        _ => "IoError",
    };
    raise(class, text)
}
