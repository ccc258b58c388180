//! `docs/reference/` is generated from the config types themselves: `UPDATE_DOCS=1 cargo test --test reference`. What it tells to paste
//! resolves, and the JSON Schema has a branch for everything that is linked.

use std::{collections::BTreeMap, fmt::Write, fs, path::PathBuf};

use serde_json::Value as Json;
use shardwright::{
    config::{
        Draft, Input, Supplied,
        reference::{self, KeyReference, SectionReference},
        schema::schema,
    },
    core::{
        diagnostic::{Severity, Source},
        registry::Registry,
        testkit::{Rule, Subjects},
    },
};

fn linked() -> Registry {
    use shardwright as _;
    Registry::linked().unwrap()
}

fn table(keys: &[KeyReference]) -> String {
    let cell = |text: &str| text.replace('|', "\\|").replace('<', "&lt;");
    let code = |text: &str| if text.is_empty() { String::new() } else { format!("`{}`", text.replace('|', "\\|")) };
    let mut page = "| key | takes | default | meaning |\n|---|---|---|---|\n".to_owned();
    for key in keys {
        writeln!(page, "| `{}` | {} | {} | {} |", key.path, cell(&key.takes), code(&key.default), cell(&key.meaning)).unwrap();
    }
    page
}

const GENERATED: &str = "<!-- generated: UPDATE_DOCS=1 cargo test --test reference -->\n\n";

const NEXT: &str = "Next: `shardwright resolve CONFIG` shows what is decided, and from where; [all pages](index.md).\n";

fn section(kind: &str, name: &str, summary: &str, package: &str, reference: &SectionReference) -> String {
    let keys = if reference.keys.is_empty() { "Its section has no keys.\n".to_owned() } else { table(&reference.keys) };
    format!("# `{name}`\n\n{GENERATED}{summary}\n\nA {kind} of `{package}`.\n\n{keys}\n```yaml\n{}```\n\n{NEXT}", reference.paste)
}

fn subjects(rule: Rule) -> &'static str {
    match rule.subjects() {
        Subjects::Strategies => "strategies",
        Subjects::Policies => "policies",
        Subjects::Both => "both",
    }
}

/// Every page by its file name.
fn pages() -> BTreeMap<String, String> {
    let registry = linked();
    let mut pages = BTreeMap::new();
    let mut index = format!("# Reference\n\n{GENERATED}- [the YAML](yaml.md), [its JSON Schema](shardwright.schema.json)\n");
    for e in registry.strategies() {
        pages.insert(format!("{}.md", e.name), section("strategy", e.name, e.summary, e.place.package, &reference::of_strategy(e)));
        writeln!(index, "- strategy [`{}`]({0}.md): {}", e.name, e.summary).unwrap();
    }
    for e in registry.policies() {
        pages.insert(format!("{}.md", e.name), section("precision policy", e.name, e.summary, e.place.package, &reference::of_policy(e)));
        writeln!(index, "- precision policy [`{}`]({0}.md): {}", e.name, e.summary).unwrap();
    }
    index.push_str(
        "- [the rules of the conformance kit](conformance-kit.md)\n\nNext: [write a strategy](../write-a-strategy.md) of your own.\n",
    );
    let rules: String = Rule::ALL.iter().map(|rule| format!("| `{rule}` | {} | {} |\n", subjects(*rule), rule.meaning())).collect();
    let rules = format!(
        "# The rules of the conformance kit\n\n{GENERATED}| rule | of | what it demands |\n|---|---|---|\n{rules}\nNext: [write a strategy](../write-a-strategy.md) and test it.\n"
    );
    let (flat, own) = (table(&reference::flat_keys()), table(&reference::settings()));
    let yaml = format!(
        "# The YAML\n\n{GENERATED}Keys of LLaMA-Factory v1, at top level:\n\n{flat}\nKeys of the section `shardwright`, beside `precision`:\n\n{own}\n{NEXT}"
    );
    pages.insert("index.md".into(), index);
    pages.insert("conformance-kit.md".into(), rules);
    pages.insert("yaml.md".into(), yaml);
    pages.insert("shardwright.schema.json".into(), format!("{:#}\n", schema(&registry)));
    pages
}

