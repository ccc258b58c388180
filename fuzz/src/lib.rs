//! What must hold for any bytes whatever: one function for each kind of untrusted input. `tests/hostile.rs` runs the same functions in
//! `cargo test`, over the corpus and over mutations of it. Each answers whether the input was accepted.

use std::{collections::BTreeMap, sync::OnceLock};

use shardwright::{
    config::{Draft, Input, Supplied},
    core::{
        DType, Mesh, ModelFacts, ModelMeta, PlanInput, Precision, PrecisionPolicy, ShardPlan, ShardStrategy, TensorMeta,
        diagnostic::{Diagnostic, Source},
        plan_checked,
        registry::Registry,
        replicate::Replicate,
        tree::{json, yaml},
    },
    engine::checkpoint::{parse_header, parse_index},
    formats::{
        dcp,
        deepspeed::{ModelStates, OptimStates},
        pickle::Pickle,
        torch_file::TorchFile,
        zip as archive,
    },
    fsdp2::Fsdp2,
    zero3::Zero3,
};

/// A safetensors file: what the header's parser accepts tiles the data, the reference implementation accepts too, and any strategy plans.
pub fn header(data: &[u8]) -> bool {
    let (text, len) = match data.split_first_chunk::<8>() {
        Some((length, rest)) => match rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX)) {
            Some((text, tensors)) => (text, tensors.len() as u64),
            None => (rest, u64::MAX),
        },
        None => (data, 0),
    };
    let Ok(entries) = parse_header(text, len) else { return false };
    let mut at = 0;
    for e in &entries {
        assert_eq!(e.start, at, "'{}' starts elsewhere", e.name);
        assert_eq!(e.dtype.bytes(e.shape.iter().product()), Some(e.end - e.start), "'{}' has another size", e.name);
        at = e.end;
    }
    assert_eq!(at, len, "the data is not tiled");
    if data.len() >= 8 + text.len() {
        let theirs = safetensors::SafeTensors::read_metadata(data);
        assert!(theirs.is_ok(), "accepted what the safetensors crate refuses: {theirs:?}");
    }
    let tensors = entries.into_iter().map(|e| TensorMeta::new(e.name, e.dtype, e.shape)).collect();
    let model = ModelMeta::new(tensors, ModelFacts::default()).expect("names were found to be unique");
    let mesh = Mesh::replicate_shard(1, 3).expect("three ranks are a world");
    for strategy in [&Fsdp2::default() as &dyn ShardStrategy, &Zero3::default(), &Replicate] {
        if let Ok(plan) = plan_checked(strategy, &PlanInput::new(&model, &mesh, &AsStored)) {
            walk(&plan);
        }
    }
    true
}

/// Every parameter in its own dtype, which any checkpoint can be planned in.
#[derive(Debug)]
struct AsStored;

impl PrecisionPolicy for AsStored {
    fn decide(&self, parameter: &TensorMeta, _: bool) -> Precision {
        Precision::uniform(parameter.dtype)
    }
}

/// An index: what is accepted names plain files only, and every tensor's file is among them.
pub fn index(data: &[u8]) -> bool {
    let Ok(index) = parse_index(data) else { return false };
    for file in &index.files {
        assert!(!file.is_empty() && !file.starts_with('/') && file.split('/').all(|part| part != ".."), "'{file}' leaves the directory");
    }
    assert!(index.weights.iter().all(|(_, file)| *file < index.files.len()));
    assert!(index.weights.windows(2).all(|w| w[0].0 < w[1].0), "names are not sorted, or one is there twice");
    true
}

