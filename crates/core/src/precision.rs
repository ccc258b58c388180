//! The precision of a parameter, and the trait that decides it.

use std::fmt::Debug;

use serde::{Deserialize, Serialize};

use crate::{
    diagnostic::Diagnostic,
    dtype::DType,
    model::{ModelFacts, TensorMeta},
};

/// The dtypes of one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Precision {
    /// The dtype that a rank's shard is stored in, and so the optimizer's states.
    pub storage: DType,
    /// What it is gathered and computed in.
    pub compute: DType,
    /// What its gradient is reduced in.
    pub reduce: DType,
}

impl Precision {
    /// These three.
    pub fn new(storage: DType, compute: DType, reduce: DType) -> Self {
        Self { storage, compute, reduce }
    }

    /// One dtype for all three.
    pub fn uniform(dtype: DType) -> Self {
        Self::new(dtype, dtype, dtype)
    }
}

/// Decides the dtypes of every parameter and buffer.
///
/// # Contract
/// Pure, total and deterministic: the answer depends on `self`, the tensor's metadata and `trainable` alone, and there is one for every
/// tensor. Where the checkpoint's dtype has no cast to the storage that was decided, planning refuses the tensor by name.
pub trait PrecisionPolicy: Debug + Send + Sync {
    /// The dtypes of `param`, which the optimizer changes if `trainable`.
    fn decide(&self, param: &TensorMeta, trainable: bool) -> Precision;

    /// The dtype that a buffer is stored in; the checkpoint's unless the engine casts buffers.
    fn buffer(&self, buffer: &TensorMeta) -> DType {
        buffer.dtype
    }

    /// The dtype that values are rounded through before they are cast to storage.
    fn rounded(&self, _tensor: &TensorMeta, _facts: &ModelFacts) -> Option<DType> {
        None
    }

    /// What is odd about this policy for a model with these parameters, such as a glob that matches none of them: warnings, which decide
    /// nothing. A policy that falls through to another asks that one too.
    fn lint(&self, _parameters: &[&TensorMeta]) -> Vec<Diagnostic> {
        Vec::new()
    }
}
