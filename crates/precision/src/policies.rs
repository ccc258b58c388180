//! The built-in precision policies, as `shardwright.precision: {name: …}` names them.

pub mod mixed;
pub mod pins;
pub mod uniform;

pub use self::{mixed::MixedConfig, mixed::Ruled, pins::PinsConfig, uniform::UniformConfig};
