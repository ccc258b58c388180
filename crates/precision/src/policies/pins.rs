//! `pins`: dtypes by glob, over any strategy: norms, routers or the head in float32 while the rest follows the strategy's own policy.

use std::{collections::BTreeSet, fmt};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeMap};
use shardwright_core::{
    DType, Globs, ModelFacts, Precision, PrecisionPolicy, TensorMeta,
    diagnostic::{Diagnostic, Location},
    strategy_config::{BuiltPolicy, PolicyConfig, PolicyContext, Tuning},
    suggest::nearest,
};

/// Dtypes by glob over parameter names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PinsConfig {
    /// Globs over parameter names, each with a dtype, or with `{storage, compute, reduce}` where they differ or some are left to the
    /// strategy. Of several globs that match a name, the first decides. Parameters that none matches are the strategy's own.
    #[schemars(with = "std::collections::BTreeMap<String, Pin>")]
    pub pins: Pins,
}

/// Globs and what they pin, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pins(pub Vec<(String, Pin)>);

/// The dtypes of one pin; what is absent is left to the strategy's own policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pin {
    /// The dtype that shards are stored in.
    pub storage: Option<DType>,
    /// What is gathered and computed in.
    pub compute: Option<DType>,
    /// What gradients are reduced in.
    pub reduce: Option<DType>,
}

impl Pin {
    /// One dtype for all three.
    pub fn uniform(dtype: DType) -> Self {
        Self { storage: Some(dtype), compute: Some(dtype), reduce: Some(dtype) }
    }

    fn dtypes(&self) -> impl Iterator<Item = DType> {
        [self.storage, self.compute, self.reduce].into_iter().flatten()
    }

    fn over(&self, own: Precision) -> Precision {
        let pick = |pinned: Option<DType>, own| pinned.unwrap_or(own);
        Precision::new(pick(self.storage, own.storage), pick(self.compute, own.compute), pick(self.reduce, own.reduce))
    }
}

impl PolicyConfig for PinsConfig {
    const NAME: &'static str = "pins";
    const SUMMARY: &'static str = "dtypes by glob, such as norms in float32, over the strategy's own policy";

    fn example() -> Self {
        let pin = |glob: &str| (glob.to_owned(), Pin::uniform(DType::F32));
        Self { pins: Pins(["*.norm.*", "*.mlp.gate.weight", "lm_head.*"].map(pin).into()) }
    }

    fn build(self, cx: &mut PolicyContext<'_>) -> Result<BuiltPolicy, Diagnostic> {
        let base =
            cx.base.take().ok_or_else(|| Diagnostic::error("pins-base", "pins need a policy to fall through to, and there is none"))?;
        let mut pinned = Vec::new();
        for (glob, pin) in &self.pins.0 {
            let at = cx.section.find(&["pins", glob]).map(|n| n.at.clone());
            let globs = Globs::new([glob]).map_err(|e| Diagnostic::error("pins-glob", format!("pins: {e}")).at(at.clone()))?;
            if let Some(dtype) = pin.dtypes().find(|d| !d.is_float()) {
                let message = format!("pins: '{glob}' is pinned to {dtype}, expected a float dtype such as float32");
                return Err(Diagnostic::error("pins-dtype", message).at(at));
            }
            cx.diagnostics.extend(refused_by_engine(cx.strategy, &cx.training.tuning.value, &base, glob, pin).map(|d| d.at(at.clone())));
            drop(globs); // reported at its own place, where it is none
            pinned.push(Pinning { glob: glob.clone(), pin: *pin, at });
        }
        let mut summary = base.summary;
        let list: Vec<String> = self.pins.0.iter().map(|(glob, pin)| format!("'{glob}' {pin}")).collect();
        if !list.is_empty() {
            summary.why = format!("{}; pinned: {}", summary.why, list.join(", "));
            summary.rule = format!("pins over {}", summary.rule);
            summary.from.push("/shardwright/precision/name".into());
        }
        let globs = Globs::new(self.pins.0.iter().map(|(glob, _)| glob.as_str()));
        let globs = globs.map_err(|e| Diagnostic::error("pins-glob", format!("pins: {e}")).at(cx.section.at.clone()))?;
        Ok(BuiltPolicy::new(Pinned { globs, pinned, base: base.policy }, summary))
    }
}

