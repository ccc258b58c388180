//! Keeping shards as a user does it: `load --save`, `verify`, `inspect`; messages and exit codes, a full disk, signals.

#[path = "support/runner.rs"]
mod runner;
mod support;

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::{Child, Output, Stdio},
    time::{Duration, Instant},
};

use runner::{skip, tests};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::Value;
use shardwright_engine::{Checkpoint, contents::Contents, verify::Verifier};
use support::{NO_REAL_MODEL, checkpoint, fsdp2_config, json, read_json, real_model, run, shardwright, stderr, zero3_config};
use tempfile::TempDir;

tests! {
    what_is_saved_is_verified_against_its_source,
    every_recorded_architecture_is_saved_and_verified,
    the_real_model_is_saved_and_verified,
    the_manifests_digests_are_the_reports,
    ranks_may_be_saved_one_by_one,
    a_save_is_replaced_only_when_asked,
    ranks_that_read_copies_of_one_model_complete_each_other,
    ranks_that_read_different_models_do_not_delete_each_others_shards,
    verify_tells_what_differs,
    inspect_shows_headers_alone,
    a_disk_that_is_too_small_is_reported_before_anything_is_loaded,
    a_disk_that_fills_up_leaves_what_was_there,
    an_interrupted_save_leaves_what_was_there,
    killed_processes_of_one_save_never_leave_a_mix_that_passes,
    a_killed_save_never_leaves_a_mix_that_passes,
    an_unfinished_save_is_no_checkpoint,
}

const MANIFEST: &str = "shardwright.manifest.json";
const TEMPORARY: &str = ".shardwright-tmp-";

fn load_args(config: &Path, world_size: u32, shards: &Path, more: &[&str]) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["load".into(), config.into(), "--world-size".into(), world_size.to_string().into()];
    args.extend(["--save".into(), shards.into()]);
    args.extend(more.iter().map(OsString::from));
    args
}

fn save(config: &Path, world_size: u32, shards: &Path, more: &[&str]) -> Output {
    run(load_args(config, world_size, shards, more))
}

fn verify(shards: &Path, against: Option<&Path>) -> Output {
    let model = against.into_iter().flat_map(|model| [OsStr::new("--against"), model.as_os_str()]);
    run([OsStr::new("verify"), shards.as_os_str()].into_iter().chain(model))
}

/// The exit code is that, and standard error says all of these.
#[track_caller]
fn ends(output: &Output, code: i32, needles: &[&str]) {
    let reported = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{reported}");
    needles.iter().for_each(|n| assert!(reported.contains(n), "'{n}' is not in: {reported}"));
    assert!(!reported.contains("panicked"), "{reported}");
}

#[track_caller]
fn good(output: &Output) {
    ends(output, 0, &[]);
}

/// Everything in a directory, by name.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

/// A checkpoint of one tensor of `rows` × 1024 bfloat16, whose values depend on `seed`.
fn big_model(dir: &Path, name: &str, rows: usize, seed: u8) -> PathBuf {
    let model = dir.join(name);
    fs::create_dir_all(&model).unwrap();
    let bytes: Vec<u8> = (0..rows * 2048).map(|i| u8::try_from(i % 251).unwrap() ^ seed).collect();
    let tensors = [("a", 0..rows / 2), ("b", rows / 2..rows)].map(|(name, part)| {
        let view = TensorView::new(Dtype::BF16, vec![part.len(), 1024], &bytes[part.start * 2048..part.end * 2048]);
        (name, view.unwrap())
    });
    serialize_to_file(tensors, None, &model.join("model.safetensors")).unwrap();
    fs::write(model.join("config.json"), format!("{{\"architectures\": [\"Test{seed}\"]}}")).unwrap();
    model
}

