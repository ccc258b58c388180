//! Proof that the real engines take what `convert` makes: torch's `dcp.load` into model and optimizer on another number of ranks,
//! `deepspeed.load_checkpoint` likewise, safetensors. `engines.py` says what is compared. Needs a Python with torch: SHARDWRIGHT_PYTHON,
//! else `python3` on the path; without one, or without DeepSpeed, the tests name themselves skipped.

#[path = "../support/mod.rs"]
mod support;

use std::{ffi::OsString, path::Path, process::Command};

use support::{root, shardwright, stderr};
use tempfile::TempDir;

/// torchrun of a Python that can import these, without the environment of any launcher.
fn torchrun(test: &str, imports: &str) -> Option<Command> {
    let name = std::env::var_os("SHARDWRIGHT_PYTHON").unwrap_or_else(|| OsString::from("python3"));
    let found = Command::new(&name).env("DS_ACCELERATOR", "cpu").args(["-c", &format!("import {imports}")]).output();
    if !found.is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: {test}: {} cannot import {imports}; set SHARDWRIGHT_PYTHON to one that can", name.display());
        return None;
    }
    let mut command = Command::new(name);
    for key in ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"] {
        command.env_remove(key);
    }
    command.env("OMP_NUM_THREADS", "1").env("DS_ACCELERATOR", "cpu");
    command.args(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]);
    Some(command)
}

fn fixture(name: &str) -> std::path::PathBuf {
    root().join("tests/convert/fixtures").join(name)
}

/// Converts a fixture. ZeRO-3 does not record what the head is tied to.
fn convert(source: &str, target: &Path, args: &[&str]) {
    let mut command = shardwright();
    command.arg("convert").arg(fixture(source)).arg(target).args(args).arg("--verify");
    if source == "zero3" {
        command.args(["--tie", "head.weight=emb.weight"]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{source}: {}", stderr(&output));
}

/// Lets the engine load `target` on `ranks` ranks and compare it with what the source's engine had.
fn load(mut torchrun: Command, ranks: u32, command: &[&str], target: &Path, source: &str, more: &[&str]) {
    torchrun.arg(ranks.to_string()).arg(root().join("tests/convert/engines.py")).args(command).arg(target);
    let output = torchrun.arg(fixture(source).join("expected.pt")).args(more).output().expect("python starts");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.lines().any(|line| line == "equal"), "{source} on {ranks}:\n{told}\n{}", stderr(&output));
}

#[test]
fn fsdp2_resumes_what_fsdp2_and_zero_saved() {
    for (source, from, to) in [("zero3", "3", 2), ("fsdp2", "4", 3), ("zero2", "1", 2)] {
        let Some(torchrun) = torchrun("fsdp2_resumes_what_fsdp2_and_zero_saved", "torch.distributed.fsdp") else { return };
        let dir = TempDir::new().unwrap();
        let target = dir.path().join("out");
        convert(source, &target, &["--to", "dcp", "--ranks", from]);
        load(torchrun, to, &["load-fsdp"], &target, source, &[]);
    }
}

#[test]
fn deepspeed_resumes_on_another_number_of_ranks_what_zero_and_fsdp2_saved() {
    for (source, ranks) in [("zero3", 3), ("zero2", 1), ("fsdp2", 3)] {
        let Some(mut torchrun) = torchrun("deepspeed_resumes_on_another_number_of_ranks_what_zero_and_fsdp2_saved", "deepspeed") else {
            return;
        };
        let dir = TempDir::new().unwrap();
        let target = dir.path().join("out");
        convert(source, &target, &["--to", "zero3", "--ranks", &ranks.to_string()]);
        // FSDP2's checkpoint has no scheduler and no client state.
        torchrun.env(if source == "fsdp2" { "NO_SCHEDULER" } else { "CLIENT" }, "1");
        load(torchrun, ranks, &["load-ds", "3"], &target, source, &[]);
    }
}

#[test]
fn deepspeed_loads_a_universal_checkpoint() {
    let Some(torchrun) = torchrun("deepspeed_loads_a_universal_checkpoint", "deepspeed") else { return };
    let dir = TempDir::new().unwrap();
    let target = dir.path().join("out");
    convert("zero3", &target, &["--to", "zero3-universal", "--ranks", "3"]);
    load(torchrun, 3, &["load-ds", "3"], &target, "zero3", &["universal"]);
}

#[test]
fn safetensors_hold_every_tensor() {
    for source in ["zero3", "fsdp2", "zero2"] {
        let Some(torchrun) = torchrun("safetensors_hold_every_tensor", "torch, safetensors.torch") else { return };
        let dir = TempDir::new().unwrap();
        let target = dir.path().join("out");
        convert(source, &target, &["--to", "hf", "--max-file-size", "200B"]);
        load(torchrun, 1, &["load-hf"], &target, source, &[]);
    }
}

/// What a program that is given hostile or missing files says, and with which code it ends.
#[test]
fn refusals_have_exit_codes_and_leave_nothing() {
    let dir = TempDir::new().unwrap();
    let run = |source: &Path, args: &[&str]| {
        let output = shardwright().arg("convert").arg(source).arg(dir.path().join("out")).args(args).output().unwrap();
        assert!(!dir.path().join("out").exists());
        (output.status.code(), stderr(&output))
    };
    let (code, text) = run(&fixture("zero3/global_step3/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"), &["--to", "zero3"]);
    assert_eq!(code, Some(4), "{text}");
    let (code, text) = run(dir.path(), &["--to", "hf"]);
    assert!(code == Some(4) && text.contains("no checkpoint is recognised"), "{text}");
    let plain = dir.path().join("m");
    let convert = shardwright().arg("convert").arg(fixture("fsdp2")).arg(&plain).args(["--to", "hf"]).output().unwrap();
    assert!(convert.status.success(), "{}", stderr(&convert));
    let (code, text) = run(&plain, &["--to", "zero3"]);
    assert!(code == Some(3) && text.contains("no optimizer states"), "{text}");
    let (code, text) = run(&fixture("fsdp2"), &["--to", "dcp", "--dry-run"]);
    assert_eq!(code, Some(0), "{text}");
}
