//! What verification must find: every kind of damage to a saved directory, and every element that is not the source's.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::{
    digest::sha256,
    save::{
        RankBytes, Saver,
        testing::{Cut, load, plan, write_model},
    },
    saved::sealed,
};

struct Case {
    _temporary: TempDir,
    checkpoint: Checkpoint,
    dir: PathBuf,
}

fn saved(cut: Cut, shard: u32) -> Case {
    let temporary = TempDir::new().unwrap();
    let checkpoint = write_model(&temporary.path().join("model"), 0);
    let plan = plan(checkpoint.model(), cut, 1, shard);
    let dir = temporary.path().join("shards");
    let shards: Vec<_> = (0..shard).map(|rank| load(&plan, &checkpoint, rank)).collect();
    Saver::new(&plan, &checkpoint, &dir).save(&shards.iter().map(|s| s as &dyn RankBytes).collect::<Vec<_>>()).unwrap();
    Case { _temporary: temporary, checkpoint, dir }
}

impl Case {
    fn problems(&self) -> Vec<String> {
        let found = Verifier::open(&self.dir).unwrap().run().unwrap();
        found.problems.iter().inspect(|p| assert_eq!(p.kind(), ErrorKind::Mismatch)).map(ToString::to_string).collect()
    }

    fn differences(&self, model: &Checkpoint) -> Vec<String> {
        let found = Verifier::open(&self.dir).unwrap().against(model).run().unwrap();
        found.problems.iter().inspect(|p| assert_eq!(p.kind(), ErrorKind::Mismatch)).map(ToString::to_string).collect()
    }

    fn shard(&self, rank: u32) -> PathBuf {
        self.dir.join(format!("shard-0000{}-model-00001-of-00001.safetensors", rank + 1))
    }

    /// Changes the manifest, and seals it again.
    fn forge(&self, change: impl FnOnce(&mut serde_json::Value)) {
        let path = self.dir.join(MANIFEST);
        let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        value.as_object_mut().unwrap().shift_remove("sha256");
        change(&mut value);
        fs::write(path, sealed(&value)).unwrap();
    }

    /// Changes a rank's shard, and all digests of it, as only a forger does.
    fn forge_shard(&self, rank: u32, change: impl FnOnce(&mut Vec<u8>)) {
        let (shard, manifest) = {
            let files = Manifest::read(&self.dir).unwrap().ranks.swap_remove(rank as usize);
            (self.dir.join(files.shard.name), self.dir.join(files.manifest.name))
        };
        let mut bytes = fs::read(&shard).unwrap();
        change(&mut bytes);
        fs::write(&shard, &bytes).unwrap();
        let mut reported: serde_json::Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
        reported.as_object_mut().unwrap().shift_remove("sha256");
        (reported["shard"]["sha256"], reported["shard"]["bytes"]) = (sha256(&bytes).to_string().into(), bytes.len().into());
        let text = sealed(&reported);
        fs::write(&manifest, &text).unwrap();
        self.forge(|value| {
            value["ranks"][rank as usize]["shard"] = reported["shard"].clone();
            value["ranks"][rank as usize]["manifest"]["sha256"] = sha256(&text).to_string().into();
            value["ranks"][rank as usize]["manifest"]["bytes"] = text.len().into();
        });
    }
}

#[track_caller]
fn names(reported: &[String], needles: &[&str]) {
    let reported = reported.join("\n");
    needles.iter().for_each(|n| assert!(reported.contains(n), "'{n}' is not in: {reported}"));
}

#[track_caller]
fn refused(dir: &Path, needles: &[&str]) {
    let error = Verifier::open(dir).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Checkpoint, "{error}");
    names(&[error.to_string()], needles);
}

/// Not one byte of any file may change.
#[test]
fn every_changed_byte_is_found() {
    let case = saved(Cut::Rows, 2);
    let files: Vec<_> = fs::read_dir(&case.dir).unwrap().map(|e| e.unwrap().path()).collect();
    for file in files {
        let whole = fs::read(&file).unwrap();
        for at in (0..whole.len()).step_by(whole.len() / 40 + 1) {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&file, changed).unwrap();
            let found = Verifier::open(&case.dir).and_then(|v| v.run());
            assert!(found.map_or(true, |f| !f.problems.is_empty()), "byte {at} of {}", file.display());
        }
        fs::write(&file, whole).unwrap();
    }
    assert_eq!(case.problems(), Vec::<String>::new());
}

