//! What a save writes, what it refuses, what it leaves behind when it fails; by a loader that is plainly right (`testing`).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use safetensors::SafeTensors;
use shardwright_core::ShardPlan;
use tempfile::TempDir;

use super::{
    testing::{Cut, load, plan, write_model},
    *,
};
use crate::{
    checkpoint::Checkpoint,
    error::{ErrorKind, Result},
    filenames::MANIFEST,
    load::{CancelToken, IoOptions},
    saved::{FileDigest, Manifest},
    verify::Verifier,
};

struct Case {
    _dir: TempDir,
    checkpoint: Checkpoint,
    plan: ShardPlan,
    out: PathBuf,
}

fn case(cut: Cut, replicate: u32, shard: u32) -> Case {
    let dir = TempDir::new().unwrap();
    let checkpoint = write_model(&dir.path().join("model"), 0);
    let plan = plan(checkpoint.model(), cut, replicate, shard);
    Case { out: dir.path().join("a/shards"), _dir: dir, checkpoint, plan }
}

impl Case {
    fn saver(&self) -> Saver<'_> {
        Saver::new(&self.plan, &self.checkpoint, &self.out)
    }

    fn save(&self, saver: &Saver<'_>, ranks: impl IntoIterator<Item = u32>) -> Result<Saved> {
        let shards: Vec<_> = ranks.into_iter().map(|rank| load(&self.plan, &self.checkpoint, rank)).collect();
        saver.save(&shards.iter().map(|s| s as &dyn RankBytes).collect::<Vec<_>>())
    }

    fn save_all(&self) -> Result<Saved> {
        self.save(&self.saver(), 0..self.plan.mesh.world_size())
    }

    #[track_caller]
    fn verified(&self) {
        let found = Verifier::open(&self.out).unwrap().against(&self.checkpoint).run().unwrap();
        assert!(found.problems.is_empty(), "{:?}", found.problems);
        assert_eq!(found.elements, self.checkpoint.model().tensors.iter().map(|t| t.numel().unwrap()).sum::<u64>());
    }
}

/// Everything in a directory, by name.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

#[track_caller]
fn refused(result: Result<impl std::fmt::Debug>, kind: ErrorKind, needles: &[&str]) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    needles.iter().for_each(|n| assert!(error.to_string().contains(n), "'{n}' is not in: {error}"));
}

/// Through windows of a few bytes and of many, rank by rank and all at once: the same files, to the byte, as of shards in memory, and the
/// digests of what each rank holds.
#[test]
fn a_save_from_the_checkpoint_is_that_of_a_load() {
    for cut in [Cut::Rows, Cut::Columns, Cut::Flat] {
        for (replicate, shard) in [(1, 1), (1, 3), (2, 3)] {
            let case = case(cut, replicate, shard);
            case.save_all().unwrap();
            let expected = contents(&case.out);
            let all: Vec<u32> = (0..replicate * shard).collect();
            let held = |rank: &u32| {
                let shards = load(&case.plan, &case.checkpoint, *rank);
                (0..case.plan.tensors.len()).map(|tensor| crate::digest::sha256(shards.valid(tensor))).collect::<Vec<_>>()
            };
            let held: Vec<_> = all.iter().map(held).collect();
            for window in [8, 100, 1 << 20] {
                fs::remove_dir_all(&case.out).unwrap();
                let streamed = case.saver().stream_by(window, &all, &IoOptions::default(), true).unwrap();
                assert!(contents(&case.out) == expected, "{cut:?}, {replicate} × {shard}, windows of {window}");
                assert_eq!(streamed.digests.unwrap(), held, "{cut:?}, {replicate} × {shard}, windows of {window}");
                assert!(streamed.saved.missing.is_empty() && streamed.ranks.len() == all.len());
            }
            fs::remove_dir_all(&case.out).unwrap();
            for rank in &all {
                let streamed = case.saver().stream(&[*rank], &IoOptions::default(), true).unwrap();
                assert_eq!(streamed.digests.unwrap()[0], held[*rank as usize]);
            }
            assert!(contents(&case.out) == expected, "{cut:?}, {replicate} × {shard}, rank by rank");
        }
    }
}