fn what_is_saved_is_verified_against_its_source() {
    let dir = TempDir::new().unwrap();
    for (number, model) in ["tiny-qwen3-bf16", "tiny-qwen3-tied-fp32", "odd-shapes"].into_iter().map(checkpoint).enumerate() {
        for (kind, config) in [("fsdp2", fsdp2_config(dir.path(), &model, 1, None)), ("zero3", zero3_config(dir.path(), &model, true))] {
            for world_size in [1, 3, 8] {
                let shards = dir.path().join(format!("{number}-{kind}-{world_size}"));
                let saved = save(&config, world_size, &shards, &[]);
                good(&saved);
                assert!(String::from_utf8_lossy(&saved.stdout).contains("the directory is complete"));
                let verified = verify(&shards, Some(&model));
                good(&verified);
                assert!(String::from_utf8_lossy(&verified.stdout).contains("elements are those of"), "{verified:?}");
                assert_eq!(fs::read(shards.join("config.json")).unwrap(), fs::read(model.join("config.json")).unwrap());
            }
        }
    }
}

/// A checkpoint of the recorded architecture, its elements made up.
fn recorded_model(dir: &Path, case: &Value) -> PathBuf {
    let model = dir.join(case["name"].as_str().unwrap());
    fs::create_dir_all(&model).unwrap();
    fs::write(model.join("config.json"), case["config"].to_string()).unwrap();
    let mut random = Random(3);
    let mut tensors = Vec::new();
    for (name, reported) in case["tensors"].as_object().unwrap() {
        let shape: Vec<usize> = reported[1].as_array().unwrap().iter().map(|n| usize::try_from(n.as_u64().unwrap()).unwrap()).collect();
        let (dtype, size) = match reported[0].as_str().unwrap() {
            "bfloat16" => (Dtype::BF16, 2),
            "float16" => (Dtype::F16, 2),
            "float32" => (Dtype::F32, 4),
            "int64" => (Dtype::I64, 8),
            other => panic!("{name}: {other}"),
        };
        // Without the exponents' upper bits: finite numbers, and in float32 more digits than bfloat16 keeps.
        let bytes: Vec<u8> = (0..shape.iter().product::<usize>() * size)
            .map(|i| u8::try_from(random.below(256)).unwrap() & if i % size == size - 1 { 0x3f } else { 0xff })
            .collect();
        tensors.push((name.clone(), dtype, shape, bytes));
    }
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    serialize_to_file(views, None, &model.join("model.safetensors")).unwrap();
    model
}

/// Experts that the class stacks, names that it changes, tensors that it drops or rounds: verification makes the same model of the source,
/// by what the save recorded.
fn every_recorded_architecture_is_saved_and_verified() {
    let dir = TempDir::new().unwrap();
    let cases = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/crates/arch/tests/cases.jsonl")).unwrap();
    for case in cases.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let (name, class) = (case["name"].as_str().unwrap(), case["use"].as_str().unwrap());
        let model = recorded_model(dir.path(), &case);
        let engines = [fsdp2_config(dir.path(), &model, 1, None), zero3_config(&dir.path().join(name), &model, true)];
        for (strategy, config) in ["fsdp2", "zero3"].into_iter().zip(engines) {
            fs::write(&config, format!("{}model_class: {class}\n", fs::read_to_string(&config).unwrap())).unwrap();
            let shards = dir.path().join(format!("{name}-{strategy}"));
            good(&save(&config, 3, &shards, &[]));
            let verified = verify(&shards, Some(&model));
            assert_eq!(verified.status.code(), Some(0), "{name}, {strategy}: {}", stderr(&verified));
            let manifest = read_json(&shards.join(MANIFEST));
            assert_eq!(manifest["model"]["class"], class, "{name}: {}", manifest["model"]);
            fs::remove_dir_all(&shards).unwrap();
        }
    }
}

