//! Codes of quantized checkpoints: weights only once they are scaled, by tensors that lie beside them.

use std::collections::HashMap;

use shardwright_core::DType;

/// A tensor of codes, and the one with its scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Codes<'a> {
    pub(crate) name: &'a str,
    pub(crate) dtype: DType,
    pub(crate) scales: &'a str,
}

/// The first tensor of a narrow dtype that has scales of the same module beside it: `weight` and `weight_scale_inv`, `down_proj_blocks` and
/// `down_proj_scales`, `weight` and `SCB`.
pub(crate) fn find<'a>(tensors: impl Iterator<Item = (&'a str, DType)> + Clone) -> Option<Codes<'a>> {
    let narrow = |dtype: DType| dtype.bits() <= 8 && dtype != DType::Bool;
    if !tensors.clone().any(|(_, dtype)| narrow(dtype)) {
        return None;
    }
    let scales: HashMap<&str, &str> =
        tensors.clone().filter(|(name, _)| is_scale(split(name).1)).map(|(name, _)| (split(name).0, name)).collect();
    tensors.filter(|&(name, dtype)| narrow(dtype) && !is_scale(split(name).1)).find_map(|(name, dtype)| {
        let scales = scales.get(split(name).0)?;
        Some(Codes { name, dtype, scales })
    })
}

/// A name's module and its last part.
fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('.').unwrap_or(("", name))
}

fn is_scale(last: &str) -> bool {
    last.contains("scale") || last == "SCB" || last.contains("absmax")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_scales_beside_them() {
        let find = |tensors: &[(&'static str, DType)]| find(tensors.iter().copied()).map(|c| (c.name, c.scales));
        assert_eq!(find(&[("a.weight", DType::F8E4M3), ("a.weight_scale_inv", DType::F32)]), Some(("a.weight", "a.weight_scale_inv")));
        assert_eq!(find(&[("a.x_blocks", DType::U8), ("a.x_scales", DType::U8)]), Some(("a.x_blocks", "a.x_scales")));
        assert_eq!(find(&[("weight", DType::I8), ("SCB", DType::F32)]), Some(("weight", "SCB")));
        // Of another module, wide, or none.
        assert_eq!(find(&[("a.weight", DType::F8E4M3), ("b.weight_scale_inv", DType::F32)]), None);
        assert_eq!(find(&[("a.weight", DType::BF16), ("a.scale", DType::F32)]), None);
        assert_eq!(find(&[("a.weight", DType::F8E4M3)]), None);
        assert_eq!(find(&[("a.mask", DType::Bool), ("a.scale", DType::F32)]), None);
    }
}