shardwright_core::register_precision!(PinsConfig);

/// What the stock engine does not take, although a load here does: the shards are right, the training that follows would refuse them.
fn refused_by_engine(strategy: &str, tuning: &Tuning, base: &BuiltPolicy, glob: &str, pin: &Pin) -> Option<Diagnostic> {
    let storage = pin.storage.filter(|s| base.summary.storage != s.torch_name())?;
    if matches!(tuning, Tuning::Lora | Tuning::Inference) {
        return None;
    }
    let refusal = match strategy {
        "zero3" => "stock DeepSpeed refuses trainable parameters of mixed dtypes",
        "fsdp2" => "stock FSDP2 refuses trainable parameters of mixed dtypes in one parameter group",
        _ => return None,
    };
    let message = format!("pins: '{glob}' is stored as {storage}, other parameters as {}; {refusal}", words(&base.summary.storage));
    let help = "pin frozen parameters only, or pin `compute` and `reduce` and leave `storage` out";
    Some(Diagnostic::warning("pins-mixed-dtypes", message).help(help))
}

/// `bfloat16`, or `float32 if trainable and checkpoint if frozen`.
fn words(storage: &serde_json::Value) -> String {
    match (storage.as_str(), storage["trainable"].as_str(), storage["frozen"].as_str()) {
        (Some(word), ..) => word.to_owned(),
        (_, Some(trainable), Some(frozen)) => format!("{trainable} if trainable and {frozen} if frozen"),
        _ => storage.to_string(),
    }
}

/// Pins over a policy.
#[derive(Debug)]
struct Pinned {
    /// All of them, so that a name is matched once.
    globs: Globs,
    pinned: Vec<Pinning>,
    base: Box<dyn PrecisionPolicy>,
}

/// One pin, and where it stands.
#[derive(Debug)]
struct Pinning {
    glob: String,
    pin: Pin,
    at: Option<Location>,
}

impl PrecisionPolicy for Pinned {
    fn decide(&self, param: &TensorMeta, trainable: bool) -> Precision {
        let own = self.base.decide(param, trainable);
        let first = self.globs.first_match(&param.name).and_then(|at| self.pinned.get(at));
        first.map_or(own, |p| p.pin.over(own))
    }

    fn buffer(&self, buffer: &TensorMeta) -> DType {
        self.base.buffer(buffer)
    }

    fn rounded(&self, tensor: &TensorMeta, facts: &ModelFacts) -> Option<DType> {
        self.base.rounded(tensor, facts)
    }

    fn lint(&self, all: &[&TensorMeta]) -> Vec<Diagnostic> {
        let parameters = || all.iter().copied();
        let mut decides = vec![false; self.pinned.len()];
        for param in parameters() {
            if let Some(first) = self.globs.first_match(&param.name).and_then(|at| decides.get_mut(at)) {
                *first = true;
            }
        }
        let of_nothing: BTreeSet<&str> = self.globs.unmatched(parameters().map(|t| &*t.name)).into_iter().collect();
        let unused = self.pinned.iter().zip(decides).filter(|(_, decides)| !decides).enumerate();
        let unused = unused.map(|(count, (pinning, _))| {
            let names = (count < MOST_SUGGESTED).then(parameters);
            if of_nothing.contains(&*pinning.glob) { pinning.of_nothing(names) } else { pinning.shadowed(parameters()) }
        });
        unused.chain(self.base.lint(all)).collect()
    }
}

/// Pins that match nothing whose nearest names are looked for, each among all names.
const MOST_SUGGESTED: usize = 8;

impl Pinning {
    fn warning(&self, message: String) -> Diagnostic {
        Diagnostic::warning("pins-unused", message).at(self.at.clone())
    }