/// A YAML config: parsed, resolved, every finding inside the text it speaks of, and an answer or an error.
pub fn yaml(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let source = Source::new("fuzz.yaml", text);
    // The draft parses it too: alone only a fourth of the texts is.
    if data.len().is_multiple_of(4) {
        let mut warnings = Vec::new();
        match yaml::parse(&source, &mut warnings) {
            Ok(node) => drop((node.to_json(), node.describe())),
            Err(error) => warnings.push(error),
        }
        check_places(&warnings, std::slice::from_ref(&source));
    }
    let draft = draft(&source);
    check_places(draft.diagnostics(), draft.sources());
    // With all that a shell finds, or with none of it: which, the length of the text says.
    if data.len().is_multiple_of(2) {
        return resolve(draft, &Supplied::default());
    }
    let facts = ModelFacts::from_config(&serde_json::json!({"hidden_size": 64, "num_hidden_layers": 4, "tie_word_embeddings": false}));
    let files: BTreeMap<_, _> = draft.files().into_iter().map(|name| (name, Err("there is none".to_owned()))).collect();
    resolve(draft, &Supplied { files, model: Some(facts), world_size: Some(8), world_size_is_flag: true })
}

/// A DeepSpeed JSON, behind a fixed YAML.
pub fn deepspeed(data: &[u8]) -> bool {
    const YAML: &str = "model: m\ndist_config:\n  name: deepspeed\n  config_file: ds.json\nmicro_batch_size: 2\n";
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let source = Source::new("ds.json", text);
    let mut warnings = Vec::new();
    match json::parse(&source, &mut warnings) {
        Ok(node) => drop(node.to_json()),
        Err(error) => warnings.push(error),
    }
    check_places(&warnings, std::slice::from_ref(&source));
    let facts = ModelFacts::from_config(&serde_json::json!({"hidden_size": 64, "num_hidden_layers": 4}));
    let files = BTreeMap::from([("ds.json".to_owned(), Ok(source))]);
    let draft = || draft(&Source::new("fuzz.yaml", YAML));
    let resolved = resolve(draft(), &Supplied { files: files.clone(), model: Some(facts), world_size: Some(4), world_size_is_flag: false });
    resolve(draft(), &Supplied { files, ..Supplied::default() }) || resolved
}

/// A zip: every member lies in it, and so does every tensor of a file of `torch.save`, whatever is read of it.
pub fn zip(data: &[u8]) -> bool {
    let Ok(members) = archive::members(data) else { return false };
    for member in &members {
        if let Ok(start) = archive::payload(data, member) {
            assert!(start + member.size <= data.len() as u64, "'{}' leaves the archive", member.name);
        }
        drop(archive::content(data, member, 1 << 20));
    }
    let Ok(file) = TorchFile::open(data) else { return false };
    if let Ok(states) = ModelStates::read(&file, &data.to_vec()) {
        for tensor in states.module.iter().chain(&states.frozen).map(|(_, tensor)| tensor) {
            assert!(tensor.offset + tensor.span <= data.len() as u64);
        }
    }
    if let Ok(states) = OptimStates::read(&file, &data.to_vec()) {
        for flat in &states.flat {
            assert!(flat.fp32.offset + flat.fp32.span <= data.len() as u64);
        }
    }
    true
}

/// A pickle: read without being run, and what walks its values ends.
pub fn pickle(data: &[u8]) -> bool {
    if let Ok(metadata) = dcp::Metadata::parse(data) {
        for chunk in metadata.tensors().flat_map(|t| t.chunks) {
            assert!(!chunk.place.file.starts_with('/') && chunk.place.file.split('/').all(|part| part != ".."));
        }
    }
    let Ok(pickle) = Pickle::parse(data) else { return false };
    let plain = |pickle: &Pickle| pickle.plain(pickle.root()).map(|plain| format!("{plain:?}")).ok();
    let twice = Pickle::parse(&lengthened(data)).expect("a string that is pushed and popped changes nothing");
    assert_eq!(plain(&twice), plain(&pickle), "a large pickle, which is gone through twice, has other values");
    true
}

/// A pickle that pushes and pops a long string first, right after its protocol.
fn lengthened(pickle: &[u8]) -> Vec<u8> {
    const LENGTH: u32 = 1 << 16;
    let (protocol, opcodes) = pickle.split_at(2);
    [protocol, b"X", &LENGTH.to_le_bytes(), &[b'x'; LENGTH as usize], b"0", opcodes].concat()
}

