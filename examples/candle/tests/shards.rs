//! The shards as candle tensors, against the checkpoint as candle reads it by itself.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, safetensors::MmapedSafetensors};
use shardwright::{
    Run,
    engine::{
        ErrorKind,
        device::{Devices, choose, probe},
    },
};

/// The checkpoint of a few kilobytes that lies in shardwright's repository: SHARDWRIGHT_EXAMPLES, or beside this crate.
fn examples() -> PathBuf {
    std::env::var_os("SHARDWRIGHT_EXAMPLES").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), PathBuf::from)
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn the_ranks_together_hold_each_tensor_bit_for_bit() {
    for (config, world_size) in [("fsdp2.yaml", 4), ("fsdp2.yaml", 7), ("zero3.yaml", 3)] {
        let batch = format!("global_batch_size={}", 2 * world_size); // fits the ranks
        let plan = Run::from_yaml(examples().join(config)).set(batch).world_size(world_size).plan().unwrap();
        let ranks = candle_shards::load(&plan).unwrap();
        assert_eq!(ranks.len(), world_size as usize);
        let files: Vec<_> = plan.checkpoint().files().iter().map(|file| &file.path).collect();
        // SAFETY: nothing changes the files meanwhile.
        let source = unsafe { MmapedSafetensors::multi(&files) }.unwrap();
        let mut compared = 0;
        for tensor in &plan.layout().tensors {
            let name = tensor.name.as_str();
            let parts: Vec<&Tensor> = ranks.values().map(|shards| &shards[name]).collect();
            let whole = source.load(name, &Device::Cpu).unwrap().to_dtype(parts[0].dtype()).unwrap();
            let parts: Vec<_> = parts.iter().filter(|part| part.elem_count() > 0).map(|part| part.flatten_all().unwrap()).collect();
            let gathered = Tensor::cat(&parts, 0).unwrap().narrow(0, 0, whole.elem_count()).unwrap(); // padding is at the end
            let single = candle_core::DType::F32;
            assert_eq!(bits(&gathered.to_dtype(single).unwrap()), bits(&whole.to_dtype(single).unwrap()), "{config}: {name}");
            compared += 1;
        }
        assert!(compared > 30, "{compared}");
    }
}

/// This crate links shardwright without its feature `cuda`.
#[test]
fn a_gpu_is_refused_with_the_reason() {
    let error = choose("cuda".parse().unwrap(), probe, None, &[0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Device);
    let expected = "device cuda was asked for, but this program was built without CUDA (cargo feature 'cuda'); 'auto' goes on without one";
    assert_eq!(error.to_string(), expected);
    assert_eq!(Devices::open(&[0]).unwrap_err().kind(), ErrorKind::Device);
}
