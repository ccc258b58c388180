//! Host memory for shards: anonymous mappings, aligned and advised so that first touch is cheap, and what the system says of memory.
//! Who writes where is the pipeline's business. A fresh mapping is zero already, so padding costs nothing.

mod arena;
mod limits;
mod usage;

pub(crate) use self::limits::bounds;
pub use self::{
    arena::{Arena, HUGE_PAGE},
    limits::{Available, available},
    usage::{ProcessMemory, process_memory},
};
