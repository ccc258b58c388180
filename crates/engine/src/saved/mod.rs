//! What a saved directory holds, and how it says so: which tensors are in which rank's file (`entries`, `header`, `aliases`), and the manifests
//! that are written behind them (`manifest`, `sealed`). Nothing is written here.

pub mod aliases;
pub mod entries;
pub mod header;
mod manifest;
mod sealed;
mod unfinished;

pub use self::manifest::{FileDigest, Manifest, PrecisionCount, RankFiles, RankManifest, SourceFile, TensorDigest, VERSION};
#[cfg(test)]
pub(crate) use self::sealed::sealed;
pub(crate) use self::{manifest::RankHead, sealed::seal, unfinished::unfinished};

#[cfg(test)]
mod tests;
