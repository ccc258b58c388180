//! Every way in which a checkpoint can be wrong, with the words of its error; and every way in which one may be laid out.

use std::{fs, os::unix::fs::symlink, path::Path};

use tempfile::TempDir;

use super::*;
use crate::error::ErrorKind;

/// A safetensors file of that header with that many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend((0..data).map(|i| u8::try_from(i % 251).unwrap()));
    bytes
}

/// One float32 tensor of that name with two elements.
fn two(name: &str) -> Vec<u8> {
    file(&format!(r#"{{"{name}":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}}"#), 8)
}

fn dir(files: &[(&str, &[u8])]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

/// The error of opening a directory must name all needles.
#[track_caller]
fn refused(dir: &Path, kind: ErrorKind, needles: &[&str]) {
    let error = Checkpoint::open(dir).expect_err("a broken checkpoint was opened");
    let message = error.to_string();
    assert_eq!(error.kind(), kind, "{message}");
    for needle in needles {
        assert!(message.contains(needle), "'{needle}' is not in: {message}");
    }
}

fn header(entries: &str) -> String {
    format!("{{{entries}}}")
}

#[test]
fn malformed_headers_are_refused_by_name() {
    let w = |dtype: &str, shape: &str, start: u64, end: u64| {
        format!(r#""w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    let good = w("F32", "[2]", 0, 8);
    let cases: Vec<(String, usize, &[&str])> = vec![
        ("not json".into(), 0, &["not a safetensors header", "line 1 column"]),
        ("[]".into(), 0, &["not a safetensors header", "object of tensors"]),
        (header(&good) + "x", 8, &["not a safetensors header", "trailing characters"]),
        (header(&w("F33", "[2]", 0, 8)), 8, &["tensor 'w'", "unknown dtype 'F33'", "BF16"]),
        (header(&w("F32", "[3]", 0, 8)), 8, &["tensor 'w'", "expected 12 bytes for float32 [3]", "found [0, 8]"]),
        (header(&w("F32", "[2]", 8, 0)), 8, &["tensor 'w'", "found [8, 0]"]),
        (header(&w("F32", "[-2]", 0, 8)), 8, &["tensor 'w'", "not a safetensors header"]),
        (header(&w("F32", "[2.0]", 0, 8)), 8, &["tensor 'w'", "not a safetensors header"]),
        (header(&w("F32", "[4294967296,4294967296]", 0, 8)), 8, &["tensor 'w'", "no size in whole bytes"]),
        (header(&w("F4", "[3]", 0, 2)), 2, &["tensor 'w'", "no size in whole bytes"]),
        (header(&format!("{good},{good}")), 8, &["tensor 'w'", "occurs twice"]),
        (
            header(&format!(r#"{good},"v":{{"dtype":"U8","shape":[4],"data_offsets":[12,16]}}"#)),
            16,
            &["tensor 'v'", "a hole", "byte 8", "found 12"],
        ),
        (
            header(&format!(r#"{good},"v":{{"dtype":"U8","shape":[4],"data_offsets":[6,10]}}"#)),
            10,
            &["tensor 'v'", "overlaps", "byte 8", "found 6"],
        ),
        (header(&w("F32", "[2]", 4, 12)), 12, &["tensor 'w'", "a hole"]),
        (header(&good), 6, &["tensor 'w'", "truncated", "expected 8 bytes of data", "found 6"]),
        (header(&good), 9, &["goes on behind its last tensor", "expected 8 bytes of data", "found 9"]),
        (header(r#""w":{"dtype":"F32","shape":[2]}"#), 8, &["tensor 'w'", "data_offsets"]),
        (header(r#""w":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}"#), 8, &["tensor 'w'", "dtype occurs twice"]),
        (header(r#""w":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":1}"#), 8, &["tensor 'w'", "more"]),
        (header(r#""__metadata__":{"format":1}"#), 0, &["__metadata__", "string"]),
        (header(r#""__metadata__":{},"__metadata__":{}"#), 0, &["__metadata__ occurs twice"]),
        (format!(r#"{{"w":{}"#, "[".repeat(300)), 0, &["not a safetensors header"]),
    ];
    for (text, data, needles) in cases {
        let dir = dir(&[("model.safetensors", &file(&text, data))]);
        let all: Vec<&str> = needles.iter().copied().chain(["model.safetensors"]).collect();
        refused(dir.path(), ErrorKind::Checkpoint, &all);
    }
}

#[test]
fn a_header_length_is_never_believed() {
    for (bytes, needles) in [
        (vec![], ["too short", "found 0"]),
        (vec![1, 2, 3], ["too short", "found 3"]),
        (1000u64.to_le_bytes().to_vec(), ["beyond the file", "found 1000"]),
        (u64::MAX.to_le_bytes().to_vec(), ["too long", "at most 100000000"]),
    ] {
        refused(dir(&[("model.safetensors", &bytes)]).path(), ErrorKind::Checkpoint, &needles);
    }
}

/// The length's bytes are then those that a pickle begins with.
#[test]
fn a_header_of_1152_bytes_is_a_header() {
    for length in [0x0280, 0x0380, 0x0480, 0x0580] {
        let entry = header(r#""w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#);
        let bytes = file(&format!("{entry:<length$}"), 8);
        assert_eq!((bytes[0], usize::from(bytes[1])), (0x80, length >> 8));
        let dir = dir(&[("model.safetensors", &bytes)]);
        assert_eq!(Checkpoint::open(dir.path()).unwrap().model().tensors.len(), 1, "{length} bytes");
    }
}

#[test]
fn an_index_is_not_believed_either() {
    let index = |map: &str| format!(r#"{{"metadata":{{"total_size":8}},"weight_map":{{{map}}}}}"#).into_bytes();
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (b"{".to_vec(), &["not a safetensors index"]),
        (b"{}".to_vec(), &["not a safetensors index", "weight_map"]),
        (index(r#""a":"../a.safetensors""#), &["tensor 'a'", "outside", "../a.safetensors"]),
        (index(r#""a":"/etc/passwd""#), &["tensor 'a'", "outside"]),
        (index(r#""a":"""#), &["tensor 'a'", "outside"]),
        (index(r#""a":"gone.safetensors""#), &["gone.safetensors", "No such file"]),
        (index(r#""a":"a.safetensors","a":"a.safetensors""#), &["tensor 'a'", "occurs twice"]),
        (index(r#""a":"a.safetensors","x":"a.safetensors""#), &["tensor 'x'", "file lacks", "'a.safetensors'", "no such tensor"]),
        (
            index(r#""a":"b.safetensors","b":"a.safetensors""#),
            &["tensor 'a'", "file lacks", "expected it in 'b.safetensors'", "found it in 'a.safetensors'"],
        ),
        (index(r#""a":"a.safetensors","b":"c.safetensors""#), &["tensor 'a'", "in 'a.safetensors' and in 'c.safetensors'"]),
    ];
    for (text, needles) in cases {
        let c = file(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#, 2);
        let dir = dir(&[
            ("model.safetensors.index.json", &text),
            ("a.safetensors", &two("a")),
            ("b.safetensors", &two("b")),
            ("c.safetensors", &c),
        ]);
        refused(dir.path(), ErrorKind::Checkpoint, needles);
    }
}

#[test]
fn an_index_that_is_merely_off_is_a_warning() {
    let text = br#"{"metadata":{"total_size":7},"weight_map":{"a":"a.safetensors","b":"b.safetensors"}}"#;
    let dir = dir(&[("model.safetensors.index.json", text), ("a.safetensors", &two("a")), ("b.safetensors", &two("b"))]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.model().tensors.len(), 2);
    assert!(checkpoint.warnings()[0].contains("total_size is 7") && checkpoint.warnings()[0].contains("16 bytes"));
}

#[test]
fn a_checkpoint_is_one_file_or_an_index_or_all_files() {
    let both = dir(&[("b.safetensors", &two("b")), ("a.safetensors", &two("a")), ("config.json", br#"{"hidden_size": 7}"#)]);
    let checkpoint = Checkpoint::open(both.path()).unwrap();
    let names: Vec<&str> = checkpoint.model().tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(checkpoint.model().facts.hidden_size, Some(7));
    let at = checkpoint.location(1);
    assert_eq!((checkpoint.files()[at.file].name.as_str(), at.offset, at.bytes), ("b.safetensors", 8 + 54, 8));

    let single = Checkpoint::open(&both.path().join("b.safetensors")).unwrap();
    assert_eq!(single.model().tensors.len(), 1);

    fs::write(both.path().join("model.safetensors"), two("m")).unwrap();
    assert_eq!(Checkpoint::open(both.path()).unwrap().model().tensors[0].name, "m");
}

#[test]
fn what_is_missing_or_unreadable_is_named() {
    let empty = TempDir::new().unwrap();
    refused(empty.path(), ErrorKind::Checkpoint, &["no checkpoint here", "*.safetensors"]);
    refused(&empty.path().join("gone"), ErrorKind::Checkpoint, &["gone", "No such file"]);
    let text = dir(&[("notes.txt", b"x")]);
    refused(&text.path().join("notes.txt"), ErrorKind::Checkpoint, &["neither a directory nor a .safetensors, .bin"]);
    let config = dir(&[("model.safetensors", &two("a")), ("config.json", b"{,}")]);
    refused(config.path(), ErrorKind::Checkpoint, &["config.json", "not valid JSON"]);
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("model.safetensors")).unwrap();
    refused(folder.path(), ErrorKind::Checkpoint, &["not a regular file"]);
}

/// Opening a pipe waits for a writer, who may never come.
#[test]
fn a_pipe_in_place_of_a_file_is_refused_and_not_waited_for() {
    for name in ["model.safetensors", "model.safetensors.index.json", "config.json"] {
        let folder = if name == "config.json" { dir(&[("model.safetensors", &two("a"))]) } else { TempDir::new().unwrap() };
        let path = std::ffi::CString::new(folder.path().join(name).into_os_string().into_encoded_bytes()).unwrap();
        // SAFETY: a path that ends in zero.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
        refused(folder.path(), ErrorKind::Checkpoint, &[name, "not a regular file"]);
    }
}

/// root reads everything: the fact is then shown by a path through a file, which nobody may enter.
#[test]
fn a_directory_that_cannot_be_read_is_an_io_error() {
    use std::os::unix::fs::PermissionsExt;
    let dir = dir(&[("model.safetensors", &two("a"))]);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o000)).unwrap();
    let readable = fs::read_dir(dir.path()).is_ok();
    if !readable {
        refused(dir.path(), ErrorKind::Io, &["Permission denied"]);
    }
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    refused(&dir.path().join("model.safetensors/x.safetensors"), ErrorKind::Io, &["Not a directory"]);
}

#[test]
fn a_link_that_leaves_the_directory_is_followed_and_reported() {
    let outside = dir(&[("real.safetensors", &two("a"))]);
    let inside = TempDir::new().unwrap();
    symlink(outside.path().join("real.safetensors"), inside.path().join("model.safetensors")).unwrap();
    let checkpoint = Checkpoint::open(inside.path()).unwrap();
    assert_eq!(checkpoint.model().tensors[0].name, "a");
    assert!(checkpoint.warnings().iter().any(|w| w.contains("leads out") && w.contains("real.safetensors")), "{:?}", checkpoint.warnings());
}

/// A hub cache with one model: refs/main, a snapshot of links, blobs.
fn hub() -> TempDir {
    let cache = TempDir::new().unwrap();
    let repo = cache.path().join("models--org--tiny");
    for d in ["refs", "blobs", "snapshots/abc123"] {
        fs::create_dir_all(repo.join(d)).unwrap();
    }
    fs::write(repo.join("refs/main"), "abc123").unwrap();
    for (name, blob, bytes) in [("model.safetensors", "b1", two("a")), ("config.json", "b2", br#"{"hidden_size": 5}"#.to_vec())] {
        fs::write(repo.join("blobs").join(blob), bytes).unwrap();
        symlink(format!("../../blobs/{blob}"), repo.join("snapshots/abc123").join(name)).unwrap();
    }
    cache
}

#[test]
fn a_hub_id_is_found_in_the_cache() {
    let cache = hub();
    let env = HubEnv { cache: Some(cache.path().to_owned()), offline: true };
    let none: [&Path; 0] = [];
    let checkpoint = Checkpoint::find("org/tiny", &none, &env).unwrap();
    assert_eq!(checkpoint.model().tensors[0].name, "a");
    assert_eq!(ModelDir::find("org/tiny", &none, &env).unwrap().facts().unwrap().hidden_size, Some(5));

    let missing = Checkpoint::find("org/other", &[Path::new("/nowhere")], &env).unwrap_err().to_string();
    assert!(["'org/other'", "/nowhere/org/other", "models--org--other", "HF_HUB_OFFLINE"].iter().all(|n| missing.contains(n)), "{missing}");

    let repo = cache.path().join("models--org--tiny");
    fs::write(repo.join("refs/main"), "../../x").unwrap();
    assert!(Checkpoint::find("org/tiny", &none, &env).unwrap_err().to_string().contains("not a revision"));
    fs::remove_file(repo.join("refs/main")).unwrap();
    assert!(Checkpoint::find("org/tiny", &none, &env).unwrap_err().to_string().contains("no revision 'main'"));
}

#[test]
fn the_cache_is_where_huggingface_hub_looks() {
    let find = |vars: &[(&str, &str)]| HubEnv::from_env(|n| vars.iter().find(|v| v.0 == n).map(|v| v.1.into()));
    let cache = |vars: &[(&str, &str)]| find(vars).cache.unwrap().to_str().unwrap().to_owned();
    assert_eq!(cache(&[("HF_HUB_CACHE", "/a"), ("HF_HOME", "/b"), ("HOME", "/h")]), "/a");
    assert_eq!(cache(&[("HF_HOME", "/b"), ("HOME", "/h")]), "/b/hub");
    assert_eq!(cache(&[("HF_HOME", "~/b"), ("HOME", "/h")]), "/h/b/hub");
    assert_eq!(cache(&[("HF_HUB_CACHE", "$SCRATCH/${USER}/hub$X"), ("SCRATCH", "/s"), ("USER", "u"), ("HOME", "/h")]), "/s/u/hub$X");
    assert_eq!(cache(&[("HF_HOME", "$HOME/b$"), ("HOME", "/h")]), "/h/b$/hub");
    assert_eq!(cache(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")]), "/x/huggingface/hub");
    assert_eq!(cache(&[("HOME", "/h")]), "/h/.cache/huggingface/hub");
    assert!(find(&[("HF_HUB_OFFLINE", "1")]).offline && !find(&[("HF_HUB_OFFLINE", "0")]).offline);
}

#[test]
fn a_relative_path_is_tried_from_every_base() {
    let base = TempDir::new().unwrap();
    fs::create_dir(base.path().join("m")).unwrap();
    fs::write(base.path().join("m/model.safetensors"), two("a")).unwrap();
    let env = HubEnv::default();
    assert!(Checkpoint::find("m", &[Path::new("/nowhere"), base.path()], &env).is_ok());
    assert!(Checkpoint::find(base.path().join("m").to_str().unwrap(), &[Path::new("/nowhere")], &env).is_ok());
}

#[test]
fn a_file_that_changed_since_is_reported() {
    let dir = dir(&[("model.safetensors", &two("a"))]);
    let path = dir.path().join("model.safetensors");
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(checkpoint.check_unchanged(0).is_ok());
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(10).unwrap();
    assert!(checkpoint.check_unchanged(0).unwrap_err().to_string().contains("size changed"));
    fs::write(dir.path().join("new"), two("a")).unwrap();
    fs::rename(dir.path().join("new"), &path).unwrap();
    assert!(checkpoint.check_unchanged(0).unwrap_err().to_string().contains("was replaced"));
}

#[test]
fn files_that_are_missing_or_of_another_kind_are_reported() {
    let numbered = dir(&[("model-00001-of-00003.safetensors", &two("a")), ("model-00003-of-00003.safetensors", &two("b"))]);
    refused(numbered.path(), ErrorKind::Checkpoint, &["a file of the checkpoint is missing", "'model-00002-of-00003.safetensors'"]);
    let pointer = dir(&[("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")]);
    refused(pointer.path(), ErrorKind::Checkpoint, &["Git LFS pointer", "git lfs pull"]);
    let page = dir(&[("model.safetensors", b"<!DOCTYPE html><html></html>")]);
    refused(page.path(), ErrorKind::Checkpoint, &["a text, not a safetensors file", "'<!DOCTY"]);
    let other = dir(&[("rng_state.pth", b""), ("model.gguf", b"")]);
    refused(other.path(), ErrorKind::Checkpoint, &["no checkpoint here", "'model.gguf' and 1 more"]);
    let index = br#"{"weight_map": {"a": "x.safetensors", "b": "y.safetensors", "c": "y.safetensors"}}"#;
    let incomplete = dir(&[("x.safetensors", &two("a")), ("model.safetensors.index.json", index)]);
    let needles = ["y.safetensors", "a file of the index is missing", "tensor 'b'", "2 tensors in it by", "index.json"];
    refused(incomplete.path(), ErrorKind::Checkpoint, &needles);
    symlink("nowhere", incomplete.path().join("y.safetensors")).unwrap();
    refused(incomplete.path(), ErrorKind::Checkpoint, &["a file of the index is a link to nothing"]);
}

/// `torch.distributed.checkpoint` tells the places of whole tensors too, in files of another name.
#[test]
fn one_ranks_shards_are_no_checkpoint() {
    const SHARD: &str = "shard-00001-model-00001-of-00001.safetensors";
    let elsewhere = r#""DCP_SHARDING_INFO":"{\"w\":{\"saved_offsets\":[2]}}""#;
    let at_the_start = r#""DCP_SHARDING_INFO":"{\"w\":{\"saved_offsets\":[0]}}""#;
    let with = |name: &str, metadata: &str| {
        let entries = format!(r#""__metadata__":{{"format":"pt"{metadata}}},"w":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#);
        dir(&[(name, &file(&header(&entries), 8))])
    };
    let of_a_rank = with("model.safetensors", &format!(",{elsewhere}"));
    refused(of_a_rank.path(), ErrorKind::Checkpoint, &["one rank's shards", "not whole tensors", "model.safetensors"]);
    let partition = "partition-00001-of-00002.safetensors";
    let flat = r#""partitions":"{\"w\":{\"kind\":\"parameter\",\"shape\":[2],\"numel\":2,\"dtype\":\"float32\",\"start\":0,\"valid\":2,\"padding\":0}}""#;
    let cases = [
        (SHARD, elsewhere, &["tensor 'w'", "do not make it whole", "expected 4 elements"][..]),
        (SHARD, &format!(r#"{at_the_start},"world_size":"2""#), &["files of some ranks are missing", "expected 2 files", "found 1"]),
        (SHARD, &format!(r#"{at_the_start},"shardwright_save":"2""#), &["its save is not complete"]),
        (partition, flat, &["tensor 'w'", "need the manifest"]),
    ];
    for (name, metadata, needles) in cases {
        let shard = with(name, &format!(",{metadata}"));
        refused(shard.path(), ErrorKind::Checkpoint, needles);
        refused(&shard.path().join(name), ErrorKind::Checkpoint, &["one rank's shards"]);
    }
    // All that there is of one rank, as far as it says.
    let whole = with(SHARD, &format!(",{at_the_start}"));
    let whole = Checkpoint::open(whole.path()).unwrap();
    assert!(whole.warnings().iter().any(|w| w.contains("do not say how many there were")), "{:?}", whole.warnings());
    let others = r#","partitions":"3""#.to_owned();
    let whole = [("model-00001-of-00001.safetensors", format!(",{at_the_start}")), (SHARD, String::new()), ("model.safetensors", others)];
    for (name, metadata) in whole {
        assert!(Checkpoint::open(with(name, &metadata).path()).is_ok(), "{name} {metadata}");
    }
}

#[test]
fn a_config_is_read_as_python_writes_it_and_its_facts_have_types() {
    let with = |config: &str| dir(&[("model.safetensors", &two("w")), ("config.json", config.as_bytes())]);
    let mamba = with(r#"{"model_type": "mamba2", "time_step_limit": [0.0, Infinity], "hidden_size": 8}"#);
    let facts = Checkpoint::open(mamba.path()).unwrap().model().facts.clone();
    assert_eq!((facts.model_type.as_deref(), facts.hidden_size), (Some("mamba2"), Some(8)));
    refused(with("[]").path(), ErrorKind::Checkpoint, &["config.json", "expected an object", "found a list"]);
    let odd = Checkpoint::open(with(r#"{"hidden_size": "x", "model_type": "m"}"#).path()).unwrap();
    assert_eq!((odd.model().facts.hidden_size, odd.model().facts.model_type.as_deref()), (None, Some("m")));
    assert!(
        odd.warnings()[0].ends_with("config.json: 'hidden_size' is not used: expected a whole number, found 'x'"),
        "{:?}",
        odd.warnings()
    );
    refused(with("{").path(), ErrorKind::Checkpoint, &["config.json", "not valid JSON"]);
}

#[test]
fn weights_that_are_passed_over_are_reported() {
    let index = br#"{"metadata":{"total_size":8},"weight_map":{"w":"model-00001-of-00001.safetensors"}}"#;
    let both = dir(&[
        ("model.safetensors", &two("single")),
        ("model.safetensors.index.json", index),
        ("model-00001-of-00001.safetensors", &two("w")),
        ("consolidated.00.safetensors", &two("mistral")),
    ]);
    let open = |index_first: bool| {
        let mut found = ModelDir::open(both.path()).unwrap();
        found.index_first = index_first;
        let found = found.checkpoint().unwrap();
        (found.sources()[0].name.to_string(), found.warnings().join("\n"))
    };
    let (name, warnings) = open(false);
    assert_eq!(name, "single");
    assert!(
        warnings.contains("'model.safetensors' is read") && warnings.contains("'consolidated.00.safetensors' is left out"),
        "{warnings}"
    );
    let (name, warnings) = open(true);
    assert_eq!(name, "w");
    assert!(warnings.contains("'model.safetensors.index.json' is read") && warnings.contains("init_on_meta"), "{warnings}");
}
