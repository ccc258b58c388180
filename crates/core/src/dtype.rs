//! Element types: their sizes, their names in safetensors and in torch, and which pairs can be cast.
//! The casts themselves are in `shardwright-cast`.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

macro_rules! dtypes {
    ($($variant:ident $bits:literal $safetensors:literal $torch:literal $doc:literal,)*) => {
        /// The type of one element of a tensor.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[non_exhaustive]
        pub enum DType { $(#[doc = $doc] $variant,)* }

        impl DType {
            /// Every known dtype.
            pub const ALL: &'static [DType] = &[$(DType::$variant,)*];

            /// Size of one element in bits (sub-byte dtypes have less than 8).
            pub const fn bits(self) -> u64 { match self { $(DType::$variant => $bits,)* } }

            /// The name in a safetensors header, such as `BF16`.
            pub const fn safetensors_name(self) -> &'static str { match self { $(DType::$variant => $safetensors,)* } }

            /// torch's name, such as `bfloat16`.
            pub const fn torch_name(self) -> &'static str { match self { $(DType::$variant => $torch,)* } }
        }
    };
}

dtypes! {
    Bool 8 "BOOL" "bool" "One byte, 0 or 1.",
    F4 4 "F4" "float4_e2m1fn_x2" "4-bit float, two to a byte.",
    F6E2M3 6 "F6_E2M3" "float6_e2m3" "6-bit float.",
    F6E3M2 6 "F6_E3M2" "float6_e3m2" "6-bit float.",
    U8 8 "U8" "uint8" "Unsigned byte.",
    I8 8 "I8" "int8" "Signed byte.",
    F8E5M2 8 "F8_E5M2" "float8_e5m2" "8-bit float with infinities.",
    F8E4M3 8 "F8_E4M3" "float8_e4m3fn" "8-bit float without infinities.",
    F8E8M0 8 "F8_E8M0" "float8_e8m0fnu" "8-bit power-of-two scale.",
    I16 16 "I16" "int16" "16-bit integer.",
    U16 16 "U16" "uint16" "16-bit unsigned integer.",
    F16 16 "F16" "float16" "IEEE half.",
    BF16 16 "BF16" "bfloat16" "The upper half of a float32.",
    I32 32 "I32" "int32" "32-bit integer.",
    U32 32 "U32" "uint32" "32-bit unsigned integer.",
    F32 32 "F32" "float32" "IEEE single.",
    C64 64 "C64" "complex64" "Two float32.",
    F64 64 "F64" "float64" "IEEE double.",
    I64 64 "I64" "int64" "64-bit integer.",
    U64 64 "U64" "uint64" "64-bit unsigned integer.",
}

impl DType {
    /// Looks a safetensors header name up, exactly as written there.
    pub fn from_safetensors(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|d| d.safetensors_name() == name)
    }

    /// Looks up the spellings that people write: `bf16`, `torch.bfloat16`, `half`, `fp32`, …, in any case.
    pub fn from_spelling(text: &str) -> Option<Self> {
        let lower = text.trim().to_ascii_lowercase();
        let name = lower.strip_prefix("torch.").unwrap_or(&lower);
        let named = Self::ALL.iter().copied().find(|d| d.torch_name() == name);
        named.or_else(|| ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, dtype)| *dtype))
    }

    /// What editors may complete: torch's names, floats first, then what else people write; each in lower and in upper case.
    #[doc(hidden)]
    pub fn spellings() -> Vec<String> {
        let torch = || Self::ALL.iter().filter(|d| d.is_float()).chain(Self::ALL.iter().filter(|d| !d.is_float())).map(|d| d.torch_name());
        let lower: Vec<&str> = torch().chain(ALIASES.iter().map(|(alias, _)| *alias)).collect();
        let prefixed = torch().map(|name| format!("torch.{name}"));
        lower.iter().map(|name| (*name).to_owned()).chain(prefixed).chain(lower.iter().map(|name| name.to_ascii_uppercase())).collect()
    }

    /// Bytes that `numel` elements take; `None` on overflow or where they do not end on a byte boundary.
    pub fn bytes(self, numel: u64) -> Option<u64> {
        let bits = numel.checked_mul(self.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    /// True for floating point, which is what makes a tensor a parameter unless a config says otherwise.
    pub const fn is_float(self) -> bool {
        use DType::{BF16, F4, F6E2M3, F6E3M2, F8E4M3, F8E5M2, F8E8M0, F16, F32, F64};
        matches!(self, F4 | F6E2M3 | F6E3M2 | F8E5M2 | F8E4M3 | F8E8M0 | F16 | BF16 | F32 | F64)
    }

    /// True where the engine has a bit-exact cast from `self` to `to`; the identity always is.
    pub fn casts_to(self, to: Self) -> bool {
        use DType::{BF16, F8E4M3, F8E5M2, F16, F32, F64};
        let family = |d| matches!(d, F8E5M2 | F8E4M3 | F16 | BF16 | F32 | F64);
        self == to || (family(self) && family(to))
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.torch_name())
    }
}

/// Serialised by torch's name.
impl Serialize for DType {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.torch_name())
    }
}

/// Spellings beside torch's names.
const ALIASES: &[(&str, DType)] = &[
    ("bf16", DType::BF16),
    ("fp16", DType::F16),
    ("f16", DType::F16),
    ("half", DType::F16),
    ("fp32", DType::F32),
    ("f32", DType::F32),
    ("float", DType::F32),
    ("fp64", DType::F64),
    ("f64", DType::F64),
    ("double", DType::F64),
    ("float8_e4m3", DType::F8E4M3),
    ("fp8_e4m3", DType::F8E4M3),
    ("fp8", DType::F8E4M3),
    ("fp8_e5m2", DType::F8E5M2),
    ("long", DType::I64),
    ("int", DType::I32),
    ("short", DType::I16),
];

/// Accepts every spelling of [`DType::from_spelling`].
impl<'de> Deserialize<'de> for DType {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Self::from_spelling(&text)
            .ok_or_else(|| D::Error::custom(format!("unknown dtype '{text}', expected one such as float32, bfloat16, float16")))
    }
}

impl schemars::JsonSchema for DType {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "DType".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "enum": Self::spellings(), "description": "a torch dtype: float32, bfloat16, float16, … (bf16, fp32, half, torch.float32 are understood too)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_back_to_its_dtype() {
        for &d in DType::ALL {
            assert_eq!(DType::from_safetensors(d.safetensors_name()), Some(d));
            assert_eq!(DType::from_spelling(d.torch_name()), Some(d));
            assert_eq!(DType::from_spelling(&format!("torch.{}", d.torch_name())), Some(d));
        }
        assert!(DType::spellings().iter().all(|text| DType::from_spelling(text).is_some()));
        assert_eq!(DType::from_spelling("BF16"), Some(DType::BF16));
        assert_eq!(DType::from_spelling("bfloat"), None);
    }

    #[test]
    fn sub_byte_elements_must_fill_bytes() {
        assert_eq!(DType::F4.bytes(4), Some(2));
        assert_eq!(DType::F4.bytes(3), None);
        assert_eq!(DType::F64.bytes(u64::MAX), None);
    }
}
