//! Pickles written opcode by opcode, protocol 2: what torch and DeepSpeed read.

use shardwright_core::DType;

use crate::{globals::storage_class, pickle::Plain};

/// The opcodes of one value.
#[derive(Clone, Debug, Default)]
pub struct Value(Vec<u8>);

impl Value {
    /// `None`.
    pub fn none() -> Self {
        Self(b"N".to_vec())
    }

    /// A bool.
    pub fn bool(value: bool) -> Self {
        Self(vec![if value { 0x88 } else { 0x89 }])
    }

    /// A string.
    pub fn str(text: &str) -> Self {
        let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
        Self([b"X", &len.to_le_bytes()[..], text.as_bytes()].concat())
    }

    /// An integer.
    pub fn int(value: i64) -> Self {
        Self(if let Ok(byte) = u8::try_from(value) {
            vec![b'K', byte]
        } else if let Ok(short) = u16::try_from(value) {
            [b"M", &short.to_le_bytes()[..]].concat()
        } else if let Ok(word) = i32::try_from(value) {
            [b"J", &word.to_le_bytes()[..]].concat()
        } else {
            [b"\x8a\x08", &value.to_le_bytes()[..]].concat()
        })
    }

    /// A size or an offset.
    pub fn size(value: u64) -> Self {
        i64::try_from(value).map_or_else(|_| Self([b"\x8a\x09", &value.to_le_bytes()[..], &[0]].concat()), Self::int)
    }

    /// A float.
    pub fn float(value: f64) -> Self {
        Self([b"G", &value.to_be_bytes()[..]].concat())
    }

    /// A name.
    pub fn global(module: &str, name: &str) -> Self {
        Self(format!("c{module}\n{name}\n").into_bytes())
    }

    /// A tuple.
    pub fn tuple(items: impl IntoIterator<Item = Self>) -> Self {
        Self::marked(b"(", items, b"t")
    }

    /// A list.
    pub fn list(items: impl IntoIterator<Item = Self>) -> Self {
        Self::marked(b"](", items, b"e")
    }

    /// A dict.
    pub fn dict(entries: impl IntoIterator<Item = (Self, Self)>) -> Self {
        Self::marked(b"}(", entries.into_iter().map(|(key, value)| key.then(&value)), b"u")
    }

