//! `convert`, `diff` and loads from checkpoints of other formats. `engines.py` holds the real engines against it: torch's `dcp.load` into model
//! and optimizer, `deepspeed.load_checkpoint`, safetensors, on other numbers of ranks. It needs a Python with torch: SHARDWRIGHT_PYTHON, else
//! `python3` on the path; without one, or without DeepSpeed, what is left out is named as skipped.

#[path = "../support/runner.rs"]
mod runner;
#[path = "../support/mod.rs"]
mod support;

use std::{ffi::OsString, path::Path, process::Command};

use runner::{skip, tests};
use support::{root, shardwright, stderr};
use tempfile::TempDir;

tests! {
    real_engines_save_and_load_every_format_on_every_number_of_ranks,
    every_source_loads_in_place_as_its_conversion_does,
    shards_load_on_other_numbers_of_ranks,
    parameters_of_a_distributed_checkpoint_keep_their_names,
    links_that_lead_out_of_the_directory_are_followed_with_a_warning,
    a_cached_model_without_safetensors_is_inspected,
    shards_of_every_source_are_saved_in_place_and_verified_against_it,
    a_killed_conversion_resumes_and_is_never_taken_for_whole,
    what_convert_makes_is_verified_alone_and_against_its_source,
    files_of_the_trainer_and_the_tag_go_along,
    names_of_the_hub_and_of_the_model_are_each_others_inverse,
    refusals_have_exit_codes_and_leave_nothing,
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

/// `engines.py` in a Python that has the engines.
fn real_engines_save_and_load_every_format_on_every_number_of_ranks() {
    let name = std::env::var_os("SHARDWRIGHT_PYTHON").unwrap_or_else(|| OsString::from("python3"));
    let imports = "import torch.distributed.fsdp, safetensors.torch";
    let found = Command::new(&name).env("OMP_NUM_THREADS", "1").args(["-c", imports]).output();
    if !found.is_ok_and(|o| o.status.success()) {
        skip(format!("{} cannot import torch and safetensors; set SHARDWRIGHT_PYTHON to one that can", name.display()));
    }
    let output = Command::new(&name)
        .arg(root().join("tests/convert/engines.py"))
        .arg(env!("CARGO_BIN_EXE_shardwright"))
        .output()
        .expect("python starts");
    let reported = String::from_utf8_lossy(&output.stdout);
    reported.lines().filter(|line| line.starts_with("skipped")).for_each(|line| eprintln!("{line}"));
    assert!(output.status.success() && reported.contains(", 0 failures"), "{reported}\n{}", stderr(&output));
}

/// Whole tensors that `shardwright load` makes of a source, by name.
fn loaded(model: &Path, config: &dyn Fn(&Path, &Path) -> std::path::PathBuf, world_size: &str) -> Vec<serde_json::Value> {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), model);
    let output = shardwright().arg("load").arg(config).args(["--world-size", world_size, "--digest", "--format", "json"]).output().unwrap();
    assert!(output.status.success(), "{}: {}", model.display(), stderr(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    // A plain file does not say which of its tensors are buffers, and these are laid out as parameters there.
    let of = |rank: &serde_json::Value| -> Vec<serde_json::Value> {
        rank["tensors"].as_array().unwrap().iter().filter(|t| t["name"] != "buf" && t["name"] != "count").cloned().collect()
    };
    report["ranks"].as_array().unwrap().iter().map(|rank| of(rank).into()).collect()
}

/// Shards of ranks are a source like any other: saves under both strategies, and what `convert --to hf-sharded` writes.
fn shards_load_on_other_numbers_of_ranks() {
    let dir = TempDir::new().unwrap();
    let model = support::checkpoint("tiny-qwen3-tied-fp32");
    let fsdp2 = |dir: &Path, model: &Path| support::fsdp2_config(dir, model, 1, None);
    let zero3 = |dir: &Path, model: &Path| support::zero3_config(dir, model, true);
    let mut sources = Vec::new();
    for (name, config) in [("fsdp2", fsdp2(dir.path(), &model)), ("zero3", support::zero3_config(dir.path(), &model, false))] {
        let shards = dir.path().join(name);
        let save = shardwright().arg("load").arg(config).args(["--world-size", "3", "--save"]).arg(&shards).output().unwrap();
        assert!(save.status.success(), "{}", stderr(&save));
        sources.push(shards);
    }
    let sharded = dir.path().join("hf-sharded");
    let output = shardwright().arg("convert").arg(&model).arg(&sharded).args(["--to", "hf-sharded", "--ranks", "3"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    sources.push(sharded.clone());
    for world_size in ["1", "2", "5"] {
        let whole = (loaded(&model, &fsdp2, world_size), loaded(&model, &zero3, world_size));
        assert!(!whole.0[0].as_array().unwrap().is_empty());
        for source in &sources {
            let shards = (loaded(source, &fsdp2, world_size), loaded(source, &zero3, world_size));
            assert!(shards == whole, "{} on {world_size}", source.display());
        }
    }
    // Whole tensors beside them count, as for transformers; beside a save it is not clear what is meant.
    let whole = |dir: &Path| std::fs::copy(model.join("model.safetensors"), dir.join("model.safetensors")).unwrap();
    let inspect = |dir: &Path| shardwright().arg("inspect").arg(dir).output().unwrap();
    whole(&sharded);
    let said = stderr(&inspect(&sharded));
    assert!(said.contains("and 2 more is left out: shards of ranks") && said.contains("'model.safetensors' is read"), "{said}");
    std::fs::remove_file(sharded.join("model.safetensors")).unwrap();
    whole(&sources[0]);
    let said = inspect(&sources[0]);
    assert!(said.status.code() == Some(4) && stderr(&said).contains("keep one of the two"), "{}", stderr(&said));
    std::fs::remove_file(sharded.join("shard-00003-model-00001-of-00001.safetensors")).unwrap();
    let load = shardwright().arg("load").arg(fsdp2(dir.path(), &sharded)).output().unwrap();
    let said = stderr(&load);
    assert!(load.status.code() == Some(4) && said.contains("expected 3 files, found 2"), "{said}");
}

/// As of safetensors: a link is its owner's, and followed.
fn links_that_lead_out_of_the_directory_are_followed_with_a_warning() {
    let dir = TempDir::new().unwrap();
    let at = dir.path().join("zero3");
    assert!(Command::new("cp").arg("-r").arg(fixture("zero3")).arg(&at).status().unwrap().success());
    let inspect = || {
        let output = shardwright().arg("inspect").arg(&at).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output)
    };
    assert!(!inspect().contains("leads out"));
    let (file, elsewhere) = (at.join("global_step3/zero_pp_rank_0_mp_rank_00_model_states.pt"), dir.path().join("elsewhere.pt"));
    std::fs::rename(&file, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
    let said = inspect();
    assert!(said.contains("zero_pp_rank_0_mp_rank_00_model_states.pt: a link that leads out") && said.contains("elsewhere.pt"), "{said}");
}

/// As the model's class has them, the parameters of a distributed checkpoint keep their names, whatever parts they lie in.
fn parameters_of_a_distributed_checkpoint_keep_their_names() {
    let dir = TempDir::new().unwrap();
    let (model, target) = (support::checkpoint("tiny-qwen3-bf16"), dir.path().join("dcp"));
    let output = shardwright().arg("convert").arg(&model).arg(&target).args(["--to", "dcp", "--ranks", "3"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let output = shardwright().arg("inspect").arg(&target).args(["--as-model", "--format", "json"]).output().unwrap();
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let count = |name: &str| found["counts"][name].as_u64().unwrap();
    assert!(count("parameters") > 0 && count("renamed") == 0 && count("assembled") == 0, "{}", found["counts"]);
    assert_eq!(found["tensors"][0]["from"][0]["tensor"], "lm_head.weight, in 3 parts");
}

/// A hub id is looked at like a directory, whatever its format.
fn a_cached_model_without_safetensors_is_inspected() {
    let dir = TempDir::new().unwrap();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let cached = dir.path().join("hub/models--acme--tiny");
    let snapshot = cached.join("snapshots").join(commit);
    std::fs::create_dir_all(cached.join("refs")).unwrap();
    std::fs::create_dir_all(cached.join("snapshots")).unwrap();
    std::fs::write(cached.join("refs/main"), commit).unwrap();
    assert!(Command::new("cp").arg("-r").arg(fixture("zero3")).arg(&snapshot).status().unwrap().success());
    let output = shardwright().args(["inspect", "acme/tiny"]).env("HF_HOME", dir.path()).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("DeepSpeed ZeRO-3") && table.contains("exp_avg") && !table.contains(", part "), "{table}");
}

/// A load from a checkpoint where it lies gives every rank the bytes that a load from its conversion to safetensors gives.
fn every_source_loads_in_place_as_its_conversion_does() {
    let dir = TempDir::new().unwrap();
    for source in ["zero3", "fsdp2", "zero2"] {
        let plain = dir.path().join(source);
        convert(source, &plain, &["--to", "hf"]);
        for world_size in ["1", "2", "3", "5"] {
            let fsdp2 = |dir: &Path, model: &Path| support::fsdp2_config(dir, model, 1, None);
            let zero3 = |dir: &Path, model: &Path| support::zero3_config(dir, model, true);
            let (there, here) = (loaded(&plain, &fsdp2, world_size), loaded(&fixture(source), &fsdp2, world_size));
            assert!(there == here && here.len().to_string() == world_size, "{source} under FSDP2 on {world_size}");
            let (there, here) = (loaded(&plain, &zero3, world_size), loaded(&fixture(source), &zero3, world_size));
            assert!(there == here && !here[0].as_array().unwrap().is_empty(), "{source} under ZeRO-3 on {world_size}");
        }
    }
}

/// Shards saved from a checkpoint where it lies, and their verification against it, by code that neither loads nor converts.
fn shards_of_every_source_are_saved_in_place_and_verified_against_it() {
    let dir = TempDir::new().unwrap();
    for source in ["zero3", "fsdp2", "zero2"] {
        // Of a copy, which is damaged in the end.
        let at = dir.path().join(source);
        let copied = Command::new("cp").arg("-r").arg(fixture(source)).arg(&at).status().unwrap();
        assert!(copied.success());
        let verify = |shards: &Path| shardwright().arg("verify").arg(shards).arg("--against").arg(&at).output().unwrap();
        for (engine, world_size) in [("fsdp2", "3"), ("zero3", "2"), ("fsdp2", "1")] {
            let shards = dir.path().join(format!("{source}-{engine}-{world_size}"));
            let config = match engine {
                "fsdp2" => support::fsdp2_config(dir.path(), &at, 1, None),
                _ => support::zero3_config(dir.path(), &at, true),
            };
            let save = shardwright().arg("load").arg(config).args(["--world-size", world_size, "--save"]).arg(&shards).output().unwrap();
            assert!(save.status.success(), "{source} {engine}: {}", stderr(&save));
            let output = verify(&shards);
            let reported = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success() && reported.contains("elements are those of"),
                "{source} {engine}: {reported}{}",
                stderr(&output)
            );
        }
        // One element of the source is another now; the shards' own digests still match.
        let found = Command::new("find").arg(&at).args(["-name", "*.distcp", "-o", "-name", "*_states.pt"]).output().unwrap();
        let mut reported = false;
        for file in String::from_utf8(found.stdout).unwrap().lines() {
            let original = std::fs::read(file).unwrap();
            let mut bytes = original.clone();
            // Every float of 0.25 or more in magnitude and below 2 loses its sign: tensors, and nothing of a pickle or a zip.
            let floats = bytes.chunks_exact_mut(4).filter(|b| matches!(b[3] & 0x7f, 0x3e | 0x3f) && b[3] & 0x80 != 0);
            floats.for_each(|b| b[3] &= 0x7f);
            std::fs::write(file, bytes).unwrap();
            let output = verify(&dir.path().join(format!("{source}-fsdp2-1")));
            reported |= output.status.code() == Some(8) && stderr(&output).contains("are not the source's");
            std::fs::write(file, original).unwrap();
        }
        assert!(reported, "{source}: a changed source shows");
    }
}

/// A killed conversion is taken up where it was: complete files stay as they are, and the result is that of a conversion in one go.
fn a_killed_conversion_resumes_and_is_never_taken_for_whole() {
    const TENSORS: usize = 400;
    const ELEMENTS: usize = 1 << 12;
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("model.safetensors");
    let mut header = serde_json::Map::new();
    for number in 0..TENSORS {
        let at = number * ELEMENTS * 4;
        let entry = serde_json::json!({ "dtype": "F32", "shape": [ELEMENTS], "data_offsets": [at, at + ELEMENTS * 4] });
        header.insert(format!("t{number:03}"), entry);
    }
    let header = serde_json::Value::Object(header).to_string().into_bytes();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend((0..TENSORS * ELEMENTS).flat_map(|i| u32::try_from(i).unwrap().to_le_bytes()));
    std::fs::write(&source, file).unwrap();
    let (target, stage) = (dir.path().join("out"), dir.path().join(".out.shardwright-convert"));
    let command = |size: &str| {
        let mut command = shardwright();
        command.arg("convert").arg(&source).arg(&target).args(["--to", "hf", "--max-file-size", size]);
        command
    };
    let complete = || std::fs::read_to_string(stage.join(".shardwright-journal")).map_or(0, |text| text.lines().count().saturating_sub(1));
    let kill = || {
        for _ in 0..10 {
            let mut child = command("1KB").stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
            while complete() == 0 && child.try_wait().unwrap().is_none() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            child.kill().unwrap();
            if !child.wait().unwrap().success() {
                return;
            }
            std::fs::remove_dir_all(&target).unwrap(); // it was faster
        }
        panic!("no conversion was slow enough to be killed");
    };
    let inode = |at: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(at).unwrap());
    kill();
    assert!(complete() > 0 && !target.exists());
    // Neither the half nor its hidden directory is taken for a checkpoint of a whole model.
    let diff = shardwright().arg("diff").arg(&source).arg(&stage).output().unwrap();
    assert!(diff.status.code() == Some(4) && stderr(&diff).contains("a conversion was killed here"), "{}", stderr(&diff));
    let first = format!("model-00001-of-{TENSORS:05}.safetensors");
    let kept = inode(&stage.join(&first));
    let output = command("1KB").arg("--verify").output().unwrap();
    assert!(output.status.success() && stderr(&output).contains("were there already"), "{}", stderr(&output));
    assert_eq!(inode(&target.join(&first)), kept, "the complete file is the one that the killed process wrote");
    assert!(!stage.exists() && !target.join(".shardwright-journal").exists());
    std::fs::remove_dir_all(&target).unwrap();
    // Another plan takes nothing of it.
    kill();
    let output = command("1GB").arg("--verify").output().unwrap();
    assert!(output.status.success() && !stderr(&output).contains("were there already"), "{}", stderr(&output));
    assert_eq!(std::fs::read_dir(&target).unwrap().count(), 1);
    std::fs::remove_dir_all(&target).unwrap();
    // Neither does the same plan over a source that has changed.
    kill();
    std::fs::File::options().write(true).open(&source).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let output = command("1KB").arg("--verify").output().unwrap();
    assert!(output.status.success() && !stderr(&output).contains("were there already"), "{}", stderr(&output));
}

/// A conversion's output has no manifest: its own headers and checksums are validated, and with its source every element.
fn what_convert_makes_is_verified_alone_and_against_its_source() {
    let dir = TempDir::new().unwrap();
    let verify = |target: &Path, against: Option<&str>| {
        let mut command = shardwright();
        command.arg("verify").arg(target);
        if let Some(source) = against {
            command.arg("--against").arg(fixture(source)).args(["--tie", "head.weight=emb.weight"]);
        }
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned() + &stderr(&output))
    };
    for (to, ranks, sums) in
        [("hf", "1", false), ("hf-sharded", "2", false), ("dcp", "3", true), ("zero3", "2", true), ("zero3-universal", "1", true)]
    {
        let target = dir.path().join(to);
        convert("zero3", &target, &["--to", to, "--ranks", ranks]);
        let (code, said) = verify(&target, Some("zero3"));
        assert!(code == Some(0) && said.contains(" are the source's"), "{to}: {said}");
        let (code, said) = verify(&target, None);
        assert!(code == Some(0) && said.contains("checksums of") == sums, "{to}: {said}");
    }
    let target = dir.path().join("dcp");
    let file = target.join("model/__1_0.distcp");
    let whole = std::fs::read(&file).unwrap();
    // The first byte of a tensor: what follows the local header of a member of torch.save's that is called so.
    let length = |at: usize| usize::from(u16::from_le_bytes([whole[at], whole[at + 1]]));
    let is_data = |at: &usize| whole[*at..].starts_with(b"PK\x03\x04") && whole[at + 30..at + 30 + length(at + 26)].ends_with(b"/data/0");
    let header = (0..whole.len()).find(is_data).unwrap();
    let mut damaged = whole.clone();
    damaged[header + 30 + length(header + 26) + length(header + 28)] ^= 1;
    std::fs::write(&file, damaged).unwrap();
    let (code, said) = verify(&target, None);
    assert!(code == Some(4) && said.contains("__1_0.distcp") && said.contains("CRC-32 differs"), "{code:?} {said}");
    std::fs::write(&file, whole).unwrap();
    let (code, said) = verify(&target, Some("fsdp2"));
    assert_eq!(code, Some(8), "{said}");
}

/// What a trainer keeps beside the tensors goes along, but for ranks' own states where their number changes; accelerate loads one tag alone.
fn files_of_the_trainer_and_the_tag_go_along() {
    let dir = TempDir::new().unwrap();
    let (source, re_cut, same) = (dir.path().join("checkpoint-3"), dir.path().join("re-cut"), dir.path().join("same"));
    convert("zero3", &source, &["--to", "zero3", "--ranks", "2", "--tag", "pytorch_model"]);
    assert_eq!(std::fs::read_to_string(source.join("latest")).unwrap(), "pytorch_model");
    std::fs::create_dir(source.join("dataloader")).unwrap();
    for name in ["metadata.json", "CHECKPOINT_COMPLETE", "random_states_0.pkl", "dataloader/rank_1.pt", "unknown.txt"] {
        std::fs::write(source.join(name), name).unwrap();
    }
    let run = |target: &Path, ranks: &str| {
        let mut command = shardwright();
        command.arg("convert").arg(&source).arg(target).args(["--to", "zero3", "--ranks", ranks, "--tie", "head.weight=emb.weight"]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output)
    };
    let reported = run(&re_cut, "3");
    assert!(reported.contains("another number of ranks: 2 files such as dataloader/rank_1.pt"), "{reported}");
    let has = |target: &Path, name: &str| target.join(name).exists();
    assert!(has(&re_cut, "metadata.json") && has(&re_cut, "pytorch_model") && !has(&re_cut, "dataloader"));
    assert!(!run(&same, "2").contains("not carried"));
    for name in ["metadata.json", "CHECKPOINT_COMPLETE", "random_states_0.pkl", "dataloader/rank_1.pt"] {
        assert_eq!(std::fs::read_to_string(same.join(name)).unwrap(), name);
    }
    assert!(!has(&same, "unknown.txt"));
    let refused =
        shardwright().arg("convert").arg(&source).arg(dir.path().join("no")).args(["--to", "zero3", "--tag", "../x"]).output().unwrap();
    assert!(refused.status.code() == Some(3) && stderr(&refused).contains("the tag is not a directory's name"), "{}", stderr(&refused));
}

/// A tiny Mixtral as files on the hub hold it: experts apart, the old name of the block.
fn mixtral(dir: &Path) {
    let config = serde_json::json!({ "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_hidden_layers": 1, "hidden_size": 4,
        "intermediate_size": 6, "num_local_experts": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2, "vocab_size": 8 });
    std::fs::create_dir(dir).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![8, 4]),
        ("model.norm.weight".to_owned(), vec![4]),
        ("lm_head.weight".to_owned(), vec![8, 4]),
        (layer("self_attn.q_proj"), vec![4, 4]),
        (layer("self_attn.k_proj"), vec![2, 4]),
        (layer("self_attn.v_proj"), vec![2, 4]),
        (layer("self_attn.o_proj"), vec![4, 4]),
        (layer("input_layernorm"), vec![4]),
        (layer("post_attention_layernorm"), vec![4]),
        (layer("block_sparse_moe.gate"), vec![3, 4]),
    ];
    for expert in 0..3 {
        for (weight, shape) in [("w1", vec![6, 4]), ("w2", vec![4, 6]), ("w3", vec![6, 4])] {
            tensors.push((layer(&format!("block_sparse_moe.experts.{expert}.{weight}")), shape));
        }
    }
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (number, (name, shape)) in tensors.into_iter().enumerate() {
        let (start, count) = (data.len(), shape.iter().product::<usize>());
        data.extend((0..count).flat_map(|i| f32::from(u16::try_from(1000 * number + i).unwrap()).to_le_bytes()));
        header.insert(name, serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, data.len()] }));
    }
    let header = serde_json::Value::Object(header).to_string().into_bytes();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
}

