//! The built-in precision policies, as `shardwright.precision: {name: …}` names them.

pub mod mixed;
pub mod pins;
pub mod uniform;

pub use self::{
    mixed::{Loaded, MixedConfig, Ruled},
    pins::PinsConfig,
    uniform::UniformConfig,
};
