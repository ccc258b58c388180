//! What this crate's own tests share.

use shardwright_core::{Precision, PrecisionPolicy, TensorMeta};

/// Every parameter in the dtype that it has in the checkpoint.
#[derive(Debug)]
pub(crate) struct AsStored;

impl PrecisionPolicy for AsStored {
    fn decide(&self, param: &TensorMeta, _trainable: bool) -> Precision {
        Precision::uniform(param.dtype)
    }
}
