//! Strategies and precision policies written in Python: registered by name, chosen by a YAML, planned through the same validation as all others.
//!
//! The registry's entries are types, so that there is a fixed number of slots, each a type; a registration fills one. What the classes do is
//! decided in `shardwright._plugin`, which takes and gives JSON.

use std::{
    borrow::Cow,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use pyo3::prelude::*;
use serde_json::{Map, Value as Json, json};
use shardwright::core::{
    DType, Mesh, Placement, PlanError, PlanInput, Precision, PrecisionPolicy, ShardPlan, ShardStrategy, TensorMeta,
    diagnostic::Diagnostic,
    registry::{Place, PolicyEntry, Registry, StrategyEntry},
    schemars::{JsonSchema, Schema, SchemaGenerator},
    serde::{
        Deserialize, Deserializer, Serialize, Serializer,
        de::{Error as _, MapAccess, Visitor},
    },
    strategy_config::{BuildContext, Built, BuiltPolicy, PolicyConfig, PolicyContext, PrecisionSummary, StrategyConfig},
    testkit::{PolicyKit, StrategyKit},
};
use shardwright::engine::testkit::ThroughEngine;

use crate::errors;

/// Registrations of one kind that a process may have.
const SLOTS: usize = 16;

/// A class that was registered.
struct Registered {
    name: &'static str,
    summary: &'static str,
    place: (&'static str, u32),
    factory: Py<PyAny>,
    /// Options with their defaults, and the JSON Schema of the section.
    defaults: Map<String, Json>,
    options: &'static [&'static str],
    schema: Json,
}

static STRATEGIES: Mutex<Vec<Registered>> = Mutex::new(Vec::new());
static POLICIES: Mutex<Vec<Registered>> = Mutex::new(Vec::new());

fn locked(slots: &'static Mutex<Vec<Registered>>) -> MutexGuard<'static, Vec<Registered>> {
    slots.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls a function of `shardwright._plugin`. The text is the exception's, with its class.
fn call<A: for<'py> pyo3::call::PyCallArgs<'py>>(function: &str, arguments: A) -> Result<Py<PyAny>, String> {
    Python::attach(|py| {
        let made = || -> PyResult<Py<PyAny>> { Ok(py.import("shardwright._plugin")?.getattr(function)?.call1(arguments)?.unbind()) };
        made().map_err(|error| said(py, &error))
    })
}

fn said(py: Python<'_>, error: &PyErr) -> String {
    let class = error.get_type(py).name().map_or_else(|_| "exception".to_owned(), |n| n.to_string());
    format!("{class}: {}", error.value(py))
}

fn text_of(answer: &Py<PyAny>) -> Result<String, String> {
    Python::attach(|py| answer.extract::<String>(py).map_err(|e| said(py, &e)))
}

/// The section of a slot: options by name.
struct Section<const POLICY: bool, const N: usize>(Map<String, Json>);

impl<const POLICY: bool, const N: usize> Section<POLICY, N> {
    fn slots() -> MutexGuard<'static, Vec<Registered>> {
        locked(if POLICY { &POLICIES } else { &STRATEGIES })
    }

    fn defaults() -> Map<String, Json> {
        Self::slots().get(N).map(|r| r.defaults.clone()).unwrap_or_default()
    }

    /// The object that the class makes of the section, and the name it is registered under.
    fn object(self) -> Result<(Py<PyAny>, &'static str), String> {
        let (factory, name) = {
            let slots = Self::slots();
            let slot = slots.get(N).ok_or("no class is registered in this slot")?;
            (Python::attach(|py| slot.factory.clone_ref(py)), slot.name)
        };
        Ok((call("make", (factory, name, Json::Object(self.0).to_string()))?, name))
    }
}

impl<const POLICY: bool, const N: usize> Default for Section<POLICY, N> {
    fn default() -> Self {
        Self(Self::defaults())
    }
}

impl<const POLICY: bool, const N: usize> Serialize for Section<POLICY, N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, const POLICY: bool, const N: usize> Deserialize<'de> for Section<POLICY, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys<const POLICY: bool, const N: usize>;
        impl<'de, const POLICY: bool, const N: usize> Visitor<'de> for Keys<POLICY, N> {
            type Value = Section<POLICY, N>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let options = Section::<POLICY, N>::slots().get(N).map_or(&[] as &[&str], |r| r.options);
                let mut found = Section::<POLICY, N>::defaults();
                while let Some(key) = map.next_key::<String>()? {
                    if !options.contains(&key.as_str()) {
                        return Err(A::Error::unknown_field(&key, options));
                    }
                    let value = map.next_value::<Json>()?;
                    found.insert(key, value);
                }
                Ok(Section(found))
            }
        }
        deserializer.deserialize_map(Keys::<POLICY, N>)
    }
}

