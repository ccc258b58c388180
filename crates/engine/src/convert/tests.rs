//! Conversions of checkpoints that the real engines wrote, against what those engines said was in them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use shardwright_core::{DType, TensorMeta};
use shardwright_formats::torch_file::TorchFile;

use super::*;
use crate::{
    contents::data::{self, Bytes},
    error::ErrorKind,
    generate::{Content, write_checkpoint},
    load::CancelToken,
};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/convert/fixtures").join(name)
}

fn convert(contents: &Contents, options: &ConvertOptions, target: &Path) -> Converted {
    Conversion::plan(contents, options).unwrap().run(target, &|_| (), &CancelToken::new()).unwrap()
}

fn options(to: Target, ranks: u32) -> ConvertOptions {
    ConvertOptions { ranks, ..ConvertOptions::new(to) }
}

fn open(name: &str) -> Contents {
    let mut contents = Contents::open(&fixture(name)).unwrap();
    if name == "zero3" {
        contents.tie("head.weight", "emb.weight").unwrap();
    }
    contents
}

fn bytes_of(files: &data::Files, data: &Data) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(data.bytes()).unwrap()];
    data.read(files, 0..data.numel(), &mut bytes).unwrap();
    bytes
}

/// Compares with `expected.pt`, which holds what the engine had in memory.
fn as_expected(contents: &Contents, name: &str) {
    let path = fixture(name).join("expected.pt");
    let source = Bytes::open(&path).unwrap();
    let file = TorchFile::open(&source).unwrap();
    let (pickle, root) = (&file.pickle, file.pickle.root());
    let mut files = data::Files::default();
    files.add(path);
    let mut compared = 0;
    for kind in ["params", "frozen", "buffers", "exp_avg", "exp_avg_sq"] {
        for (key, id) in pickle.dict(pickle.get(root, kind).unwrap()).unwrap() {
            let (name, tensor) = (pickle.str(*key).unwrap(), file.tensor(&source, *id).unwrap().unwrap());
            let extents =
                vec![data::Extent::boxed(0, tensor.offset, &tensor.shape, &vec![0; tensor.shape.len()], &tensor.shape, &tensor.strides)];
            let expected = Data::new(tensor.dtype, tensor.shape.clone(), extents).unwrap();
            let found = match kind.starts_with("exp_avg") {
                false => &contents.tensor(name).unwrap_or_else(|| panic!("{kind} {name} is missing")).data,
                true => {
                    let state = contents.optimizer.as_ref().unwrap().states.iter().find(|s| s.param == name).unwrap();
                    &state.tensors.iter().find(|(n, _)| n == kind).unwrap().1
                }
            };
            assert_eq!((found.dtype(), found.shape()), (expected.dtype(), expected.shape()), "{kind} {name}");
            assert_eq!(bytes_of(&contents.files, found), bytes_of(&files, &expected), "{kind} {name}");
            compared += 1;
        }
    }
    assert_eq!(compared, 6 + 2 + 2 + 6 + 6);
    let steps = pickle.int(pickle.get(root, "steps").unwrap()).unwrap();
    assert_eq!(contents.step(), Some(steps));
    let lr: Vec<_> = pickle.items(pickle.get(root, "lr").unwrap()).unwrap().iter().map(|id| pickle.plain(*id).unwrap()).collect();
    let groups = &contents.optimizer.as_ref().unwrap().groups;
    let found: Vec<_> = groups.iter().map(|g| g.values.iter().find(|(k, _)| k == "lr").unwrap().1.clone()).collect();
    assert_eq!(found, lr);
    assert_eq!(contents.aliases, [("head.weight".to_owned(), "emb.weight".to_owned())]);
    let of = |kind| contents.tensors.iter().filter(|t| t.kind == kind).map(|t| t.name.as_str()).collect::<Vec<_>>();
    assert_eq!((of(Kind::Frozen), of(Kind::Buffer)), (vec!["c.bias", "c.weight"], vec!["buf", "count"]));
}

#[test]
fn sources_hold_what_the_engines_had() {
    for name in ["fsdp2", "zero3", "zero2"] {
        as_expected(&open(name), name);
    }
}

