//! Shows that torch reads what `load --save` wrote, in torch's own words (`read_with_torch.py`), and that torchrun can run `load`. Needs a
//! Python with torch and safetensors: SHARDWRIGHT_PYTHON, else `python3` on the path; without one the runner reports the tests as ignored.

#[path = "../support/runner.rs"]
mod runner;
#[path = "../support/mod.rs"]
mod support;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use runner::{skip, tests};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use support::{NO_REAL_MODEL, checkpoint, fsdp2_config, real_model, root, run, stderr};
use tempfile::TempDir;

tests! {
    torch_reads_shards_into_a_smaller_world,
    torch_reads_shards_into_a_larger_world,
    torchrun_saves_a_rank_a_process,
    torch_fills_the_classes_of_twelve_architectures,
    the_architecture_data_is_what_transformers_says,
    the_architecture_data_holds_under_other_configs,
    torch_reads_the_real_model,
}

fn python_name() -> OsString {
    std::env::var_os("SHARDWRIGHT_PYTHON").unwrap_or_else(|| OsString::from("python3"))
}

/// Needs a Python that has what the scripts import.
fn needs_torch() {
    let imports = "import safetensors, torch; from torch.distributed.checkpoint import HuggingFaceStorageReader; \
                   from torch.distributed.fsdp import fully_shard";
    if !self::imports(imports) {
        let python = python_name().display().to_string();
        skip(format!("{python} has no safetensors and torch with HuggingFaceStorageReader; set SHARDWRIGHT_PYTHON to one that has"));
    }
}

fn needs_transformers() {
    needs_torch();
    if !imports("import transformers; assert int(transformers.__version__.split('.')[0]) >= 5") {
        skip(format!("{} has no transformers 5", python_name().display()));
    }
}

fn imports(lines: &str) -> bool {
    Command::new(python_name()).args(["-c", lines]).output().is_ok_and(|o| o.status.success())
}

/// A few model types are made anew with the transformers that is installed. Of the data's own version nothing may differ; of another, the model
/// types that differ are named.
fn the_architecture_data_is_what_transformers_says() {
    needs_transformers();
    let data = include_str!("../../crates/arch/data/transformers.txt");
    let version = data.lines().find_map(|line| line.strip_prefix("%version\t")).unwrap();
    let mut python = Command::new(python_name());
    python.env("OMP_NUM_THREADS", "1").arg(root().join("scripts/make-architectures.py"));
    let output = python.args(["--check", "--jobs", "1", "--types", "llama,gpt2,qwen3_moe"]).output().expect("python starts");
    let reported = String::from_utf8_lossy(&output.stdout);
    let summary =
        reported.lines().find(|line| line.contains("model types differ")).unwrap_or_else(|| panic!("{reported}\n{}", stderr(&output)));
    println!("{reported}");
    let installed = summary.split(", ").nth(1).and_then(|s| s.split(' ').next()).unwrap();
    if version.contains(&format!("\"{installed}\"")) {
        assert!(output.status.success(), "the generator and its data differ: {reported}");
    } else {
        assert!(output.status.success() || reported.contains("changed: "), "{reported}");
    }
}

/// Classes under configs that differ from the default in some keys, as transformers builds them, have the parameters that the data says.
fn the_architecture_data_holds_under_other_configs() {
    needs_transformers();
    let mut python = Command::new(python_name());
    python.env("OMP_NUM_THREADS", "1").arg(root().join("scripts/check-architectures.py")).arg(env!("CARGO_BIN_EXE_shardwright"));
    let types = "llama,qwen3_moe,lfm2,qwen3_next,bamba,jamba,t5,gemma3,deepseek_v3,gemma2";
    let output = python.args(["--types", types, "--configs", "3", "--jobs", "1"]).output().expect("python starts");
    let reported = String::from_utf8_lossy(&output.stdout);
    println!("{reported}");
    assert!(
        output.status.success() && reported.lines().last().is_some_and(|l| l.ends_with(" same") && !l.contains("differs")),
        "{reported}"
    );
    assert!(!reported.contains("not built"), "{reported}");
}

