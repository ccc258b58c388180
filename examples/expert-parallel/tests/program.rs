//! The program with this strategy in it, as a user runs it.

use std::{path::Path, process::Command};

use serde_json::Value as Json;

#[path = "../examples/tiny_moe.rs"]
mod tiny_moe;

/// Runs the program; answers with exit code, output and errors.
fn run(dir: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    run_program(env!("CARGO_BIN_EXE_expert-parallel"), dir, args)
}

fn run_program(program: &str, dir: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let done = Command::new(program).current_dir(dir).args(args).env("NO_COLOR", "1").output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (done.status.code(), text(done.stdout), text(done.stderr))
}

fn checkpoint(yaml: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    tiny_moe::write(&dir.path().join("tiny-moe")).unwrap();
    std::fs::write(dir.path().join("train.yaml"), yaml).unwrap();
    dir
}

/// What a rank holds of a tensor: its shape, as the report has it.
fn held(report: &Json, rank: usize, name: &str) -> Vec<u64> {
    let tensors = report["ranks"][rank]["tensors"].as_array().unwrap();
    let tensor = tensors.iter().find(|t| t["name"] == name).unwrap();
    tensor["local_shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).collect()
}

#[test]
fn it_is_listed_beside_the_built_ins() {
    let (code, out, err) = run(Path::new("."), &["strategies"]);
    assert_eq!(code, Some(0), "{err}");
    for name in ["example/expert-parallel", "fsdp2", "zero3", "pins"] {
        assert!(out.contains(name), "{out}");
    }
}

#[test]
fn a_program_that_does_not_name_the_crate_does_not_have_the_strategy_and_says_how_to_link_it() {
    let forgetful = env!("CARGO_BIN_EXE_forgetful");
    let (code, out, err) = run_program(forgetful, Path::new("."), &["strategies"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("fsdp2") && !out.contains("example/expert-parallel"), "{out}");
    let dir = checkpoint(include_str!("../train.yaml"));
    let (code, _, err) = run_program(forgetful, dir.path(), &["load", "train.yaml", "--world-size", "4"]);
    assert_eq!(code, Some(3));
    assert!(err.contains("unknown strategy 'example/expert-parallel', available: deepspeed, fsdp2, replicate, zero3"), "{err}");
    assert!(err.contains("naming its crate in your binary: `use acme_strategy as _;`"), "{err}");
}

#[test]
fn experts_go_to_their_ranks_in_both_kinds_of_checkpoint() {
    let dir = checkpoint(include_str!("../train.yaml"));
    let (code, out, err) = run(dir.path(), &["load", "train.yaml", "--world-size", "4", "--format", "json", "--save", "shards"]);
    assert_eq!(code, Some(0), "{err}");
    let report: Json = serde_json::from_str(&out).unwrap();
    assert_eq!(report["strategy"], "example/expert-parallel");
    // 6 experts over 2 ranks along ep: experts 0 to 2 on ranks 0 and 2, experts 3 to 5 on ranks 1 and 3; of their 3 rows two on the lower rank.
    for rank in 0..4 {
        let rows = [2, 1][rank / 2];
        let own = |expert: usize| if expert / 3 == rank % 2 { rows } else { 0 };
        for expert in 0..6 {
            assert_eq!(held(&report, rank, &format!("model.layers.0.mlp.experts.{expert}.up_proj.weight")), [own(expert), 4]);
        }
        assert_eq!(held(&report, rank, "model.layers.1.mlp.experts.gate_up_proj"), [3, 2, 6]);
        assert_eq!(held(&report, rank, "lm_head.weight"), [if rank < 3 { 3 } else { 2 }, 4]);
    }
    let units: Vec<&str> = report["units"].as_array().unwrap().iter().map(|u| u["name"].as_str().unwrap()).collect();
    assert_eq!(units, ["model.layers.0.mlp.experts", "model.layers.0", "model.layers.1.mlp.experts", "model.layers.1", ""]);
    let (code, out, err) = run(dir.path(), &["verify", "shards", "--against", "tiny-moe"]);
    assert_eq!(code, Some(0), "{out}{err}");
}

#[test]
fn what_is_wrong_with_its_section_is_said_at_its_line() {
    let dir = checkpoint("model: tiny-moe\ndist_config:\n  ep_sise: 2\n  name: example/expert-parallel\n");
    let (code, _, err) = run(dir.path(), &["load", "train.yaml", "--world-size", "4"]);
    assert_eq!(code, Some(3));
    assert!(err.contains("train.yaml:3:3") && err.contains("unknown key 'ep_sise'") && err.contains("did you mean 'ep_size'?"), "{err}");
    let dir = checkpoint(include_str!("../train.yaml"));
    let (code, _, err) = run(dir.path(), &["load", "train.yaml", "dist_config.ep_size=3", "--world-size", "4"]);
    assert_eq!(code, Some(3));
    assert!(err.contains("ep_size is 3, expected a divisor of the 4 ranks"), "{err}");
}