    /// What to say of a pin that earlier ones leave nothing.
    fn shadowed<'t>(&self, mut parameters: impl Iterator<Item = &'t TensorMeta>) -> Diagnostic {
        let shown = shardwright_core::text::shown(&self.glob);
        let message = format!("pins: '{shown}' decides for no parameter: an earlier glob matches whatever it matches");
        let warning = self.warning(message);
        let matched = Globs::new([self.glob.as_str()]).ok().and_then(|glob| parameters.find(|t| glob.matches(&t.name)));
        match matched {
            Some(param) => warning.help(format!("the first glob that matches a name decides; put '{shown}' earlier, for '{}'", param.name)),
            None => warning,
        }
    }

    /// What to say of a pin that matches none of these; `None` where there are too many such pins to look for what was meant.
    fn of_nothing<'t>(&self, parameters: Option<impl Iterator<Item = &'t TensorMeta> + Clone>) -> Diagnostic {
        let shown = shardwright_core::text::shown(&self.glob);
        let warning = self.warning(format!("pins: '{shown}' matches no parameter of the model"));
        let Some(parameters) = parameters else { return warning };
        match nearest_name(&self.glob, parameters.map(|t| t.name.as_str())) {
            Some(name) => warning.help(format!("the nearest parameter is '{}'", shardwright_core::text::shown(name))),
            None => warning.help("the model has no parameters"),
        }
    }
}

/// The name that has most of a glob's words, misspelt or not.
fn nearest_name<'n>(glob: &str, names: impl Iterator<Item = &'n str> + Clone) -> Option<&'n str> {
    let known: BTreeSet<&str> = names.clone().flat_map(|name| name.split('.')).collect();
    let words = glob.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    let meant: BTreeSet<&str> = words.filter_map(|word| nearest(word, known.iter().copied())).collect();
    // Of equals, the first.
    let mut best: Option<(usize, &str)> = None;
    for name in names {
        let hits = name.split('.').filter(|word| meant.contains(word)).count();
        if best.is_none_or(|(most, _)| hits > most) {
            best = Some((hits, name));
        }
    }
    best.map(|(_, name)| name)
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.storage, self.compute, self.reduce) {
            (Some(a), Some(b), Some(c)) if a == b && b == c => write!(f, "{a}"),
            parts => {
                let names = ["storage", "compute", "reduce"].into_iter().zip(<[Option<DType>; 3]>::from(parts));
                let parts: Vec<String> = names.filter_map(|(name, dtype)| Some(format!("{name} {}", dtype?))).collect();
                f.write_str(if parts.is_empty() { "as it is" } else { "" })?;
                f.write_str(&parts.join(" and "))
            }
        }
    }
}

/// The parts of a [`Pin`] as a mapping.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(inline)]
struct Parts {
    /// The dtype that shards are stored in; absent for the strategy's own choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    storage: Option<DType>,
    /// What is gathered and computed in; absent for the strategy's own choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    compute: Option<DType>,
    /// What gradients are reduced in; absent for the strategy's own choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    reduce: Option<DType>,
}

impl Serialize for Pin {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self { storage: Some(dtype), .. } if *self == Self::uniform(dtype) => dtype.serialize(s),
            Self { storage, compute, reduce } => Parts { storage, compute, reduce }.serialize(s),
        }
    }
}

impl<'de> Deserialize<'de> for Pin {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Pin;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a dtype such as float32, or a mapping of storage, compute and reduce")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Pin, E> {
                DType::from_spelling(text).map(Pin::uniform).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Pin, A::Error> {
                let Parts { storage, compute, reduce } = Parts::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Pin { storage, compute, reduce })
            }
        }
        d.deserialize_any(Visitor)
    }
}

impl JsonSchema for Pin {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Pin".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "anyOf": [generator.subschema_for::<DType>(), generator.subschema_for::<Parts>()] })
    }
}

impl Serialize for Pins {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(Some(self.0.len()))?;
        for (glob, pin) in &self.0 {
            map.serialize_entry(glob, pin)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Pins {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Pins;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping of globs to dtypes")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Pins, A::Error> {
                let mut pins = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    pins.push(entry);
                }
                Ok(Pins(pins))
            }
        }
        d.deserialize_map(Visitor)
    }
}
