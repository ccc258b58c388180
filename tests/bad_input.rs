//! Bad checkpoints and worlds through the built program: one clear error, the documented exit code, no panic, nothing on standard output.

mod support;

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Output};

use support::{fsdp2_config, read_json, run, shardwright, stderr, write};
use tempfile::TempDir;

const CHECKPOINT: i32 = 4;
const PLAN: i32 = 5;
const IO: i32 = 6;

/// Asserts exit code and words on standard error, of which a backtrace is none.
fn check(label: &str, output: &Output, code: i32, needles: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{label}: {text}");
    for needle in needles {
        assert!(text.contains(needle), "{label}: no '{needle}' in: {text}");
    }
    assert!(!text.contains("panicked"), "{label}: {text}");
    assert!(output.stdout.is_empty(), "{label}: {}", String::from_utf8_lossy(&output.stdout));
}

/// A model directory with that one file, and a config beside it.
fn model(file: &[u8]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("model")).unwrap();
    fs::write(dir.path().join("model/model.safetensors"), file).unwrap();
    dir
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data, 7);
    file
}

fn load(dir: &Path, more: &[&str]) -> Output {
    let config = fsdp2_config(dir, &dir.join("model"), 1, None);
    run([&["load", config.to_str().unwrap()], more].concat())
}

