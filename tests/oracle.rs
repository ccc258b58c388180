//! Every case of the oracle, through the built program: what real torch and real DeepSpeed put on each rank is what `load` puts there.

mod support;

use std::{collections::BTreeSet, path::Path};

use serde_json::Value;
use support::{checkpoint, fsdp2_config, json, oracle, read_json, real_model, run, zero3_config};

/// The cases of a folder, in the order of their names; those of the real model only where it is.
fn cases(kind: &str) -> Vec<(String, Value, std::path::PathBuf)> {
    let mut files: Vec<_> = std::fs::read_dir(oracle(kind)).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
        .into_iter()
        .filter_map(|file| {
            let case = read_json(&file);
            let name = case["checkpoint"].as_str().unwrap().to_owned();
            let label = format!("{kind}/{}", file.file_stem().unwrap().to_str().unwrap());
            let model = if name == "all-MiniLM-L6-v2" { real_model(&label)? } else { checkpoint(&name) };
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

/// Sets of parameter names: the order inside a unit is not in a checkpoint.
fn unit_sets<'a>(units: impl Iterator<Item = Vec<&'a str>>) -> BTreeSet<BTreeSet<&'a str>> {
    units.map(|unit| unit.into_iter().collect::<BTreeSet<_>>()).filter(|unit| !unit.is_empty()).collect()
}

#[test]
fn fsdp2_is_torchs() {
    let scratch = tempfile::tempdir().unwrap();
    let cases = cases("fsdp2");
    assert!(cases.len() >= 35, "only {} cases", cases.len());
    for (label, case, model) in cases {
        let storage = (case["storage"] == "auto").then_some("checkpoint");
        let ours = load(&fsdp2_config(scratch.path(), &model, case["mesh"]["replicate"].as_u64().unwrap(), storage), &case);
        compare(&label, &case, &ours, &["local_shape"]);
        let names = |list: &'static str, unit: &'_ Value| -> Vec<String> {
            unit[list].as_array().unwrap().iter().map(|n| n.as_str().unwrap().to_owned()).collect()
        };
        let ours: Vec<Vec<String>> = ours["units"].as_array().unwrap().iter().map(|u| names("tensors", u)).collect();
        let got = unit_sets(ours.iter().map(|u| u.iter().map(String::as_str).collect()));
        let groups = case["units"].as_object().unwrap().values();
        let want = unit_sets(
            groups.map(|g| g.as_array().unwrap().iter().flat_map(|g| g.as_array().unwrap()).map(|n| n.as_str().unwrap()).collect()),
        );
        assert_eq!(got, want, "{label}: units");
    }
}

#[test]
fn zero3_is_deepspeeds() {
    let scratch = tempfile::tempdir().unwrap();
    let cases = cases("zero3");
    assert!(cases.len() >= 24, "only {} cases", cases.len());
    for (label, case, model) in cases {
        let ours = load(&zero3_config(scratch.path(), &model, case["dtype"] == "bf16"), &case);
        compare(&label, &case, &ours, &["partition_numel", "valid_numel"]);
    }
}