#[test]
fn damage_is_named_by_file_tensor_and_rank() {
    let case = saved(Cut::Rows, 2);
    let (shard, whole) = (case.shard(1), fs::read(case.shard(1)).unwrap());
    let mut changed = whole.clone();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&shard, &changed).unwrap();
    names(
        &case.problems(),
        &["shard-00002-", "its sha256 is not the manifest's", "tensor 'wide': rank 1: its bytes are not those that were saved"],
    );
    fs::write(&shard, &whole[..whole.len() - 1]).unwrap();
    names(&case.problems(), &["shard-00002-", "its size is not the manifest's", &format!("found {}", whole.len() - 1)]);
    fs::write(&shard, [&whole[..], b"x"].concat()).unwrap();
    names(&case.problems(), &["its size is not the manifest's", &format!("found {}", whole.len() + 1)]);
    fs::remove_file(&shard).unwrap();
    names(&case.problems(), &["shard-00002-model-00001-of-00001.safetensors: it is missing"]);
    fs::create_dir(&shard).unwrap();
    names(&case.problems(), &["not a regular file"]);
    fs::remove_dir(&shard).unwrap();
    fs::copy(case.shard(0), &shard).unwrap();
    assert!(!case.problems().is_empty());
    fs::write(&shard, &whole).unwrap();
    fs::remove_file(case.dir.join("tokenizer.json")).unwrap();
    names(&case.problems(), &["tokenizer.json: it is missing"]);
    fs::write(case.dir.join("tokenizer.json"), "[]").unwrap();
    names(&case.problems(), &["tokenizer.json: its sha256"]);
    fs::remove_file(case.dir.join("shard-00001-model-00001-of-00001.manifest.json")).unwrap();
    names(&case.problems(), &["shard-00001-model-00001-of-00001.manifest.json: it is missing"]);
}

#[test]
fn files_that_readers_would_take_for_shards_are_problems_and_others_are_reported() {
    let case = saved(Cut::Rows, 2);
    fs::write(case.dir.join("notes.txt"), "").unwrap();
    fs::write(case.dir.join(".shardwright-tmp-1-0"), "").unwrap();
    let found = Verifier::open(&case.dir).unwrap().run().unwrap();
    assert_eq!((found.problems.len(), found.unexpected), (0, vec!["notes.txt".to_owned()]));
    fs::copy(case.shard(1), case.shard(2)).unwrap();
    fs::write(case.dir.join("x.safetensors"), "").unwrap();
    names(&case.problems(), &["shard-00003-model-00001-of-00001.safetensors: it is not in the manifest", "x.safetensors: it is not in"]);
}

#[test]
fn what_is_no_complete_save_is_refused() {
    let case = saved(Cut::Rows, 3);
    let (path, whole) = (case.dir.join(MANIFEST), fs::read(case.dir.join(MANIFEST)).unwrap());
    for (text, needle) in [(&b""[..], "torn or garbled"), (&whole[..whole.len() / 2], "torn or garbled"), (b"{}", "torn or garbled")] {
        fs::write(&path, text).unwrap();
        refused(&case.dir, &[MANIFEST, needle]);
    }
    fs::write(&path, String::from_utf8(whole).unwrap().replace("\"test\"", "\"tent\"")).unwrap();
    refused(&case.dir, &[MANIFEST, "it was altered"]);
    fs::remove_file(&path).unwrap();
    refused(&case.dir, &["is missing", "every rank is there", "save again"]);
    fs::remove_file(case.dir.join("shard-00002-model-00001-of-00001.manifest.json")).unwrap();
    refused(&case.dir, &["of 3 ranks, these are not saved: 1"]);
    refused(case.checkpoint.dir(), &["it holds no save"]);
    refused(&case.shard(0), &["not a directory of shards"]);
    refused(&case.dir.join("nowhere"), &["cannot open"]);
}

/// A manifest with a right seal is not believed either.
#[test]
fn a_forged_manifest_is_refused() {
    type Change = fn(&mut serde_json::Value);
    let cases: [(Change, &str); 12] = [
        (|m| m["shardwright"] = 3.into(), "version 3, expected 2"),
        (|m| m["ranks"][0]["shard"]["name"] = "../model/model-00000.safetensors".into(), "expected rank 0, 'shard-00001-"),
        (|m| m["ranks"][1]["rank"] = 0.into(), "expected rank 1"),
        (|m| m["copied"][0]["name"] = "../model/config.json".into(), "not a valid name for one"),
        (|m| m["copied"][0]["name"] = "/etc/passwd".into(), "not a valid name for one"),
        (|m| m["copied"][1] = m["copied"][0].clone(), "not a valid name for one"),
        (|m| drop(m["ranks"].as_array_mut().unwrap().pop()), "1 ranks, expected 2"),
        (|m| m["world_size"] = 3.into(), "not that of its plan"),
        (|m| m["strategy"] = "x".into(), "not that of its plan"),
        (|m| m["extra"] = 1.into(), "unknown field `extra`"),
        (|m| m["plan"]["tensors"][0]["shape"] = serde_json::json!([u64::MAX, u64::MAX]), "its plan does not hold"),
        (|m| m["plan"]["tensors"][0]["placement"]["axis"]["stride"] = 0.into(), "its plan does not hold"),
    ];
    for (change, needle) in cases {
        let case = saved(Cut::Rows, 2);
        case.forge(change);
        refused(&case.dir, &[MANIFEST, needle]);
    }
}

