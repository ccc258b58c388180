//! The cast kernels as text, one module for each, and the tiles that they work on. `kernels/cast.cu` is their source.

use shardwright_core::DType;

/// All kernels, made from `cast.cu` by `scripts/make-ptx.py`.
const PTX: &str = include_str!("kernels/cast.ptx");

/// Threads of a block, which takes one tile.
#[cfg(feature = "cuda")]
pub(crate) const THREADS: u32 = 256;

/// Elements of a tile are at most so many: a few rounds of a thread block, and a multiple of 16, so that aligned runs have aligned tiles.
pub(crate) const TILE: u64 = 8192;

/// A kernel: a cast, or a copy of bytes where the dtypes are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kernel {
    pub(crate) from: DType,
    pub(crate) to: DType,
}

impl Kernel {
    /// Copies bytes.
    pub(crate) const COPY: Self = Self { from: DType::U8, to: DType::U8 };

    /// Bytes of a source element.
    pub(crate) fn element(self) -> u64 {
        self.from.bits() / 8
    }

    /// Its name in the PTX.
    #[cfg(any(feature = "cuda", test))]
    pub(crate) fn name(self) -> String {
        if self == Self::COPY {
            return "copy".into();
        }
        let name = |d: DType| d.safetensors_name().to_ascii_lowercase();
        format!("cast_{}_{}", name(self.from), name(self.to))
    }
}

/// A run of elements from an offset in a staged block to an address, as `cast.cu` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Tile {
    pub(crate) src: u64,
    pub(crate) dst: u64,
    pub(crate) count: u64,
}

impl Tile {
    pub(crate) const BYTES: usize = size_of::<Self>();

    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (place, field) in bytes.as_chunks_mut::<8>().0.iter_mut().zip([self.src, self.dst, self.count]) {
            *place = field.to_le_bytes();
        }
        bytes
    }
}

/// The text of a module with that kernel alone: the driver compiles what is needed and no more. For the bench, too.
pub fn module(name: &str) -> Option<String> {
    let entry = format!(".visible .entry {name}(");
    let first = PTX.find("\t// .globl")?;
    let start = PTX.find(&entry)?;
    let end = PTX[start..].find("\t// .globl").map_or(PTX.len(), |n| start + n);
    Some(format!("{}\n{}", &PTX[..first], &PTX[start..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOATS: [DType; 6] = [DType::F64, DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2];

    #[test]
    fn every_cast_of_the_cpu_has_a_module_of_its_own() {
        for &from in DType::ALL {
            for &to in DType::ALL {
                let kernel = Kernel { from, to };
                let module = (from != to).then(|| module(&kernel.name())).flatten();
                assert_eq!(module.is_some(), from != to && from.casts_to(to), "{from} to {to}");
                assert!(module.is_none_or(|m| m.matches(".entry").count() == 1 && m.contains(".version") && m.trim_end().ends_with('}')));
            }
        }
        assert_eq!(FLOATS.iter().filter(|f| f.casts_to(DType::F32)).count(), FLOATS.len());
        assert!(module("copy").is_some());
        assert_eq!(module("cast_f32"), None);
    }

    #[test]
    fn a_tile_is_three_numbers_in_order() {
        let bytes = Tile { src: 1, dst: 2, count: 3 }.to_bytes();
        assert_eq!((bytes[0], bytes[8], bytes[16], bytes.iter().filter(|b| **b == 0).count()), (1, 2, 3, 21));
    }
}
