//! A reader of pickles, protocols 2 to 5, that executes nothing: opcodes build a graph of plain values, and calls stay what they are, a name
//! of [`crate::globals`] with its arguments. Any other name, and any other opcode, is refused.
//!
//! The graph's size is linear in the pickle's; what walks it must bound its steps, as [`Values::plain`] does. The pickle itself is read twice
//! and never held: a first pass finds which values are looked up again, and objects that a [`Fold`] takes leave the graph.

mod fold;
mod machine;
mod memo;
mod opcodes;
mod plain;
mod values;

use std::ops::Deref;

use self::machine::Machine;
pub use self::{
    fold::Fold,
    plain::{MAX_DEPTH, Plain},
    values::{Id, Node, Span, Values},
};
use crate::{FormatError, ReadAt, Result};

/// Bytes that a pickle may have.
pub const MAX_PICKLE: u64 = 1 << 30;

/// A pickle that was read; its values are found through it.
#[derive(Clone, Debug)]
pub struct Pickle {
    values: Values,
    root: Id,
}

impl Pickle {
    /// Reads a whole pickle.
    ///
    /// # Errors
    /// Names the opcode or the global that is refused, and what is malformed.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        Self::folded(bytes, &mut ())
    }

    /// Reads a whole pickle, of which `fold` takes what it wants.
    ///
    /// # Errors
    /// As [`Pickle::parse`], what `fold` refuses, and what the source cannot read.
    pub fn folded(source: &(impl ReadAt + ?Sized), fold: &mut impl Fold) -> Result<Self> {
        if source.size() > MAX_PICKLE {
            return Err(FormatError::new("the pickle is too large")
                .expected(format_args!("at most {MAX_PICKLE} bytes"))
                .found(source.size()));
        }
        let (values, root) = Machine::run(source, fold)?;
        Ok(Self { values, root })
    }

    /// The value that the pickle is of.
    pub fn root(&self) -> Id {
        self.root
    }
}

impl Deref for Pickle {
    type Target = Values;

