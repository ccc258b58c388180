//! The extension module `shardwright._native`: arguments in, the library's work, results out. What a model needs is decided in Python, which
//! bytes are read and how in `shardwright_engine`.

mod api;
mod checkpoint;
mod convert;
mod errors;
mod files;
mod fill;
mod memory;
mod plugin;
mod wait;

use pyo3::prelude::*;

/// shardwright's engine.
#[pymodule(gil_used = false)]
mod _native {
    use std::ffi::OsString;

    use pyo3::prelude::*;

    #[pymodule_export]
    use super::{
        api::{Plan, Resolution, Shards, Tensor, plan, resolve, world},
        checkpoint::{Checkpoint, architecture_version, open_optimizer},
        convert::{convert, diff},
        files::{inspect, inspect_contents, is_other_format, is_save, verify, verify_contents},
        fill::{casts, device_refused, fill},
        plugin::{check_policy, check_strategy, placement, register},
    };

    /// The version of the library.
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");

    /// Runs the command line and returns its exit code.
    #[pyfunction]
    fn main(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
        py.detach(|| shardwright_cli::main_from(arguments, crate::plugin::all))
    }
}
