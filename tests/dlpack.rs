//! Shows that torch takes shards without a copy, from host memory and, where it sees a card, from the card: `examples/dlpack`, in use. Needs a
//! Python with torch and safetensors: SHARDWRIGHT_PYTHON, else `python3` on the path; without one the tests are ignored.

#[path = "support/runner.rs"]
mod runner;
mod support;

use std::{ffi::OsString, path::PathBuf, process::Command};

use runner::{skip, tests};
use support::{checkpoint, root};

tests! {
    torch_takes_host_shards_without_a_copy,
    torch_takes_device_shards_without_a_copy,
}

/// The example, which `cargo test` builds beside the tests.
fn library() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    tests.ancestors().nth(2).unwrap().join("examples").join(format!(
        "{}dlpack{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    ))
}

fn take(device: &str) {
    let python = std::env::var_os("SHARDWRIGHT_PYTHON").unwrap_or_else(|| OsString::from("python3"));
    let has = |code: &str| Command::new(&python).args(["-c", code]).output().is_ok_and(|o| o.status.success());
    if !has("import torch, safetensors") {
        skip(format!("{} has no torch and safetensors; set SHARDWRIGHT_PYTHON to one that has", python.display()));
    }
    if device == "cuda" && !has("import torch; assert torch.cuda.is_available()") {
        skip("torch sees no CUDA device");
    }
    let library = library();
    assert!(library.exists(), "{} is not built: cargo build --example dlpack (cargo test without --test builds it)", library.display());
    for model in ["tiny-qwen3-bf16", "odd-shapes"] {
        let script = root().join("examples/dlpack/torch_shards.py");
        let output = Command::new(&python).arg(script).arg(&library).arg(checkpoint(model)).arg(device).output().unwrap();
        let (said, why) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{model}: {said}{why}");
        let compared: usize = said.split(' ').next().and_then(|n| n.parse().ok()).unwrap();
        assert!(compared > 20 && said.contains("bit for bit"), "{said}");
    }
}

fn torch_takes_host_shards_without_a_copy() {
    take("cpu");
}

fn torch_takes_device_shards_without_a_copy() {
    take("cuda");
}