/// Experts that are stacked, vision-language models that are renamed, tied weights under each of their names: `model.state_dict()` of the class
/// itself is filled, on another world size, with what `from_pretrained` makes of the checkpoint.
fn torch_fills_the_classes_of_twelve_architectures() {
    needs_transformers();
    const NAMES: [&str; 12] = [
        "qwen3_moe",
        "mixtral",
        "glm4_moe",
        "ernie4_5_moe",
        "deepseek_v3-mtp",
        "qwen3_vl_moe",
        "qwen2_vl",
        "llava",
        "gemma3",
        "gpt2",
        "qwen3",
        "t5",
    ];
    let dir = TempDir::new().unwrap();
    let script = root().join("tests/interop/classes_with_torch.py");
    let mut python = Command::new(python_name());
    let made = python.arg(&script).arg("make").arg(dir.path()).args(NAMES).output().expect("python starts");
    let made = String::from_utf8_lossy(&made.stdout).into_owned();
    let reported: Vec<String> = made
        .lines()
        .map(|line| {
            let (name, class) = line.split_once('=').unwrap();
            let at = dir.path().join(format!("saved-{name}"));
            std::fs::create_dir(&at).unwrap();
            let pair = save(&at, name, &dir.path().join(name), 3, 1, "float32");
            format!("{pair}={class}")
        })
        .collect();
    assert_eq!(reported.len(), NAMES.len(), "{made}");
    let output = torchrun().arg("2").arg(script).arg("check").args(&reported).output().expect("python starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "torch did not fill the classes:\n{said}\n{}", stderr(&output));
    print!("{said}");
    assert_eq!(said.lines().filter(|line| line.ends_with(" equal")).count(), NAMES.len(), "{said}");
}

/// torchrun, without the environment of any launcher.
fn torchrun() -> Command {
    let mut command = Command::new(python_name());
    for key in ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"] {
        command.env_remove(key);
    }
    command.env("OMP_NUM_THREADS", "1").args(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]);
    command
}

/// Saves a world's shards of a model, and gives `SHARDS=MODEL` for the script.
fn save(dir: &Path, name: &str, model: &Path, world_size: u32, replicate: u64, storage: &str) -> String {
    let config = fsdp2_config(dir, model, replicate, Some(storage));
    let shards = dir.join(name);
    let size = world_size.to_string();
    let args = ["load".as_ref(), config.as_os_str(), "--world-size".as_ref(), size.as_ref(), "--save".as_ref(), shards.as_os_str()];
    let saved = run(args);
    assert!(saved.status.success(), "{name}: {}", stderr(&saved));
    format!("{}={}", shards.display(), model.display())
}

/// A model with everything that a buffer can be: integer, bool, 0-d, empty.
fn model_with_buffers(dir: &Path) -> PathBuf {
    let model = dir.join("with-buffers");
    std::fs::create_dir(&model).unwrap();
    let bytes: Vec<u8> = (0..=255).collect();
    let tensors: [(&str, Dtype, Vec<usize>); 6] = [
        ("block.weight", Dtype::F16, vec![7, 3]),
        ("block.steps", Dtype::I64, vec![]),
        ("block.mask", Dtype::BOOL, vec![2]),
        ("block.ids", Dtype::I32, vec![5, 2]),
        ("nothing", Dtype::F32, vec![0, 4]),
        ("narrow", Dtype::BF16, vec![1, 6]),
    ];
    let size = |dtype: Dtype, shape: &[usize]| dtype.bitsize() / 8 * shape.iter().product::<usize>();
    let views = tensors.map(|(name, dtype, shape)| {
        let data = &bytes[..size(dtype, &shape)];
        (name, TensorView::new(dtype, shape, data).unwrap())
    });
    serialize_to_file(views, None, &model.join("model.safetensors")).unwrap();
    model
}

