//! Which optimizer the run uses, and what it keeps for a tensor.

use serde::{Deserialize, Serialize};

/// An optimizer, as far as its memory goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    /// Two moments in the parameter's dtype.
    AdamW,
    /// Two moments in 8 bits, with a float32 scale for each block of 256; tensors below 4,096 elements as under `AdamW`.
    Adam8bit,
    /// One momentum for matrices inside blocks, `AdamW` for all else.
    Muon,
    /// One momentum.
    SgdMomentum,
    /// Nothing.
    Sgd,
}

/// bitsandbytes: elements that share a scale.
const BLOCK: u64 = 256;
/// bitsandbytes, `min_8bit_size`.
const LEAST_8BIT: u64 = 4096;

impl Optimizer {
    /// By the name of a config; `None` for one that is not known.
    pub fn from_name(name: &str, momentum: bool) -> Option<Self> {
        let name: String = name.to_ascii_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
        Some(match name.as_str() {
            "sgd" if momentum => Self::SgdMomentum,
            "sgd" => Self::Sgd,
            "muon" => Self::Muon,
            _ if name.contains("8bit") && name.contains("adam") => Self::Adam8bit,
            "adam" | "adamw" | "adamwtorch" | "adamwtorchfused" | "fusedadam" | "cpuadam" | "deepspeedcpuadam" => Self::AdamW,
            _ => return None,
        })
    }

    /// Bytes of the states of a tensor with this many elements, each of `width` bytes. `matrix` for a weight that Muon orthogonalises.
    /// torch's AdamW and Adam also keep the step, a float32 of their own for each tensor.
    pub fn states(self, elements: u64, width: u64, matrix: bool) -> u64 {
        let per_element = |n: u64| elements.saturating_mul(n.saturating_mul(width));
        match self {
            Self::AdamW => per_element(2).saturating_add(4),
            Self::Muon if matrix => per_element(1),
            Self::Muon => per_element(2).saturating_add(4),
            Self::SgdMomentum => per_element(1),
            Self::Sgd => 0,
            Self::Adam8bit if elements < LEAST_8BIT => elements.saturating_mul(2 * 4),
            Self::Adam8bit => elements.saturating_mul(2).saturating_add(elements.div_ceil(BLOCK).saturating_mul(2 * 4)),
        }
    }

    /// Whether a step makes temporary tensors as large as what it updates, and how many: torch's AdamW takes the square root of the second
    /// moment, on a GPU for all tensors at once (`foreach`), on a CPU tensor by tensor with a second temporary for the division.
    pub fn temporaries(self, on_cpu: bool) -> u64 {
        match self {
            Self::AdamW | Self::Muon if on_cpu => 2,
            Self::AdamW | Self::Muon => 1,
            Self::Adam8bit | Self::SgdMomentum | Self::Sgd => 0,
        }
    }

    /// The name in outputs.
    pub fn name(self) -> &'static str {
        match self {
            Self::AdamW => "adamw",
            Self::Adam8bit => "adam_8bit",
            Self::Muon => "muon",
            Self::SgdMomentum => "sgd_momentum",
            Self::Sgd => "sgd",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_configs_are_known_in_any_spelling() {
        let of = |name| Optimizer::from_name(name, true);
        assert_eq!(of("AdamW"), Some(Optimizer::AdamW));
        assert_eq!(of("adamw_bnb_8bit"), Some(Optimizer::Adam8bit));
        assert_eq!(of("paged_adamw_8bit"), Some(Optimizer::Adam8bit));
        assert_eq!(of("SGD"), Some(Optimizer::SgdMomentum));
        assert_eq!(Optimizer::from_name("sgd", false), Some(Optimizer::Sgd));
        assert_eq!(of("lion"), None);
    }

    #[test]
    fn states_of_a_tensor() {
        assert_eq!(Optimizer::AdamW.states(1000, 4, true), 8004);
        assert_eq!(Optimizer::AdamW.states(1000, 2, true), 4004);
        assert_eq!(Optimizer::Muon.states(1000, 4, true), 4000);
        assert_eq!(Optimizer::Muon.states(1000, 4, false), 8004);
        assert_eq!(Optimizer::Adam8bit.states(4095, 4, true), 32_760);
        assert_eq!(Optimizer::Adam8bit.states(65_536, 4, true), 131_072 + 2 * 4 * 256);
        assert_eq!(Optimizer::Sgd.states(1000, 4, true), 0);
    }
}
