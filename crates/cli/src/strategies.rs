//! `shardwright strategies`: what is linked, and how a section of it is written.

use serde_json::{Value as Json, json};
use shardwright_core::{
    VERSION,
    reference::{KeyReference, SectionReference},
    registry::{Place, Registry},
};

use crate::{
    args::{Format, StrategiesArgs},
    exit::{Exit, Failure},
    output::print,
    render,
    table::{self, Align},
};

/// Runs the command.
pub fn run(args: &StrategiesArgs) -> Result<Exit, Failure> {
    let registry = Registry::linked().map_err(|d| render::failure(&[d], &[]))?;
    let text = match (&args.name, args.format) {
        (None, Format::Table) => list(&registry),
        (None, Format::Json) => format!("{:#}\n", listed(&registry)),
        (Some(name), format) => {
            let entry = find(&registry, name).map_err(|d| render::failure(&[*d], &[]))?;
            if format == Format::Table { entry.text() } else { format!("{:#}\n", entry.json()) }
        }
    };
    print(&text)?;
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

fn find(registry: &Registry, name: &str) -> Result<Entry, Box<shardwright_core::diagnostic::Diagnostic>> {
    if let Some(e) = registry.policies().iter().find(|e| e.name == name) {
        return Ok(Entry { kind: "precision policy", name: e.name, summary: e.summary, place: e.place, reference: e.reference() });
    }
    let e = registry.strategy(name)?;
    Ok(Entry { kind: "strategy", name: e.name, summary: e.summary, place: e.place, reference: e.reference() })
}

fn rows(registry: &Registry) -> (Vec<Vec<String>>, Vec<Vec<String>>) {
    let row = |name: &str, place: &Place, summary: &str| [name, place.package, place.version, summary].map(str::to_owned).to_vec();
    (
        registry.strategies().iter().map(|e| row(e.name, &e.place, e.summary)).collect(),
        registry.policies().iter().map(|e| row(e.name, &e.place, e.summary)).collect(),
    )
}

fn list(registry: &Registry) -> String {
    let header = |first| [(first, Align::Left), ("crate", Align::Left), ("version", Align::Left), ("summary", Align::Left)];
    let (strategies, policies) = rows(registry);
    format!(
        "{}\n{}\nbuilt with shardwright-core {VERSION}; `shardwright strategies NAME` shows a section's keys\n",
        table::render(&header("strategy"), &strategies),
        table::render(&header("precision policy"), &policies),
    )
}

fn listed(registry: &Registry) -> Json {
    let entry = |name: &str, summary: &str, place: &Place| json!({"name": name, "summary": summary, "crate": place.package, "version": place.version, "core": place.core});
    let strategies: Vec<Json> = registry.strategies().iter().map(|e| entry(e.name, e.summary, &e.place)).collect();
    let policies: Vec<Json> = registry.policies().iter().map(|e| entry(e.name, e.summary, &e.place)).collect();
    json!({"core": VERSION, "strategies": strategies, "policies": policies})
}

impl Entry {
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