    fn deref(&self) -> &Values {
        &self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::globals::Global;

    fn pickle(body: &[u8]) -> Result<Pickle> {
        Pickle::parse(&[b"\x80\x02", body, b"."].concat())
    }

    fn refused(body: &[u8], part: &str) {
        let error = pickle(body).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }

    #[test]
    fn values_of_every_kind_are_read() {
        let body = b"}q\x00(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00b](M\x00\x01J\xff\xff\xff\xff\x8a\x01\x80N\x88eX\x01\x00\x00\x00cG?\xf0\0\0\0\0\0\0u";
        let read = pickle(body).unwrap();
        let text = |t: &str| Plain::Str(t.into());
        let list = Plain::List(vec![Plain::Int(256), Plain::Int(-1), Plain::Int(-128), Plain::None, Plain::Bool(true)]);
        let expected = Plain::Dict(vec![(text("a"), Plain::Int(1)), (text("b"), list), (text("c"), Plain::Float(1.0))]);
        assert_eq!(read.plain(read.root()).unwrap(), expected);
    }

    /// A mapping, a copy of it, and a list, which are all added to more than once, in turn.
    #[test]
    fn what_is_added_later_is_in_no_copy() {
        let a = b"X\x01\0\0\0aK\x01s";
        let more = b"(X\x01\0\0\0bK\x02X\x01\0\0\0cK\x03u";
        let copy = b"ccollections\nOrderedDict\nh\x00\x85Rq\x01";
        let body = [b"(}q\x00", &a[..], copy, more, b"0h\x00X\x01\0\0\0dK\x04sh\x01]K\x05aK\x06a(K\x07K\x08eK\x09at"].concat();
        let read = pickle(&body).unwrap();
        let dict = |entries: &[(&str, i64)]| Plain::Dict(entries.iter().map(|(k, n)| (Plain::Str((*k).into()), Plain::Int(*n))).collect());
        let first = dict(&[("a", 1), ("d", 4)]);
        let copied = dict(&[("a", 1), ("b", 2), ("c", 3)]);
        let list = Plain::List((5..10).map(Plain::Int).collect());
        // The mapping was left on the stack when it was made.
        assert_eq!(read.plain(read.root()).unwrap(), Plain::Tuple(vec![first.clone(), first, copied, list]));
    }

    /// Takes every object, and gives each the integer that its state is.
    struct Numbers(Vec<i64>);

    impl Fold for Numbers {
        fn object(&mut self, values: &Values, _: Global, state: Id) -> Result<Option<u32>> {
            self.0.extend(values.int(state));
            Ok(u32::try_from(self.0.len() - 1).ok())
        }
    }

    /// An object, a mapping that has it, the list that both are in, and a string that is looked up: all are there once objects without end
    /// have come and gone.
    #[test]
    fn what_is_in_use_survives_a_sweep() {
        let class = b"ctorch.distributed.checkpoint.metadata\nMetadataIndex\nq\x0a";
        let start = [b"]q\x00", &class[..], b")\x81q\x01K\x07ba}q\x02(X\x03\0\0\0keyq\x03h\x01X\x01\0\0\0tK\x01\x85u0"].concat();
        let more = (0..1000u16).flat_map(|n| [b"h\x0a)\x81M", &n.to_le_bytes()[..], b"b0N0"].concat());
        let end = b"h\x02ah\x03ah\x01a";
        // Small pickles are gone through once, large ones twice.
        for frames in [0, 10_000] {
            let padding = (0..frames).flat_map(|_| *b"\x95\0\0\0\0\0\0\0\0");
            let body: Vec<u8> = start.iter().copied().chain(more.clone()).chain(padding).chain(*end).collect();
            let mut numbers = Numbers(Vec::new());
            let read = Pickle::folded(&[b"\x80\x02", &body[..], b"."].concat(), &mut numbers).unwrap();
            assert_eq!((numbers.0.len(), numbers.0[1000]), (1001, 999));
            assert!(read.weight() < 300, "{} values and parts are held", read.weight());
            let [first, dict, key, again] = *read.items(read.root()).unwrap() else { panic!("not four items") };
            assert_eq!((read.node(first), read.node(again), read.str(key)), (Node::Folded(0), Node::Folded(0), Some("key")));
            assert_eq!(read.get(dict, "key").map(|id| read.node(id)), Some(Node::Folded(0)));
            assert_eq!(read.plain(read.get(dict, "t").unwrap()).unwrap(), Plain::Tuple(vec![Plain::Int(1)]));
        }
    }

    #[test]
    fn a_foreign_global_is_refused_by_name() {
        refused(b"cos\nsystem\nX\x02\x00\x00\x00ls\x85R", "'os.system'");
        let four = b"\x8c\x05posix\x8c\x06system\x93";
        let error = Pickle::parse(&[b"\x80\x04", &four[..], b"."].concat()).unwrap_err().to_string();
        assert!(error.contains("'posix.system'"), "{error}");
        refused(b"c__builtin__\neval\n", "'__builtin__.eval'");
        refused(b"ctorch\nload\n", "'torch.load'");
    }

    #[test]
    fn opcodes_that_reach_outside_are_refused() {
        for opcode in [b"i" as &[u8], b"o", b"\x82\x01", b"P1\n", b"\x92", b"2"] {
            refused(&[b"N", opcode].concat(), "is not read");
        }
    }

    #[test]
    fn huge_lengths_are_refused_without_being_allocated() {
        refused(b"X\xff\xff\xff\xffab", "announced and not there");
        refused(b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fab", "announced and not there");
        refused(b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00", "more than 64 bits");
    }

    #[test]
    fn a_memo_that_was_never_set_is_refused() {
        refused(b"h\x05", "memo 5 was never set");
    }

    #[test]
    fn a_cyclic_memo_is_read_and_following_it_ends() {
        let read = pickle(b"]q\x00h\x00a").unwrap();
        assert!(read.plain(read.root()).unwrap_err().to_string().contains("too deep"));
    }

    /// Each list holds the one before twice.
    #[test]
    fn a_billion_laughs_ends() {
        let mut body = b"]q\x00".to_vec();
        for level in 0..40u8 {
            body.extend([b'0', b']', b'q', level + 1, b'(', b'h', level, b'h', level, b'e']);
        }
        let read = pickle(&body).unwrap();
        assert!(read.plain(read.root()).unwrap_err().to_string().contains("too many parts"));
    }

    #[test]
    fn stack_and_marks_are_guarded() {
        refused(b"N(a", "the stack is empty");
        refused(b"t", "a mark is missing");
        refused(b"(K\x01d", "a key without a value");
        refused(b"NN", "left over");
        refused(b"K\x01)R", "not a name");
        assert!(Pickle::parse(b"\x80\x02N").unwrap_err().to_string().contains("not there"));
        assert!(Pickle::parse(b"\x80\x06N.").unwrap_err().to_string().contains("protocol 2 to 5: found protocol 6"));
    }

    /// What a save that was killed leaves behind, or a file of something else.
    #[test]
    fn a_file_that_is_not_all_there_is_refused_with_the_next_step() {
        for bytes in [b"".as_slice(), b"\x80", b"\x1f\x8b\x08\x00", b"\x80\x02N", b"\x80\x02X\x09\0\0\0ab"] {
            let error = Pickle::parse(bytes).unwrap_err().to_string();
            assert!(error.ends_with("the save may not have ended: save it again, or name another checkpoint"), "{error}");
        }
    }
}
