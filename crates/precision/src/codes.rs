//! The codes of this crate's diagnostics, which are part of its interface.

use shardwright_core::diagnostic::Code;

/// By name.
#[rustfmt::skip]
pub const CODES: &[Code] = &[
    Code::error("pins-base", "nothing decides for the parameters that no pin matches"),
    Code::error("pins-dtype", "a parameter is pinned to something that is not a float dtype"),
    Code::error("pins-glob", "a pin's pattern is not a valid glob"),
    Code::warning("pins-mixed-dtypes", "stock DeepSpeed refuses several dtypes among trainable parameters"),
    Code::warning("pins-unused", "a pin that decides for no parameter of the model"),
    Code::warning("reduce-dtype-version", "no reduce dtype is set, and its default changed with torch 2.15"),
];
