//! Files that torch 2.15 and DeepSpeed 0.19.8 wrote, read without them. `tests/convert/engines.py` of the repository made them.

use std::path::Path;

use shardwright_core::DType;
use shardwright_formats::{
    dcp,
    deepspeed::{ModelStates, OptimStates, Step},
    pickle::Plain,
    torch_file::TorchFile,
};

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/convert/fixtures").join(name);
    #[expect(clippy::disallowed_methods, reason = "the crate opens no file, its test must")]
    std::fs::read(path).unwrap()
}

#[test]
fn a_zero3_model_file() {
    let bytes = fixture("zero3/global_step3/zero_pp_rank_1_mp_rank_00_model_states.pt");
    let file = TorchFile::open(&bytes).unwrap();
    let read = ModelStates::read(&file, &bytes).unwrap();
    assert_eq!((read.dp_world_size, read.mp_world_size), (2, 1));
    assert_eq!(read.buffers, ["buf", "count"]);
    assert_eq!(read.param_shapes.iter().map(Vec::len).collect::<Vec<_>>(), [4, 2]);
    assert_eq!(read.param_shapes[0][0], ("experts".to_owned(), vec![3, 3, 2]));
    assert_eq!(read.frozen_shapes[1], ("c.bias".to_owned(), vec![3]));
    assert_eq!((read.frozen[0].1.dtype, read.frozen[0].1.shape.as_slice()), (DType::BF16, &[5][..]));
    let module = |name: &str| &read.module.iter().find(|(n, _)| n == name).unwrap().1;
    assert_eq!((module("count").dtype, module("count").numel(), module("emb.weight").numel()), (DType::I64, 1, 0));
    assert!(read.rest.contains(&("note".to_owned(), Plain::Str("kept".into()))));
    assert!(read.dropped.is_empty(), "{:?}", read.dropped);
}

#[test]
fn a_zero3_optimizer_file() {
    let bytes = fixture("zero3/global_step3/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt");
    let read = OptimStates::read(&TorchFile::open(&bytes).unwrap(), &bytes).unwrap();
    assert_eq!((read.stage, read.partitions, read.flat.len(), read.groups.len()), (3, 2, 2, 2));
    assert_eq!(read.flat[0].states.iter().map(|(n, t)| (n.as_str(), t.numel())).collect::<Vec<_>>(), [("exp_avg", 36), ("exp_avg_sq", 36)]);
    assert!(matches!(read.flat[0].step, Some(Step::Tensor(_))));
    assert!(read.groups[0].contains(&("params".to_owned(), Plain::List(vec![Plain::Int(0)]))));
}

#[test]
fn a_zero2_optimizer_file() {
    let bytes = fixture("zero2/global_step3/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt");
    let read = OptimStates::read(&TorchFile::open(&bytes).unwrap(), &bytes).unwrap();
    assert_eq!((read.stage, read.partitions), (2, 2));
    let slices = read.slices.unwrap();
    for (flat, slices) in read.flat.iter().zip(&slices) {
        let end = slices.iter().map(|(_, start, numel)| start + numel).max().unwrap_or(0);
        assert!(end <= flat.fp32.numel());
    }
}

#[test]
fn metadata_of_a_distributed_checkpoint_and_its_items() {
    let read = dcp::Metadata::parse(&fixture("fsdp2/model/.metadata")).unwrap();
    let tensor = read.tensors().find(|t| t.name == "a.weight").unwrap();
    assert_eq!((tensor.dtype, tensor.shape.as_slice(), tensor.chunks.len()), (DType::F32, &[5, 3][..], 2));
    let place = &tensor.chunks[1].place;
    let bytes = fixture(&format!("fsdp2/model/{}", place.file));
    let item = bytes[usize::try_from(place.offset).unwrap()..][..usize::try_from(place.length).unwrap()].to_vec();
    let file = TorchFile::open(&item).unwrap();
    let found = file.tensor(&item, file.pickle.root()).unwrap().unwrap();
    assert_eq!((found.dtype, found.shape, found.span), (DType::F32, vec![2, 3], 24));
    let optimizer = dcp::Metadata::parse(&fixture("fsdp2/optimizer/.metadata")).unwrap();
    assert!(optimizer.tensors().any(|t| t.name == "state.a.weight.exp_avg"), "{optimizer:?}");
    assert!(optimizer.values.iter().any(|(name, _)| name == "param_groups.0.lr"), "{:?}", optimizer.values);
}
