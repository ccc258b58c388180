//! Plain values, free of their pickle.

use super::values::{Id, Node, Values};
use crate::{FormatError, Result};

/// How deep [`Values::plain`] follows values.
pub const MAX_DEPTH: u32 = 64;
/// How many values [`Values::plain`] makes of one.
const MAX_PLAIN: usize = 1 << 20;

/// A plain value, free of its pickle.
#[derive(Clone, Debug, PartialEq)]
pub enum Plain {
    /// `None`.
    None,
    /// A bool.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// A string.
    Str(String),
    /// A tuple.
    Tuple(Vec<Plain>),
    /// A list.
    List(Vec<Plain>),
    /// A mapping, in its order.
    Dict(Vec<(Plain, Plain)>),
}

impl Plain {
    /// The number, where it is one.
    pub fn number(&self) -> Option<f64> {
        match self {
            #[expect(clippy::cast_precision_loss, reason = "hyperparameters and steps are far below 2^53")]
            Self::Int(n) => Some(*n as f64),
            Self::Float(n) => Some(*n),
            _ => None,
        }
    }
}

impl Values {
    /// The value without anything that only torch or DeepSpeed could make: `Err` names what is there instead.
    ///
    /// # Errors
    /// The value is not plain, is nested too deeply, or is too large.
    pub fn plain(&self, id: Id) -> Result<Plain> {
        let mut left = MAX_PLAIN;
        self.plain_within(id, MAX_DEPTH, &mut left)
    }

    fn plain_within(&self, id: Id, depth: u32, left: &mut usize) -> Result<Plain> {
        let depth = depth.checked_sub(1).ok_or_else(|| FormatError::new("values are nested too deep"))?;
        *left = left.checked_sub(1).ok_or_else(|| FormatError::new("a value has too many parts"))?;
        let mut all = |ids: &[Id]| ids.iter().map(|id| self.plain_within(*id, depth, left)).collect::<Result<Vec<_>>>();
        Ok(match self.node(id) {
            Node::None => Plain::None,
            Node::Bool(value) => Plain::Bool(value),
            Node::Int(value) => Plain::Int(value),
            Node::Float(value) => Plain::Float(value),
            Node::Str(_) => Plain::Str(self.str(id).unwrap_or_default().to_owned()),
            Node::Tuple(items) => Plain::Tuple(all(self.list(items))?),
            Node::List(items) => Plain::List(all(self.list(items))?),
            Node::Dict(entries) => {
                let entries = self.entries(entries);
                let keys: Vec<Id> = entries.iter().map(|e| e.0).collect();
                let values: Vec<Id> = entries.iter().map(|e| e.1).collect();
                let keys = all(&keys)?;
                Plain::Dict(keys.into_iter().zip(all(&values)?).collect())
            }
            Node::Bytes => return Err(FormatError::new("not a plain value: bytes")),
            Node::Global(global) | Node::Call { global, .. } => {
                return Err(FormatError::new(format_args!("not a plain value: {global:?}")));
            }
            Node::Folded(_) => return Err(FormatError::new("not a plain value: an object")),
            Node::Persistent(_) => return Err(FormatError::new("not a plain value: a storage")),
        })
    }
}
