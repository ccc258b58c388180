//! Writing shards into a directory: who writes what, in which order, so that nothing half-written is ever taken for whole.
//!
//! A save stages its files in a hidden directory (`rank`, `staged`), then commits under a lock on the directory (`commit`): it takes the
//! old manifest away, gives the files their names, and, once every rank is there, writes the manifest last (`assemble`). Several
//! processes may each save some ranks; whichever comes last completes the directory. The bytes are in memory (`write`) or pass through it in
//! windows (`stream`). What is in which file: [`saved`](crate::saved).

mod assemble;
mod bytes;
mod commit;
mod copied;
mod identity;
mod rank;
mod refuse;
mod saver;
mod staged;
mod stream;
mod supply;
mod write;

pub(crate) use self::copied::is_copied;
pub use self::{
    bytes::RankBytes,
    saver::{Saved, Saver},
    stream::Streamed,
};

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
