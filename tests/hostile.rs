//! Untrusted bytes: what `fuzz/` asks of each parser, over its corpus and over mutations of it, without a fuzzer. `PROPTEST_CASES` raises
//! the number of mutations.

use std::path::Path;

use proptest::{prelude::*, sample::Index};

#[path = "../fuzz/src/lib.rs"]
mod targets;

/// A target's corpus, sorted by file name.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = dir.read_dir().unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "no corpus for {target}");
    files.iter().map(|f| std::fs::read(f).unwrap()).collect()
}

/// One step of a mutation; places are taken modulo the length.
#[derive(Clone, Debug)]
enum Step {
    Set(Index, u8),
    Remove(Index, usize),
    Repeat(Index, usize),
    Insert(Index, &'static str),
    Splice(Index, Index, Index),
    Cut(Index),
}

/// What JSON, YAML and configs are made of, and numbers at the edges.
const TOKENS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "\\u0000",
    "\\ud800",
    "\n",
    "  ",
    "\t",
    "- ",
    "? ",
    "&a ",
    "*a",
    "<<: ",
    "!!int ",
    "|\n",
    "%",
    "#",
    "0",
    "-1",
    "18446744073709551615",
    "18446744073709551616",
    "9223372036854775808",
    "1e999",
    "-0.0",
    ".nan",
    ".inf",
    "1:30",
    "0o17",
    "null",
    "true",
    "auto",
    "\"auto\"",
    "é",
    "\u{feff}",
    "\u{2028}",
    "🜚",
    "\"\"",
    "[0,0]",
    "\"F4\"",
    "\"BF16\"",
    "__metadata__",
    "../",
    "4294967295",
];

fn step() -> impl Strategy<Value = Step> {
    let at = any::<Index>;
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(i, b)| Step::Set(i, b)),
        (at(), 1..40usize).prop_map(|(i, n)| Step::Remove(i, n)),
        (at(), 1..40usize).prop_map(|(i, n)| Step::Repeat(i, n)),
        (at(), prop::sample::select(TOKENS)).prop_map(|(i, t)| Step::Insert(i, t)),
        (at(), at(), at()).prop_map(|(a, b, c)| Step::Splice(a, b, c)),
        at().prop_map(Step::Cut),
    ]
}

fn mutate(corpus: &[Vec<u8>], seed: &Index, steps: &[Step]) -> Vec<u8> {
    let mut bytes = seed.get(corpus).clone();
    for step in steps {
        let at = |i: &Index| i.index(bytes.len() + 1);
        match step {
            Step::Set(i, b) if !bytes.is_empty() => *i.get_mut(&mut bytes) = *b,
            Step::Set(..) => {}
            Step::Remove(i, n) => drop(bytes.drain(at(i)..(at(i) + n).min(bytes.len()))),
            Step::Repeat(i, n) => {
                let part = bytes[at(i)..(at(i) + n).min(bytes.len())].to_vec();
                bytes.splice(at(i)..at(i), part);
            }
            Step::Insert(i, token) => drop(bytes.splice(at(i)..at(i), token.bytes())),
            Step::Splice(other, i, j) => {
                let other = other.get(corpus);
                bytes.truncate(at(i));
                bytes.extend_from_slice(&other[j.index(other.len() + 1)..]);
            }
            Step::Cut(i) => bytes.truncate(at(i)),
        }
    }
    bytes
}

macro_rules! hostile {
    ($($target:ident)*) => {$(
        mod $target {
            use super::*;

            #[test]
            fn holds_over_the_corpus_of_which_some_is_accepted_and_some_refused() {
                let corpus = corpus(stringify!($target));
                let accepted = corpus.iter().filter(|bytes| targets::$target(bytes)).count();
                assert!(accepted > 1 && accepted + 1 < corpus.len(), "{accepted} of {} accepted", corpus.len());
            }

            proptest! {
                #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

                #[test]
                fn holds_over_mutations(seed in any::<Index>(), steps in prop::collection::vec(step(), 0..12)) {
                    targets::$target(&mutate(&corpus(stringify!($target)), &seed, &steps));
                }

                #[test]
                fn holds_over_noise(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
                    targets::$target(&bytes);
                }
            }
        }
    )*};
}

hostile! { header index yaml deepspeed plan zip pickle }