fn the_real_model_is_saved_and_verified() {
    let Some(model) = real_model() else { skip(NO_REAL_MODEL) };
    let dir = TempDir::new().unwrap();
    for (name, config) in [("f", fsdp2_config(dir.path(), &model, 2, None)), ("z", zero3_config(dir.path(), &model, true))] {
        let shards = dir.path().join(name);
        good(&save(&config, 4, &shards, &[]));
        good(&verify(&shards, Some(&model)));
        assert!(shards.join("tokenizer.json").exists() && shards.join("vocab.txt").exists());
    }
}

/// The digests of `--digest` are those of the saved manifest: both are over valid bytes in row-major order.
fn the_manifests_digests_are_the_reports() {
    let dir = TempDir::new().unwrap();
    for config in [fsdp2_config(dir.path(), &checkpoint("odd-shapes"), 1, None), zero3_config(dir.path(), &checkpoint("odd-shapes"), true)]
    {
        let shards = dir.path().join(format!("{}", fs::read_dir(dir.path()).unwrap().count()));
        let report = json(&save(&config, 3, &shards, &["--digest", "--format", "json"]));
        for rank in 0..3 {
            let reported = &report["ranks"][rank]["tensors"];
            let digests: BTreeMap<_, _> = reported.as_array().unwrap().iter().map(|t| (t["name"].as_str(), &t["sha256"])).collect();
            let name = contents(&shards).into_keys().find(|n| n.contains(&format!("-0000{}-", rank + 1)) && n.ends_with(".manifest.json"));
            let manifest: Value = serde_json::from_slice(&fs::read(shards.join(name.unwrap())).unwrap()).unwrap();
            let kept = manifest["tensors"].as_array().unwrap();
            assert!(!kept.is_empty());
            kept.iter().for_each(|t| assert_eq!(digests[&t["name"].as_str()], &t["sha256"]));
        }
    }
}

fn ranks_may_be_saved_one_by_one() {
    let dir = TempDir::new().unwrap();
    let model = checkpoint("tiny-qwen3-bf16");
    let (config, shards) = (fsdp2_config(dir.path(), &model, 1, None), dir.path().join("shards"));
    let rank = |rank: &str| save(&config, 3, &shards, &["--rank", rank]);
    let first = rank("1");
    good(&first);
    assert!(String::from_utf8_lossy(&first.stdout).contains("ranks 0, 2 are still to come"), "{first:?}");
    assert_eq!(contents(&shards).len(), 2, "that rank's tensors and its manifest, nothing else");
    ends(&verify(&shards, None), 4, &["its save is not complete", "of 3 ranks, these are not saved: 0, 2"]);
    good(&rank("0"));
    let last = rank("2");
    good(&last);
    assert!(String::from_utf8_lossy(&last.stdout).contains("the directory is complete"), "{last:?}");
    good(&verify(&shards, Some(&model)));
    let whole = dir.path().join("whole");
    good(&save(&config, 3, &whole, &[]));
    assert!(contents(&shards) == contents(&whole));
}

fn a_save_is_replaced_only_when_asked() {
    let dir = TempDir::new().unwrap();
    let model = checkpoint("odd-shapes");
    let (config, shards) = (fsdp2_config(dir.path(), &model, 1, None), dir.path().join("shards"));
    good(&save(&config, 3, &shards, &[]));
    let before = contents(&shards);
    ends(&save(&config, 2, &shards, &[]), 6, &["it holds a save already", "--overwrite"]);
    assert!(contents(&shards) == before);
    good(&save(&config, 2, &shards, &["--overwrite"]));
    good(&verify(&shards, Some(&model)));
    ends(&save(&config, 2, &model, &["--overwrite"]), 6, &["model-00001-of-00002.safetensors", "another directory"]);
    let file = dir.path().join("train.yaml");
    ends(&save(&config, 2, &file, &[]), 6, &["train.yaml", "is not a directory"]);
    ends(&run(["load", "x.yaml", "--overwrite"]), 2, &["--save"]);
}

