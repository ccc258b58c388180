//! Compares two checkpoints of any formats, element for element.

use std::collections::BTreeMap;

use shardwright_core::DType;

use crate::{
    contents::{Contents, Data, Group, Optimizer},
    error::{EngineError, ErrorKind, Result},
    load::CancelToken,
};

/// Elements that are compared at a time.
const BLOCK: u64 = 1 << 17;

/// How one tensor differs.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Difference {
    /// Only the first checkpoint has it.
    OnlyFirst,
    /// Only the second one has it.
    OnlySecond,
    /// Another shape.
    Shape(Vec<u64>, Vec<u64>),
    /// Other elements, after the cast to the second one's dtype.
    Elements {
        /// How many.
        count: u64,
        /// The first of them.
        first: u64,
        /// The greatest difference, where both are floats.
        most: f64,
    },
}

impl Difference {
    /// In words, with the names of both checkpoints.
    pub fn text(&self, first: &str, second: &str) -> String {
        match self {
            Self::OnlyFirst => format!("only in {first}"),
            Self::OnlySecond => format!("only in {second}"),
            Self::Shape(a, b) => format!("shape {a:?} and {b:?}"),
            Self::Elements { count, first, most } => format!("{count} elements differ, from element {first} on, by {most:e} at most"),
        }
    }
}

/// What [`diff`] found.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Differences {
    /// Tensors that are equal, after a cast.
    pub equal: u64,
    /// Elements compared.
    pub elements: u64,
    /// Tensors whose dtypes differ, and that are equal after the cast of the first to the second one's dtype.
    pub cast: u64,
    /// Those that differ, by name.
    pub different: Vec<(String, Difference)>,
    /// Other differences: steps, groups.
    pub notes: Vec<String>,
}

impl Differences {
    /// True where nothing differs.
    pub fn is_empty(&self) -> bool {
        self.different.is_empty() && self.notes.is_empty()
    }

    /// True where nothing differs, and something was compared.
    pub fn is_right(&self) -> bool {
        self.is_empty() && self.equal > 0
    }
}

/// Compares `a` with `b`. Where dtypes differ, `a` is cast to `b`'s by the scalar reference first. Tied names count as the tensors that they
/// are tied to.
///
/// # Errors
/// As reading does, and [`ErrorKind::Cancelled`].
pub fn diff(a: &Contents, b: &Contents, only_common: bool, watch: &(dyn Fn(u64) + Sync), cancel: &CancelToken) -> Result<Differences> {
    let mut out = Differences::default();
    let named = |contents: &'_ Contents| -> BTreeMap<String, Data> {
        let mut all: BTreeMap<String, Data> = contents.all().map(|(name, data)| (name, data.clone())).collect();
        for (alias, name) in &contents.aliases {
            if let Some(tensor) = contents.tensor(name) {
                all.insert(alias.clone(), tensor.data.clone());
            }
        }
        all
    };
    let (left, right) = (named(a), named(b));
    for (name, data) in &left {
        match right.get(name) {
            None if only_common => {}
            None => out.different.push((name.clone(), Difference::OnlyFirst)),
            Some(other) if other.shape() != data.shape() => {
                out.different.push((name.clone(), Difference::Shape(data.shape().to_vec(), other.shape().to_vec())));
            }
            Some(other) => {
                let found =
                    elements(a, data, b, other, watch, cancel).map_err(|e| if e.tensor_name().is_some() { e } else { e.tensor(name) })?;
                out.elements += data.numel();
                match found {
                    Some(difference) => out.different.push((name.clone(), difference)),
                    None => {
                        out.equal += 1;
                        out.cast += u64::from(data.dtype != other.dtype);
                    }
                }
            }
        }
    }
    [a, b].into_iter().try_for_each(|contents| contents.files.check_unchanged())?;
    if !only_common {
        let only = right.keys().filter(|name| !left.contains_key(*name));
        out.different.extend(only.map(|name| (name.clone(), Difference::OnlySecond)));
    }
    out.different.sort_by(|x, y| x.0.cmp(&y.0));
    if let (Some(x), Some(y)) = (&a.optimizer, &b.optimizer) {
        for state in &x.states {
            let other = y.states.iter().find(|s| s.param == state.param);
            if let Some(other) = other.filter(|o| o.step.total_cmp(&state.step).is_ne()) {
                out.notes.push(format!("the step of '{}' is {} and {}", state.param, state.step, other.step));
            }
        }
        let groups = |o: &Optimizer| -> Vec<(Vec<String>, BTreeMap<String, String>)> {
            let values = |g: &Group| g.values.iter().map(|(k, v)| (k.clone(), format!("{v:?}"))).collect();
            o.groups.iter().map(|g| (g.params.clone(), values(g))).collect()
        };
        if groups(x) != groups(y) {
            out.notes.push("the optimizer's groups differ".into());
        }
    }
    Ok(out)
}

fn elements(
    a: &Contents,
    left: &Data,
    b: &Contents,
    right: &Data,
    watch: &(dyn Fn(u64) + Sync),
    cancel: &CancelToken,
) -> Result<Option<Difference>> {
    let size = |data: &Data, count: u64| usize::try_from(data.dtype.bytes(count).unwrap_or(0)).unwrap_or(0);
    let (mut x, mut y, mut casted) = (Vec::new(), Vec::new(), Vec::new());
    let (mut count, mut first, mut most) = (0u64, 0u64, 0f64);
    let mut at = 0;
    while at < left.numel() {
        if cancel.is_cancelled() {
            return Err(EngineError::new(ErrorKind::Cancelled, "stopped"));
        }
        let end = (at + BLOCK).min(left.numel());
        x.resize(size(left, end - at), 0);
        y.resize(size(right, end - at), 0);
        left.read(&a.files, at..end, &mut x)?;
        right.read(&b.files, at..end, &mut y)?;
        if left.dtype != right.dtype {
            casted.resize(y.len(), 0);
            cast(left.dtype, right.dtype, &x, &mut casted)?;
            std::mem::swap(&mut x, &mut casted);
        }
        if x != y {
            let step = size(right, 1).max(1);
            let differ = x.chunks_exact(step).zip(y.chunks_exact(step)).enumerate().filter(|(_, (p, q))| p != q);
            for (index, (p, q)) in differ {
                if count == 0 {
                    first = at + index as u64;
                }
                count += 1;
                if let (Some(p), Some(q)) = (float(right.dtype, p), float(right.dtype, q)) {
                    most = most.max((p - q).abs());
                }
            }
        }
        watch((x.len() + y.len()) as u64);
        at = end;
    }
    Ok((count > 0).then_some(Difference::Elements { count, first, most }))
}

fn cast(from: DType, to: DType, source: &[u8], target: &mut [u8]) -> Result<()> {
    shardwright_cast::cast_at(shardwright_cast::SimdLevel::Scalar, from, to, source, target)
        .map_err(|e| EngineError::new(ErrorKind::Mismatch, format!("cannot be compared: {e}")))
}

fn float(dtype: DType, bytes: &[u8]) -> Option<f64> {
    if dtype == DType::F64 {
        return Some(f64::from_le_bytes(bytes.try_into().ok()?));
    }
    let mut wide = [0; 4];
    dtype.is_float().then(|| cast(dtype, DType::F32, bytes, &mut wide).ok())??;
    Some(f32::from_le_bytes(wide).into())
}
