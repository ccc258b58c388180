//! `shardwright: {…}`: what only shardwright knows, as types.

use std::ops::RangeInclusive;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use shardwright_core::{
    DType, Globs,
    strategy_config::{DeepSpeed, StorageDtype},
    text::short,
};

/// The section `shardwright`, its `precision` taken out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Settings {
    /// The dtype that shards are stored in: `checkpoint` for each tensor's own dtype, or a dtype; null for what the engine would do.
    pub storage_dtype: Option<Stored>,
    /// Globs of float tensors that are buffers all the same: whole on every rank, never cast.
    pub buffers: Globs,
    /// Globs of modules that are an all-gather group each, instead of the strategy's own choice.
    pub units: Globs,
    /// Globs of checkpoint tensors that are left out, by their names in the checkpoint.
    pub exclude: Globs,
    /// A file that describes the model's architecture, where the built-in data does not have it: see docs/architectures.md.
    pub architecture: Option<String>,
    /// Allow DeepSpeed's fp16, which LLaMA-Factory refuses.
    pub zero3_fp16: bool,
    /// Load for inference: nothing is trained, and the checkpoint's dtype stays.
    pub inference: bool,
    /// Where shards are placed: `cpu`, `cuda`, `cuda:N`, or `auto` for a GPU where there is one; null for the command line's choice.
    #[serde(deserialize_with = "device")]
    pub device: Option<String>,
    /// How files are read.
    pub io: IoSettings,
    /// Versions of the engines that the answer is for.
    pub engines: Engines,
}

/// Versions of the engines that the answer is for; null for the one that is known best.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Engines {
    /// DeepSpeed: `"0.18"` (read off 0.18.9) or `"0.19"` (0.19.8), which null means.
    pub deepspeed: Option<DeepSpeedVersion>,
    /// transformers, such as `"4.57"`: before 5 experts are not stacked and most names stay as in the checkpoint. null means the newest that is known.
    pub transformers: Option<TransformersVersion>,
}

/// A version of transformers as the YAML spells it, by its first two parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TransformersVersion {
    /// 4 or 5.
    pub major: u32,
    /// The second part, where it is given.
    pub minor: Option<u32>,
}

impl TransformersVersion {
    /// Reads `4.57`, `4.57.1`, `5`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.').map(|p| p.parse::<u32>().ok().filter(|_| p.bytes().all(|b| b.is_ascii_digit())));
        let (major, minor, patch) = (parts.next()??, parts.next(), parts.next());
        let fits = parts.next().is_none() && minor != Some(None) && patch != Some(None) && matches!(major, 4 | 5);
        fits.then(|| Self { major, minor: minor.flatten() })
    }
}

impl std::fmt::Display for TransformersVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.minor {
            None => write!(f, "{}", self.major),
            Some(minor) => write!(f, "{}.{minor}", self.major),
        }
    }
}

impl JsonSchema for TransformersVersion {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TransformersVersion".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "anyOf": [
            { "type": "string", "pattern": "^[45](\\.[0-9]+)?(\\.[0-9]+)?$" },
            { "type": "number", "minimum": 4, "maximum": 5.99 },
        ] })
    }
}

impl Serialize for TransformersVersion {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TransformersVersion {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = TransformersVersion;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a version of transformers such as \"4.57\" or \"5.24\"")
            }
            fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<TransformersVersion, E> {
                self.visit_str(&v.to_string())
            }
            fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<TransformersVersion, E> {
                self.visit_str(&v.to_string())
            }
            fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<TransformersVersion, E> {
                self.visit_str(&v.to_string())
            }
            fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<TransformersVersion, E> {
                TransformersVersion::parse(v).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(v), &self))
            }
        }
        d.deserialize_any(Visitor)
    }
}

/// A version of DeepSpeed as the YAML spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeepSpeedVersion(pub DeepSpeed);

impl JsonSchema for DeepSpeedVersion {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "DeepSpeedVersion".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "anyOf": [{ "type": "string", "pattern": "^0\\.1[89](\\.[0-9]+)?$" }, { "enum": [0.18, 0.19] }] })
    }
}

impl Serialize for DeepSpeedVersion {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(match self.0 {
            DeepSpeed::V0_18 => "0.18",
            DeepSpeed::V0_19 => "0.19",
        })
    }
}

impl<'de> Deserialize<'de> for DeepSpeedVersion {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = DeepSpeed;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("\"0.18\" or \"0.19\"")
            }
            fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<DeepSpeed, E> {
                self.visit_str(&v.to_string())
            }
            fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<DeepSpeed, E> {
                let mut parts = v.splitn(3, '.');
                let patch = |p: Option<&str>| p.is_none_or(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
                match (parts.next(), parts.next(), parts.next()) {
                    (Some("0"), Some("18"), rest) if patch(rest) => Ok(DeepSpeed::V0_18),
                    (Some("0"), Some("19"), rest) if patch(rest) => Ok(DeepSpeed::V0_19),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(v), &self)),
                }
            }
        }
        d.deserialize_any(Visitor).map(Self)
    }
}

