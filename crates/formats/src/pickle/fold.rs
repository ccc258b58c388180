//! What takes objects out of a pickle while it is read.

use super::values::{Id, Values};
use crate::{Result, globals::Global};

/// Takes objects out of a pickle as soon as each has its state, where there are more of them than should be held.
pub trait Fold {
    /// A number that stands for the object from here on, as [`Node::Folded`](super::values::Node::Folded); `None` where it stays what it is.
    ///
    /// # Errors
    /// What is malformed about it.
    fn object(&mut self, values: &Values, global: Global, state: Id) -> Result<Option<u32>>;
}

/// Takes nothing.
impl Fold for () {
    fn object(&mut self, _: &Values, _: Global, _: Id) -> Result<Option<u32>> {
        Ok(None)
    }
}