fn names_of_the_hub_and_of_the_model_are_each_others_inverse() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    mixtral(&at("hub"));
    let run = |args: &[&std::ffi::OsStr]| {
        let output = shardwright().args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let (hub, model, back) = (at("hub"), at("model"), at("back"));
    let s = std::ffi::OsStr::new;
    run(&[
        s("convert"),
        hub.as_os_str(),
        model.as_os_str(),
        s("--to"),
        s("dcp"),
        s("--ranks"),
        s("2"),
        s("--names"),
        s("model"),
        s("--verify"),
    ]);
    let reported = run(&[s("inspect"), model.as_os_str(), s("--format"), s("json")]);
    assert!(reported.contains("mlp.experts.gate_up_proj") && !reported.contains("block_sparse_moe"), "{reported}");
    let to_hub = [s("--to"), s("hf"), s("--names"), s("hub"), s("--config"), hub.as_os_str(), s("--verify")];
    run(&[&[s("convert"), model.as_os_str(), back.as_os_str()][..], &to_hub].concat());
    run(&[s("diff"), hub.as_os_str(), back.as_os_str()]);
    // Of a tied model the class alone knows the second name.
    let (tied, of_hub) = (support::checkpoint("tiny-qwen3-tied-fp32"), at("tied"));
    run(&[&[s("convert"), tied.as_os_str(), of_hub.as_os_str()][..], &[s("--to"), s("hf"), s("--names"), s("hub"), s("--verify")]].concat());
    run(&[s("verify"), of_hub.as_os_str(), s("--against"), tied.as_os_str()]);
    // Without the config nobody knows the names, and trainers want the model's.
    let refused = |args: &[&str]| {
        let output = shardwright().arg("convert").arg(&model).arg(at("no")).args(args).output().unwrap();
        assert!(output.status.code() == Some(3) && !at("no").exists(), "{}", stderr(&output));
        stderr(&output)
    };
    assert!(refused(&["--to", "hf", "--names", "hub"]).contains("config.json"));
    assert!(refused(&["--to", "dcp", "--names", "hub"]).contains("only --to hf"));
}

/// What a program that is given hostile or missing files says, and with which code it ends.
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
    let (code, text) = run(&plain, &["--to", "dcp", "--ranks", "4", "--replicas", "3"]);
    assert!(code == Some(5) && text.contains("replicas do not divide the ranks"), "{text}");
    let (code, text) = run(&fixture("zero3"), &["--to", "zero3", "--ranks", "4", "--replicas", "2"]);
    assert!(code == Some(3) && text.contains("no replicas"), "{text}");
    let (code, text) = run(&fixture("fsdp2"), &["--to", "dcp", "--dry-run"]);
    assert_eq!(code, Some(0), "{text}");
}
