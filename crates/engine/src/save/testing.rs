//! A small checkpoint of every awkward shape, plans for it, and a loader so simple that it is plainly right: what saving and verifying
//! are tested with.

use std::{fs, path::Path};

use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use shardwright_cast::cast;
use shardwright_core::{
    Cut as OneCut, DType, Mesh, ModelMeta, Placement, PlanInput, Precision, PrecisionPolicy, ShardPlan, TensorMeta, testkit::elements,
};

use super::RankBytes;
use crate::checkpoint::Checkpoint;

/// Every parameter in float32.
#[derive(Debug)]
struct Widened;

impl PrecisionPolicy for Widened {
    fn decide(&self, _: &TensorMeta, _: bool) -> Precision {
        Precision::uniform(DType::F32)
    }
}

/// A layout rule for parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    /// As FSDP2: dim 0.
    Rows,
    /// The last dim.
    Columns,
    /// As ZeRO-3.
    Flat,
    /// The last dim over inner ranks, then dim 0 over outer ones, as FSDP over tensor parallelism. As many inner ranks as divide `shard`.
    Grid,
    /// Dim 0 twice.
    Strided,
}

/// A model of two files with config and tokenizer; `seed` changes every value.
pub(crate) fn write_model(dir: &Path, seed: usize) -> Checkpoint {
    let bytes = |n: usize| (0..n).map(|i| u8::try_from((i * 7 + i / 251 + seed * 31) % 256).unwrap()).collect::<Vec<_>>();
    let bf16 = |n: usize| (0..n).flat_map(|i| u16::try_from(0x3f00 + (i * 13 + seed) % 0x400).unwrap().to_le_bytes()).collect::<Vec<_>>();
    type Stored = (&'static str, Dtype, &'static [usize], Vec<u8>);
    let files: [&[Stored]; 2] = [
        &[
            ("embed", Dtype::BF16, &[10, 6], bf16(60)),
            ("empty", Dtype::BF16, &[0, 3], Vec::new()),
            ("cube", Dtype::BF16, &[3, 4, 5], bf16(60)),
            ("ids", Dtype::I64, &[5], bytes(40)),
        ],
        &[("one", Dtype::BF16, &[1], bf16(1)), ("rows", Dtype::BF16, &[5, 2], bf16(10)), ("wide", Dtype::BF16, &[2, 700], bf16(1400))],
    ];
    fs::create_dir_all(dir).unwrap();
    for (number, tensors) in files.iter().enumerate() {
        let views = tensors.iter().map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.to_vec(), data).unwrap()));
        serialize_to_file(views, None, &dir.join(format!("model-0000{number}.safetensors"))).unwrap();
    }
    fs::write(dir.join("config.json"), "{\"model_type\": \"test\"}").unwrap();
    fs::write(dir.join("tokenizer.json"), "{}").unwrap();
    fs::write(dir.join("README.md"), "not copied").unwrap();
    Checkpoint::open(dir).unwrap()
}

/// A plan of that cut over `replicate` × `shard` ranks, everything but buffers in float32.
pub(crate) fn plan(model: &ModelMeta, cut: Cut, replicate: u32, shard: u32) -> ShardPlan {
    let mesh = Mesh::replicate_shard(replicate, shard).unwrap();
    let axis = mesh.axis(shardwright_core::mesh::MP_SHARD).unwrap();
    let inner = (1..shard).rev().find(|n| shard.is_multiple_of(*n)).unwrap_or(1);
    let axes = Mesh::new([("replicate", replicate), ("fsdp", shard / inner), ("tp", inner)]).unwrap();
    let (tp, fsdp) = (axes.axis("tp").unwrap(), axes.axis("fsdp").unwrap());
    let place = |tensor: &TensorMeta| {
        let placed = match cut {
            Cut::Rows => Placement::chunked(axis, &tensor.shape, 0),
            Cut::Columns => Placement::chunked(axis, &tensor.shape, tensor.shape.len() - 1),
            Cut::Flat => Placement::flat(axis, &tensor.shape),
            Cut::Grid => Ok(Placement::of([OneCut::chunk(tp, tensor.shape.len() - 1), OneCut::chunk(fsdp, 0)]).padded()),
            Cut::Strided => Ok(Placement::of([OneCut::chunk(tp, 0), OneCut::chunk(fsdp, 0)]).padded()),
        };
        Ok(placed.unwrap())
    };
    let input = PlanInput::new(model, &mesh, &Widened);
    let mut plan = input.plan_tensors("test", place).unwrap();
    plan.groups = shardwright_core::strategy::groups_by(&plan.tensors, shardwright_core::plan::Reshard::ToShards, |_| "");
    plan.check(model).unwrap();
    plan
}

/// A rank's shards, by tensor.
#[derive(Debug)]
pub(crate) struct Shards {
    rank: u32,
    tensors: Vec<Vec<u8>>,
}

impl RankBytes for Shards {
    fn rank(&self) -> u32 {
        self.rank
    }

    fn valid(&self, tensor: usize) -> &[u8] {
        &self.tensors[tensor]
    }
}

/// Whole files read, whole tensors cast, runs cut out.
pub(crate) fn load(plan: &ShardPlan, checkpoint: &Checkpoint, rank: u32) -> Shards {
    let shard = |(index, tensor): (usize, &shardwright_core::TensorPlan)| {
        let place = checkpoint.location(index);
        let file = fs::read(&checkpoint.files()[place.file].path).unwrap();
        let at = usize::try_from(place.offset).unwrap();
        let source = &file[at..at + usize::try_from(place.bytes).unwrap()];
        let to = tensor.precision.storage;
        let size = usize::try_from(to.bits() / 8).unwrap();
        let mut whole = vec![0; usize::try_from(tensor.numel()).unwrap() * size];
        if tensor.source == to {
            whole.copy_from_slice(source);
        } else {
            cast(tensor.source, to, source, &mut whole).unwrap();
        }
        let bytes = |flat: &u64| whole[usize::try_from(*flat).unwrap() * size..][..size].to_vec();
        elements(&tensor.region(rank), &tensor.shape).iter().flat_map(bytes).collect()
    };
    Shards { rank, tensors: plan.tensors.iter().enumerate().map(shard).collect() }
}
