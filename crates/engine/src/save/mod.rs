//! Save

pub mod entries;
pub mod header;
pub mod names;
