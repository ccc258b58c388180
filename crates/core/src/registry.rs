//! What is linked: strategies and precision policies, found through `inventory`. A crate registers with [`register_strategy!`] or
//! [`register_precision!`]; it is found only if the binary names it (`use acme_strategy as _;`), or the linker drops it.
//!
//! [`register_strategy!`]: crate::register_strategy
//! [`register_precision!`]: crate::register_precision

use std::{fmt, sync::OnceLock};

use schemars::{JsonSchema, Schema};
use serde_json::Value as Json;

use crate::{
    diagnostic::Diagnostic,
    strategy_config::{BuildContext, Built, BuiltPolicy, PolicyConfig, PolicyContext, StrategyConfig},
    suggest::nearest,
    text::short,
    tree::{Node, from_node},
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
        $crate::registry::Place::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"), $crate::VERSION, file!(), line!())
    };
}

/// Where an entry was registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
    /// For the registering macros.
    #[doc(hidden)]
    pub const fn new(package: &'static str, version: &'static str, core: &'static str, file: &'static str, line: u32) -> Self {
        Self { package, version, core, file, line }
    }

    fn is_built_in(&self) -> bool {
        self.package == "shardwright" || self.package.starts_with("shardwright-")
    }
}

/// A parsed section of a strategy; every [`StrategyConfig`] is one. What resolves a YAML sees it, its author does not.
#[doc(hidden)]
pub trait ErasedConfig {
    fn files(&self) -> Vec<String>;
    fn to_json(&self) -> Json;
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

/// A parsed section of a precision policy; every [`PolicyConfig`] is one.
#[doc(hidden)]
pub trait ErasedPolicyConfig {
    fn to_json(&self) -> Json;
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

/// Reads a section, which the user calls by the second argument.
type Parse<C> = fn(&Node, &str) -> Result<Box<C>, Vec<Diagnostic>>;

/// Something that a YAML can name: `C` is what its section becomes.
#[non_exhaustive]
pub struct Entry<C: ?Sized> {
    /// What the YAML names.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Where it was registered.
    pub place: Place,
    parse: Parse<C>,
    schema: fn() -> Schema,
    defaults: fn() -> Json,
    example: fn() -> Json,
}

/// A registered strategy.
pub type StrategyEntry = Entry<dyn ErasedConfig>;
/// A registered precision policy.
pub type PolicyEntry = Entry<dyn ErasedPolicyConfig>;

impl StrategyEntry {
    /// The entry of a config type, for the registering macros.
    #[doc(hidden)]
    pub const fn of<T: StrategyConfig>(place: Place) -> Self {
        let parse = |node: &Node, path: &str| from_node::<T>(node, path).map(|config| Box::new(config) as _);
        Self::new::<T>(T::NAME, T::SUMMARY, place, parse, || to_json(&T::example()))
    }
}

impl PolicyEntry {
    /// The entry of a config type, for the registering macros.
    #[doc(hidden)]
    pub const fn of<T: PolicyConfig>(place: Place) -> Self {
        let parse = |node: &Node, path: &str| from_node::<T>(node, path).map(|config| Box::new(config) as _);
        Self::new::<T>(T::NAME, T::SUMMARY, place, parse, || to_json(&T::example()))
    }
}

impl<C: ?Sized> Entry<C> {
    const fn new<T: serde::Serialize + Default + JsonSchema>(
        name: &'static str,
        summary: &'static str,
        place: Place,
        parse: Parse<C>,
        example: fn() -> Json,
    ) -> Self {
        Self { name, summary, place, parse, schema: || schemars::schema_for!(T), defaults: || to_json(&T::default()), example }
    }

    /// Reads its section, without `name`; `path` is what the user calls the section.
    ///
    /// # Errors
    /// Everything that is wrong with the section.
    #[doc(hidden)]
    pub fn parse(&self, section: &Node, path: &str) -> Result<Box<C>, Vec<Diagnostic>> {
        (self.parse)(section, path)
    }

    /// The JSON Schema of its section, without `name`.
    pub fn schema(&self) -> Schema {
        (self.schema)()
    }

    /// Every key with its default.
    pub fn defaults(&self) -> Json {
        (self.defaults)()
    }

    /// A section to paste.
    pub fn example(&self) -> Json {
        (self.example)()
    }
}

impl<C: ?Sized> Clone for Entry<C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C: ?Sized> Copy for Entry<C> {}

impl<C: ?Sized> fmt::Debug for Entry<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("name", &self.name).field("place", &self.place).finish_non_exhaustive()
    }
}

inventory::collect!(StrategyEntry);
inventory::collect!(PolicyEntry);

/// The name of the policy that decides where nothing else does.
#[doc(hidden)]
pub const DEFAULT_POLICY: &str = "mixed";

/// Everything that can be named in a YAML.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    strategies: Vec<StrategyEntry>,
    policies: Vec<PolicyEntry>,
    /// Made when they are first asked for: a schema takes longer than a resolution.
    keys: OnceLock<Vec<SectionKeys>>,
}

/// Every key of a strategy's section, as the path in it.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct SectionKeys {
    /// The strategy's name.
    pub strategy: &'static str,
    /// Paths with dots, a section before what is in it.
    pub paths: Vec<String>,
}