/// Every value of a manifest in turn becomes every kind of nonsense, under a right seal: refused or reported, never a panic.
#[test]
fn no_forged_value_is_more_than_a_refusal() {
    let nonsense = ["null", "-1", "0", "18446744073709551615", "\"../x\"", "[[0]]"];
    let nonsense = nonsense.map(|text| serde_json::from_str::<serde_json::Value>(text).unwrap());
    for (cut, ranks) in [(Cut::Columns, 2), (Cut::Flat, 2), (Cut::Grid, 4)] {
        let case = saved(cut, ranks);
        let path = case.dir.join(MANIFEST);
        let whole = fs::read(&path).unwrap();
        let mut value: serde_json::Value = serde_json::from_slice(&whole).unwrap();
        value["plan"]["tensors"].as_array_mut().unwrap().truncate(2);
        let mut pointers = Vec::new();
        collect_pointers(&value, String::new(), &mut pointers);
        assert!(pointers.len() > 60);
        let mut refused = 0;
        for pointer in &pointers {
            for bad in &nonsense {
                fs::write(&path, &whole).unwrap();
                case.forge(|value| *value.pointer_mut(pointer).unwrap() = bad.clone());
                let found = Verifier::open(&case.dir).and_then(|v| v.against(&case.checkpoint).run());
                refused += usize::from(found.is_err());
            }
        }
        assert!(refused > pointers.len() * nonsense.len() / 2, "{refused}");
    }
}

fn collect_pointers(value: &serde_json::Value, at: String, into: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => map.iter().for_each(|(key, v)| collect_pointers(v, format!("{at}/{key}"), into)),
        serde_json::Value::Array(list) => (0..).zip(list).for_each(|(i, v): (usize, _)| collect_pointers(v, format!("{at}/{i}"), into)),
        _ => {}
    }
    if at != "/sha256" && !at.is_empty() {
        into.push(at);
    }
}

#[test]
fn a_forged_shard_does_not_pass_for_the_plans() {
    let case = saved(Cut::Rows, 2);
    let renamed = |bytes: &mut Vec<u8>| {
        let at = bytes.windows(8).position(|w| w == b"\"rows\":{").unwrap();
        bytes[at + 1..at + 5].copy_from_slice(b"wors");
    };
    case.forge_shard(0, renamed);
    case.forge_shard(1, |bytes| bytes[8] = b'x');
    names(
        &case.problems(),
        &["rank 1: its header is not valid", "rank 0: its header does not list the tensors that the plan gives this rank"],
    );
}

/// Where every digest is right, only the source tells.
#[test]
fn every_element_is_compared_with_the_source() {
    for cut in [Cut::Rows, Cut::Columns] {
        let case = saved(cut, 3);
        case.forge_shard(1, |bytes| *bytes.last_mut().unwrap() ^= 1);
        assert_eq!(case.problems(), Vec::<String>::new());
        let (at, values) = match cut {
            Cut::Rows => ("1 of its 700 elements", "the first at [1, 699]: expected 34.75 (0x420b0000), found 139.0 (0x430b0000)"),
            _ => ("1 of its 468 elements", "the first at [1, 467]: expected 48.75 (0x42430000), found 195.0 (0x43430000)"),
        };
        names(&case.differences(&case.checkpoint), &["tensor 'wide': rank 1", at, "after the cast from bfloat16 to float32", values]);
    }
    let case = saved(Cut::Flat, 3);
    case.forge_shard(2, |bytes| *bytes.last_mut().unwrap() ^= 1);
    names(
        &case.differences(&case.checkpoint),
        &["partition-00003-of-00003.safetensors: tensor 'wide': rank 2: its padding is not all zeros"],
    );
}

