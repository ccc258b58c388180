//! Which bytes of which file go where: the needed parts of all tensors in file order, cut into tasks, and tasks into blocks.
//!
//! A part that several ranks hold is scheduled once with several destinations. Nothing is expanded per rank or per row: a schedule is
//! about as large as the list of tensors.

mod blocks;
mod build;
mod convert;
mod group;
mod list;
mod queue;
mod read;
mod run;
mod scatter;
mod sweep;
mod tasks;

pub(crate) use self::{
    build::{file_order, order_of},
    convert::Conversion,
    list::Schedule,
    queue::Task,
    read::TensorRead,
    run::{Block, BlockLimits, Run},
    scatter::scatter,
    sweep::{TilePart, strips},
};