#[test]
fn every_source_goes_to_every_target_with_optimizer_on_any_number_of_ranks() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["fsdp2", "zero3", "zero2"] {
        let source = open(name);
        for (number, (to, ranks)) in [(Target::Dcp, 1), (Target::Dcp, 3), (Target::Zero3, 1), (Target::Zero3, 4)].into_iter().enumerate() {
            let at = dir.path().join(format!("{name}-{number}"));
            convert(&source, &ConvertOptions { dtype: Some(DType::F32), ..options(to, ranks) }, &at);
            let mut found = Contents::open(&at).unwrap();
            if to == Target::Zero3 {
                found.tie("head.weight", "emb.weight").unwrap();
            }
            let found = diff(&source, &found, false, &|_| (), &CancelToken::new()).unwrap();
            assert!(found.is_empty(), "{name} to {to:?} on {ranks}: {found:?}");
            assert_eq!(found.equal, 6 * 3 + 2 + 2 + 1);
        }
    }
}

#[test]
fn weights_go_to_safetensors_whole_or_by_ranks_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    for (number, options) in
        [options(Target::Hf, 1), ConvertOptions { max_file_size: 100, ..options(Target::Hf, 1) }, options(Target::HfSharded, 3)]
            .iter()
            .enumerate()
    {
        let source = open("zero3");
        let at = dir.path().join(number.to_string());
        convert(&source, options, &at);
        let found = Contents::open(&at).unwrap();
        assert_eq!(found.format, Format::Safetensors);
        let compared = diff(&source, &found, true, &|_| (), &CancelToken::new()).unwrap();
        assert!(compared.is_empty() && compared.equal >= 10, "{compared:?}");
        assert_eq!(at.join("model.safetensors.index.json").exists(), number == 1);
    }
}

#[test]
fn sub_groups_are_cut_as_deepspeed_cuts_them_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let source = open("fsdp2");
    let at = dir.path().join("out");
    convert(&source, &ConvertOptions { sub_group_size: 8, dtype: Some(DType::F32), ..options(Target::Zero3, 2) }, &at);
    let mut found = Contents::open(&at).unwrap();
    found.tie("head.weight", "emb.weight").unwrap();
    let compared = diff(&source, &found, false, &|_| (), &CancelToken::new()).unwrap();
    assert!(compared.is_empty(), "{compared:?}");
}

#[test]
fn padding_that_older_versions_write_into_universal_checkpoints_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("universal");
    convert(&open("zero3"), &options(Target::Universal, 6), &at);
    let param = |name: &str| at.join("global_step3_universal/zero").join(name).join("exp_avg.pt");
    let states = |name: &str| {
        let contents = Contents::open(&at).unwrap();
        let state = contents.optimizer.as_ref().unwrap().states.iter().find(|s| s.param == name).unwrap();
        bytes_of(&contents.files, &state.tensors.iter().find(|(key, _)| key == "exp_avg").unwrap().1)
    };
    // One element on 6 ranks: ranks 2 to 5 add one each, as many as "a.bias" has.
    let longer = states("a.bias");
    fs::copy(param("a.bias"), param("one")).unwrap();
    assert_eq!(states("one"), longer[..4]);
    fs::copy(param("b.weight"), param("one")).unwrap();
    refused(&at, "another number of elements: expected 1, found 15");
}

#[test]
fn what_is_lost_is_listed_before_anything_is_written() {
    let source = open("zero3");
    let lost = Conversion::plan(&source, &options(Target::Hf, 1)).unwrap().lost().join("; ");
    assert!(
        lost.contains("exp_avg, exp_avg_sq of 6 parameters") && lost.contains("lr_scheduler") && lost.contains("head.weight"),
        "{lost}"
    );
    assert!(Conversion::plan(&source, &options(Target::Zero3, 5)).unwrap().lost().is_empty());
}

#[test]
fn a_target_that_is_there_stays_and_a_stopped_conversion_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let source = open("fsdp2");
    let at = dir.path().join("out");
    let stopped = CancelToken::new();
    stopped.cancel();
    let plan = || Conversion::plan(&source, &options(Target::Dcp, 2)).unwrap();
    assert_eq!(plan().run(&at, &|_| (), &stopped).unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    // What a killed process leaves is removed by the next.
    let left = dir.path().join(".out.shardwright-convert");
    fs::create_dir_all(left.join("model")).unwrap();
    fs::write(left.join("model/x"), "x").unwrap();
    plan().run(&at, &|_| (), &CancelToken::new()).unwrap();
    assert!(!at.join("model/x").exists() && !left.exists());
    assert_eq!(plan().run(&at, &|_| (), &CancelToken::new()).unwrap_err().kind(), ErrorKind::Exists);
}

