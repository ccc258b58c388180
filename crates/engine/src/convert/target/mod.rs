//! What each target format wants in which file, as plans of files. No byte is read or written here.

mod dcp;
mod deepspeed;
mod hf;
mod planner;

use std::sync::Arc;

pub(super) use self::planner::Planned;
use self::planner::Planner;
use super::options::{ConvertOptions, Target};
use crate::{contents::Contents, error::Result};

pub(super) fn plan<'a>(contents: &'a Contents, options: &ConvertOptions) -> Result<Planned<'a>> {
    let planner = Planner { contents, options: Arc::new(options.clone()) };
    match options.to {
        Target::Hf => planner.hf(),
        Target::HfSharded => planner.hf_sharded(),
        Target::Dcp => planner.dcp(),
        Target::Zero3 => planner.zero3(),
        Target::Universal => planner.universal(),
    }
}
