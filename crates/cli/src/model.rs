//! A model named on the command line.

use std::ffi::OsStr;

use shardwright_engine::{Checkpoint, HubEnv};

use crate::exit::{Exit, Failure};

/// A directory, a file, or a hub id, as a config's `model`; what is not UTF-8 can only be a path.
pub fn find(argument: &str, model: &OsStr) -> Result<Checkpoint, Failure> {
    match model.to_str() {
        Some("") => Err(Failure::new(Exit::Usage, format_args!("{argument} is empty, expected a directory, a file, or a hub id"))),
        Some(model) => Ok(Checkpoint::find(model, &[] as &[&str], &HubEnv::from_process())?),
        None => Ok(Checkpoint::open(model.as_ref())?),
    }
}
