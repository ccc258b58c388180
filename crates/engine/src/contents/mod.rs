//! What a checkpoint of any format holds, and where. `open` recognises the format, the module of that format's name reads it, and [`Contents`]
//! describes it by `types` and `data`; nothing but headers and small values is read.

mod checksums;
mod common;
pub(crate) mod data;
mod dcp;
mod deepspeed;
mod open;
mod parts;
mod safetensors;
mod torch_save;
pub(crate) mod types;
mod universal;

pub(crate) use self::{
    common::{malformed, sorted},
    open::{dcp_items, is_parted},
};
pub use self::{
    data::Data,
    open::is_other_format,
    types::{Contents, Format, Group, Kind, Optimizer, State, Tensor},
};
