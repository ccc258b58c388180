//! What PyYAML makes of scalars, OmegaConf of overrides, hjson of DeepSpeed's files and DeepSpeed's pydantic models of values, recorded by
//! running them.

use serde_json::{Value as Json, json};
use shardwright_core::{
    diagnostic::{Severity, Source},
    tree::{Node, Value, json as reader, yaml},
};

use crate::{Case, DEEPSPEED};

fn rows(kind: &str) -> Vec<Json> {
    let rows: Json = serde_json::from_str(include_str!("../oracle/config/readers.json")).unwrap();
    rows[kind].as_array().unwrap().clone()
}

#[test]
fn scalars_are_pyyamls() {
    let mut wrong = Vec::new();
    for row in rows("scalars") {
        let text = row["text"].as_str().unwrap();
        let node = yaml::parse(&Source::new("a", format!("- {text}")), &mut Vec::new());
        let found = match node.as_ref().map(|n| &n.value) {
            Ok(Value::Seq(items)) => match &items[0].value {
                Value::Null => json!({"type": "null"}),
                Value::Bool(b) => json!({"type": "bool", "value": b}),
                Value::Int(i) => json!({"type": "int", "value": i.to_string()}),
                Value::Float(f) => json!({"type": "float", "value": *f}),
                Value::Text { .. } => json!({"type": "text"}),
                _ => json!({"type": "other"}),
            },
            _ => json!({"type": "refused"}),
        };
        let mut want = row.clone();
        want.as_object_mut().unwrap().remove("text");
        if want["type"] == "float" {
            // Python's repr of a float is its shortest form, as Rust's parse reads it.
            let value: f64 = want["value"].as_str().unwrap().parse().unwrap();
            want["value"] = json!(value);
        }
        // PyYAML makes a date of what looks like one; OmegaConf and this reader leave it a string.
        let is_date = want["type"] == "other" && found["type"] == "text";
        if found != want && !is_date {
            wrong.push(format!("{text}: {found}, should be {want}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn overrides_are_omegaconfs() {
    let mut wrong = Vec::new();
    for row in rows("overrides") {
        let text = row["text"].as_str().unwrap();
        let outcome = Case::new("model: m\nkernel_config: {name: auto}\n").with(&format!("kernel_config.k={text}")).outcome();
        let found = outcome.resolved.as_ref().map(|r| r.document.get("/training/kernel_config/k").cloned().unwrap_or(Json::Null));
        let want = row.get("json").cloned();
        // A section makes booleans and numbers of strings that look so, which is LLaMA-Factory's doing and not OmegaConf's.
        let coerced = want.as_ref().and_then(Json::as_str).is_some_and(|t| t == "1" || t == "yes");
        let close = |a: &Json, b: &Json| a == b || (a.is_number() && a.as_f64() == b.as_f64());
        let same = match (&found, &want) {
            (Some(a), Some(b)) => close(a, b),
            (None, None) => true,
            _ => false,
        };
        if !same && !coerced {
            wrong.push(format!("k={text}: {found:?}, should be {want:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn values_are_taken_and_refused_as_deepspeed_does() {
    let mut wrong = Vec::new();
    for row in rows("deepspeed") {
        let (section, key) = (row["section"].as_str().unwrap(), row["key"].as_str().unwrap());
        let mut file = json!({"zero_optimization": {"stage": 3}, "bf16": {"enabled": false}});
        file[section] = row["given"].clone();
        let outcome = Case::new(DEEPSPEED).deepspeed(file.to_string()).world(6).outcome();
        // Groups of ranks are checked against the world, which the models do not know; "auto" is this project's matter.
        let errors: Vec<_> =
            outcome.diagnostics.iter().filter(|d| ["deepspeed-type", "deepspeed-stage", "deepspeed-grad-norm"].contains(&d.code)).collect();
        let found =
            outcome.resolved.as_ref().map(|r| r.document.get(&format!("/deepspeed/{section}/{key}")).cloned().unwrap_or(Json::Null));
        let same = match (row.get("becomes"), &found) {
            (None, _) => !errors.is_empty(),
            (Some(want), Some(found)) => want == found || (want.is_number() && want.as_f64() == found.as_f64()),
            (Some(_), None) => errors.is_empty(),
        };
        if !same {
            wrong.push(format!(
                "{section}.{key} {}: {found:?}, should be {:?}",
                row["given"][key],
                row.get("becomes").or(row.get("error"))
            ));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// DeepSpeed reads its file with hjson, recorded by `hjson_corpus.py`: JSON, with comments or without, is the same value (a comment is an error beside it); what is hjson
/// beyond that is refused with one located error; and nothing is read that DeepSpeed would not read.
#[test]
fn a_deepspeed_file_is_hjsons_or_refused() {
    let rows: Vec<Json> = serde_json::from_str(include_str!("hjson.json")).unwrap();
    let (mut wrong, mut named) = (Vec::new(), 0);
    for row in &rows {
        let text = row["text"].as_str().unwrap();
        let mut found = Vec::new();
        let node = reader::parse(&Source::new("ds.json", text), &mut found);
        let errors: Vec<_> = found
            .iter()
            .chain(node.as_ref().err())
            .filter(|d| d.code == "json-duplicate-key" || d.severity == Severity::Error && d.code != "json-comment")
            .collect();
        let must_read = ["json", "comments"].contains(&row["kind"].as_str().unwrap());
        named += usize::from(errors.iter().any(|d| d.code == "json-hjson"));
        // Python's reader, which hands such a file on, has a number where hjson has a string.
        if found.iter().any(|d| d.code == "json-constant") {
            continue;
        }
        let problem = match (row.get("value"), node.as_ref().ok().filter(|_| errors.is_empty())) {
            (Some(want), Some(node)) if same(&node.to_json(), want) => None,
            (Some(_), None) if must_read => Some(format!("refused: {errors:?}")),
            (_, None) if errors.iter().all(|d| d.at.is_some()) && !errors.is_empty() => None,
            (want, found) => Some(format!("{:?}, should be {want:?}", found.map(Node::to_json))),
        };
        wrong.extend(problem.map(|problem| format!("{text:?}: {problem}")));
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    assert!(named > 200, "only {named} say which construct of hjson they are about");
}

fn same(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Json::Object(a), Json::Object(b)) => a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| same(v, w))),
        (Json::Array(a), Json::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Json::Number(a), Json::Number(b)) => a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}
