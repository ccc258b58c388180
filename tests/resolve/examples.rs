//! Configs of the shapes that LLaMA-Factory's and accelerate's public examples and wizard have, written anew from their field names,
//! against what those engines themselves make of them: `engines.py` runs them and records `engines.json`.

use std::{fs, path::Path};

use serde_json::Value as Json;

use crate::{Case, values};

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/resolve/examples")
}

fn example(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap()
}

fn recorded() -> Vec<Json> {
    let recorded: Json = serde_json::from_str(include_str!("engines.json")).unwrap();
    recorded["rows"].as_array().unwrap().clone()
}

fn case(row: &Json) -> Case {
    let mut case = Case::new(example(row["file"].as_str().unwrap()));
    case.deepspeed = row["deepspeed"].as_str().map(example);
    case.world = row["world"].as_u64().map(|w| u32::try_from(w).unwrap());
    for (key, value) in row["overrides"].as_object().into_iter().flatten() {
        case = case.with(&format!("{key}={value}"));
    }
    if row["engine"] == "accelerate" {
        // The recording's data loader has batches of one.
        case = case.with("micro_batch_size=1");
    }
    case
}

/// What is not as the engine says.
struct Wrong<'a> {
    document: &'a Json,
    found: Vec<String>,
}

impl Wrong<'_> {
    fn same(&mut self, pointer: &str, want: &Json) {
        let found = self.document.pointer(pointer).unwrap_or(&Json::Null);
        let as_number = |v: &Json| v.as_f64();
        if found != want && (as_number(found).is_none() || as_number(found) != as_number(want)) {
            self.found.push(format!("{pointer} is {found}, should be {want}"));
        }
    }

    /// Every leaf of `want` but null, which the engines have where a section is left out.
    fn tree(&mut self, pointer: &str, want: &Json) {
        match want {
            Json::Object(map) => map.iter().for_each(|(key, want)| self.tree(&format!("{pointer}/{key}"), want)),
            Json::Null if self.document.pointer(pointer).is_some_and(Json::is_object) => {}
            _ => self.same(pointer, want),
        }
    }

    fn storage(&mut self, want: &Json) {
        // The recorded model is kept in bfloat16.
        let storage = &self.document["precision"]["storage"];
        for kind in ["trainable", "frozen"] {
            let word = storage.get(kind).unwrap_or(storage).as_str().unwrap();
            let found = if word == "checkpoint" { "bfloat16" } else { word };
            if let Some(want) = want[kind].get(0).filter(|want| *want != found) {
                self.found.push(format!("storage of {kind} parameters is {found}, should be {want}"));
            }
        }
    }

    fn zero(&mut self, want: &Json) {
        for (key, want) in want.as_object().unwrap() {
            // The models' field names are the bare ones; fields of old spellings are always null or false there.
            let pointer = format!("/deepspeed/zero_optimization/{key}");
            let long = format!("/deepspeed/zero_optimization/stage3_{key}");
            if self.document.pointer(&pointer).is_some() {
                self.tree(&pointer, want);
            } else if self.document.pointer(&long).is_some() {
                self.tree(&long, want);
            } else if !(key.starts_with("cpu_offload") || key.contains("fp16")) {
                self.found.push(format!("{key} is not there"));
            }
        }
    }

    fn deepspeed(&mut self, want: &Json) {
        assert_eq!(want["left_auto"], Json::Array(Vec::new()));
        self.zero(&want["zero_optimization"]);
        for section in ["bf16", "fp16"] {
            self.tree(&format!("/deepspeed/{section}"), &want[section]);
        }
        self.same("/deepspeed/gradient_clipping", &want["gradient_clipping"]);
        self.tree("/batch", &want["batch"]);
        let strategy = if want["zero_optimization"]["stage"] == 3 { "zero3" } else { "replicate" };
        self.same("/strategy/name", &strategy.into());
        let of = |section: &str| want[section]["enabled"] == true;
        let dtype = if of("bf16") {
            "bfloat16"
        } else if of("fp16") {
            "float16"
        } else {
            "float32"
        };
        for what in ["storage", "compute"] {
            self.same(&format!("/precision/{what}"), &dtype.into());
        }
    }
}