#[test]
fn a_save_from_the_checkpoint_can_be_stopped_and_fails_with_its_cause() {
    let case = case(Cut::Rows, 1, 2);
    let cancel = CancelToken::new();
    cancel.cancel();
    refused(case.saver().cancel(&cancel).stream(&[0, 1], &IoOptions::default(), false), ErrorKind::Cancelled, &[]);
    let file = fs::OpenOptions::new().write(true).open(&case.checkpoint.files()[0].path).unwrap();
    file.set_len(case.checkpoint.files()[0].data_start + 1).unwrap();
    refused(case.saver().stream(&[0, 1], &IoOptions::default(), false), ErrorKind::Checkpoint, &["model-00000.safetensors"]);
    assert!(!case.out.exists(), "nothing is left behind");
}

#[test]
fn every_cut_and_mesh_is_saved_and_validated_against_its_source() {
    for cut in [Cut::Rows, Cut::Columns, Cut::Flat, Cut::Grid, Cut::Strided] {
        for (replicate, shard) in [(1, 1), (1, 2), (1, 3), (1, 8), (2, 3), (3, 2), (2, 6)] {
            let case = case(cut, replicate, shard);
            let saved = case.save_all().unwrap();
            assert_eq!((u32::try_from(saved.files.len()), saved.missing.len()), (Ok(replicate * shard), 0));
            case.verified();
        }
    }
}

#[test]
fn the_same_save_gives_the_same_bytes() {
    let case = case(Cut::Rows, 1, 3);
    case.save_all().unwrap();
    let first = contents(&case.out);
    case.save(&case.saver().overwrite(true), 0..3).unwrap();
    assert_eq!(contents(&case.out), first);
    let names: Vec<_> = first.keys().map(String::as_str).collect();
    let shards = (1..=3).flat_map(|r| {
        [format!("shard-0000{r}-model-00001-of-00001.manifest.json"), format!("shard-0000{r}-model-00001-of-00001.safetensors")]
    });
    let mut expected: Vec<_> = shards.chain(["config.json", "tokenizer.json", MANIFEST].map(str::to_owned)).collect();
    expected.sort();
    assert_eq!(names, expected);
}

/// The layout of torch/distributed/checkpoint/hf_storage.py.
#[test]
fn the_header_is_torchs() {
    let case = case(Cut::Rows, 1, 3);
    case.save_all().unwrap();
    let bytes = fs::read(case.out.join("shard-00003-model-00001-of-00001.safetensors")).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let strings = metadata.metadata().as_ref().unwrap();
    assert_eq!((strings["format"].as_str(), strings["DCP_VERSION"].as_str()), ("pt", "1.0"));
    let info: serde_json::Value = serde_json::from_str(&strings["DCP_SHARDING_INFO"]).unwrap();
    assert_eq!(info["rows"], serde_json::json!({"saved_offsets": [4, 0]}));
    assert_eq!(metadata.info("rows").unwrap().shape, [1, 2]);
    assert_eq!(metadata.info("ids").map(|_| ()), None, "buffers are rank 0's");
    assert_eq!(metadata.info("one").map(|_| ()), None, "the second rank has the one empty shard of it");
}

