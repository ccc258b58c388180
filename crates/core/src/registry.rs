//! What is linked: strategies and precision policies, found through `inventory`. A crate registers with [`register_strategy!`] or
//! [`register_precision!`]; it is found only if the binary names it (`use acme_strategy as _;`), or the linker drops it.
//!
//! [`register_strategy!`]: crate::register_strategy
//! [`register_precision!`]: crate::register_precision

use std::fmt;

use schemars::Schema;
use serde_json::Value as Json;

use crate::{
    config::{from_node, node::Node},
    diagnostic::Diagnostic,
    strategy_config::{BuildContext, Built, BuiltPolicy, PolicyConfig, PolicyContext, StrategyConfig},
    suggest::nearest,
};

/// Registers a [`StrategyConfig`] type under its `NAME`.
#[macro_export]
macro_rules! register_strategy {
    ($config:ty) => {
        $crate::inventory::submit! { $crate::registry::StrategyEntry::of::<$config>($crate::registration_place!()) }
    };
}

/// Registers a [`PolicyConfig`] type under its `NAME`.
#[macro_export]
macro_rules! register_precision {
    ($config:ty) => {
        $crate::inventory::submit! { $crate::registry::PolicyEntry::of::<$config>($crate::registration_place!()) }
    };
}

/// Where a macro is used, for the registering macros.
#[doc(hidden)]
#[macro_export]
macro_rules! registration_place {
    () => {
        $crate::registry::Place {
            package: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
            core: $crate::VERSION,
            file: file!(),
            line: line!(),
        }
    };
}

/// Where an entry was registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The crate's name.
    pub package: &'static str,
    /// The crate's version.
    pub version: &'static str,
    /// The version of core that it was built against.
    pub core: &'static str,
    /// The source file.
    pub file: &'static str,
    /// The source line.
    pub line: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({}:{})", self.package, self.version, self.file, self.line)
    }
}

impl Place {
    fn is_built_in(&self) -> bool {
        self.package == "shardwright" || self.package.starts_with("shardwright-")
    }
}

/// A parsed section of a strategy.
pub trait ErasedConfig {
    /// As [`StrategyConfig::files`].
    fn files(&self) -> Vec<String>;
    /// Every key with its value.
    fn to_json(&self) -> Json;
    /// As [`StrategyConfig::build`].
    ///
    /// # Errors
    /// As there.
    fn build(self: Box<Self>, cx: &mut BuildContext<'_>) -> Result<Built, Diagnostic>;
}

impl<T: StrategyConfig> ErasedConfig for T {
    fn files(&self) -> Vec<String> {
        StrategyConfig::files(self)
    }

    fn to_json(&self) -> Json {
        to_json(self)
    }

    fn build(self: Box<Self>, cx: &mut BuildContext<'_>) -> Result<Built, Diagnostic> {
        StrategyConfig::build(*self, cx)
    }
}

/// A parsed section of a precision policy.
pub trait ErasedPolicyConfig {
    /// Every key with its value.
    fn to_json(&self) -> Json;
    /// As [`PolicyConfig::build`].
    ///
    /// # Errors
    /// As there.
    fn build(self: Box<Self>, cx: &mut PolicyContext<'_>) -> Result<BuiltPolicy, Diagnostic>;
}

impl<T: PolicyConfig> ErasedPolicyConfig for T {
    fn to_json(&self) -> Json {
        to_json(self)
    }

    fn build(self: Box<Self>, cx: &mut PolicyContext<'_>) -> Result<BuiltPolicy, Diagnostic> {
        PolicyConfig::build(*self, cx)
    }
}

fn to_json<T: serde::Serialize>(value: &T) -> Json {
    serde_json::to_value(value).unwrap_or(Json::Null)
}

/// Reads a section; `name` is taken out before.
type Parse<T> = fn(&Node, &str) -> Result<Box<T>, Vec<Diagnostic>>;

/// A registered strategy.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct StrategyEntry {
    /// What the YAML names.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Where it was registered.
    pub place: Place,
    /// Reads its section, without `name`; the second argument is what the user calls the section.
    pub parse: Parse<dyn ErasedConfig>,
    /// The JSON Schema of its section, without `name`.
    pub schema: fn() -> Schema,
    /// Every key with its default.
    pub defaults: fn() -> Json,
    /// A section to paste.
    pub example: fn() -> Json,
}

/// A registered precision policy.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct PolicyEntry {
    /// What the YAML names.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Where it was registered.
    pub place: Place,
    /// Reads its section, without `name`; the second argument is what the user calls the section.
    pub parse: Parse<dyn ErasedPolicyConfig>,
    /// The JSON Schema of its section, without `name`.
    pub schema: fn() -> Schema,
    /// Every key with its default.
    pub defaults: fn() -> Json,
    /// A section to paste.
    pub example: fn() -> Json,
}

