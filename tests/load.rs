//! `shardwright load` as a user runs it: what it prints, what it reports, who it is under a launcher, where it finds a model.

mod support;

use std::{fs, os::unix::fs::symlink, path::Path};

use serde_json::Value;
use support::{checkpoint, fsdp2_config, json, read_json, redacted, root, run, shardwright, stderr, write, zero3_config};

/// A report without what may differ between two runs.
fn settled(mut report: Value) -> Value {
    for rank in report["ranks"].as_array_mut().unwrap() {
        rank["seconds"] = Value::Null;
    }
    for key in ["seconds", "gigabytes_per_second", "peak_memory_bytes"] {
        assert!(report["totals"][key].is_number(), "{key}");
        report["totals"][key] = Value::Null;
    }
    report
}

fn table(args: &[&str]) -> String {
    let output = shardwright().current_dir(root()).arg("load").args(args).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    redacted(&String::from_utf8(output.stdout).unwrap())
}

#[test]
fn the_examples_load_and_their_tables_are_for_people() {
    insta::assert_snapshot!("table_fsdp2", table(&["examples/fsdp2.yaml", "--world-size", "4"]));
    insta::assert_snapshot!("table_hsdp", table(&["examples/hsdp.yaml", "--world-size", "4"]));
    insta::assert_snapshot!("table_zero3", table(&["examples/zero3.yaml", "--world-size", "3"]));
    insta::assert_snapshot!("table_replicate", table(&["examples/replicate.yaml", "--world-size", "2"]));
    insta::assert_snapshot!("table_many_ranks", table(&["examples/fsdp2.yaml", "global_batch_size=100", "--world-size", "100"]));
}

#[test]
fn the_report_is_complete_and_the_same_every_time() {
    let dir = tempfile::tempdir().unwrap();
    let config = fsdp2_config(dir.path(), &checkpoint("odd-shapes"), 1, Some("checkpoint"));
    let file = dir.path().join("report.json");
    let args = ["load", config.to_str().unwrap(), "--world-size", "2", "--digest", "--format", "json", "--report", file.to_str().unwrap()];
    let printed = json(&run(args));
    assert_eq!(read_json(&file), printed, "the file holds what is printed");
    let first = settled(printed);
    assert_eq!(settled(json(&run(args))), first);
    insta::assert_snapshot!("report_fsdp2", serde_json::to_string_pretty(&first).unwrap());
    let left: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).filter(|n| n.to_string_lossy().contains("tmp")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn flat_partitions_report_their_numels() {
    let dir = tempfile::tempdir().unwrap();
    let config = zero3_config(dir.path(), &checkpoint("odd-shapes"), true);
    let report = settled(json(&run(["load", config.to_str().unwrap(), "--world-size", "2", "--digest", "--format", "json"])));
    insta::assert_snapshot!("report_zero3", serde_json::to_string_pretty(&report).unwrap());
}

/// One rank alone holds what it holds among all, and reads its own bytes and no other.
#[test]
fn a_rank_alone_is_the_same_rank() {
    let dir = tempfile::tempdir().unwrap();
    for config in
        [fsdp2_config(dir.path(), &checkpoint("tiny-qwen3-bf16"), 1, None), zero3_config(dir.path(), &checkpoint("tiny-qwen3-bf16"), true)]
    {
        let load = |more: &[&str]| {
            json(&run([&["load", config.to_str().unwrap(), "--world-size", "3", "--digest", "--format", "json"], more].concat()))
        };
        let all = load(&[]);
        for rank in 0..3 {
            let alone = load(&["--rank", &rank.to_string()]);
            assert_eq!(alone["ranks"].as_array().unwrap().len(), 1);
            let (one, among) = (&alone["ranks"][0], &all["ranks"][rank]);
            assert_eq!(one["tensors"], among["tensors"]);
            assert_eq!(one["bytes_read"], one["bytes_needed"], "a rank reads exactly its own bytes");
            assert!(one["bytes_needed"].as_u64().unwrap() < 170_000 / 2, "and not the whole model");
        }
        assert_eq!(all["totals"]["bytes_read"], all["totals"]["bytes_needed"], "nothing here is shared");
    }
}

#[test]
fn launchers_say_which_rank_this_is() {
    let dir = tempfile::tempdir().unwrap();
    let config = fsdp2_config(dir.path(), &checkpoint("odd-shapes"), 1, None);
    let launchers = [
        [("RANK", "1"), ("WORLD_SIZE", "3")],
        [("SLURM_PROCID", "1"), ("SLURM_NTASKS", "3")],
        [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "3")],
    ];
    for launcher in launchers {
        let output = shardwright().args(["load", config.to_str().unwrap(), "--format", "json"]).envs(launcher).output().unwrap();
        let report = json(&output);
        assert_eq!((&report["world_size"], &report["ranks"][0]["rank"]), (&3.into(), &1.into()), "{launcher:?}");
    }
}