fn read(mut torchrun: Command, ranks: u32, pairs: &[String]) {
    let script = root().join("tests/interop/read_with_torch.py");
    let output = torchrun.arg(ranks.to_string()).arg(script).args(pairs).output().expect("python starts");
    let reported = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "torch did not read the shards:\n{reported}\n{}", stderr(&output));
    print!("{reported}");
    assert_eq!(reported.lines().filter(|line| line.ends_with(" equal")).count(), pairs.len(), "{reported}");
}

/// Uneven and empty shards, hybrid meshes, three dtypes in one model, buffers: read by fewer ranks than saved them.
fn torch_reads_shards_into_a_smaller_world() {
    needs_torch();
    let dir = TempDir::new().unwrap();
    let at = dir.path();
    let (qwen3, tied, odd) = (checkpoint("tiny-qwen3-bf16"), checkpoint("tiny-qwen3-tied-fp32"), checkpoint("odd-shapes"));
    let pairs = [
        save(at, "fp32-from-bf16", &qwen3, 3, 1, "float32"),
        save(at, "bf16-empty-shards", &qwen3, 8, 1, "checkpoint"),
        save(at, "bf16-hybrid", &qwen3, 4, 2, "checkpoint"),
        save(at, "fp32-tied", &tied, 3, 1, "checkpoint"),
        save(at, "bf16-from-fp32-tied", &tied, 5, 1, "bfloat16"),
        save(at, "odd-mixed", &odd, 3, 1, "checkpoint"),
        save(at, "odd-hybrid", &odd, 6, 3, "checkpoint"),
        save(at, "odd-empty-shards", &odd, 8, 1, "float32"),
        save(at, "buffers", &model_with_buffers(at), 3, 1, "checkpoint"),
    ];
    read(torchrun(), 2, &pairs);
}

fn torch_reads_the_real_model() {
    needs_torch();
    let Some(model) = real_model() else { skip(NO_REAL_MODEL) };
    let dir = TempDir::new().unwrap();
    read(torchrun(), 2, &[save(dir.path(), "all-MiniLM-L6-v2", &model, 3, 1, "bfloat16")]);
}

fn torch_reads_shards_into_a_larger_world() {
    needs_torch();
    let dir = TempDir::new().unwrap();
    let pairs = [
        save(dir.path(), "bf16", &checkpoint("tiny-qwen3-bf16"), 2, 1, "checkpoint"),
        save(dir.path(), "odd-replicated", &checkpoint("odd-shapes"), 4, 4, "checkpoint"),
    ];
    read(torchrun(), 5, &pairs);
}

/// Three processes of one torchrun save a rank each into one directory, at the same time; together it is the one-process save.
fn torchrun_saves_a_rank_a_process() {
    needs_torch();
    let mut torchrun = torchrun();
    let dir = TempDir::new().unwrap();
    let model = checkpoint("tiny-qwen3-bf16");
    save(dir.path(), "whole", &model, 3, 1, "float32");
    let (config, shards) = (dir.path().join("train.yaml"), dir.path().join("parts"));
    torchrun.args(["3", "--no-python", env!("CARGO_BIN_EXE_shardwright"), "load"]).arg(config).arg("--save").arg(&shards);
    let output = torchrun.output().expect("python starts");
    assert!(output.status.success(), "{}", stderr(&output));
    let names: Vec<_> = std::fs::read_dir(dir.path().join("whole")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(std::fs::read_dir(&shards).unwrap().count(), names.len());
    for name in names {
        let file = |at: &str| std::fs::read(dir.path().join(at).join(&name)).unwrap();
        assert!(file("whole") == file("parts"), "{} differs", name.display());
    }
    let verified = run(["verify".as_ref(), shards.as_os_str(), "--against".as_ref(), model.as_os_str()]);
    assert!(verified.status.success(), "{}", stderr(&verified));
}