/// How files are read; null leaves each to the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct IoSettings {
    /// Threads that read and cast, per process: 1 to 1024.
    #[schemars(range(min = 1, max = 1024))]
    pub threads: Option<u32>,
    /// Reads in flight: 1 to 1024.
    #[schemars(range(min = 1, max = 1024))]
    pub queue_depth: Option<u32>,
    /// Bytes of one read, from 4KiB to 256MiB: a number, or one with KiB, MiB or GiB.
    #[schemars(extend("minimum" = 4096, "maximum" = 268_435_456))]
    pub block_size: Option<ByteSize>,
    /// Bypass the page cache; not beside `mmap`.
    pub direct: Option<bool>,
    /// Map files instead of reading them; not beside `direct`.
    pub mmap: Option<bool>,
    /// Announce to the kernel what is read next.
    pub readahead: Option<bool>,
    /// Drop what was read from the page cache.
    pub drop_cache: Option<bool>,
    /// On the way to a GPU: page-locked host memory of this process at most, as a number of bytes or with KiB, MiB or GiB; 64KiB or more.
    #[schemars(extend("minimum" = 65_536))]
    pub ring_size: Option<ByteSize>,
    /// On the way to a GPU: whether a downcast happens on the `host`, so that less crosses the bus, or on the `device`.
    #[serde(alias = "narrow")]
    pub downcast: Option<Place>,
}

/// The engine's own ranges, which it applies to flags and callers too. They stand here a second time so that a value out of range is reported
/// with its place; a test compares the two.
impl IoSettings {
    /// Of `threads`.
    pub const THREADS: RangeInclusive<u64> = 1..=1024;
    /// Of `queue_depth`.
    pub const QUEUE_DEPTH: RangeInclusive<u64> = 1..=1024;
    /// Of `block_size`, in bytes.
    pub const BLOCK_SIZE: RangeInclusive<u64> = 4096..=256 << 20;
    /// Of `ring_size`, in bytes: the engine's smallest block. How much more it takes depends on threads and ranks.
    pub const RING_SIZE: RangeInclusive<u64> = 64 << 10..=u64::MAX;
}

/// Where a cast to a smaller dtype happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// Before the bus.
    Host,
    /// Behind it.
    Device,
}

fn device<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(d)?;
    let known = |t: &str| {
        let number = t.strip_prefix("cuda:").is_some_and(|k| k.bytes().all(|b| b.is_ascii_digit()) && k.parse::<u32>().is_ok());
        number || ["cpu", "cuda", "auto"].contains(&t)
    };
    match text {
        Some(t) if !known(&t) => Err(D::Error::custom(format!("unknown device '{t}', expected cpu, auto, cuda or cuda:N"))),
        text => Ok(text),
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// Reads `4194304`, `4 MiB`, `512K`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: u64 = text[..digits].parse().ok()?;
        let shift = match text[digits..].trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kib" => 10,
            "m" | "mib" => 20,
            "g" | "gib" => 30,
            _ => return None,
        };
        number.checked_mul(1 << shift).map(Self)
    }
}

impl From<ByteSize> for u64 {
    fn from(size: ByteSize) -> Self {
        size.0
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = ByteSize;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number of bytes such as 4194304 or 4MiB")
            }
            fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(v))
            }
            fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<ByteSize, E> {
                ByteSize::parse(v).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(v), &self))
            }
        }
        d.deserialize_any(Visitor)
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "anyOf": [{ "type": "integer", "minimum": 0 }, { "type": "string", "pattern": "^\\s*[0-9]+\\s*([bB]|[kKmMgG]([iI][bB])?)?\\s*$" }],
            "description": "bytes: 4194304, or 4MiB"
        })
    }
}

/// [`StorageDtype`] as the YAML spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored(pub StorageDtype);

impl JsonSchema for Stored {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Stored".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "anyOf": [{ "enum": ["checkpoint", "auto"] }, generator.subschema_for::<DType>()] })
    }
}

impl Serialize for Stored {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            StorageDtype::Checkpoint => s.serialize_str("checkpoint"),
            StorageDtype::Fixed(dtype) => dtype.serialize(s),
        }
    }
}

impl<'de> Deserialize<'de> for Stored {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        if text == "checkpoint" || text == "auto" {
            return Ok(Self(StorageDtype::Checkpoint));
        }
        DType::from_spelling(&text).filter(|d| d.is_float()).map(|d| Self(StorageDtype::Fixed(d))).ok_or_else(|| {
            D::Error::custom(format!(
                "expected checkpoint or a float dtype such as float32, bfloat16, float16 or float8_e4m3fn, found '{}'",
                short(&text)
            ))
        })
    }
}
