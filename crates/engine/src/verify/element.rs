//! Single elements: are two of them equal, and how do they look in a message.

use shardwright_cast::cast;
use shardwright_core::DType;

/// Bytes of one comparable element; sub-byte dtypes, which are never cut or cast, are compared by the byte.
pub(super) fn size(dtype: DType) -> usize {
    usize::try_from(dtype.bits().div_ceil(8)).unwrap_or(1)
}

/// The value in float64, for dtypes that have one.
fn value(dtype: DType, bytes: &[u8]) -> Option<f64> {
    let mut wide = [0; 8];
    cast(dtype, DType::F64, bytes, &mut wide).ok()?;
    Some(f64::from_le_bytes(wide))
}

/// True where both are NaN: which NaN a cast makes of a NaN is not laid down.
pub(super) fn both_nan(dtype: DType, a: &[u8], b: &[u8]) -> bool {
    let nan = |bytes| value(dtype, bytes).is_some_and(f64::is_nan);
    nan(a) && nan(b)
}

/// The value, where it has one, and the bits.
pub(super) fn show(dtype: DType, bytes: &[u8]) -> String {
    let bits: String = bytes.iter().rev().map(|b| format!("{b:02x}")).collect();
    match value(dtype, bytes) {
        Some(v) => format!("{v:?} (0x{bits})"),
        None => format!("0x{bits}"),
    }
}

/// The indices of a row-major element.
pub(super) fn indices(shape: &[u64], mut flat: u64) -> Vec<u64> {
    let mut indices = vec![0; shape.len()];
    for (index, &size) in indices.iter_mut().zip(shape).rev() {
        (*index, flat) = (flat.checked_rem(size).unwrap_or(0), flat.checked_div(size).unwrap_or(0));
    }
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_shown_with_value_and_bits() {
        assert_eq!(show(DType::F32, &0.5f32.to_le_bytes()), "0.5 (0x3f000000)");
        assert_eq!(show(DType::I64, &(-1i64).to_le_bytes()), "0xffffffffffffffff");
        assert_eq!(indices(&[2, 3, 4], 17), [1, 1, 1]);
        assert_eq!(indices(&[], 0), Vec::<u64>::new());
    }

    #[test]
    fn any_nan_is_as_good_as_another() {
        assert!(both_nan(DType::F32, &f32::NAN.to_le_bytes(), &(-f32::NAN).to_le_bytes()));
        assert!(!both_nan(DType::F32, &f32::NAN.to_le_bytes(), &1f32.to_le_bytes()));
        assert!(!both_nan(DType::I32, &[255; 4], &[255; 4]));
    }
}