impl<const POLICY: bool, const N: usize> JsonSchema for Section<POLICY, N> {
    fn schema_name() -> Cow<'static, str> {
        Cow::Owned(format!("Python{}{N}", if POLICY { "Policy" } else { "Strategy" }))
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let schema = Self::slots().get(N).map_or(Json::Bool(true), |r| r.schema.clone());
        Schema::try_from(schema).unwrap_or_default()
    }
}

fn refused(cx: shardwright::core::diagnostic::Location, what: String) -> Diagnostic {
    Diagnostic::error("python-plugin", what).at(cx)
}

impl<const N: usize> StrategyConfig for Section<false, N> {
    const NAME: &'static str = "python/slot";
    const SUMMARY: &'static str = "a strategy in Python";

    fn build(self, cx: &mut BuildContext<'_>) -> Result<Built, Diagnostic> {
        let at = cx.section.at.clone();
        let (object, name) = self.object().map_err(|what| refused(at, what))?;
        Ok(Built::new(Strategy { object, name: name.to_owned() }))
    }
}

impl<const N: usize> PolicyConfig for Section<true, N> {
    const NAME: &'static str = "python/slot";
    const SUMMARY: &'static str = "a precision policy in Python";

    fn build(self, cx: &mut PolicyContext<'_>) -> Result<BuiltPolicy, Diagnostic> {
        let at = cx.section.at.clone();
        let (object, name) = self.object().map_err(|what| refused(at.clone(), what))?;
        let policy = Policy { object, name: name.to_owned() };
        let example = TensorMeta::new("model.layers.0.mlp.up_proj.weight", DType::BF16, [2, 2]);
        let precision = policy.asked(&example, true).map_err(|what| refused(at, what))?;
        let summary = PrecisionSummary::new(precision, name, "decided by a class in Python, tensor by tensor; shown is a bfloat16 weight");
        Ok(BuiltPolicy::new(policy, summary))
    }
}

/// A strategy in Python.
struct Strategy {
    object: Py<PyAny>,
    name: String,
}

impl fmt::Debug for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Strategy").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ShardStrategy for Strategy {
    fn name(&self) -> &str {
        &self.name
    }

    fn plan(&self, input: &PlanInput<'_>) -> Result<ShardPlan, PlanError> {
        let failed = |what: String| PlanError::Panicked { strategy: self.name.clone(), what };
        // Dtypes, kinds and buffers are decided as for any strategy; the class decides placements and parameter groups.
        let draft = input.plan_tensors(&self.name, |_| Ok(Placement::replicated()))?;
        let to_text = |value: Result<String, serde_json::Error>| value.map_err(|e| failed(e.to_string()));
        let draft = to_text(serde_json::to_string(&draft))?;
        let object = Python::attach(|py| self.object.clone_ref(py));
        let answer = call("plan", (object, draft)).and_then(|answer| text_of(&answer)).map_err(failed)?;
        let answer: Json = serde_json::from_str(&answer).map_err(|e| failed(e.to_string()))?;
        if let (Some(tensor), Some(reason)) = (answer["refused"].as_str(), answer["reason"].as_str()) {
            return Err(PlanError::Tensor { tensor: tensor.into(), reason: reason.to_owned() });
        }
        serde_json::from_value(answer).map_err(|e| failed(format!("its plan has another form than plan() gave it: {e}")))
    }
}