pub(crate) fn differences(row: &Json, document: &Json) -> Vec<String> {
    let answer = &row["answer"];
    let mut wrong = Wrong { document, found: Vec::new() };
    wrong.tree("/training", answer.get("args").unwrap_or(&Json::Null));
    for key in ["mesh", "batch"] {
        if let Some(want) = answer.get(key) {
            wrong.tree(&format!("/{key}"), want);
        }
    }
    if let Some(want) = answer.get("num_processes") {
        wrong.same("/mesh/world_size", want);
    }
    if let Some(want) = answer.get("parallelism") {
        wrong.same("/mesh/mp_replicate", &want["dp_replicate"]);
        let sharded = want["dp_shard"].as_u64().unwrap_or(1) * want["cp"].as_u64().unwrap_or(1);
        wrong.same("/mesh/mp_shard", &sharded.into());
    }
    if let Some(want) = answer.get("storage") {
        wrong.storage(want);
    }
    if let Some(config) = answer.get("config") {
        wrong.same("/strategy/name", &"fsdp2".into());
        wrong.tree("/strategy/config", config);
    }
    for (what, want) in answer["policy"].as_object().into_iter().flatten().filter(|(_, want)| !want.is_null()) {
        wrong.same(&format!("/precision/{what}"), want);
    }
    if let Some(deepspeed) = answer.get("deepspeed") {
        wrong.deepspeed(deepspeed);
    }
    wrong.found
}

/// Engines that LLaMA-Factory and accelerate have and this project has not; what is said then is in `invalid`.
fn is_other_engine(row: &Json) -> bool {
    let answer = &row["answer"];
    let slices_layers = row["deepspeed"] == "ds_z2_autotp.json";
    slices_layers || answer["strategy"] == "fsdpturbo" || answer["fsdp_version"] == 1 || answer["parallelism"]["tp"].as_u64() > Some(1)
}

#[test]
fn examples_resolve_as_their_engines_run_them() {
    let mut wrong = Vec::new();
    for row in recorded() {
        let (case, name) = (case(&row), format!("{} {} on {}", row["file"], row["deepspeed"], row["world"]));
        let outcome = case.outcome();
        if row["answer"].get("error").is_some() || is_other_engine(&row) {
            if !outcome.has_errors() {
                wrong.push(format!("{name}: should be refused: {}", row["answer"]["error"]));
            }
            continue;
        }
        if outcome.has_errors() {
            wrong.push(format!("{name}: {:?}", outcome.diagnostics.iter().map(|d| (d.code, &d.message)).collect::<Vec<_>>()));
            continue;
        }
        let document = outcome.to_json();
        wrong.extend(differences(&row, &document).into_iter().map(|what| format!("{name}: {what}")));
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn what_freeze_trains_is_what_llamafactory_trains() {
    let mut seen = 0;
    for row in recorded().iter().filter(|r| r["answer"].get("trainable").is_some()) {
        let resolved = case(row).outcome().resolved.unwrap();
        for (key, want) in [("trainable", true), ("frozen", false)] {
            for name in row["answer"][key].as_array().unwrap() {
                assert_eq!(resolved.trainable.contains(name.as_str().unwrap()), want, "{} {name}", row["file"]);
                seen += 1;
            }
        }
    }
    assert!(seen > 80, "{seen}");
}

#[test]
fn resolved_examples_resolve_to_themselves() {
    for row in recorded() {
        let case = case(&row);
        let outcome = case.outcome();
        if outcome.has_errors() {
            continue;
        }
        let document = values(outcome.to_json());
        let again = Case { deepspeed: None, overrides: Vec::new(), yaml: document.to_string(), ..case };
        assert_eq!(values(again.document()), document, "{} {}", row["file"], row["deepspeed"]);
    }
}

#[test]
fn every_example_is_recorded() {
    let rows = recorded();
    for entry in fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(rows.iter().any(|r| r["file"] == *name || r["deepspeed"] == *name), "{name} is not recorded: see engines.py");
    }
}