/// The paths of a schema's properties, those of a section after its own.
#[doc(hidden)]
pub fn property_paths(schema: &Json, prefix: &str, paths: &mut Vec<String>) {
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{prefix}{key}");
        let under = format!("{path}.");
        paths.push(path);
        property_paths(inner, &under, paths);
    }
}

const STRATEGY: &str = "strategy";
const POLICY: &str = "precision policy";

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
        Ok(Self { strategies: checked(STRATEGY, strategies)?, policies: checked(POLICY, policies)?, keys: OnceLock::new() })
    }

    /// The strategies, by name.
    pub fn strategies(&self) -> &[StrategyEntry] {
        &self.strategies
    }

    /// The keys of every strategy's section, in the order of [`Registry::strategies`].
    #[doc(hidden)]
    pub fn section_keys(&self) -> &[SectionKeys] {
        self.keys.get_or_init(|| {
            let of = |entry: &StrategyEntry| {
                let mut paths = Vec::new();
                property_paths(entry.schema().as_value(), "", &mut paths);
                SectionKeys { strategy: entry.name, paths }
            };
            self.strategies.iter().map(of).collect()
        })
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
        find(&self.strategies, name).map_err(|unknown| unknown.said("unknown-strategy", STRATEGY))
    }

    /// The precision policy of that name.
    ///
    /// # Errors
    /// What is linked, the nearest name, and how to link more.
    pub fn policy(&self, name: &str) -> Result<&PolicyEntry, Diagnostic> {
        find(&self.policies, name).map_err(|unknown| unknown.said("unknown-precision", POLICY))
    }
}

/// A name that nothing is registered under, and what there is.
struct Unknown<'a> {
    name: &'a str,
    linked: Vec<&'static str>,
}

fn find<'e, 'n, C: ?Sized>(entries: &'e [Entry<C>], name: &'n str) -> Result<&'e Entry<C>, Unknown<'n>> {
    entries.iter().find(|e| e.name == name).ok_or_else(|| Unknown { name, linked: entries.iter().map(|e| e.name).collect() })
}

impl Unknown<'_> {
    fn said(self, code: &'static str, what: &str) -> Diagnostic {
        let list = if self.linked.is_empty() { "none".to_owned() } else { self.linked.join(", ") };
        let link = "a third party's is linked by naming its crate in your binary: `use acme_strategy as _;`";
        let help = match nearest(self.name, self.linked) {
            Some(near) => format!("did you mean '{near}'? {link}"),
            None => link.to_owned(),
        };
        Diagnostic::error(code, format!("unknown {what} '{}', available: {list}", short(self.name))).help(help)
    }
}

/// Entries of one kind, sorted by name, if each may be there.
fn checked<C: ?Sized>(what: &str, entries: impl IntoIterator<Item = Entry<C>>) -> Result<Vec<Entry<C>>, Diagnostic> {
    let mut entries: Vec<_> = entries.into_iter().collect();
    entries.sort_by_key(|e| (e.name, e.place.package, e.place.file, e.place.line));
    check(what, entries.iter().map(|e| (e.name, e.place)))?;
    Ok(entries)
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
        StrategyEntry { name, ..StrategyEntry::of::<Acme>(Place::new(package, "1.2.3", core, "src/lib.rs", line)) }
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
        let node = crate::tree::yaml::parse(&source, &mut Vec::new()).unwrap();
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
    }

    /// Every way into a program goes through the registry, so that none runs with such an entry, strategy or policy.
    #[test]
    fn an_entry_of_another_core_version_is_seen_and_said() {
        let old = Registry::new([entry("a/b", "acme", "0.0.9", 7)], []).unwrap_err();
        assert_eq!(old.code, "registry-core-version");
        let this = crate::VERSION;
        assert_eq!(
            &*old.message,
            format!("the strategy 'a/b' of acme 1.2.3 (src/lib.rs:7) was built against core 0.0.9, this binary has core {this}")
        );
        let policy = PolicyEntry::of::<Acme>(Place::new("acme", "1.2.3", "99.0.0", "src/lib.rs", 9));
        let new = Registry::new([], [policy]).unwrap_err();
        assert!(new.message.starts_with("the precision policy 'acme/knobs' of acme 1.2.3 (src/lib.rs:9) was built against core 99.0.0"));
        // What the macros record is this core's.
        assert!(Registry::linked().unwrap().strategies().iter().all(|e| e.place.core == this));
    }

    impl PolicyConfig for Acme {
        const NAME: &'static str = "acme/knobs";
        const SUMMARY: &'static str = "knobs";
        fn build(self, cx: &mut PolicyContext<'_>) -> Result<BuiltPolicy, Diagnostic> {
            cx.base.take().ok_or_else(|| Diagnostic::error("acme", "nothing to fall through to"))
        }
    }

    #[test]
    fn an_unknown_name_lists_what_is_linked_and_how_to_link_more() {
        let registry = Registry::new([entry("a/b", "acme", crate::VERSION, 1)], []).unwrap();
        let error = registry.strategy("a/c").unwrap_err();
        assert!(error.message.contains("available: a/b"), "{}", error.message);
        let help = error.help.unwrap();
        assert!(help.contains("did you mean 'a/b'") && help.contains("use acme_strategy as _;"), "{help}");
    }
}