#[test]
fn another_model_differs_by_name() {
    let case = saved(Cut::Rows, 2);
    let temporary = TempDir::new().unwrap();
    let other = write_model(&temporary.path().join("other"), 1);
    let reported = case.differences(&other);
    names(
        &reported,
        &[
            "tensor 'cube': rank 0",
            "tensor 'ids': rank 0: 5 of its 5 elements are not the source's, the first at [0]",
            "tensor 'wide': rank 1",
        ],
    );
    assert!(reported.iter().all(|t| !t.contains("'empty'")));
    let lacks = Checkpoint::open(&temporary.path().join("other/model-00000.safetensors")).unwrap();
    let reported = case.differences(&lacks);
    assert!(reported.len() > 1 && reported.iter().all(|t| t.contains("the model has no such tensor")), "{reported:?}"); // a line each
    let half = TempDir::new().unwrap();
    fs::copy(case.checkpoint.dir().join("model-00000.safetensors"), half.path().join("model-00000.safetensors")).unwrap();
    let plan = plan(Checkpoint::open(half.path()).unwrap().model(), Cut::Rows, 1, 1);
    let part = Checkpoint::open(half.path()).unwrap();
    let dir = half.path().join("shards");
    Saver::new(&plan, &part, &dir).save(&[&load(&plan, &part, 0)]).unwrap();
    let found = Verifier::open(&dir).unwrap().against(&case.checkpoint).run().unwrap();
    names(&found.problems.iter().map(ToString::to_string).collect::<Vec<_>>(), &["tensor 'rows': it is in no shard, but in the model"]);
}

#[test]
fn a_verification_can_be_stopped() {
    let case = saved(Cut::Rows, 2);
    let token = CancelToken::new();
    token.cancel();
    let error = Verifier::open(&case.dir).unwrap().cancel(&token).run().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
}

/// A save of assembled parameters is compared through their pieces, by other code than the loader's.
#[test]
fn assembled_parameters_are_compared_with_their_sources() {
    use shardwright_core::{Assembly, DType, Loop, Model, Piece, TensorMeta};
    let temporary = TempDir::new().unwrap();
    let checkpoint = write_model(&temporary.path().join("model"), 0);
    let index = |name: &str| u32::try_from(checkpoint.sources().iter().position(|s| s.name == name).unwrap()).unwrap();
    let lp = |size, source_stride, target_stride| Loop { size, source_stride, target_stride };
    let piece = |source, target_offset, loops| Piece { source, source_offset: 0, target_offset, loops };
    // Transposed; two tensors side by side; all of one in two columns; a tensor under another name.
    let parameters = || {
        vec![
            (
                TensorMeta::new("turned", DType::BF16, [6, 10]),
                Assembly::Pieces(vec![piece(index("embed"), 0, vec![lp(10, 6, 1), lp(6, 1, 10)])]),
            ),
            (
                TensorMeta::new("joined", DType::BF16, [10, 8]),
                Assembly::Pieces(vec![
                    piece(index("embed"), 0, vec![lp(10, 6, 8), lp(6, 1, 1)]),
                    Piece { source_offset: 100, ..piece(index("wide"), 6, vec![lp(10, 2, 8), lp(2, 1, 1)]) },
                ]),
            ),
            (
                TensorMeta::new("stacked", DType::BF16, [2, 10]),
                Assembly::Pieces(vec![piece(index("rows"), 0, vec![lp(10, 1, 1)]), piece(index("rows"), 10, vec![lp(10, 1, 1)])]),
            ),
            (TensorMeta::new("renamed", DType::I64, [5]), Assembly::Whole(index("ids"))),
        ]
    };
    let model = |parameters: Vec<(TensorMeta, Assembly)>| {
        let mut parameters = parameters;
        parameters.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        let (tensors, assemblies): (Vec<_>, Vec<_>) = parameters.into_iter().unzip();
        let mut model = Model::identity(shardwright_core::ModelMeta::new(tensors, checkpoint.model().facts.clone()).unwrap());
        model.assemblies = assemblies;
        model
    };
    let open = |parameters| Checkpoint::open(checkpoint.dir()).unwrap().assemble(model(parameters)).unwrap();
    let assembled = open(parameters());
    let elements: u64 = assembled.model().tensors.iter().map(|t| t.numel().unwrap()).sum();
    for (cut, ranks) in [(Cut::Rows, 3), (Cut::Columns, 2), (Cut::Flat, 4), (Cut::Grid, 6), (Cut::Strided, 8)] {
        let plan = plan(assembled.model(), cut, 1, ranks);
        let dir = temporary.path().join(format!("shards-{ranks}"));
        let loaded = crate::Loader::new(&plan, &assembled).load().unwrap();
        Saver::new(&plan, &assembled, &dir).save(&loaded.ranks.iter().map(|r| r as &dyn RankBytes).collect::<Vec<_>>()).unwrap();
        let verify = |checkpoint: &Checkpoint| Verifier::open(&dir).unwrap().against(checkpoint).run().unwrap();
        let found = verify(&assembled);
        assert!(found.problems.is_empty(), "{cut:?}: {:?}", found.problems);
        assert_eq!(found.elements, elements);
        // Another way to put it together is found out.
        let mut other = parameters();
        other[0].1 = Assembly::Pieces(vec![piece(index("embed"), 0, vec![lp(60, 1, 1)])]);
        let problems = verify(&open(other)).problems;
        assert!(!problems.is_empty() && problems.iter().all(|p| p.to_string().contains("'turned'")), "{problems:?}");
    }
}