/// A precision policy in Python.
struct Policy {
    object: Py<PyAny>,
    name: String,
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Policy {
    fn asked(&self, tensor: &TensorMeta, trainable: bool) -> Result<Precision, String> {
        let object = Python::attach(|py| self.object.clone_ref(py));
        let (name, shape) = (tensor.name.to_string(), tensor.shape.clone());
        let answer = call("decide", (object, name, tensor.dtype.torch_name(), shape, trainable))?;
        let names: [String; 3] = Python::attach(|py| answer.extract(py).map_err(|e| said(py, &e)))?;
        let dtype = |name: &String| DType::from_spelling(name).ok_or_else(|| format!("no such dtype: {name}"));
        Ok(Precision::new(dtype(&names[0])?, dtype(&names[1])?, dtype(&names[2])?))
    }
}

impl PrecisionPolicy for Policy {
    #[expect(clippy::panic, reason = "a policy is total: planning catches the panic and reports its text")]
    fn decide(&self, tensor: &TensorMeta, trainable: bool) -> Precision {
        match self.asked(tensor, trainable) {
            Ok(precision) => precision,
            Err(what) => panic!("precision policy '{}': {what}", self.name),
        }
    }
}

macro_rules! entries {
    ($entry:ty, $policy:literal, $place:expr; $($n:literal)*) => { [$(<$entry>::of::<Section<$policy, $n>>($place)),*] };
}

/// What is linked, and what Python registered.
pub fn registry() -> PyResult<Registry> {
    all().map_err(|d| errors::raise("ConfigError", &d.message))
}

/// As [`registry`], for the command line.
pub fn all() -> Result<Registry, Diagnostic> {
    let linked = Registry::linked()?;
    let place = |(file, line): (&'static str, u32)| Place::new("python", env!("CARGO_PKG_VERSION"), shardwright::core::VERSION, file, line);
    let nowhere = place(("", 0));
    let strategies: [StrategyEntry; SLOTS] = entries!(StrategyEntry, false, nowhere; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    let policies: [PolicyEntry; SLOTS] = entries!(PolicyEntry, true, nowhere; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    let own = |(mut entry, slot): (StrategyEntry, &Registered)| {
        (entry.name, entry.summary, entry.place) = (slot.name, slot.summary, place(slot.place));
        entry
    };
    let own_policy = |(mut entry, slot): (PolicyEntry, &Registered)| {
        (entry.name, entry.summary, entry.place) = (slot.name, slot.summary, place(slot.place));
        entry
    };
    let strategies: Vec<_> = strategies.into_iter().zip(locked(&STRATEGIES).iter()).map(own).collect();
    let policies: Vec<_> = policies.into_iter().zip(locked(&POLICIES).iter()).map(own_policy).collect();
    let all = linked.strategies().iter().copied().chain(strategies);
    Registry::new(all, linked.policies().iter().copied().chain(policies))
}

fn leaked(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

/// Registers a class. `options` is a JSON object of names and defaults, `schema` the JSON Schema of the section. A name that is registered
/// already is registered anew.
#[pyfunction]
#[pyo3(signature = (kind, name, summary, factory, options, schema, file, line))]
#[expect(clippy::too_many_arguments, reason = "called by shardwright._plugin alone")]
pub fn register(
    kind: &str,
    name: String,
    summary: String,
    factory: Py<PyAny>,
    options: &str,
    schema: &str,
    file: String,
    line: u32,
) -> PyResult<()> {
    let wrong = |e: serde_json::Error| errors::raise("ConfigError", &format!("'{name}': an option's default is not plain data: {e}"));
    let defaults: Map<String, Json> = serde_json::from_str(options).map_err(wrong)?;
    let schema: Json = serde_json::from_str(schema).map_err(wrong)?;
    let names: Vec<&'static str> = defaults.keys().map(|k| leaked(k.clone())).collect();
    let slots = if kind == "policy" { &POLICIES } else { &STRATEGIES };
    let undo = {
        let mut slots = locked(slots);
        let at = slots.iter().position(|r| r.name == name);
        if at.is_none() && slots.len() == SLOTS {
            return Err(errors::raise("ConfigError", &format!("'{name}': a process may register {SLOTS} classes of a kind at most")));
        }
        let summary = leaked(summary);
        let place = (leaked(file), line);
        let made =
            Registered { name: leaked(name), summary, place, factory, defaults, options: Box::leak(names.into_boxed_slice()), schema };
        match at {
            Some(at) => {
                slots[at] = made;
                false
            }
            None => {
                slots.push(made);
                true
            }
        }
    };
    let checked = registry();
    if checked.is_err() && undo {
        // Dropped after the lock is released: a class's own code may run.
        let gone = locked(slots).pop();
        drop(gone);
    }
    checked.map(drop)
}

/// A placement, as data: "replicated", "chunked" (with a dim), "flat" or "owned" (with a coordinate), over an axis of the mesh or all ranks.
#[pyfunction]
#[pyo3(signature = (kind, mesh, shape, axis = None, number = 0))]
pub fn placement(kind: &str, mesh: &str, shape: Vec<u64>, axis: Option<&str>, number: u32) -> PyResult<String> {
    let wrong = |what: String| errors::raise("PlanError", &what);
    let mesh: Mesh = serde_json::from_str(mesh).map_err(|e| wrong(e.to_string()))?;
    let axis = match axis {
        None => mesh.all_ranks(),
        Some(name) => mesh.axis(name).ok_or_else(|| {
            let there: Vec<_> = mesh.axes().iter().map(|a| a.name.clone()).collect();
            wrong(format!("the mesh has no axis '{name}', it has {}", there.join(", ")))
        })?,
    };
    let made = match kind {
        "replicated" => Ok(Placement::replicated()),
        "chunked" => Placement::chunked(axis, &shape, number as usize),
        "flat" => Placement::flat(axis, &shape),
        "owned" if number < axis.size => Ok(Placement::owned(axis, number)),
        "owned" => Err(format!("there is no coordinate {number} on an axis of {} ranks", axis.size)),
        _ => Err(format!("no such placement: {kind}")),
    };
    Ok(json!(made.map_err(wrong)?).to_string())
}

/// Runs the conformance kit over a strategy's object. The answer says what was planned; a violation is raised.
#[pyfunction]
pub fn check_strategy(py: Python<'_>, name: String, object: Py<PyAny>) -> PyResult<String> {
    let done = py.detach(|| {
        let build = |_: &str, _: &Mesh| {
            let object = Python::attach(|py| object.clone_ref(py));
            Ok(Box::new(Strategy { object, name: name.clone() }) as Box<dyn ShardStrategy>)
        };
        StrategyKit::new(name.clone(), build)
            .loader(&ThroughEngine)
            .run()
            .map(|summary| format!("{} plans of {} tensors", summary.plans, summary.tensors))
    });
    done.map_err(|violation| errors::raise("PlanError", &violation.to_string()))
}

/// Runs the conformance kit over a precision policy's object.
#[pyfunction]
pub fn check_policy(py: Python<'_>, name: String, object: Py<PyAny>) -> PyResult<()> {
    let done = py.detach(|| {
        let build = |_: &str| {
            let object = Python::attach(|py| object.clone_ref(py));
            Ok(Box::new(Policy { object, name: name.clone() }) as Box<dyn PrecisionPolicy>)
        };
        PolicyKit::new(name.clone(), build).run()
    });
    done.map_err(|violation| errors::raise("PlanError", &violation.to_string()))
}