impl StrategyEntry {
    /// The entry of a config type.
    pub const fn of<T: StrategyConfig>(place: Place) -> Self {
        Self {
            name: T::NAME,
            summary: T::SUMMARY,
            place,
            parse: |node, path| Ok(Box::new(from_node::<T>(node, path)?)),
            schema: || schemars::schema_for!(T),
            defaults: || to_json(&T::default()),
            example: || to_json(&T::example()),
        }
    }
}

impl PolicyEntry {
    /// The entry of a config type.
    pub const fn of<T: PolicyConfig>(place: Place) -> Self {
        Self {
            name: T::NAME,
            summary: T::SUMMARY,
            place,
            parse: |node, path| Ok(Box::new(from_node::<T>(node, path)?)),
            schema: || schemars::schema_for!(T),
            defaults: || to_json(&T::default()),
            example: || to_json(&T::example()),
        }
    }
}

inventory::collect!(StrategyEntry);
inventory::collect!(PolicyEntry);

/// Everything that can be named in a YAML.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    strategies: Vec<StrategyEntry>,
    policies: Vec<PolicyEntry>,
}

impl Registry {
    /// What is linked into this binary.
    ///
    /// # Errors
    /// As [`Registry::new`].
    pub fn linked() -> Result<Self, Diagnostic> {
        Self::new(inventory::iter::<StrategyEntry>.into_iter().copied(), inventory::iter::<PolicyEntry>.into_iter().copied())
    }

    /// A registry of these entries, sorted by name.
    ///
    /// # Errors
    /// A name registered twice, with both crates, versions and source lines; a bare name from outside of the built-ins; an entry that was
    /// built against another version of core.
    pub fn new(
        strategies: impl IntoIterator<Item = StrategyEntry>,
        policies: impl IntoIterator<Item = PolicyEntry>,
    ) -> Result<Self, Diagnostic> {
        let mut strategies: Vec<_> = strategies.into_iter().collect();
        let mut policies: Vec<_> = policies.into_iter().collect();
        strategies.sort_by_key(|e| (e.name, e.place.package, e.place.file, e.place.line));
        policies.sort_by_key(|e| (e.name, e.place.package, e.place.file, e.place.line));
        check("strategy", strategies.iter().map(|e| (e.name, e.place)))?;
        check("precision policy", policies.iter().map(|e| (e.name, e.place)))?;
        Ok(Self { strategies, policies })
    }

    /// The strategies, by name.
    pub fn strategies(&self) -> &[StrategyEntry] {
        &self.strategies
    }

    /// The precision policies, by name.
    pub fn policies(&self) -> &[PolicyEntry] {
        &self.policies
    }

    /// The strategy of that name.
    ///
    /// # Errors
    /// What is linked, the nearest name, and how to link more.
    pub fn strategy(&self, name: &str) -> Result<&StrategyEntry, Diagnostic> {
        let found = self.strategies.iter().find(|e| e.name == name);
        found.ok_or_else(|| unknown("unknown-strategy", "strategy", name, self.strategies.iter().map(|e| e.name)))
    }

    /// The precision policy of that name.
    ///
    /// # Errors
    /// What is linked, the nearest name, and how to link more.
    pub fn policy(&self, name: &str) -> Result<&PolicyEntry, Diagnostic> {
        let found = self.policies.iter().find(|e| e.name == name);
        found.ok_or_else(|| unknown("unknown-precision", "precision policy", name, self.policies.iter().map(|e| e.name)))
    }
}

fn unknown<'a>(code: &'static str, what: &str, name: &str, linked: impl Iterator<Item = &'a str> + Clone) -> Diagnostic {
    let list = linked.clone().collect::<Vec<_>>().join(", ");
    let link = "a third party's is linked by naming its crate in your binary: `use acme_strategy as _;`";
    let help = match nearest(name, linked) {
        Some(near) => format!("did you mean '{near}'? {link}"),
        None => link.to_owned(),
    };
    let name = crate::config::node::short(name);
    Diagnostic::error(code, format!("unknown {what} '{name}', linked are: {}", if list.is_empty() { "none" } else { &list })).help(help)
}