/// A plan: what the check proves can be walked for any rank; what it cannot prove it refuses.
pub fn plan(data: &[u8]) -> bool {
    let Ok(plan) = serde_json::from_slice::<ShardPlan>(data) else { return false };
    let tensors = plan.tensors.iter().map(|t| TensorMeta::new(t.name.clone(), t.source, t.shape.clone())).collect();
    let Ok(model) = ModelMeta::new(tensors, ModelFacts::default()) else { return false };
    let proven = plan.check(&model).is_ok();
    if proven {
        walk(&plan);
    }
    proven
}

/// Asks a proven plan for everything, at ranks from both ends of the world.
fn walk(plan: &ShardPlan) {
    let world = plan.mesh.world_size();
    let ranks: Vec<u32> = (0..world.min(9)).chain(world.saturating_sub(3)..world).collect();
    for tensor in &plan.tensors {
        for &rank in &ranks {
            let region = tensor.region(rank);
            let valid = tensor.valid_numel(rank);
            assert!(valid <= tensor.numel(), "'{}': rank {rank} holds more than there is", tensor.name);
            assert!(valid <= tensor.padded_numel(rank), "'{}': rank {rank}'s buffer is too small", tensor.name);
            let local = region.local_shape(&tensor.shape);
            assert!(local.as_ref().is_none_or(|s| s.len() == tensor.shape.len()));
            assert!(local.is_none_or(|s| s.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).is_none_or(|n| n == valid)));
            let inside = |(at, size, whole): (u64, u64, u64)| at.checked_add(size).is_some_and(|end| end <= whole);
            if let (Some(offsets), Some(local)) = (region.offsets(&tensor.shape), region.local_shape(&tensor.shape)) {
                let dims = offsets.into_iter().zip(local).zip(&tensor.shape).map(|((at, size), &whole)| (at, size, whole));
                assert!(valid == 0 || dims.into_iter().all(inside), "'{}': rank {rank}'s part lies outside", tensor.name);
            }
            if let shardwright::core::Region::Flat { range } = &region {
                assert!(range.end <= tensor.numel(), "'{}': rank {rank}'s part lies outside", tensor.name);
            }
            assert_eq!(region, tensor.placement.region_at(&tensor.shape, tensor.placement.coordinate(rank)));
        }
    }
    let units = plan.group_of();
    assert_eq!(units.len(), plan.tensors.len());
    for group in &plan.groups {
        assert_eq!(plan.gather_groups(group).values().map(Vec::len).sum::<usize>(), group.tensors.len());
    }
}

fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(|| Registry::linked().expect("the built-ins have names of their own"))
}

fn draft(source: &Source) -> Draft {
    Draft::parse(&Input { config: source.clone(), overrides: Vec::new(), env: BTreeMap::new() }, registry())
}

fn resolve(draft: Draft, supplied: &Supplied) -> bool {
    let outcome = draft.resolve(supplied, registry());
    check_places(&outcome.diagnostics, &outcome.sources);
    assert_eq!(outcome.resolved.is_none(), outcome.has_errors(), "neither an answer nor an error, or both");
    drop(outcome.to_json());
    let Some(resolved) = outcome.resolved else { return false };
    let model = ModelMeta::new(vec![TensorMeta::new("layers.0.w", DType::BF16, [5, 3])], ModelFacts::default()).expect("one name");
    let mut input = PlanInput::new(&model, &resolved.mesh, &*resolved.precision);
    (input.units, input.buffers, input.trainable) = (&resolved.units, &resolved.buffers, &resolved.trainable);
    if let Ok(plan) = plan_checked(&*resolved.strategy, &input) {
        walk(&plan);
    }
    true
}

/// Every finding points into one of the texts, at a character's edge.
fn check_places(found: &[Diagnostic], sources: &[Source]) {
    for diagnostic in found {
        assert!(!diagnostic.message.is_empty() && !diagnostic.code.is_empty());
        for at in diagnostic.at.iter().chain(diagnostic.also.iter().map(|(at, _)| at)) {
            let within = |s: &&Source| s.name == at.file && s.text.get(at.span.clone()).is_some();
            assert!(sources.iter().any(|s| within(&s)), "{} points outside of its text: {at:?}", diagnostic.code);
        }
    }
}