/// A copy of the model on every node: `cp` without `-p` changes the times, and no rank may take the other for one of another source.
fn ranks_that_read_copies_of_one_model_complete_each_other() {
    let dir = TempDir::new().unwrap();
    let model = checkpoint("tiny-qwen3-bf16");
    let shards = dir.path().join("shards");
    let copy = |name: &str, seconds: u64| {
        let node = dir.path().join(name);
        fs::create_dir_all(node.join("model")).unwrap();
        for (file, bytes) in contents(&model) {
            fs::write(node.join("model").join(&file), bytes).unwrap();
            let time = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
            fs::File::options().append(true).open(node.join("model").join(file)).unwrap().set_modified(time).unwrap();
        }
        fsdp2_config(&node, &node.join("model"), 1, None)
    };
    let (one, two) = (copy("one", 1_000_000), copy("two", 2_000_000));
    good(&save(&one, 2, &shards, &["--rank", "0"]));
    let last = save(&two, 2, &shards, &["--rank", "1"]);
    good(&last);
    assert!(String::from_utf8_lossy(&last.stdout).contains("the directory is complete"), "{last:?}");
    good(&verify(&shards, Some(&model)));
}

/// Ranks of one job whose models really differ: the second is refused, says what differs, and deletes nothing, whatever is asked.
fn ranks_that_read_different_models_do_not_delete_each_others_shards() {
    let dir = TempDir::new().unwrap();
    let shards = dir.path().join("shards");
    let (_, [old, new]) = old_and_new(dir.path());
    good(&save(&old, 2, &shards, &["--rank", "0"]));
    let before = contents(&shards);
    for more in [&["--rank", "1"][..], &["--rank", "1", "--overwrite"]] {
        let refused = save(&new, 2, &shards, more);
        ends(&refused, 6, &["shard-00001-", "'model.safetensors' has other tensor data", "every rank", "remove the directory"]);
        assert!(!stderr(&refused).contains("--overwrite"), "{}", stderr(&refused));
        assert!(contents(&shards) == before);
    }
    good(&save(&new, 2, &shards, &["--overwrite"]));
}

fn verify_tells_what_differs() {
    let dir = TempDir::new().unwrap();
    let (model, other) = (checkpoint("tiny-qwen3-bf16"), checkpoint("odd-shapes"));
    let (config, shards) = (fsdp2_config(dir.path(), &model, 1, None), dir.path().join("shards"));
    good(&save(&config, 2, &shards, &[]));
    ends(&verify(&shards, Some(&other)), 8, &["the model has no such tensor"]);
    ends(&verify(&shards, Some(&dir.path().join("nowhere"))), 4, &["nowhere"]);
    let shard = shards.join("shard-00002-model-00001-of-00001.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&shard, bytes).unwrap();
    let needles = ["its sha256 is not the manifest's: expected ", ": rank 1: its bytes are not those that were saved"];
    ends(&verify(&shards, None), 8, &needles);
    let output = run([OsStr::new("verify"), shards.as_os_str(), OsStr::new("--format"), OsStr::new("json")]);
    let reported: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (output.status.code(), &reported["verified"], reported["problems"].as_array().unwrap().len()),
        (Some(8), &Value::Bool(false), 2)
    );
    fs::remove_file(&shard).unwrap();
    ends(&verify(&shards, Some(&model)), 8, &["shard-00002-model-00001-of-00001.safetensors: it is missing"]);
    fs::write(shards.join(MANIFEST), "{").unwrap();
    ends(&verify(&shards, None), 4, &[MANIFEST, "torn or garbled"]);
    fs::remove_file(shards.join(MANIFEST)).unwrap();
    ends(&verify(&shards, Some(&model)), 4, &["its save is not complete"]);
    let whole = verify(&model, None);
    good(&whole);
    assert!(
        String::from_utf8_lossy(&whole.stdout).contains("such files have no checksums"),
        "a model's own files are validated as they can be"
    );
    ends(&verify(&dir.path().join("nowhere"), None), 4, &["nowhere", "cannot open the directory"]);
}

