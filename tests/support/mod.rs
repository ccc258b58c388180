//! What the integration tests share: the built program, scratch directories, the oracle's data. No tests.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file or directory of the oracle.
pub fn oracle(path: &str) -> PathBuf {
    root().join("tests/oracle").join(path)
}

/// The oracle checkpoint of that name.
pub fn checkpoint(name: &str) -> PathBuf {
    oracle("checkpoints").join(name)
}

/// all-MiniLM-L6-v2, where `scripts/fetch-real-model.sh` put it.
pub fn real_model() -> Option<PathBuf> {
    let model = root().join(".real-model/all-MiniLM-L6-v2");
    model.join("model.safetensors").is_file().then_some(model)
}

/// Why tests of the real model cannot run.
pub const NO_REAL_MODEL: &str = "no .real-model/all-MiniLM-L6-v2, run scripts/fetch-real-model.sh";

/// The built program, without the environment of any launcher.
pub fn shardwright() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shardwright"));
    for (key, _) in std::env::vars() {
        let launcher = ["RANK", "WORLD_SIZE", "LOCAL_", "SLURM_", "OMPI_", "HF_", "ALLOW_EXTRA_KEYS", "NO_COLOR", "COLUMNS", "LINES"];
        if launcher.iter().any(|prefix| key.starts_with(prefix)) {
            command.env_remove(key);
        }
    }
    command
}

/// Runs the program with these arguments.
pub fn run<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    shardwright().args(args).output().expect("the built program starts")
}

/// Standard error as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Standard output as JSON, after a success.
pub fn json(output: &Output) -> Value {
    assert!(output.status.success(), "exit {:?}: {}", output.status.code(), stderr(output));
    serde_json::from_slice(&output.stdout).expect("standard output is JSON")
}

/// Parses a JSON file.
pub fn read_json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).expect("JSON")
}

/// A scratch directory with a config that loads `model` under FSDP2.
pub fn fsdp2_config(dir: &Path, model: &Path, replicate: u64, storage: Option<&str>) -> PathBuf {
    let mut text = format!("model: {}\nmp_replicate_size: {replicate}\ndist_config:\n  name: fsdp2\n", model.display());
    if let Some(storage) = storage {
        text += &format!("shardwright:\n  storage_dtype: {storage}\n");
    }
    write(dir, "train.yaml", &text)
}

/// A scratch directory with a config that loads `model` under ZeRO-3.
pub fn zero3_config(dir: &Path, model: &Path, bf16: bool) -> PathBuf {
    let ds = format!(
        r#"{{"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {{"stage": 3}}, "bf16": {{"enabled": {bf16}}}, "fp16": {{"enabled": false}}}}"#
    );
    write(dir, "ds.json", &ds);
    write(dir, "train.yaml", &format!("model: {}\ndist_config:\n  name: deepspeed\n  config_file: ds.json\n", model.display()))
}

/// Writes a file and gives its path.
pub fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("scratch file");
    path
}

/// Standard output with times, rates and memory taken out.
pub fn redacted(text: &str) -> String {
    let number = |word: &str| word.trim_end_matches('\n').parse::<f64>().is_ok() && word.contains('.');
    let lines = text.lines().map(|line| {
        if line.contains("GB/s of source bytes") {
            return "[rate] GB/s of source bytes, peak memory [memory]".to_owned();
        }
        let mut words: Vec<&str> = line.split(' ').collect();
        if words.last().is_some_and(|w| number(w)) {
            *words.last_mut().unwrap() = "[s]";
        }
        words.join(" ")
    });
    lines.collect::<Vec<_>>().join("\n")
}