#[test]
fn replicas_hold_the_same_parts_which_are_written_once() {
    let source = open("fsdp2");
    for target in [Target::Dcp, Target::HfSharded] {
        let hybrid = ConvertOptions { replicas: 3, ..options(target, 6) };
        let files = |options: &ConvertOptions| -> Vec<(String, u64)> {
            Conversion::plan(&source, options).unwrap().files().map(|(name, size)| (name.to_owned(), size)).collect()
        };
        assert_eq!(files(&hybrid), files(&options(target, 2)));
    }
}

/// A copy of a fixture that a test may damage.
fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => copy_tree(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

fn copy(name: &str, dir: &Path) -> PathBuf {
    let to = dir.join(name);
    copy_tree(&fixture(name), &to);
    to
}

fn refused(at: &Path, part: &str) {
    let error = Contents::open(at).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Checkpoint, "{error}");
    assert!(error.to_string().contains(part), "{error}");
}

#[test]
fn missing_ranks_and_ranks_of_two_steps_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = copy("zero3", dir.path());
    let step = at.join("global_step3");
    fs::remove_file(step.join("bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt")).unwrap();
    refused(&at, "of rank 1");
    let at = copy("zero3", &dir.path().join("b"));
    let file = at.join("global_step3/zero_pp_rank_1_mp_rank_00_model_states.pt");
    let bytes = fs::read(&file).unwrap();
    // `global_steps` is followed by a memo and BININT1; a checksum of 0 is one that was not taken.
    let key = bytes.windows(12).position(|w| w == b"global_steps").unwrap();
    let value = key + bytes[key..].iter().position(|b| *b == b'K').unwrap() + 1;
    let mut other = bytes.clone();
    other[value] = 9;
    for at in (0..other.len() - 4).filter(|i| bytes[*i..].starts_with(b"PK\x01\x02")).collect::<Vec<_>>() {
        other[at + 16..at + 20].fill(0);
    }
    fs::write(&file, other).unwrap();
    refused(&at, "different steps");
}

#[test]
fn cut_off_and_missing_files_of_a_distributed_checkpoint_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = copy("fsdp2", dir.path());
    let file = at.join("model/__1_0.distcp");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    refused(&at, "cut off");
    fs::remove_file(&file).unwrap();
    refused(&at, "cannot open");
    fs::write(at.join("model/.metadata"), b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.").unwrap();
    refused(&at, "'os.system'");
}

/// Every storage that a conversion reads is compared with the checksum that its zip states, without being read twice.
#[test]
fn damaged_storages_are_refused_by_a_conversion() {
    let dir = tempfile::tempdir().unwrap();
    let universal = dir.path().join("universal");
    convert(&open("zero3"), &options(Target::Universal, 1), &universal);
    for (name, from) in [("fsdp2", fixture("fsdp2")), ("zero2", fixture("zero2")), ("zero3", fixture("zero3")), ("universal", universal)] {
        let at = dir.path().join(format!("{name}-copy"));
        copy_tree(&from, &at);
        let run = |target: &str| {
            let mut contents = Contents::open(&at)?;
            if name == "zero3" {
                contents.tie("head.weight", "emb.weight")?;
            }
            Conversion::plan(&contents, &options(Target::Dcp, 2))?.run(&dir.path().join(target), &|_| (), &CancelToken::new())
        };
        run(&format!("{name}-whole")).unwrap();
        let files: Vec<PathBuf> = Contents::open(&at).unwrap().files().cloned().collect();
        let (mut found, mut unread) = (0, Vec::new());
        for file in files {
            let whole = fs::read(&file).unwrap();
            let length = |at: usize| usize::from(u16::from_le_bytes([whole[at], whole[at + 1]]));
            for header in (0..whole.len()).filter(|at| whole[*at..].starts_with(b"PK\x03\x04")) {
                let member = String::from_utf8_lossy(&whole[header + 30..header + 30 + length(header + 26)]).into_owned();
                let start = header + 30 + length(header + 26) + length(header + 28);
                if !member.contains("/data/") || whole.get(start..start + 2).is_none_or(|b| b == b"PK") {
                    continue;
                }
                let mut damaged = whole.clone();
                damaged[start] ^= 1;
                fs::write(&file, damaged).unwrap();
                match run("damaged") {
                    Err(e) => {
                        let text = e.to_string();
                        assert!(e.kind() == ErrorKind::Checkpoint && text.contains("CRC-32 differs"), "{name} {member}: {text}");
                        found += 1;
                    }
                    Ok(_) => {
                        unread.push((file.clone(), member));
                        fs::remove_dir_all(dir.path().join("damaged")).unwrap();
                    }
                }
                assert!(!dir.path().join("damaged").exists(), "{name}");
                fs::write(&file, &whole).unwrap();
            }
        }
        // Of a parameter with a master the master is read; of a universal checkpoint's groups one's step.
        unread.retain(|(file, _)| name != "zero2" || !file.ends_with("global_step3/mp_rank_00_model_states.pt"));
        unread.retain(|(file, member)| !file.ends_with("zero/optimizer_state.pt") || !member.ends_with("/1"));
        assert!(found > 10 && unread.is_empty(), "{name}: {found} found, {unread:?}");
    }
}

