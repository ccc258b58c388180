//! The pipeline: workers take tasks off one queue, read block by block, cast, and place. The calling thread watches them.
//!
//! Each worker owns one staging buffer of one block; beside the arenas nothing else is held. Workers are not joined when they hang: a
//! read that never comes back must not keep an error from being reported, so all that they touch is counted by reference.

mod fault;
mod files;
mod job;
mod places;
mod shared;
mod staging;
mod target;
mod to_device;
mod watch;
mod worker;

pub(crate) use self::{
    job::{Done, Job},
    places::{Foreign, Places},
    target::{Extent, Target},
};
