//! `load --device`: exit codes and messages without a usable device, and the report of a load to one.

use std::process::Output;

use shardwright::engine::device::probe;

use crate::{driver, runner::skip, stand_in, support};

/// `load` of a small model on three ranks, with these arguments and variables.
fn load(config_end: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let model = support::checkpoint("tiny-qwen3-bf16");
    let text = format!("model: {}\ndist_config:\n  name: fsdp2\n{config_end}", model.display());
    let config = support::write(dir.path(), "train.yaml", &text);
    let mut command = support::shardwright();
    command.arg("load").arg(config).args(arguments).envs(variables.iter().copied()).output().unwrap()
}

fn refused(output: &Output, code: i32, needles: &[&str]) {
    let stderr = support::stderr(output);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(needles.iter().all(|n| stderr.contains(n)) && !stderr.contains("panicked"), "{needles:?} are not all in: {stderr}");
}

/// What a process sees that is shown no device, with a driver or without one.
const NONE: (&str, &str) = ("CUDA_VISIBLE_DEVICES", "");

pub fn without_a_device_cuda_is_refused_and_auto_says_why_not() {
    refused(&load("", &["--device", "cuda"], &[NONE]), 10, &["device cuda was asked for, but the"]);
    refused(&load("", &["--device", "cuda:0"], &[NONE]), 10, &["cuda:0"]);
    refused(&load("shardwright:\n  device: cuda\n", &[], &[NONE]), 10, &["device cuda was asked for"]);
    refused(&load("shardwright:\n  device: gpu\n", &[], &[NONE]), 3, &["unknown device 'gpu'", "train.yaml:5"]);
    refused(&load("", &["--device", "gpu"], &[NONE]), 2, &["unknown device 'gpu'"]);
    for output in [load("", &["--device", "auto"], &[NONE]), load("shardwright:\n  device: auto\n", &[], &[NONE])] {
        refused(&output, 0, &["device: cpu: the"]);
    }
    // The flag wins.
    refused(&load("shardwright:\n  device: cuda\n", &["--device", "cpu"], &[NONE]), 0, &[]);
}

pub fn a_report_of_a_load_to_a_device_has_the_hosts_digests() {
    let _alone = driver();
    let digests = |device: &[&str]| {
        let output = load("", &[&["--world-size", "3", "--digest", "--format", "json"], device].concat(), &[]);
        let report = support::json(&output);
        let ranks = report["ranks"].as_array().unwrap().clone();
        ranks.iter().map(|r| r["tensors"].clone()).collect::<Vec<_>>()
    };
    let (host, device) = (digests(&["--device", "cpu"]), digests(&["--device", "cuda"]));
    assert!(host.len() == 3 && host == device);
    assert_eq!(digests(&["--device", "cuda", "--threads", "2", "--ring-size", "8MiB", "--downcast", "device"]), host);
    // The ring that was asked for is the ring that is made, from the file as from the flag, which wins.
    let small = "shardwright:\n  io: {ring_size: 64KiB, narrow: device}\n";
    refused(&load(small, &["--device", "cuda"], &[]), 3, &["the ring is too small", "found 65536"]);
    refused(&load(small, &["--device", "cuda", "--threads", "2", "--ring-size", "16MiB"], &[]), 0, &[]);
    let reported = support::stderr(&load("", &["--device", "auto"], &[]));
    assert!(reported.contains("device: cuda: each rank modulo"), "{reported}");
}

pub fn a_driver_or_a_device_that_will_not_do_is_refused() {
    let _alone = driver();
    let beyond = format!("cuda:{}", probe().unwrap().devices.len());
    refused(&load("", &["--device", &beyond], &[]), 10, &["there is no device", "CUDA_VISIBLE_DEVICES counts"]);
    if std::env::var_os(stand_in::PATH).is_none() {
        skip("only the fake driver is old and small on request");
    }
    let old = ("FAKE_CUDA_VERSION", "11040");
    refused(&load("", &["--device", "cuda"], &[old]), 10, &["too old", "12.0 or newer", "found 11.4"]);
    refused(&load("", &["--device", "auto"], &[old]), 0, &["device: cpu: the CUDA driver is too old"]);
    let ancient = ("FAKE_CUDA_CAPABILITY", "61");
    refused(&load("", &["--device", "cuda"], &[ancient]), 10, &["too old", "compute capability 7.0 or newer", "found 6.1"]);
    refused(&load("", &["--device", "auto"], &[ancient]), 0, &["device: cpu: device 0 (Fake CUDA device 0) is too old"]);
    let small = ("FAKE_CUDA_MEMORY", "100000");
    refused(&load("", &["--device", "cuda"], &[small]), 10, &["do not fit onto device 0", "MiB free of", "would help"]);
}

pub fn a_rank_under_a_launcher_takes_the_device_of_its_local_rank() {
    let _alone = driver();
    let count = probe().unwrap().devices.len();
    let variables = [("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "4")];
    refused(&load("", &["--device", "cuda"], &variables), 0, &[&format!("device {}: local rank 1 of", 1 % count)]);
}
