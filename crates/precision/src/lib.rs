//! Precision: what a run's settings mean for each tensor's dtypes. The casts that carry it out are in `shardwright-cast`.
//!
//! Pure: no file, no environment, no thread.

pub mod codes;
pub mod policies;
pub mod rules;
