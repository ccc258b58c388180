//! Some hundreds of configs, made key by key, against what LLaMA-Factory v1, accelerate and DeepSpeed make of them: `engines_matrix.py` runs
//! them and records `engines_matrix.json`. Every row agrees, or is listed below with the reason.

use serde_json::Value as Json;

use crate::{Case, examples::differences};

fn recorded() -> Vec<Json> {
    let recorded: Json = serde_json::from_str(include_str!("engines_matrix.json")).unwrap();
    recorded["rows"].as_array().unwrap().clone()
}

/// Tells a row by its YAML, its DeepSpeed file, and what that file holds.
type Matches = fn(&str, &str, &Json) -> bool;

/// Rows whose answer is another than the engines', and why.
const KNOWN: &[(&str, Matches)] = &[
    ("comments are a warning: DeepSpeed's own launcher reads such files", |_, text, _| text.starts_with("//")),
    ("a clipping norm in quotes is shown as the number that it is", |_, _, file| file["gradient_clipping"] == "1.0"),
    ("tensor parallelism runs and is not laid out", |yaml, _, _| yaml.contains("tp_size: 2")),
    ("FSDP version 1 runs and is not laid out", |yaml, _, _| {
        let two = ["version: 2", "version: '2'"].iter().any(|v| yaml.contains(v)) && !yaml.contains("version: 2, version: 1");
        yaml.contains("distributed_type: FSDP") && !two
    }),
];

#[test]
fn every_row_is_as_the_engines_answer_it() {
    let rows = recorded();
    assert!(rows.len() > 300, "{}", rows.len());
    let mut wrong = Vec::new();
    let mut used = vec![false; KNOWN.len()];
    for row in &rows {
        let (yaml, text) = (row["yaml"].as_str().unwrap(), row["deepspeed"].as_str().unwrap_or_default());
        let mut case = Case::new(yaml);
        case.hidden_size = Some(64);
        case.deepspeed = row["deepspeed"].as_str().map(str::to_owned);
        case.world = row["world"].as_u64().map(|w| u32::try_from(w).unwrap());
        if row["engine"] == "accelerate" {
            case = case.with("micro_batch_size=1");
        }
        let outcome = case.outcome();
        let codes: Vec<&str> = outcome.diagnostics.iter().map(|d| d.code).collect();
        let found: Vec<String> = match (row["answer"]["error"].as_str(), outcome.has_errors()) {
            (Some(error), false) => vec![format!("is refused by the engines and not here ({codes:?}): {error}")],
            (None, true) => vec![format!("runs and is refused here: {codes:?}")],
            (Some(_), true) => Vec::new(),
            (None, false) => differences(row, &outcome.to_json()),
        };
        let file: Json = serde_json::from_str(text).unwrap_or(Json::Null);
        let known = KNOWN.iter().position(|(_, matches)| matches(yaml, text, &file));
        match known {
            Some(at) => used[at] |= !found.is_empty(),
            None if found.is_empty() => {}
            None => wrong.push(format!("{yaml} {text}: {}", found.join("; "))),
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    let stale: Vec<&str> = KNOWN.iter().zip(used).filter(|(_, used)| !used).map(|((reason, _), _)| *reason).collect();
    assert!(stale.is_empty(), "listed as differences, and none any more: {stale:?}");
}