#[test]
fn a_flat_file_tells_names_shapes_numel_padding_and_world_size() {
    let case = case(Cut::Flat, 1, 8);
    case.save_all().unwrap();
    let bytes = fs::read(case.out.join("partition-00006-of-00008.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let strings = metadata.metadata().as_ref().unwrap();
    assert_eq!((strings["rank"].as_str(), strings["world_size"].as_str(), strings["strategy"].as_str()), ("5", "8", "test"));
    let reported: serde_json::Value = serde_json::from_str(&strings["partitions"]).unwrap();
    let expected =
        serde_json::json!({"kind": "parameter", "shape": [5, 2], "numel": 10, "dtype": "float32", "start": 10, "valid": 0, "padding": 2});
    assert_eq!(reported["rows"], expected);
    assert_eq!(tensors.tensor("rows").unwrap().data(), [0; 8]);
}

#[test]
fn the_manifest_tells_strategy_precision_mesh_and_sources() {
    let case = case(Cut::Rows, 2, 2);
    case.save_all().unwrap();
    let manifest = Manifest::read(&case.out).unwrap();
    assert_eq!((manifest.strategy.as_str(), manifest.world_size), ("test", 4));
    assert_eq!(manifest.mesh, BTreeMap::from([("mp_replicate".to_owned(), 2), ("mp_shard".to_owned(), 2)]));
    assert_eq!(manifest.precision.iter().map(|p| (p.storage.torch_name(), p.tensors)).collect::<Vec<_>>(), [("float32", 6), ("int64", 1)]);
    let digests =
        |names: [&str; 2]| names.map(|n| (n.to_owned(), crate::digest::sha256(&fs::read(case.checkpoint.dir().join(n)).unwrap())));
    let reported = |files: &[FileDigest]| files.iter().map(|f| (f.name.clone(), f.sha256)).collect::<Vec<_>>();
    assert_eq!(reported(&manifest.source), digests(["model-00000.safetensors", "model-00001.safetensors"]));
    assert_eq!(reported(&manifest.copied), digests(["config.json", "tokenizer.json"]));
}

#[test]
fn processes_may_save_a_rank_each_and_the_last_one_completes() {
    for cut in [Cut::Rows, Cut::Flat, Cut::Grid] {
        let case = case(cut, 1, 3);
        let whole = case.save_all().map(|_| contents(&case.out)).unwrap();
        fs::remove_dir_all(&case.out).unwrap();
        assert_eq!(case.save(&case.saver(), [1]).unwrap().missing, [0, 2]);
        refused(Verifier::open(&case.out), ErrorKind::Checkpoint, &["not complete", "not saved: 0, 2"]);
        assert_eq!(case.save(&case.saver(), [2]).unwrap().missing, [0]);
        assert_eq!(case.save(&case.saver(), [2]).unwrap().missing, [0], "a rank may come again while the save is unfinished");
        assert_eq!(case.save(&case.saver(), [0]).unwrap().missing, Vec::<u32>::new());
        assert_eq!(contents(&case.out), whole);
        case.verified();
    }
}

#[test]
fn processes_may_save_at_the_same_time() {
    let case = case(Cut::Rows, 1, 6);
    let missing = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..6)
            .map(|rank| {
                scope.spawn({
                    let case = &case;
                    move || case.save(&case.saver(), [rank]).unwrap().missing.len()
                })
            })
            .collect();
        workers.into_iter().map(|w| w.join().unwrap()).min()
    });
    assert_eq!(missing, Some(0));
    case.verified();
}

#[test]
fn a_save_that_is_there_stays_unless_it_may_be_overwritten() {
    let mut case = case(Cut::Rows, 1, 3);
    case.save_all().unwrap();
    let before = contents(&case.out);
    refused(case.save_all(), ErrorKind::Exists, &["holds a save already", "--overwrite"]);
    refused(case.saver().check(&[0, 1, 2]), ErrorKind::Exists, &["holds a save already"]);
    assert_eq!(contents(&case.out), before);
    case.plan = plan(case.checkpoint.model(), Cut::Flat, 1, 2);
    case.save(&case.saver().overwrite(true), 0..2).unwrap();
    assert!(contents(&case.out).keys().all(|name| !name.starts_with("shard-")), "the old world's shards are gone");
    case.verified();
}

#[test]
fn an_unfinished_save_of_something_else_is_not_joined() {
    let mut case = case(Cut::Rows, 1, 3);
    case.save(&case.saver(), [0]).unwrap();
    case.checkpoint = write_model(case.checkpoint.dir(), 1);
    refused(
        case.save(&case.saver(), [1]),
        ErrorKind::Exists,
        &["shard-00001-model-00001-of-00001.manifest.json", "unfinished", "'model-00000.safetensors' has other tensor data"],
    );
    let before = contents(&case.out);
    let needles = ["shard-00001-model-00001-of-00001.manifest.json", "other tensor data", "remove the directory"];
    refused(case.save(&case.saver().overwrite(true), [1]), ErrorKind::Exists, &needles);
    assert_eq!(contents(&case.out), before, "another rank's shards are not deleted");
    refused(case.save(&case.saver(), 0..3), ErrorKind::Exists, &["--overwrite"]);
    case.save(&case.saver().overwrite(true), 0..3).unwrap();
    case.verified();
}

