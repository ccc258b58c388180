//! Precision: what a run's settings mean for each tensor's dtypes, and the casts that carry it out.
//!
//! Pure: no file, no environment, no thread. See `cast` for the kernels.

pub mod cast;
pub mod codes;
pub mod policies;
pub mod rules;
