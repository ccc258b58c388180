//! Any checkpoint to any other. What there is, [`contents`](crate::contents) describes; `target` plans the `files` that are wanted, `write` moves
//! the bytes in blocks, and `conversion` leads. Memory does not grow with the model. [`diff`] compares two checkpoints element for element.

mod beside;
mod conversion;
mod diff;
mod files;
mod names;
mod options;
mod stage;
mod sums;
mod target;
mod trainer;
mod verify;
mod write;

pub use self::{
    conversion::{Conversion, Converted},
    diff::{Difference, Differences, diff},
    names::Names,
    options::{ConvertOptions, Target},
    stage::check_free,
    sums::{Sums, check_sums},
    verify::{Checked, bytes_to_verify, read_back, verify},
};
pub use crate::contents::{Contents, Data, Format, Group, Kind, Optimizer, State, Tensor, is_other_format};

#[cfg(test)]
mod tests;