/// An unfinished save of a world of another size cannot be of ranks of this job.
#[test]
fn an_unfinished_save_of_another_world_size_is_replaced_when_asked() {
    let mut case = case(Cut::Rows, 1, 3);
    case.save(&case.saver(), [0]).unwrap();
    case.plan = plan(case.checkpoint.model(), Cut::Rows, 1, 2);
    refused(case.save(&case.saver(), [0]), ErrorKind::Exists, &["another plan or source", "--overwrite"]);
    assert_eq!(case.save(&case.saver().overwrite(true), [0]).unwrap().missing, [1]);
    assert_eq!(case.save(&case.saver().overwrite(true), [1]).unwrap().missing, Vec::<u32>::new());
    case.verified();
}

#[test]
fn a_copied_file_that_is_not_regular_is_refused() {
    let case = case(Cut::Rows, 1, 2);
    let pipe = case.checkpoint.dir().join("vocab.txt");
    let path = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
    // SAFETY: the path ends with a NUL and outlives the call.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    refused(case.saver().check(&[0]), ErrorKind::Checkpoint, &["vocab.txt: not a regular file"]);
    refused(case.save_all(), ErrorKind::Checkpoint, &["vocab.txt: not a regular file"]);
    assert!(!case.out.exists(), "nothing was written");
    fs::remove_file(&pipe).unwrap();
    fs::create_dir_all(&case.out).unwrap();
    fs::remove_file(case.checkpoint.dir().join("tokenizer.json")).unwrap();
    fs::write(case.checkpoint.dir().join("tokenizer.json"), "").unwrap();
    let path = std::ffi::CString::new(case.out.join("tokenizer.json").to_str().unwrap()).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    refused(case.save_all(), ErrorKind::Exists, &["another 'tokenizer.json'"]);
}

/// A file of holes, so that nothing has to be written for it.
#[test]
fn copied_files_count_for_the_space_that_is_needed() {
    let case = case(Cut::Rows, 1, 2);
    let file = fs::File::create(case.checkpoint.dir().join("vocab.json")).unwrap();
    if file.set_len(1 << 43).is_err() {
        return; // a file system of small files
    }
    refused(case.saver().check(&[0, 1]), ErrorKind::Io, &["not enough space", "expected 879609"]);
    assert!(case.saver().bytes(&[0, 1]).unwrap() > 1 << 43);
}

/// A rank of another source is never completed into a mix, even where one process after another overwrites.
#[test]
fn an_overwrite_by_ranks_passes_only_when_every_rank_is_new() {
    let mut case = case(Cut::Rows, 1, 3);
    case.save_all().unwrap();
    case.checkpoint = write_model(case.checkpoint.dir(), 1);
    for (rank, missing) in [(2, vec![0, 1]), (0, vec![1])] {
        assert_eq!(case.save(&case.saver().overwrite(true), [rank]).unwrap().missing, missing);
        assert!(Verifier::open(&case.out).is_err());
    }
    assert_eq!(case.save(&case.saver().overwrite(true), [1]).unwrap().missing, Vec::<u32>::new());
    case.verified();
}

/// While another rank's commit has removed the manifest and not yet the old shards, a rank waits for its end instead of taking the old
/// shards for another job's.
#[test]
fn an_overwrite_waits_for_another_ranks_commit() {
    let mut case = case(Cut::Rows, 1, 3);
    case.save_all().unwrap();
    case.checkpoint = write_model(case.checkpoint.dir(), 1);
    let committing = fs::File::open(&case.out).unwrap();
    committing.lock().unwrap();
    fs::remove_file(case.out.join(MANIFEST)).unwrap();
    let (sender, waits) = std::sync::mpsc::channel();
    let saver = case.saver().overwrite(true);
    std::thread::scope(|scope| {
        let checked = scope.spawn(move || {
            let progress = |_| sender.send(()).unwrap_or(());
            saver.progress(&progress).check(&[0])
        });
        let _ = waits.recv(); // an error where it ended without waiting: join tells
        for entry in fs::read_dir(&case.out).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        drop(committing);
        checked.join().unwrap().unwrap();
    });
}