    /// A dict of strings.
    pub fn fields<'a>(entries: impl IntoIterator<Item = (&'a str, Self)>) -> Self {
        Self::dict(entries.into_iter().map(|(key, value)| (Self::str(key), value)))
    }

    /// A `collections.OrderedDict`.
    pub fn ordered(entries: impl IntoIterator<Item = (Self, Self)>) -> Self {
        let Self(mut out) = Self::global("collections", "OrderedDict").call([]);
        out.push(b'(');
        entries.into_iter().for_each(|(key, value)| {
            out.extend(key.0);
            out.extend(value.0);
        });
        out.push(b'u');
        Self(out)
    }

    /// This value, which stands in the memo under a number from here on.
    #[must_use]
    pub fn kept(self, number: u32) -> Self {
        let Self(mut out) = self;
        out.push(b'r');
        out.extend(number.to_le_bytes());
        Self(out)
    }

    /// The value that stands in the memo under a number.
    pub fn memo(number: u32) -> Self {
        Self(match u8::try_from(number) {
            Ok(byte) => vec![b'h', byte],
            Err(_) => [b"j", &number.to_le_bytes()[..]].concat(),
        })
    }

    /// A call of this name.
    #[must_use]
    pub fn call(self, args: impl IntoIterator<Item = Self>) -> Self {
        let Self(mut out) = self.then(&Self::tuple(args));
        out.push(b'R');
        Self(out)
    }

    /// An object of this class with that state.
    #[must_use]
    pub fn object(self, state: Option<&Self>) -> Self {
        let Self(mut out) = self;
        out.extend(b")\x81");
        if let Some(state) = state {
            out.extend(&state.0);
            out.push(b'b');
        }
        Self(out)
    }

    /// A reference to what `persistent_id` gave.
    #[must_use]
    pub fn persistent(self) -> Self {
        let Self(mut out) = self;
        out.push(b'Q');
        Self(out)
    }

    /// A `torch.Size`.
    pub fn shape(dims: &[u64]) -> Self {
        Self::global("torch", "Size").call([Self::tuple(dims.iter().map(|d| Self::size(*d)))])
    }

    /// A dtype of torch.
    pub fn dtype(dtype: DType) -> Self {
        Self::global("torch", dtype.torch_name())
    }

    /// A contiguous tensor that is all of storage `key`, of `numel` elements.
    pub fn tensor(dtype: DType, shape: &[u64], key: usize, numel: u64) -> Self {
        let mut strides = vec![Self::default(); shape.len()];
        let mut step = 1u64;
        for (stride, dim) in strides.iter_mut().zip(shape).rev() {
            *stride = Self::size(step);
            step = step.saturating_mul((*dim).max(1));
        }
        let (class, untyped) = match storage_class(dtype) {
            Some(class) => (Self::global("torch", &class), false),
            None => (Self::global("torch.storage", "UntypedStorage"), true),
        };
        let len = if untyped { dtype.bytes(numel).unwrap_or(0) } else { numel };
        let storage =
            Self::tuple([Self::str("storage"), class, Self::str(&key.to_string()), Self::str("cpu"), Self::size(len)]).persistent();
        let sizes = Self::tuple(shape.iter().map(|d| Self::size(*d)));
        let hooks = Self::global("collections", "OrderedDict").call([]);
        let common = [storage, Self::int(0), sizes, Self::tuple(strides), Self::bool(false), hooks];
        match untyped {
            false => Self::global("torch._utils", "_rebuild_tensor_v2").call(common),
            true => Self::global("torch._utils", "_rebuild_tensor_v3").call(common.into_iter().chain([Self::dtype(dtype)])),
        }
    }

    /// A plain value.
    pub fn plain(value: &Plain) -> Self {
        match value {
            Plain::None => Self::none(),
            Plain::Bool(value) => Self::bool(*value),
            Plain::Int(value) => Self::int(*value),
            Plain::Float(value) => Self::float(*value),
            Plain::Str(text) => Self::str(text),
            Plain::Tuple(items) => Self::tuple(items.iter().map(Self::plain)),
            Plain::List(items) => Self::list(items.iter().map(Self::plain)),
            Plain::Dict(entries) => Self::dict(entries.iter().map(|(key, value)| (Self::plain(key), Self::plain(value)))),
        }
    }

    /// The pickle of this value.
    pub fn pickle(&self) -> Vec<u8> {
        [b"\x80\x02", &self.0[..], b"."].concat()
    }

    /// The pickle of an object with a state of these fields, for which values are put into the memo first, each under its place among them; in pieces,
    /// for the fields may be large.
    pub fn pickled_object<const N: usize>(class: Self, fields: [(Self, Self); N], memo: impl IntoIterator<Item = Self>) -> Vec<Vec<u8>> {
        let mut head = b"\x80\x02".to_vec();
        for (number, value) in (0..).zip(memo) {
            head.extend(value.kept(number).0);
            head.push(b'0');
        }
        head.extend(class.0);
        head.extend(b")\x81}(");
        let fields = fields.into_iter().flat_map(|(key, value)| [key.0, value.0]);
        std::iter::once(head).chain(fields).chain([b"ub.".to_vec()]).collect()
    }

    fn then(self, next: &Self) -> Self {
        let Self(mut out) = self;
        out.extend(&next.0);
        Self(out)
    }

    fn marked(start: &[u8], items: impl IntoIterator<Item = Self>, end: &[u8]) -> Self {
        let mut out = start.to_vec();
        items.into_iter().for_each(|item| out.extend(item.0));
        out.extend(end);
        Self(out)
    }
}

/// A dict that grows by an entry at a time, and holds none of them besides its opcodes.
#[derive(Clone, Debug)]
pub struct Dict(Vec<u8>);

impl Default for Dict {
    fn default() -> Self {
        Self(b"}(".to_vec())
    }
}

impl Dict {
    /// An entry more.
    pub fn push(&mut self, key: &Value, value: &Value) {
        self.0.extend(&key.0);
        self.0.extend(&value.0);
    }

    /// The whole dict.
    pub fn finish(mut self) -> Value {
        self.0.push(b'u');
        Value(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pickle::Pickle;

    #[test]
    fn what_is_written_is_read() {
        let value = Plain::Dict(vec![
            (Plain::Str("ints".into()), Plain::List([0, 255, 256, 65_535, 65_536, -1, i64::MAX, i64::MIN].map(Plain::Int).into())),
            (Plain::Int(3), Plain::Tuple(vec![Plain::None, Plain::Bool(false), Plain::Float(-0.5)])),
            (Plain::Str("empty".into()), Plain::Dict(Vec::new())),
        ]);
        let read = Pickle::parse(&Value::plain(&value).pickle()).unwrap();
        assert_eq!(read.plain(read.root()).unwrap(), value);
    }

    #[test]
    fn a_memo_stands_for_its_values() {
        let kept = [Value::str("zero").kept(0), Value::str("one").kept(1), Value::int(7).kept(300)];
        let value = Value::tuple(kept.into_iter().chain([1, 300, 0].map(Value::memo)));
        let read = Pickle::parse(&value.pickle()).unwrap();
        let texts = ["zero", "one"].map(|text| Plain::Str(text.into()));
        let [zero, one] = texts.clone();
        let expected = Plain::Tuple(texts.into_iter().chain([Plain::Int(7), one, Plain::Int(7), zero]).collect());
        assert_eq!(read.plain(read.root()).unwrap(), expected);
    }
}
