//! Every case of the oracle, through the built program: what real torch and real DeepSpeed put on each rank is what `load` puts there.

#[path = "support/runner.rs"]
mod runner;
mod support;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use runner::{skip, tests};
use serde_json::Value;
use support::{NO_REAL_MODEL, checkpoint, fsdp2_config, json, oracle, read_json, real_model, run, zero3_config};

tests! {
    fsdp2_is_torchs,
    zero3_is_deepspeeds,
    the_real_model_is_torchs_and_deepspeeds,
}

const REAL_MODEL: &str = "all-MiniLM-L6-v2";

/// The cases of a folder, in the order of their names: those of the real model, or all others.
fn cases(kind: &str, real: bool) -> Vec<(String, Value, PathBuf)> {
    let mut files: Vec<_> = std::fs::read_dir(oracle(kind)).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
        .into_iter()
        .filter_map(|file| {
            let case = read_json(&file);
            let name = case["checkpoint"].as_str().unwrap().to_owned();
            if (name == REAL_MODEL) != real {
                return None;
            }
            let label = format!("{kind}/{}", file.file_stem().unwrap().to_str().unwrap());
            let model = if real { real_model().unwrap_or_else(|| skip(NO_REAL_MODEL)) } else { checkpoint(&name) };
            Some((label, case, model))
        })
        .collect()
}

fn load(config: &Path, case: &Value) -> Value {
    let world = case["world_size"].to_string();
    json(&run(["load", config.to_str().unwrap(), "--world-size", &world, "--digest", "--format", "json"]))
}

/// Compares every parameter of every rank; `keys` besides shape, dtype and digest.
fn compare(label: &str, case: &Value, ours: &Value, keys: &[&str]) {
    let ranks = case["ranks"].as_array().unwrap();
    assert_eq!(ours["ranks"].as_array().unwrap().len(), ranks.len(), "{label}: ranks");
    for rank in ranks {
        let got = ours["ranks"].as_array().unwrap().iter().find(|r| r["rank"] == rank["rank"]).unwrap();
        for (name, want) in rank["params"].as_object().unwrap() {
            let at = format!("{label}, rank {}, {name}", rank["rank"]);
            let tensor =
                got["tensors"].as_array().unwrap().iter().find(|t| t["name"] == name.as_str()).unwrap_or_else(|| panic!("{at}: missing"));
            for key in ["global_shape", "dtype"].iter().chain(keys) {
                assert_eq!(tensor[key], want[key], "{at}: {key}");
            }
            let (digest, want) = (tensor["sha256"].as_str().unwrap(), want["sha256"].as_str().unwrap());
            assert!(digest.starts_with(want), "{at}: sha256 is {digest}, should begin with {want}");
        }
    }
}

/// Sets of parameter names: the order inside a group is not in a checkpoint.
fn group_sets<'a>(units: impl Iterator<Item = Vec<&'a str>>) -> BTreeSet<BTreeSet<&'a str>> {
    units.map(|group| group.into_iter().collect::<BTreeSet<_>>()).filter(|group| !group.is_empty()).collect()
}

fn fsdp2_is_torchs() {
    let cases = cases("fsdp2", false);
    assert!(cases.len() >= 35, "only {} cases", cases.len());
    compare_fsdp2(cases);
}

fn zero3_is_deepspeeds() {
    let cases = cases("zero3", false);
    assert!(cases.len() >= 24, "only {} cases", cases.len());
    compare_zero3(cases);
}

fn the_real_model_is_torchs_and_deepspeeds() {
    let (fsdp2, zero3) = (cases("fsdp2", true), cases("zero3", true));
    assert!(!fsdp2.is_empty() && !zero3.is_empty());
    compare_fsdp2(fsdp2);
    compare_zero3(zero3);
}

fn compare_fsdp2(cases: Vec<(String, Value, PathBuf)>) {
    let scratch = tempfile::tempdir().unwrap();
    for (label, case, model) in cases {
        let storage = (case["storage"] == "auto").then_some("checkpoint");
        let ours = load(&fsdp2_config(scratch.path(), &model, case["mesh"]["replicate"].as_u64().unwrap(), storage), &case);
        compare(&label, &case, &ours, &["local_shape"]);
        let names = |list: &'static str, group: &'_ Value| -> Vec<String> {
            group[list].as_array().unwrap().iter().map(|n| n.as_str().unwrap().to_owned()).collect()
        };
        let ours: Vec<Vec<String>> = ours["units"].as_array().unwrap().iter().map(|u| names("tensors", u)).collect();
        let got = group_sets(ours.iter().map(|u| u.iter().map(String::as_str).collect()));
        let groups = case["units"].as_object().unwrap().values();
        let want = group_sets(
            groups.map(|g| g.as_array().unwrap().iter().flat_map(|g| g.as_array().unwrap()).map(|n| n.as_str().unwrap()).collect()),
        );
        assert_eq!(got, want, "{label}: units");
    }
}

fn compare_zero3(cases: Vec<(String, Value, PathBuf)>) {
    let scratch = tempfile::tempdir().unwrap();
    for (label, case, model) in cases {
        let ours = load(&zero3_config(scratch.path(), &model, case["dtype"] == "bf16"), &case);
        compare(&label, &case, &ours, &["partition_numel", "valid_numel"]);
    }
}
