//! Placeholder

pub mod digest;
pub mod save;
#[cfg(test)]
mod testing;
