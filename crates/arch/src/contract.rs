pub use shardwright_core::{Assembly, Loop, Piece};
