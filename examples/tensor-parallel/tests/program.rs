//! The program with this strategy in it, as a user runs it.

use std::{path::Path, process::Command};

use serde_json::Value as Json;

#[path = "../examples/tiny.rs"]
mod tiny;

/// Runs the program; answers with exit code, output and errors.
fn run(dir: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_tensor-parallel")).current_dir(dir).args(args).env("NO_COLOR", "1").output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (done.status.code(), text(done.stdout), text(done.stderr))
}

fn checkpoint() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    tiny::write(&dir.path().join("tiny")).unwrap();
    std::fs::write(dir.path().join("train.yaml"), include_str!("../train.yaml")).unwrap();
    dir
}

/// What the ranks hold of a tensor: their shapes, as the report has them.
fn held(report: &Json, name: &str) -> Vec<Vec<u64>> {
    let ranks = report["ranks"].as_array().unwrap().iter();
    let tensors = ranks.map(|rank| rank["tensors"].as_array().unwrap().iter().find(|t| t["name"] == name).unwrap());
    tensors.map(|t| t["local_shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).collect()).collect()
}

#[test]
fn modules_are_parallel_as_their_globs_say_and_what_is_left_is_cut_on_dim_0() {
    let dir = checkpoint();
    let (code, out, err) = run(dir.path(), &["load", "train.yaml", "--world-size", "4", "--format", "json", "--save", "shards"]);
    assert_eq!(code, Some(0), "{err}");
    let report: Json = serde_json::from_str(&out).unwrap();
    assert_eq!(report["strategy"], "example/tensor-parallel");
    // Ranks 0 and 1 are neighbours along tp, ranks 0 and 2 along fsdp.
    assert_eq!(held(&report, "model.layers.0.self_attn.q_proj.weight"), [[2, 4], [2, 4], [2, 4], [1, 4]]);
    assert_eq!(held(&report, "model.layers.0.self_attn.q_proj.bias"), [[2], [2], [2], [1]]);
    assert_eq!(held(&report, "model.layers.1.self_attn.o_proj.weight"), [[2, 4], [2, 3], [2, 4], [2, 3]]);
    assert_eq!(held(&report, "model.layers.1.self_attn.o_proj.bias"), [[2], [2], [2], [2]]);
    assert_eq!(held(&report, "lm_head.weight"), [[6, 4], [6, 4], [5, 4], [5, 4]]);
    let (code, out, err) = run(dir.path(), &["verify", "shards", "--against", "tiny"]);
    assert_eq!(code, Some(0), "{out}{err}");
}

#[test]
fn what_is_wrong_with_its_section_is_said_at_its_line() {
    let dir = checkpoint();
    let (code, _, err) = run(dir.path(), &["load", "train.yaml", "dist_config.tp_size=3", "--world-size", "4"]);
    assert_eq!(code, Some(3));
    assert!(err.contains("tp_size is 3, expected a divisor of the 4 ranks"), "{err}");
}
