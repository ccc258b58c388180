//! Two corpora, of configs that are invalid and of configs that are legal and warned of: what each makes the program say, and its exit code.
//! A first line `# args: …` adds arguments.

use std::{fs, path::Path, process::Command};

fn corpus(name: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder(name))
        .unwrap()
        .filter_map(|e| e.unwrap().file_name().into_string().unwrap().strip_suffix(".yaml").map(str::to_owned))
        .collect();
    names.sort();
    names
}

fn folder(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/resolve").join(name)
}

fn run(args: &[&str]) -> (i32, String, String) {
    run_in("invalid", args)
}

fn run_in(corpus: &str, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shardwright"));
    command.current_dir(folder(corpus)).args(args).env_clear().env("HF_HOME", "nowhere");
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Resolves a config of a corpus with the arguments that it asks for.
fn resolved(corpus: &str, name: &str) -> (i32, String, String) {
    let file = format!("{name}.yaml");
    let text = fs::read_to_string(folder(corpus).join(&file)).unwrap();
    let first = text.lines().next().unwrap_or_default();
    let more: Vec<&str> = first.strip_prefix("# args: ").unwrap_or_default().split_whitespace().collect();
    run_in(corpus, &[&["resolve", &file][..], &more].concat())
}

#[test]
fn every_problem_is_said_with_its_place_and_exit_code() {
    let names = corpus("invalid");
    assert!(names.len() >= 30, "{}", names.len());
    for name in names {
        let (code, out, err) = resolved("invalid", &name);
        assert!(out.is_empty() && !err.contains("panicked"), "{name}: {out}{err}");
        assert_eq!(code, 3, "{name}: {err}");
        insta::assert_snapshot!(format!("invalid_{name}"), format!("exit {code}\n{err}"));
    }
}

#[test]
fn what_is_legal_and_odd_is_a_warning_at_its_place() {
    let names = corpus("warned");
    assert!(names.len() >= 8, "{}", names.len());
    for name in names {
        let (code, out, err) = resolved("warned", &name);
        assert!(code == 0 && !out.is_empty() && err.starts_with("warning["), "{name}: {code} {err}");
        insta::assert_snapshot!(format!("warned_{name}"), err);
    }
}

/// Nothing hides anything: neither a broken section its file, nor the file the command line, nor any of them each other.
#[test]
fn problems_of_all_sources_are_said_at_once() {
    let (code, out, _) =
        run(&["resolve", "everywhere.yaml", "learning_rate=fast", "dist_config.confg=1", "--world-size", "4", "--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&out).unwrap();
    let errors = document["errors"].as_array().unwrap();
    let mut codes: Vec<&str> = errors.iter().map(|e| e["code"].as_str().unwrap()).collect();
    codes.sort_unstable();
    codes.dedup();
    let of = |file: &str| errors.iter().filter(|e| e["file"] == file).count();
    assert!(code == 3 && codes.len() >= 8, "{codes:?}");
    assert!(of("everywhere.yaml") >= 8 && of("everywhere.json") >= 5 && of("<command line>") == 2, "{document}");
}

#[test]
fn with_json_errors_are_json_too() {
    let (code, out, err) = run(&["resolve", "many_problems.yaml", "--world-size", "4", "--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&out).unwrap();
    let codes: Vec<&str> = document["errors"].as_array().unwrap().iter().map(|e| e["code"].as_str().unwrap()).collect();
    assert_eq!((code, err.as_str()), (3, ""));
    assert!(codes.len() >= 9 && codes.contains(&"lora-on-meta") && codes.contains(&"config-unknown-key"), "{codes:?}");
    assert!(document["errors"].as_array().unwrap().iter().all(|e| e["line"].is_u64() && e["file"] == "many_problems.yaml"), "{document}");
}

#[test]
fn huge_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("huge.yaml");
    fs::write(&file, "# ".repeat(2 << 20)).unwrap();
    let (code, _, err) = run(&["resolve", file.to_str().unwrap()]);
    assert!(code == 3 && err.contains("yaml-too-large"), "{code} {err}");
}

#[test]
fn usage_and_missing_configs() {
    assert_eq!(run(&["resolve"]).0, 2);
    assert_eq!(run(&["resolve", "a=b"]).0, 2);
    let (code, _, err) = run(&["resolve", "nowhere.yaml"]);
    assert!(code == 3 && err.contains("nowhere.yaml"), "{err}");
}

#[test]
fn locks_hold_until_something_changes() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    fs::write(at("a.yaml"), "model: m\ndist_config: {name: fsdp2}\n").unwrap();
    fs::write(at("b.yaml"), "model: m\n").unwrap();
    let (a, b, one, many) = (at("a.yaml"), at("b.yaml"), at("a.lock"), at("locks"));
    assert_eq!(run(&["resolve", &a, "--lock", &one]).0, 0);
    assert_eq!(run(&["resolve", &a, &b, "--lock", &many]).0, 0);
    assert_eq!(run(&["resolve", &a, "--check", &one]), (0, String::new(), String::new()));
    fs::write(at("a.yaml"), "# only a comment\ndist_config: {name: fsdp2}\nmodel: m\n").unwrap();
    assert_eq!(run(&["resolve", &a, "--check", &one]).0, 0, "comments and order change nothing");
    let (code, out, _) = run(&["resolve", &a, &b, "bf16=false", "--check", &many]);
    assert_eq!(code, 9);
    let line = "  precision.compute\n    - bfloat16  (fsdp2.full.bf16)\n    + float32  (fsdp2.full.fp32)\n";
    assert!(out.contains(line) && out.contains("+ false  (command line)"), "{out}");
    fs::write(&one, "{}").unwrap();
    assert_eq!(run(&["resolve", &a, "--check", &one]).0, 3, "what is no lock is a bad file, not drift");
    assert_eq!(run(&["resolve", &a, "--check", &at("none.lock")]).0, 6);
}

/// Locks that builds of November 22 and 26 wrote, before locks named the keys that their build knows.
#[test]
fn locks_of_earlier_builds_hold_and_name_their_version_where_they_do_not() {
    let files: [(&str, &str, &[&str]); 2] = [
        ("train", "model: m\ntrain_dataset: d\ndist_config: {name: fsdp2}\nmicro_batch_size: 2\n", &["micro_batch_size=4"]),
        ("zero", "model: m\ntrain_dataset: d\ndist_config: {name: deepspeed, config_file: ds.json}\n", &["seed=7"]),
    ];
    let locks = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/resolve/locks");
    let dir = tempfile::tempdir().unwrap();
    let deepspeed = r#"{"gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "train_micro_batch_size_per_gpu": "auto",
        "zero_allow_untested_optimizer": true, "bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}, "zero_optimization": {"stage": 3,
        "overlap_comm": false, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto",
        "stage3_gather_16bit_weights_on_model_save": true}}"#;
    fs::write(dir.path().join("ds.json"), deepspeed).unwrap();
    for (name, yaml, change) in files {
        let config = dir.path().join(format!("{name}.yaml")).display().to_string();
        fs::write(&config, yaml).unwrap();
        for (build, version) in ["an earlier build, which did not name itself", "an earlier build of 0.1.0"].into_iter().enumerate() {
            let lock = locks.join(format!("{name}_{build}.lock")).display().to_string();
            let check = ["resolve", &config, "--world-size", "8", "--check", &lock];
            let (code, out, err) = run(&check);
            assert_eq!(code, 0, "{name} {build}: {out}{err}");
            let (code, out, _) = run(&[&check[..], change].concat());
            assert!(code == 9 && out.contains(version) && out.contains("  training."), "{name} {build}: {code} {out}");
        }
    }
}

#[test]
fn a_value_is_explained_down_to_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("train.yaml");
    fs::write(&file, "model: m\nbf16: false\ndist_config: {name: fsdp2}\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_shardwright"));
    let output = command.current_dir(dir.path()).args(["resolve", "train.yaml", "--explain", "precision.compute"]).output().unwrap();
    insta::assert_snapshot!(String::from_utf8(output.stdout).unwrap());
    let (code, _, err) = run(&["resolve", file.to_str().unwrap(), "--explain", "precision.compote"]);
    assert!(code == 2 && err.contains("did you mean 'precision.compute'?"), "{err}");
}

#[test]
fn the_table_is_for_people() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("train.yaml"), "model: m\npeft_config: {name: lora, r: 4}\ndist_config: {name: fsdp2}\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_shardwright"));
    let output = command.current_dir(dir.path()).args(["resolve", "train.yaml", "--world-size", "4"]).output().unwrap();
    insta::assert_snapshot!(String::from_utf8(output.stdout).unwrap());
}
