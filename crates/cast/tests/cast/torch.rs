//! The reference equals torch, digest by digest.

use sha2::{Digest, Sha256};
use shardwright_cast::SimdLevel;
use shardwright_core::DType;

use crate::{cast_at, inputs::inputs, pairs, size};

/// From `data/torch_casts.py`.
const TABLE: &str = include_str!("../data/torch_casts.tsv");

#[test]
fn the_scalar_reference_equals_torch_on_every_pair() {
    let mut rows = 0;
    for line in TABLE.lines() {
        let [from, to, count, digest] = line.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let (from, to) = (DType::from_spelling(from).unwrap(), DType::from_spelling(to).unwrap());
        let mut out = cast_at(SimdLevel::Scalar, from, to, &inputs(from));
        if to == DType::BF16 {
            one_nan(&mut out);
        }
        assert_eq!((out.len() / size(to)).to_string(), count, "{from} to {to}");
        let ours: String = Sha256::digest(&out).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(ours, digest, "{from} to {to}");
        rows += 1;
    }
    assert_eq!(rows, pairs().count());
}

/// Makes every NaN the one that the table has: torch's scalar and vector code differ in it.
fn one_nan(bf16: &mut [u8]) {
    for b in bf16.as_chunks_mut().0 {
        if u16::from_le_bytes(*b) & 0x7fff > 0x7f80 {
            *b = 0x7fc0u16.to_le_bytes();
        }
    }
}
