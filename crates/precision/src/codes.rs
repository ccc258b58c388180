//! The codes of this crate's diagnostics, which are part of its interface.

use shardwright_core::diagnostic::{Code, Severity};

const fn error(name: &'static str, meaning: &'static str) -> Code {
    Code { name, severity: Severity::Error, meaning }
}

const fn warning(name: &'static str, meaning: &'static str) -> Code {
    Code { name, severity: Severity::Warning, meaning }
}

/// By name.
#[rustfmt::skip]
pub const CODES: &[Code] = &[
    error("pins-base", "nothing decides for the parameters that no pin matches"),
    error("pins-dtype", "a parameter is pinned to something that is no float dtype"),
    error("pins-glob", "a pin's pattern is no glob"),
    warning("pins-mixed-dtypes", "stock DeepSpeed refuses several dtypes among trainable parameters"),
    warning("reduce-dtype-version", "no reduce dtype is set, and its default changed with torch 2.15"),
];
