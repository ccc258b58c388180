//! `shardwright strategies`: what is linked, and how a section of it is written.

use serde_json::{Value as Json, json};
use shardwright_config::reference::{self, KeyReference, SectionReference};
use shardwright_core::{
    VERSION,
    diagnostic::Diagnostic,
    registry::{self, Place, Registry},
};

use crate::{
    args::{Format, StrategiesArgs},
    exit::{Exit, Failure},
    output::{print, print_next},
    plugins::Plugins,
    render,
    table::{self, Align},
};

/// Runs the command.
pub fn run(args: &StrategiesArgs, plugins: Plugins) -> Result<Exit, Failure> {
    let registry = plugins().map_err(|d| render::failure(&[d], &[]))?;
    let text = match (&args.name, args.format) {
        (None, Format::Table) => list(&registry),
        (None, Format::Json) => format!("{:#}\n", listed(&registry)),
        (Some(name), format) => {
            let entry = find(&registry, name).map_err(|d| render::failure(&[*d], &[]))?;
            if format == Format::Table { entry.text() } else { format!("{:#}\n", entry.json()) }
        }
    };
    print(&text)?;
    match (&args.name, args.format) {
        (None, Format::Table) => print_next("shardwright strategies NAME shows a section's keys, with a YAML to paste"),
        (Some(_), Format::Table) => print_next("with the YAML in a config, shardwright resolve CONFIG shows what a run does with it"),
        (_, Format::Json) => {}
    }
    Ok(Exit::Done)
}

/// What a strategy's entry and a policy's have in common.
struct Entry {
    kind: &'static str,
    name: &'static str,
    summary: &'static str,
    place: Place,
    reference: SectionReference,
}

fn find(registry: &Registry, name: &str) -> Result<Entry, Box<Diagnostic>> {
    if let Some(policy) = registry.policies().iter().find(|e| e.name == name) {
        return Ok(Entry::new("precision policy", policy, reference::of_policy(policy)));
    }
    let strategy = registry.strategy(name)?;
    Ok(Entry::new("strategy", strategy, reference::of_strategy(strategy)))
}

fn rows<C: ?Sized>(entries: &[registry::Entry<C>]) -> Vec<Vec<String>> {
    entries.iter().map(|e| [e.name, e.place.package, e.place.version, e.summary].map(str::to_owned).to_vec()).collect()
}

fn list(registry: &Registry) -> String {
    let header = |first| [(first, Align::Left), ("crate", Align::Left), ("version", Align::Left), ("summary", Align::Left)];
    format!(
        "{}\n{}\nbuilt with shardwright-core {VERSION}\n",
        table::render(&header("strategy"), &rows(registry.strategies())),
        table::render(&header("precision policy"), &rows(registry.policies())),
    )
}

fn listed(registry: &Registry) -> Json {
    fn entries<C: ?Sized>(entries: &[registry::Entry<C>]) -> Vec<Json> {
        let entry = |e: &registry::Entry<C>| {
            let Place { package, version, core, .. } = e.place;
            json!({"name": e.name, "summary": e.summary, "crate": package, "version": version, "core": core})
        };
        entries.iter().map(entry).collect()
    }
    json!({"core": VERSION, "strategies": entries(registry.strategies()), "policies": entries(registry.policies())})
}

impl Entry {
    fn new<C: ?Sized>(kind: &'static str, entry: &registry::Entry<C>, reference: SectionReference) -> Self {
        Self { kind, name: entry.name, summary: entry.summary, place: entry.place, reference }
    }

    fn text(&self) -> String {
        let Self { kind, name, summary, place, reference } = self;
        let keys: String = reference.keys.iter().map(key).collect();
        let keys = if keys.is_empty() { "its section has no keys\n".to_owned() } else { keys };
        format!("{name}: {summary}\n{kind} of {place}, built against core {}\n\n{keys}\nto paste:\n\n{}", place.core, reference.paste)
    }

    fn json(&self) -> Json {
        let Self { kind, name, summary, place, reference } = self;
        let keys: Vec<Json> =
            reference.keys.iter().map(|k| json!({"key": k.path, "takes": k.takes, "default": k.default, "meaning": k.meaning})).collect();
        json!({
            "name": name, "kind": kind, "summary": summary, "crate": place.package, "version": place.version, "core": place.core,
            "keys": keys, "yaml": reference.paste,
        })
    }
}

/// A key, what it takes and its default in one line, its meaning below.
fn key(key: &KeyReference) -> String {
    const LONGEST: usize = 60;
    let default = match key.default.as_str() {
        "" => String::new(),
        long if long.chars().count() > LONGEST => format!(" [default: {}…]", long.chars().take(LONGEST).collect::<String>()),
        default => format!(" [default: {default}]"),
    };
    format!("{}: {}{default}\n    {}\n", key.path, key.takes, key.meaning)
}
