//! shardwright: pluggable sharding strategies for large-model training.
//!
//! This crate is the facade: it links the built-in strategies and precision policies, and gives every part of the workspace one name. A
//! binary with a strategy of its own is two lines: `use acme_strategy as _;` and `shardwright::main()`.
//!
//! The main job, from a YAML to shards:
//!
//! ```
//! # fn main() -> Result<(), shardwright::Error> {
//! # std::env::set_current_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
//! let plan = shardwright::Run::from_yaml("examples/fsdp2.yaml").world(1, 4).plan()?; // rank 1 of 4; headers are read, no tensor
//! let shards = plan.load()?; // owned: nothing borrows the plan
//! for tensor in shards.rank(1).unwrap().iter() {
//!     println!("{} {} {:?}: {} bytes", tensor.name, tensor.dtype, tensor.local_shape, tensor.bytes.len());
//! }
//! # assert_eq!(shards.rank(1).unwrap().len(), plan.layout().tensors.len());
//! # Ok(())
//! # }
//! ```

pub use shardwright_cast as cast;
#[cfg(feature = "cli")]
pub use shardwright_cli::main;
pub use shardwright_config as config;
pub use shardwright_core as core;
pub use shardwright_engine as engine;
pub use shardwright_engine::{
    convert,
    load::Destination,
    run::{Error, Plan, Resolution, Run, Shards, Wanted, verify},
};
pub use shardwright_formats as formats;
pub use shardwright_fsdp2 as fsdp2;
pub use shardwright_precision as precision;
pub use shardwright_zero3 as zero3;

#[cfg(feature = "testkit")]
pub mod testkit;

/// The guide's code, compiled and run.
#[cfg(all(doctest, feature = "cli"))]
#[doc = include_str!("../docs/write-a-strategy.md")]
struct WriteAStrategy;

/// The README's example, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