#[test]
fn the_reference_pages_are_what_the_types_say() {
    let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference"));
    let pages = pages();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::create_dir_all(&dir).unwrap();
        pages.iter().for_each(|(name, page)| fs::write(dir.join(name), page).unwrap());
    }
    let mut there: Vec<String> = fs::read_dir(&dir).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    there.sort();
    assert_eq!(
        there,
        pages.keys().cloned().collect::<Vec<_>>(),
        "docs/reference has other pages: UPDATE_DOCS=1 cargo test --test reference"
    );
    for (name, page) in pages {
        let written = fs::read_to_string(dir.join(&name)).unwrap();
        assert!(written == page, "docs/reference/{name} is out of date: UPDATE_DOCS=1 cargo test --test reference");
    }
}

#[test]
fn what_is_said_to_paste_resolves() {
    let registry = linked();
    let strategies = registry.strategies().iter().map(|e| reference::of_strategy(e).paste);
    let pastes = strategies.chain(registry.policies().iter().map(|e| reference::of_policy(e).paste));
    for paste in pastes {
        let input = Input { config: Source::new("pasted.yaml", paste.as_str()), overrides: Vec::new(), env: BTreeMap::new() };
        let deepspeed = Source::new("ds_zero3.json", r#"{"zero_optimization": {"stage": 3}}"#);
        let supplied = Supplied { files: [("ds_zero3.json".to_owned(), Ok(deepspeed))].into(), ..Supplied::default() };
        let outcome = Draft::parse(&input, &registry).resolve(&supplied, &registry);
        let errors: Vec<_> = outcome.diagnostics.iter().filter(|d| d.severity == Severity::Error).collect();
        assert!(errors.is_empty(), "{paste}\n{errors:#?}");
    }
}

/// Every `$ref` of a schema.
fn references<'s>(schema: &'s Json, all: &mut Vec<&'s str>) {
    match schema {
        Json::Object(map) => map.iter().for_each(|(key, value)| match value.as_str() {
            Some(target) if key == "$ref" => all.push(target),
            _ => references(value, all),
        }),
        Json::Array(items) => items.iter().for_each(|item| references(item, all)),
        _ => {}
    }
}

#[test]
fn the_schema_has_every_key_and_a_branch_for_everything_that_is_linked() {
    let registry = linked();
    let schema = schema(&registry);
    let names = |branches: &Json| -> Vec<String> {
        branches.as_array().unwrap().iter().filter_map(|b| b["properties"]["name"]["const"].as_str().map(str::to_owned)).collect()
    };
    let properties = &schema["$defs"]["llamafactory"]["properties"];
    assert_eq!(names(&properties["dist_config"]["anyOf"]), registry.strategies().iter().map(|e| e.name).collect::<Vec<_>>());
    let policies = &properties["shardwright"]["anyOf"][0]["properties"]["precision"]["anyOf"];
    assert_eq!(names(policies), registry.policies().iter().map(|e| e.name).collect::<Vec<_>>());
    for key in reference::flat_keys() {
        assert!(properties[&key.path]["description"].is_string(), "{}", key.path);
    }
    let mut targets = Vec::new();
    references(&schema, &mut targets);
    assert!(!targets.is_empty());
    for target in targets {
        let name = target.strip_prefix("#/$defs/").unwrap();
        assert!(schema["$defs"][name].is_object(), "{target} leads nowhere");
    }
}

#[test]
fn the_names_that_are_linked_are_these() {
    let registry = linked();
    assert_eq!(registry.strategies().iter().map(|e| e.name).collect::<Vec<_>>(), ["deepspeed", "fsdp2", "replicate", "zero3"]);
    assert_eq!(registry.policies().iter().map(|e| e.name).collect::<Vec<_>>(), ["mixed", "pins", "uniform"]);
}
