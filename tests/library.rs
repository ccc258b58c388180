//! The main job through the library: a YAML becomes shards, in memory of its own, in the caller's, or in files; failures say what and where.

mod support;

use std::error::Error as _;

use shardwright::{
    Destination, Run,
    engine::{ErrorKind, IoOptions, ReadMethod},
};
use support::{checkpoint, fsdp2_config, root, write, zero3_config};
use tempfile::TempDir;

#[test]
fn shards_outlive_the_plan_and_are_those_of_the_callers_memory() {
    let dir = TempDir::new().unwrap();
    for model in ["tiny-qwen3-bf16", "odd-shapes"].map(checkpoint) {
        for config in [fsdp2_config(dir.path(), &model, 1, None), zero3_config(dir.path(), &model, true)] {
            let plan = Run::from_yaml(&config).world_size(3).plan().unwrap();
            assert_eq!(plan.ranks(), [0, 1, 2]);
            let mut memory: Vec<(u32, String, Vec<u8>)> = Vec::new();
            // SAFETY: each destination is a buffer of its own, which `memory` keeps where it is.
            let stats = unsafe {
                plan.load_into(|wanted| {
                    let mut bytes = vec![0xaa; usize::try_from(wanted.bytes).unwrap()];
                    let (address, size) = (bytes.as_mut_ptr().expose_provenance(), wanted.bytes);
                    memory.push((wanted.rank, wanted.tensor.name.to_string(), bytes));
                    Some(Destination { address, bytes: size, dtype: wanted.tensor.precision.storage })
                })
            };
            assert!(stats.unwrap().bytes_read > 0);
            let shards = plan.load().unwrap();
            drop(plan);
            let mut compared = 0;
            for (rank, name, bytes) in &memory {
                let shards = shards.rank(*rank).unwrap();
                assert_eq!(shards.by_name(name).unwrap().padded, bytes, "{name} on rank {rank}");
                compared += 1;
            }
            assert_eq!(compared, 3 * shards.layout().tensors.len());
        }
    }
}

#[test]
fn a_save_is_verified_against_its_source() {
    let dir = TempDir::new().unwrap();
    let model = checkpoint("tiny-qwen3-bf16");
    let config = fsdp2_config(dir.path(), &model, 1, None);
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    for rank in 0..2 {
        let saved = Run::from_yaml(&config).world(rank, 2).plan().unwrap().save(&first).unwrap();
        assert_eq!(saved.missing.is_empty(), rank == 1);
    }
    shardwright::verify(&first, Some(&model)).unwrap();
    let other = checkpoint("tiny-qwen3-tied-fp32");
    let error = shardwright::verify(&first, Some(&other)).unwrap_err();
    assert_eq!((error.kind(), error.exit_code()), (ErrorKind::Mismatch, 8), "{error}");
    Run::from_yaml(&config).world_size(2).plan().unwrap().save(&second).unwrap();
    assert_eq!(
        std::fs::read(first.join("shardwright.manifest.json")).unwrap(),
        std::fs::read(second.join("shardwright.manifest.json")).unwrap()
    );
}

#[test]
fn failures_say_what_where_and_why() {
    let dir = TempDir::new().unwrap();
    let config = write(dir.path(), "train.yaml", "model: nowhere\nbf16: true\ndist_config:\n  name: fsdp3\n");
    let error = Run::from_yaml(&config).world_size(2).plan().unwrap_err();
    assert_eq!((error.kind(), error.exit_code()), (ErrorKind::Config, 3));
    let at = error.location().unwrap();
    assert_eq!((at.line, at.column), (4, 9), "{error}");
    assert!(error.to_string().contains("fsdp3") && error.to_string().contains("train.yaml:4:9"), "{error}");
    assert!(!error.diagnostics().is_empty());

    let absent = Run::from_yaml(dir.path().join("absent.yaml")).plan().unwrap_err();
    assert!(absent.kind() == ErrorKind::Config && absent.source().is_some(), "{absent}");

    let config = write(dir.path(), "train.yaml", "model: nowhere\nbf16: true\ndist_config:\n  name: fsdp2\n");
    let error = Run::from_yaml(&config).world_size(2).plan().unwrap_err();
    assert_eq!((error.kind(), error.exit_code()), (ErrorKind::Checkpoint, 4), "{error}");
}

#[test]
fn a_config_is_resolved_without_its_model() {
    let resolution = Run::from_yaml(root().join("examples/fsdp2.yaml")).set("model=elsewhere").world_size(4).resolve().unwrap();
    assert_eq!(resolution.document.get("/strategy/name").and_then(|v| v.as_str()), Some("fsdp2"), "{:?}", resolution.document);
}

#[test]
fn files_are_read_as_the_config_says() {
    let dir = TempDir::new().unwrap();
    let model = checkpoint("tiny-qwen3-bf16");
    let text = format!("model: {}\ndist_config:\n  name: fsdp2\nshardwright:\n  io: {{threads: 3, direct: true}}\n", model.display());
    let config = write(dir.path(), "train.yaml", &text);
    let run = || Run::from_yaml(&config).world_size(2);
    let plan = run().plan().unwrap();
    assert_eq!((plan.io().threads, plan.io().method), (Some(3), Some(ReadMethod::Direct)));
    let own = IoOptions { threads: Some(2), ..IoOptions::default() };
    assert_eq!(run().io(own).plan().unwrap().io().threads, Some(2));
}