/// A hub id is found in the local cache, whose snapshots are links into its blobs.
#[test]
fn a_resolution_says_what_gave_the_worlds_size() {
    let from = |flags: &[&str], variables: &[(&str, &str)]| {
        let mut command = shardwright();
        command.args(["resolve", "examples/fsdp2.yaml"]).current_dir(root()).args(flags).envs(variables.iter().copied());
        let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let line = text.lines().find(|l| l.starts_with("mesh.world_size")).unwrap().to_owned();
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(from(&["--world-size", "4"], &[]), "4 command line");
    assert_eq!(from(&[], &[("WORLD_SIZE", "4")]), "4 environment");
    assert_eq!(from(&[], &[("RANK", "1"), ("WORLD_SIZE", "4")]), "4 environment");
    assert_eq!(from(&[], &[]), "1 default");
}

#[test]
fn a_hub_id_is_found_in_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let repo = dir.path().join("hub/models--acme--tiny");
    let (snapshot, blobs) = (repo.join("snapshots/abc123"), repo.join("blobs"));
    for path in [&snapshot, &blobs, &repo.join("refs")] {
        fs::create_dir_all(path).unwrap();
    }
    fs::write(repo.join("refs/main"), "abc123").unwrap();
    for (i, entry) in fs::read_dir(checkpoint("tiny-qwen3-bf16")).unwrap().enumerate() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), blobs.join(i.to_string())).unwrap();
        symlink(Path::new("../../blobs").join(i.to_string()), snapshot.join(entry.file_name())).unwrap();
    }
    let config = fsdp2_config(dir.path(), Path::new("acme/tiny"), 1, None);
    let output =
        shardwright().args(["load", config.to_str().unwrap(), "--world-size", "2", "--format", "json"]).env("HF_HOME", dir.path()).output();
    assert_eq!(json(&output.unwrap())["units"].as_array().unwrap().len(), 5);
}

#[test]
fn a_single_file_is_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let file = checkpoint("tiny-qwen3-tied-fp32").join("model.safetensors");
    let config = fsdp2_config(dir.path(), &file, 1, None);
    assert_eq!(json(&run(["load", config.to_str().unwrap(), "--format", "json"]))["world_size"], 1);
}

/// Where a reader of standard output goes away, that is no failure of ours.
#[test]
fn a_closed_pipe_is_no_panic() {
    let command = format!(
        "{} load examples/fsdp2.yaml global_batch_size=64 --world-size 64 --format json | head -c 1",
        env!("CARGO_BIN_EXE_shardwright")
    );
    let output = std::process::Command::new("sh").args(["-c", &command]).current_dir(root()).output().unwrap();
    assert_eq!(stderr(&output), "");
}

#[test]
fn help_teaches() {
    let text = |args: &[&str]| String::from_utf8(run(args).stdout).unwrap();
    insta::assert_snapshot!("help", text(&["--help"]));
    insta::assert_snapshot!("help_load", text(&["load", "--help"]));
}

#[test]
fn a_float_tensor_with_a_buffers_name_is_warned_of_until_the_config_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let header = r#"{"gate.e_score_correction_bias":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"gate.weight":{"dtype":"F32","shape":[4],"data_offsets":[16,32]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend([0; 32]);
    fs::write(dir.path().join("model.safetensors"), file).unwrap();
    fs::write(dir.path().join("config.json"), r#"{"model_type": "tiny"}"#).unwrap();
    let config = fsdp2_config(dir.path(), dir.path(), 1, None);
    let load = |more: &[&str]| run(["load", config.to_str().unwrap()].iter().chain(more).chain(&["--world-size", "2", "--format", "json"]));
    let (unnamed, named) = (load(&[]), load(&["shardwright.buffers=[\"*_correction_bias\"]"]));
    assert!(unnamed.status.success() && named.status.success(), "{}{}", stderr(&unnamed), stderr(&named));
    assert!(stderr(&unnamed).contains("'gate.e_score_correction_bias' is taken for a parameter"), "{}", stderr(&unnamed));
    assert!(!stderr(&named).contains("e_score_correction_bias"), "{}", stderr(&named));
    assert_ne!(json(&unnamed)["units"], json(&named)["units"]);
}

#[test]
fn what_a_load_does_not_follow_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let config = fsdp2_config(dir.path(), &checkpoint("tiny-qwen3-bf16"), 1, None);
    let odd = [
        "dist_config.dcp_path=dcp",
        "resume_from_checkpoint=last",
        "shardwright.buffers=[\"*.nrom\"]",
        "shardwright.units=[\"model.layrs.0\"]",
    ];
    let output = run(["load", config.to_str().unwrap(), "--world-size", "2"].iter().chain(&odd));
    assert!(output.status.success(), "{}", stderr(&output));
    for needle in [
        "[not-read]: dist_config.dcp_path",
        "[not-read]: resume_from_checkpoint",
        "shardwright.buffers: '*.nrom' matches no float tensor",
        "shardwright.units: 'model.layrs.0' matches no module of the model; did you mean 'model.layers.0'?",
    ] {
        assert!(stderr(&output).contains(needle), "{needle} is not in: {}", stderr(&output));
    }
}

#[test]
fn a_config_that_decides_too_little_or_names_no_model_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let accelerate = write(dir.path(), "acc.yaml", "distributed_type: FSDP\nfsdp_config: {fsdp_version: 2}\n");
    let output = run(["load", accelerate.to_str().unwrap(), "--world-size", "2"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("acc.yaml: the config names no model; add model=DIR"), "{}", stderr(&output));
    fs::copy(root().join("examples/ds_zero3.json"), dir.path().join("ds_zero3.json")).unwrap();
    let text = fs::read_to_string(root().join("examples/zero3.yaml")).unwrap().replace("tiny-qwen3", ".");
    fs::copy(checkpoint("odd-shapes").join("model-00001-of-00002.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let output = run(["load", write(dir.path(), "zero3.yaml", &text).to_str().unwrap(), "--world-size", "2"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    for key in ["reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"] {
        let needle = format!("error[not-decided]: deepspeed.zero_optimization.{key} is not decided: it needs hidden_size");
        assert!(stderr(&output).contains(&needle), "{needle} is not in: {}", stderr(&output));
    }
    assert!(stderr(&output).contains("ds_zero3.json:14:"), "{}", stderr(&output));
}