#[test]
fn files_that_would_be_taken_for_shards_or_lost_are_in_the_way() {
    let case = case(Cut::Rows, 1, 2);
    fs::create_dir_all(&case.out).unwrap();
    fs::write(case.out.join("model.safetensors"), "").unwrap();
    refused(case.save_all(), ErrorKind::Exists, &["'model.safetensors'", "another directory"]);
    refused(case.save(&case.saver().overwrite(true), 0..2), ErrorKind::Exists, &["'model.safetensors'"]);
    fs::remove_file(case.out.join("model.safetensors")).unwrap();
    fs::write(case.out.join("config.json"), "{}").unwrap();
    refused(case.save_all(), ErrorKind::Exists, &["another 'config.json'", "--overwrite"]);
    fs::write(case.out.join("config.json"), fs::read(case.checkpoint.dir().join("config.json")).unwrap()).unwrap();
    case.save_all().unwrap();
    let saver = Saver::new(&case.plan, &case.checkpoint, case.checkpoint.dir()).overwrite(true);
    refused(saver.check(&[0]), ErrorKind::Exists, &["model-00000.safetensors"]);
    let file = case.checkpoint.dir().join("config.json");
    refused(Saver::new(&case.plan, &case.checkpoint, file).check(&[0]), ErrorKind::Exists, &["not a directory"]);
}

/// Stopped at every block in turn, a save leaves nothing, and an overwrite leaves what was there, until its commit has begun.
#[test]
fn a_stopped_save_leaves_what_was_there() {
    let mut case = case(Cut::Rows, 1, 3);
    for overwrite in [false, true] {
        if overwrite {
            case.plan = plan(case.checkpoint.model(), Cut::Flat, 1, 3);
        }
        let before = case.out.exists().then(|| contents(&case.out));
        let mut stopped = 0;
        for limit in 0.. {
            let (looks, token) = (AtomicU64::new(0), CancelToken::new());
            let stop = |_| {
                if looks.fetch_add(1, Ordering::Relaxed) >= limit {
                    token.cancel();
                }
            };
            match case.save(&case.saver().overwrite(overwrite).progress(&stop).cancel(&token), 0..3) {
                Ok(_) => break,
                Err(e) => assert_eq!(e.kind(), ErrorKind::Cancelled),
            }
            stopped += 1;
            assert_eq!(case.out.exists().then(|| contents(&case.out)), before, "stopped at look {limit}");
        }
        assert!(stopped > 10);
        case.verified();
    }
}

#[test]
fn a_source_that_changed_since_is_not_digested_as_if_it_had_not() {
    let case = case(Cut::Rows, 1, 2);
    let shards = [0, 1].map(|rank| load(&case.plan, &case.checkpoint, rank));
    write_model(case.checkpoint.dir(), 1);
    let saved = case.saver().save(&[&shards[0], &shards[1]]);
    refused(saved, ErrorKind::Checkpoint, &["model-00000.safetensors"]);
    assert!(!case.out.exists());
}

/// A copy on every node, by `cp` or by each node's own hub cache: known by what copies keep.
#[test]
fn copies_of_a_model_are_one_source_and_another_model_is_named() {
    let dir = TempDir::new().unwrap();
    let identity = |dir: &Path| {
        let checkpoint = Checkpoint::open(dir).unwrap();
        let plan = plan(checkpoint.model(), Cut::Rows, 1, 2);
        Saver::new(&plan, &checkpoint, "out").identity().unwrap().clone()
    };
    let plain = dir.path().join("plain");
    write_model(&plain, 0);
    let before = identity(&plain);
    fs::File::options().append(true).open(plain.join("model-00000.safetensors")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(identity(&plain), before, "the time of the last change");
    let repo = dir.path().join("models--a--b");
    let (blobs, snapshot) = (repo.join("blobs"), repo.join("snapshots/1"));
    write_model(&blobs, 0);
    fs::create_dir_all(&snapshot).unwrap();
    for number in 0..2u8 {
        let (name, digest) = (format!("model-0000{number}.safetensors"), crate::digest::sha256(&[number]).to_string());
        fs::rename(blobs.join(&name), blobs.join(&digest)).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{digest}"), snapshot.join(name)).unwrap();
    }
    assert_eq!(identity(&snapshot), before, "a copy in the hub's cache");
    write_model(&plain, 1);
    assert_ne!(identity(&plain), before, "other values under the same headers");
}