fn inspect_shows_headers_alone() {
    let model = checkpoint("odd-shapes");
    let table = run([OsStr::new("inspect"), model.as_os_str()]);
    good(&table);
    insta::assert_snapshot!(String::from_utf8_lossy(&table.stdout));
    let reported = json(&run([OsStr::new("inspect"), model.as_os_str(), OsStr::new("--format"), OsStr::new("json")]));
    assert_eq!((&reported["totals"]["tensors"], &reported["totals"]["numel"]), (&9.into(), &2456.into()));
    let cube = reported["tensors"].as_array().unwrap().iter().find(|t| t["name"] == "c.cube").unwrap();
    let expected = serde_json::json!({"name": "c.cube", "dtype": "bfloat16", "shape": [3, 4, 5], "numel": 60, "bytes": 120, "file": "model-00002-of-00002.safetensors"});
    assert_eq!(*cube, expected);
    // From headers alone: a file whose data cannot be read, being a hole, is as good.
    let dir = TempDir::new().unwrap();
    let header = r#"{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}"#;
    let path = dir.path().join("model.safetensors");
    fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
    if fs::File::options().write(true).open(&path).unwrap().set_len(8 + header.len() as u64 + 4_398_046_511_104).is_ok() {
        let huge = run([OsStr::new("inspect"), path.as_os_str()]);
        good(&huge);
        assert!(String::from_utf8_lossy(&huge.stdout).contains("4.40 TB"));
    }
    ends(&run(["inspect", "no/where/at-all"]), 4, &["no/where/at-all"]);
    let shards = dir.path().join("shards");
    good(&save(&fsdp2_config(dir.path(), &model, 1, None), 2, &shards, &[]));
    let shown = run([OsStr::new("inspect"), shards.as_os_str()]);
    good(&shown);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("safetensors, 2 ranks"), "a save is shown as the checkpoint of its ranks");
}

/// A file system of that size, unmounted in the end.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let option = format!("size={size}");
        let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &option, "none"]).arg(dir.path()).output();
        if mounted.is_ok_and(|o| o.status.success()) {
            return Self(dir);
        }
        skip("a tmpfs cannot be mounted here, it needs root");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.path()).output();
    }
}

fn a_disk_that_is_too_small_is_reported_before_anything_is_loaded() {
    let disk = SmallDisk::mount("1m");
    let dir = TempDir::new().unwrap();
    let config = fsdp2_config(dir.path(), &big_model(dir.path(), "model", 1024, 0), 1, Some("checkpoint"));
    let shards = disk.0.path().join("a/shards");
    ends(&save(&config, 2, &shards, &[]), 6, &["shards: not enough space for the shards: expected ", " bytes free, found 1048576"]);
    assert!(!disk.0.path().join("a").exists());
}

/// The shards alone would fit, so that writing begins: the disk is full in the middle, and what was there is still there.
fn a_disk_that_fills_up_leaves_what_was_there() {
    let disk = SmallDisk::mount("80k");
    let dir = TempDir::new().unwrap();
    let model = checkpoint("odd-shapes");
    let config = fsdp2_config(dir.path(), &model, 1, None);
    let (shards, more) = (disk.0.path().join("shards"), disk.0.path().join("more"));
    good(&save(&config, 1, &shards, &[]));
    let before = contents(&shards);
    for full in [save(&config, 8, &shards, &["--overwrite"]), save(&config, 8, &more, &[])] {
        ends(&full, 6, &["cannot write the file", "No space left on device (os error 28)", "shard-0000"]);
        assert!(contents(&shards) == before);
        assert!(!more.exists(), "what the save had made is gone");
        good(&verify(&shards, Some(&model)));
    }
}

fn spawn(config: &Path, shards: &Path) -> Child {
    let mut command = shardwright();
    command.args(load_args(config, 4, shards, &["--overwrite"])).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().expect("the built program starts")
}