#[test]
fn malformed_files() {
    let one = |entry: &str| format!("{{\"w\":{entry}}}");
    let two = |a: &str, b: &str| {
        format!(
            "{{\"a\":{{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":{a}}},\"b\":{{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":{b}}}}}"
        )
    };
    let good = one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#);
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("empty file", Vec::new(), &["model.safetensors", "0"]),
        ("header beyond the file", [&9_999u64.to_le_bytes()[..], b"{}"].concat(), &["model.safetensors", "9999"]),
        ("header length of all ones", [&u64::MAX.to_le_bytes()[..], b"{}"].concat(), &["model.safetensors", "header"]),
        ("header not JSON", safetensors("certainly not", 0), &["model.safetensors", "header"]),
        ("overlap", safetensors(&two("[0,8]", "[4,12]"), 12), &["model.safetensors", "'b'"]),
        ("hole", safetensors(&two("[0,8]", "[12,20]"), 20), &["model.safetensors", "'b'"]),
        ("shape times dtype", safetensors(&one(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#), 8), &["'w'", "12", "8"]),
        ("shape overflows", safetensors(&one(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}"#), 8), &["'w'"]),
        ("unknown dtype", safetensors(&one(r#"{"dtype":"F33","shape":[2],"data_offsets":[0,8]}"#), 8), &["'w'", "F33"]),
        ("duplicate names", safetensors(&format!("{},{}", good.trim_end_matches('}').to_owned() + "}", &good[1..]), 8), &["'w'", "twice"]),
        ("truncated data", safetensors(&good, 5), &["model.safetensors"]),
        ("data too long", safetensors(&good, 11), &["model.safetensors"]),
        ("offsets fall", safetensors(&one(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#), 8), &["'w'"]),
    ];
    for (label, file, needles) in cases {
        let dir = model(&file);
        check(label, &load(dir.path(), &["--world-size", "2"]), CHECKPOINT, needles);
    }
}

#[test]
fn missing_and_unreadable() {
    let dir = tempfile::tempdir().unwrap();
    check("no such model", &load(dir.path(), &[]), CHECKPOINT, &["model"]);
    fs::create_dir(dir.path().join("model")).unwrap();
    check("no safetensors", &load(dir.path(), &[]), CHECKPOINT, &["safetensors"]);

    // Root reads everything: the program is run as nobody, from a copy that nobody may read.
    let dir = model(&safetensors(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8));
    let program = dir.path().join("shardwright");
    fs::copy(env!("CARGO_BIN_EXE_shardwright"), &program).unwrap();
    let config = fsdp2_config(dir.path(), &dir.path().join("model"), 1, None);
    for (path, mode) in [(dir.path(), 0o755), (config.as_path(), 0o644), (&dir.path().join("model"), 0o000)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut command = std::process::Command::new(&program);
    command.args(["load", config.to_str().unwrap()]).env_clear();
    // SAFETY: geteuid only asks.
    if unsafe { libc::geteuid() } == 0 {
        std::os::unix::process::CommandExt::uid(&mut command, 65_534);
    }
    // A program that another thread forks while our copy is still open for writing is busy for a moment.
    let mut attempts = (0..100).map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        command.output()
    });
    let output = attempts.find(|o| !matches!(o, Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy)).unwrap().unwrap();
    check("unreadable directory", &output, IO, &["model", "denied"]);
    fs::set_permissions(dir.path().join("model"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn an_index_stays_in_its_directory_and_tells_the_truth() {
    let file = safetensors(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8);
    let cases: [(&str, &str, &[&str]); 5] = [
        ("../", r#"{"weight_map": {"w": "../secret.safetensors"}}"#, &["../secret.safetensors", "index.json"]),
        ("absolute", r#"{"weight_map": {"w": "/etc/passwd"}}"#, &["/etc/passwd"]),
        ("missing file", r#"{"weight_map": {"w": "b.safetensors"}}"#, &["b.safetensors"]),
        ("missing tensor", r#"{"weight_map": {"w": "a.safetensors", "v": "a.safetensors"}}"#, &["'v'", "a.safetensors"]),
        ("not JSON", "weight_map", &["index.json"]),
    ];
    for (label, index, needles) in cases {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        fs::create_dir(&model).unwrap();
        fs::write(model.join("a.safetensors"), &file).unwrap();
        fs::write(dir.path().join("secret.safetensors"), &file).unwrap();
        write(&model, "model.safetensors.index.json", index);
        check(label, &load(dir.path(), &[]), CHECKPOINT, needles);
    }
    // The same name in two files, without an index.
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("model")).unwrap();
    for name in ["a", "b"] {
        fs::write(dir.path().join(format!("model/{name}.safetensors")), &file).unwrap();
    }
    check("tensor in two files", &load(dir.path(), &[]), CHECKPOINT, &["'w'", "a.safetensors", "b.safetensors"]);
}

#[test]
fn worlds_that_cannot_be() {
    let dir = model(&safetensors(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8));
    check("world of 0", &load(dir.path(), &["--world-size", "0"]), PLAN, &["world size", "0"]);
    check("rank beyond the world", &load(dir.path(), &["--world-size", "2", "--rank", "2"]), PLAN, &["rank 2", "2"]);
    let config = fsdp2_config(dir.path(), &dir.path().join("model"), 3, None);
    let output = run(["load", config.to_str().unwrap(), "--world-size", "4"]);
    assert!([Some(3), Some(5)].contains(&output.status.code()), "{}", stderr(&output));
    assert!(stderr(&output).contains("mp_replicate_size"), "{}", stderr(&output));
    let output =
        shardwright().args(["load", config.to_str().unwrap(), "--rank", "1"]).env("RANK", "0").env("WORLD_SIZE", "2").output().unwrap();
    check("flag against launcher", &output, PLAN, &["--rank 1", "RANK=0"]);
}

#[test]
fn a_zero_dim_parameter_is_refused_by_name_under_fsdp2() {
    let dir = model(&safetensors(r#"{"scale":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#, 4));
    check("0-d", &load(dir.path(), &["--world-size", "2"]), PLAN, &["'scale'", "0-d"]);
}

/// What is no regular file is refused at once: a pipe would be waited for without an end.
#[test]
fn pipes_in_the_place_of_files() {
    let whole = safetensors(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8);
    for name in ["model.safetensors", "other.safetensors", "model.safetensors.index.json", "config.json"] {
        let dir = model(&whole);
        let path = dir.path().join("model").join(name);
        if name != "config.json" {
            fs::remove_file(dir.path().join("model/model.safetensors")).unwrap();
        }
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        check(name, &load(dir.path(), &[]), CHECKPOINT, &[name, "not a regular file"]);
    }
}

/// Where a report or a lock is to be written too: opening a pipe would wait for a reader.
#[test]
fn pipes_in_the_place_of_outputs() {
    let dir = model(&safetensors(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8));
    let pipe = dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let config = dir.path().join("train.yaml");
    for path in [pipe.as_path(), Path::new("/dev/null")] {
        let name = path.to_str().unwrap();
        let needles = [name, "not a regular file", "--format json"];
        check("--report", &load(dir.path(), &["--report", name]), IO, &needles);
        check("--lock", &run(["resolve", config.to_str().unwrap(), "--lock", name]), IO, &needles);
    }
}

/// Paths are bytes: one that is not UTF-8 is as good as another.
#[test]
fn paths_that_are_not_utf8() {
    use std::os::unix::ffi::OsStrExt as _;
    let dir = model(&safetensors(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8));
    let odd = dir.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
    fs::rename(dir.path().join("model"), &odd).unwrap();
    let inspected = run(["inspect".as_ref(), odd.as_os_str()]);
    assert!(inspected.status.success(), "{}", stderr(&inspected));
    fs::create_dir(dir.path().join("model")).unwrap();
    fs::copy(odd.join("model.safetensors"), dir.path().join("model/model.safetensors")).unwrap();
    let shards = dir.path().join(std::ffi::OsStr::from_bytes(b"shards\xff"));
    let config = fsdp2_config(dir.path(), &dir.path().join("model"), 1, None);
    let saved = run(["load".as_ref(), config.as_os_str(), "--save".as_ref(), shards.as_os_str()]);
    assert!(saved.status.success(), "{}", stderr(&saved));
    let verified = run(["verify".as_ref(), shards.as_os_str(), "--against".as_ref(), odd.as_os_str()]);
    assert!(verified.status.success(), "{}", stderr(&verified));
    let text = String::from_utf8(verified.stdout).unwrap();
    assert!(text.contains("on 1 rank, 1 tensor\n"), "{text}");
    check("inspect ''", &run(["inspect", ""]), 2, &["MODEL is empty"]);
    check("--against ''", &run(["verify".as_ref(), shards.as_os_str(), "--against".as_ref(), "".as_ref()]), 2, &["--against is empty"]);
}

/// Nobody's names steer the terminal: not in errors, not in tables, not in JSON, which keeps its meaning.
#[test]
fn names_that_would_steer_a_terminal() {
    const NAME: &str = r"\u001b]0;title\u0007\u009b31m\u202e\nerror: not ours";
    let raw = |output: &Output| {
        let text = String::from_utf8([&output.stdout[..], &output.stderr[..]].concat()).unwrap();
        text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}') || text.contains("\nerror: not ours")
    };
    let entry = |offsets: &str| format!(r#"{{"{NAME}":{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}}}"#).replace("\\\\", "\\");
    let bad = model(&safetensors(&entry("[0,9]"), 8));
    let failed = load(bad.path(), &[]);
    assert_eq!(failed.status.code(), Some(CHECKPOINT));
    assert!(!raw(&failed) && stderr(&failed).contains("\\u001b]0;title"), "{}", stderr(&failed));
    let good = model(&safetensors(&entry("[0,8]"), 8));
    let path = good.path().join("model");
    for format in ["table", "json"] {
        let shown = run(["inspect", path.to_str().unwrap(), "--format", format]);
        assert_eq!(shown.status.code(), Some(0));
        assert!(!raw(&shown), "{format}: {}", String::from_utf8_lossy(&shown.stdout).escape_debug());
        if format == "json" {
            let json: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
            assert_eq!(json["tensors"][0]["name"], "\u{1b}]0;title\u{7}\u{9b}31m\u{202e}\nerror: not ours");
        }
    }
}

/// A warning that cannot be written stops nothing.
#[test]
fn a_standard_error_that_is_full() {
    let dir = model(b"");
    let inside = dir.path().join("model");
    fs::rename(inside.join("model.safetensors"), inside.join("a.safetensors")).unwrap();
    fs::write(inside.join("a.safetensors"), safetensors(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8)).unwrap();
    fs::write(inside.join("model.safetensors.index.json"), r#"{"metadata":{"total_size":1},"weight_map":{"w":"a.safetensors"}}"#).unwrap();
    let config = fsdp2_config(dir.path(), &inside, 1, None);
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let status = shardwright().arg("load").arg(config).stdout(std::process::Stdio::null()).stderr(full).status().unwrap();
    assert_eq!(status.code(), Some(0));
}

/// A world is as large as a config says; what is kept of it is as large as what is loaded.
#[test]
fn enormous_worlds() {
    let dir = model(&safetensors(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8));
    check("beyond every mesh", &load(dir.path(), &["--world-size", "4294967295"]), 3, &["mesh-product", "more than 1048576 ranks"]);
    check("side by side", &load(dir.path(), &["--world-size", "1048576"]), PLAN, &["1048576", "16384", "--rank"]);
    let one = load(dir.path(), &["--world-size", "1048576", "--rank", "1048575"]);
    assert_eq!(one.status.code(), Some(0), "{}", stderr(&one));
}

/// A rank that is no text is not an unset one, by which every rank would load the whole world.
#[test]
fn a_rank_that_is_not_text() {
    use std::os::unix::ffi::OsStrExt as _;
    let dir = model(&safetensors(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8));
    let config = fsdp2_config(dir.path(), &dir.path().join("model"), 1, None);
    let mut command = shardwright();
    command.arg("load").arg(config).env("RANK", std::ffi::OsStr::from_bytes(b"\xff")).env("WORLD_SIZE", "2");
    check("RANK", &command.output().unwrap(), PLAN, &["RANK is", "expected a number"]);
}

/// A report that cannot be written is reported before anything is loaded, so nothing is saved either.
#[test]
fn reports_that_cannot_be_written() {
    let dir = model(&safetensors(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8));
    let shards = dir.path().join("shards");
    for report in [dir.path().to_owned(), dir.path().join("no/such/report.json")] {
        let report = report.to_str().unwrap();
        let output = load(dir.path(), &["--save", shards.to_str().unwrap(), "--report", report]);
        check(report, &output, IO, &["cannot write", report]);
        assert!(!shards.join("shardwright.manifest.json").exists());
    }
}

/// A report and a lock take the place of an earlier one and of nothing else.
#[test]
fn reports_and_locks_are_not_written_over_other_files() {
    let dir = model(&safetensors(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8));
    let config = fsdp2_config(dir.path(), &dir.path().join("model"), 1, None);
    let (config, shards) = (config.to_str().unwrap(), dir.path().join("shards"));
    let before = fs::read_to_string(config).unwrap();
    for file in [config, dir.path().join("model/model.safetensors").to_str().unwrap()] {
        let bytes = fs::read(file).unwrap();
        check("report", &run(["load", config, "--world-size", "1", "--report", file]), IO, &[file, "exists already and is not a report"]);
        check("lock", &run(["resolve", config, "--lock", file]), IO, &[file, "is not a lock"]);
        assert_eq!(fs::read(file).unwrap(), bytes);
    }
    let manifest = shards.join("shardwright.manifest.json");
    let save = ["load", config, "--world-size", "1", "--save", shards.to_str().unwrap()];
    assert!(run(save).status.success());
    let again = run(save.iter().chain(&["--overwrite", "--report", manifest.to_str().unwrap()]));
    check("manifest", &again, IO, &["is not a report"]);
    assert!(run(["verify", shards.to_str().unwrap()]).status.success());
    let (report, lock) = (dir.path().join("report.json"), dir.path().join("train.lock"));
    for _ in 0..2 {
        assert!(run(["load", config, "--world-size", "1", "--report", report.to_str().unwrap()]).status.success());
        assert!(run(["resolve", config, "--lock", lock.to_str().unwrap()]).status.success());
        // Whoever formats what is committed may do so.
        for file in [&report, &lock] {
            fs::write(file, serde_json::to_string(&read_json(file)).unwrap()).unwrap();
        }
    }
    assert_eq!(fs::read_to_string(config).unwrap(), before);
}

#[test]
fn a_batch_of_more_samples_than_can_be_counted() {
    let dir = tempfile::tempdir().unwrap();
    let config = write(dir.path(), "train.yaml", "micro_batch_size: 9223372036854775807\ndist_config: {name: fsdp2}\n");
    let output = shardwright().arg("resolve").arg(&config).env("WORLD_SIZE", "4").output().unwrap();
    check("batch", &output, 3, &["train.yaml:1:19", "dp_size 4 times micro_batch_size", "more samples than 64 bits count"]);
}

/// Names of modules are held against the model at hand.
#[test]
fn modules_that_the_model_lacks_are_refused_where_they_stand() {
    let dir = tempfile::tempdir().unwrap();
    let model = support::checkpoint("tiny-qwen3-bf16");
    let config = |peft: &str| {
        let text = format!("model: {}\ntrain_dataset: d\ndist_config: {{name: fsdp2}}\npeft_config: {peft}\n", model.display());
        support::write(dir.path(), "lora.yaml", &text)
    };
    for command in ["resolve", "load"] {
        let path = config("{name: lora, target_modules: [q_prj]}");
        let output = support::run([command, path.to_str().unwrap(), "--world-size", "2"]);
        let text = support::stderr(&output);
        assert_eq!(output.status.code(), Some(3), "{command}: {text}");
        assert!(
            text.contains("error[peft-modules]") && text.contains("lora.yaml:4:43") && text.contains("did you mean 'q_proj'?"),
            "{command}: {text}"
        );
        assert!(!text.contains("init-holds-model") && output.stdout.is_empty(), "{command}: {text}");
    }
    let path = config("{name: lora, target_modules: [q_proj, q_prj]}");
    let output = support::run(["resolve", path.to_str().unwrap(), "--world-size", "1"]);
    assert!(output.status.success() && support::stderr(&output).contains("warning[peft-module-ignored]"), "{}", support::stderr(&output));
}