/// Opening a pipe that nobody writes to would wait without end.
#[test]
fn pipes_are_refused_wherever_a_source_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = |path: &Path| {
        fs::remove_file(path).ok();
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    let alone = dir.path().join("pipe.bin");
    pipe(&alone);
    refused(&alone, "not a regular file");
    for (case, name) in [
        ("fsdp2", "model/.metadata"),
        ("fsdp2", "model/__1_0.distcp"),
        ("zero3", "latest"),
        ("zero3", "global_step3/zero_pp_rank_1_mp_rank_00_model_states.pt"),
    ] {
        let at = copy(case, &dir.path().join(name.replace('/', "-")));
        pipe(&at.join(name));
        // A pipe in place of the metadata leaves nothing that is recognised.
        refused(&at, if name == "model/.metadata" { "no checkpoint is recognised" } else { "not a regular file" });
    }
}

#[test]
fn a_source_that_changes_meanwhile_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let at = copy("zero3", dir.path());
    let file = at.join("global_step3/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt");
    let contents = Contents::open(&at).unwrap();
    let options = ConvertOptions::new(Target::Hf);
    let touched = std::sync::Once::new();
    let touch = |_: u64| touched.call_once(|| fs::File::open(&file).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap());
    let target = dir.path().join("target");
    let error = Conversion::plan(&contents, &options).unwrap().run(&target, &touch, &CancelToken::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Checkpoint, "{error}");
    assert!(error.to_string().contains("was written to while it was being read") && touched.is_completed(), "{error}");
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, [at], "nothing but the source is left");
}

/// A target without its tokenizer, or with half of it, would be found out by whoever loads it.
#[test]
fn files_that_go_along_are_regular_and_stay_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let at = copy("fsdp2", dir.path());
    let file = at.join("tokenizer.json");
    fs::write(&file, "{}").unwrap();
    let contents = Contents::open(&at).unwrap();
    let touched = std::sync::Once::new();
    let touch = |_: u64| touched.call_once(|| fs::write(&file, "[]").unwrap());
    let target = dir.path().join("target");
    let plan = || Conversion::plan(&contents, &ConvertOptions::new(Target::Hf));
    let error = plan().unwrap().run(&target, &touch, &CancelToken::default()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("was written to") && !target.exists(), "{error}");
    plan().unwrap().run(&target, &|_| {}, &CancelToken::default()).unwrap();
    assert_eq!(fs::read_to_string(target.join("tokenizer.json")).unwrap(), "[]");
    fs::remove_file(&file).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
    let error = plan().unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("not a regular file"), "{error}");
}

#[test]
fn codes_of_a_quantized_checkpoint_are_not_cast() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = [
        TensorMeta::new("l.weight", DType::F8E4M3, [4, 4]),
        TensorMeta::new("l.weight_scale_inv", DType::F32, [1, 1]),
        TensorMeta::new("norm.weight", DType::BF16, [4]),
    ];
    write_checkpoint(dir.path(), &tensors, 1 << 20, Content::Random).unwrap();
    let contents = Contents::open(dir.path()).unwrap();
    for to in [Target::Hf, Target::Dcp] {
        let error = Conversion::plan(&contents, &ConvertOptions { dtype: Some(DType::BF16), ..options(to, 2) }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        let error = error.to_string();
        assert!(error.contains("tensor 'l.weight'") && error.contains("scales in 'l.weight_scale_inv'"), "{error}");
        Conversion::plan(&contents, &options(to, 2)).unwrap();
    }
}