/// Sends a signal to a child, unless it is gone.
fn signal(child: &mut Child, signal: i32) {
    if child.try_wait().unwrap().is_none() {
        let pid = i32::try_from(child.id()).unwrap();
        // SAFETY: the child was not waited for, so its number is still its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }
}

fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok()).collect()
}

fn an_interrupted_save_leaves_what_was_there() {
    let dir = TempDir::new().unwrap();
    let shards = dir.path().join("shards");
    let [old, new] = [("old", 0), ("new", 9)].map(|(name, seed)| big_model(dir.path(), name, 8192, seed));
    good(&save(&fsdp2_config(dir.path(), &old, 1, None), 4, &shards, &[]));
    let before = contents(&shards);
    let config = fsdp2_config(dir.path(), &new, 1, None);
    for _ in 0..20 {
        let mut child = spawn(&config, &shards);
        while names(&shards).iter().all(|n| !n.starts_with(TEMPORARY)) && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        signal(&mut child, libc::SIGINT);
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            good(&save(&fsdp2_config(dir.path(), &old, 1, None), 4, &shards, &["--overwrite"]));
            continue; // it came too late
        }
        ends(&output, 130, &["the save was stopped"]);
        assert!(contents(&shards) == before, "{:?}", names(&shards));
        return;
    }
    panic!("no save could be interrupted in 20 tries");
}

/// What verification says of a directory that a killed save has left, and which source it is then.
fn state(shards: &Path, sources: [&Checkpoint; 2]) -> Option<usize> {
    let passes = |source: Option<&Checkpoint>| {
        let verifier = Verifier::open(shards).ok()?;
        let verifier = if let Some(source) = source { verifier.against(source) } else { verifier };
        verifier.run().unwrap().problems.is_empty().then_some(())
    };
    let verified = passes(None);
    // Where it does not pass, nothing else takes it for whole either: a load, a conversion, an inspection.
    assert!(verified.is_some() || Contents::open(shards).is_err(), "an unfinished save is taken for whole");
    verified?;
    let which = sources.into_iter().position(|source| passes(Some(source)).is_some());
    Some(which.expect("verification passed a mix of two sources"))
}

/// A pseudo-random sequence, the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n.max(1)
    }
}

/// Two models of the same shapes and other values, their checkpoints and their configs.
fn old_and_new(dir: &Path) -> ([Checkpoint; 2], [PathBuf; 2]) {
    let models = [("old", 0), ("new", 9)].map(|(name, seed)| big_model(dir, name, 512, seed));
    let config = |model: &PathBuf| {
        fs::create_dir(model.join("config")).unwrap();
        fsdp2_config(&model.join("config"), model, 1, None)
    };
    (models.each_ref().map(|m| Checkpoint::open(m).unwrap()), models.each_ref().map(config))
}

/// Four processes save a rank each over another source's shards, and all are killed at once.
fn killed_processes_of_one_save_never_leave_a_mix_that_passes() {
    let dir = TempDir::new().unwrap();
    let shards = dir.path().join("shards");
    let (sources, configs) = old_and_new(dir.path());
    let sources = [&sources[0], &sources[1]];
    let start = |config: &Path| {
        ["0", "1", "2", "3"].map(|rank| {
            let args = load_args(config, 4, &shards, &["--overwrite", "--rank", rank]);
            shardwright().args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the built program starts")
        })
    };
    let started = Instant::now();
    start(&configs[0]).into_iter().for_each(|mut child| assert!(child.wait().unwrap().success()));
    let life = u64::try_from(started.elapsed().as_micros()).unwrap();
    assert_eq!(state(&shards, sources), Some(0));
    let mut random = Random(7);
    for round in 0..20 {
        let mut children = start(&configs[(round + 1) % 2]);
        std::thread::sleep(Duration::from_micros(random.below(life)));
        children.iter_mut().for_each(|child| child.kill().unwrap());
        for child in &mut children {
            child.wait().unwrap();
        }
        // Ranks do not replace an unfinished save of another source: that is for a person, or for one process that saves every rank.
        if state(&shards, sources).is_none() && round % 3 == 2 {
            drop(fs::remove_dir_all(&shards)); // killed before it was made, there is none
        }
    }
    if state(&shards, sources).is_none() {
        drop(fs::remove_dir_all(&shards)); // killed before it was made, there is none
    }
    start(&configs[1]).into_iter().for_each(|mut child| assert!(child.wait().unwrap().success()));
    assert_eq!(state(&shards, sources), Some(1));
}