/// The entries of one kind, sorted by name.
fn check(what: &str, entries: impl Iterator<Item = (&'static str, Place)>) -> Result<(), Diagnostic> {
    let mut last: Option<(&str, Place)> = None;
    for (name, place) in entries {
        if place.core != crate::VERSION {
            let message =
                format!("the {what} '{name}' of {place} was built against core {}, this binary has core {}", place.core, crate::VERSION);
            return Err(Diagnostic::error("registry-core-version", message));
        }
        if !valid_name(name, &place) {
            let message =
                format!("the {what} '{name}' of {place} needs a name of the form vendor/name; bare names belong to the built-ins");
            return Err(Diagnostic::error("registry-name", message));
        }
        if let Some((_, first)) = last.filter(|(n, _)| *n == name) {
            let message = format!("the {what} '{name}' is registered twice: by {first} and by {place}");
            return Err(Diagnostic::error("registry-twice", message).help("link only one of the two crates"));
        }
        last = Some((name, place));
    }
    Ok(())
}

fn valid_name(name: &str, place: &Place) -> bool {
    let word = |w: &str| !w.is_empty() && w.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
    match name.split_once('/') {
        Some((vendor, rest)) => word(vendor) && word(rest),
        None => place.is_built_in() && word(name),
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::{Mesh, replicate::Replicate};

    #[derive(Default, Serialize, Deserialize, schemars::JsonSchema)]
    #[serde(default, deny_unknown_fields)]
    struct Acme {
        /// A knob.
        knob: u32,
    }

    impl StrategyConfig for Acme {
        const NAME: &'static str = "acme/knobs";
        const SUMMARY: &'static str = "knobs";
        fn build(self, _: &mut BuildContext<'_>) -> Result<Built, Diagnostic> {
            Ok(Built::new(Replicate))
        }
    }

    crate::register_strategy!(Acme);

    fn entry(name: &'static str, package: &'static str, core: &'static str, line: u32) -> StrategyEntry {
        StrategyEntry { name, ..StrategyEntry::of::<Acme>(Place { package, version: "1.2.3", core, file: "src/lib.rs", line }) }
    }

    fn refused(entries: impl IntoIterator<Item = StrategyEntry>) -> Box<str> {
        Registry::new(entries, []).unwrap_err().message
    }

    #[test]
    fn a_registered_config_is_found_and_parsed_strictly() {
        let registry = Registry::linked().unwrap();
        let entry = registry.strategy("acme/knobs").unwrap();
        assert_eq!((entry.place.package, entry.place.core), ("shardwright-core", crate::VERSION));
        assert_eq!((entry.defaults)(), serde_json::json!({"knob": 0}));
        let source = crate::diagnostic::Source::new("train.yaml", "knob: 3\nknop: 4\nx: 1\n");
        let node = crate::config::yaml::parse(&source, &mut Vec::new()).unwrap();
        let errors = (entry.parse)(&node, "dist_config").err().unwrap();
        assert_eq!(errors.len(), 2, "all that is wrong is said at once");
        assert_eq!((errors[0].at.as_ref().unwrap().line, errors[0].help.as_deref()), (2, Some("did you mean 'knob'?")));
        assert_eq!((entry.parse)(&node.without("knop").without("x"), "").ok().unwrap().to_json(), serde_json::json!({"knob": 3}));
        let _ = Mesh::replicate_shard(1, 1);
    }

    #[test]
    fn what_must_not_be_registered_is_refused_with_both_places() {
        let core = crate::VERSION;
        let twice = refused([entry("a/b", "one", core, 7), entry("a/b", "two", core, 9)]);
        assert!(twice.contains("one 1.2.3 (src/lib.rs:7)") && twice.contains("two 1.2.3 (src/lib.rs:9)"), "{twice}");
        assert!(refused([entry("bare", "acme", core, 1)]).contains("vendor/name"));
        assert!(Registry::new([entry("bare", "shardwright-fsdp2", core, 1)], []).is_ok());
        assert!(refused([entry("a/b", "acme", "0.0.9", 1)]).contains("built against core 0.0.9"));
    }

    #[test]
    fn an_unknown_name_lists_what_is_linked_and_how_to_link_more() {
        let registry = Registry::new([entry("a/b", "acme", crate::VERSION, 1)], []).unwrap();
        let error = registry.strategy("a/c").unwrap_err();
        assert!(error.message.contains("linked are: a/b"), "{}", error.message);
        let help = error.help.unwrap();
        assert!(help.contains("did you mean 'a/b'") && help.contains("use acme_strategy as _;"), "{help}");
    }
}