/// Overwriting one source's shards by another's, killed a hundred times: at once where a whole save is there, anywhere in the program's
/// life, or in the commit, which begins when the manifest goes. What is left either passes, and is then one of the two whole, or is refused.
fn a_killed_save_never_leaves_a_mix_that_passes() {
    let dir = TempDir::new().unwrap();
    let shards = dir.path().join("shards");
    let (sources, configs) = old_and_new(dir.path());
    let state = || state(&shards, [&sources[0], &sources[1]]);
    let whole = |which: usize| {
        good(&save(&configs[which], 4, &shards, &["--overwrite"]));
        assert_eq!(state(), Some(which));
    };
    let started = Instant::now();
    whole(0);
    let life = u64::try_from(started.elapsed().as_micros()).unwrap();
    let mut random = Random(1);
    let (mut passed, mut refused) = (0, 0);
    for round in 0..100 {
        let before = match state() {
            None if round % 4 == 0 => {
                whole(0);
                Some(0)
            }
            state => state,
        };
        let mut child = spawn(&configs[before.map_or(round % 2, |which| 1 - which)], &shards);
        match round % 4 {
            0 => {}
            1 | 3 => {
                while before.is_some() && shards.join(MANIFEST).exists() && child.try_wait().unwrap().is_none() {}
                let (wait, since) = (Duration::from_micros(random.below(3000)), Instant::now());
                while since.elapsed() < wait {}
            }
            _ => std::thread::sleep(Duration::from_micros(random.below(life))),
        }
        signal(&mut child, libc::SIGKILL);
        drop(child.wait_with_output());
        match state() {
            Some(_) => passed += 1,
            None => refused += 1,
        }
    }
    eprintln!("killed 100 saves: {passed} left a directory that passes, {refused} one that is refused");
    assert!(passed > 0 && refused > 0, "kills came at one kind of moment only: {passed} passed, {refused} were refused");
    whole(1);
    assert!(names(&shards).iter().all(|n| !n.starts_with(TEMPORARY)), "the killed saves' leftovers are gone");
}

/// Before the last rank has written the directory's own manifest, and a shard alone after that.
fn an_unfinished_save_is_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let model = checkpoint("tiny-qwen3-bf16");
    for strategy in ["fsdp2", "zero3"] {
        let config = match strategy {
            "fsdp2" => fsdp2_config(dir.path(), &model, 1, None),
            _ => zero3_config(dir.path(), &model, false),
        };
        let saved = dir.path().join(strategy);
        let out = run(["load", config.to_str().unwrap(), "--world-size", "3", "--rank", "0", "--save", saved.to_str().unwrap()]);
        assert!(out.status.success(), "{}", stderr(&out));
        for command in ["inspect", "verify"] {
            let out = run([command, saved.to_str().unwrap()]);
            assert_eq!(out.status.code(), Some(4), "{command}: {}", stderr(&out));
        }
        let from = fsdp2_config(dir.path(), &saved, 1, None);
        let out = run(["load", from.to_str().unwrap(), "--world-size", "2"]);
        assert_eq!(out.status.code(), Some(4), "{}", stderr(&out));
        assert!(stderr(&out).contains("its save is not complete"), "{}", stderr(&out));
    }
}
