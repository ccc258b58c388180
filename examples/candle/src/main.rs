//! Multiplies a batch with a weight that lies in shards on several ranks, and compares with the weight as candle reads it from the file.

use candle_core::{DType, Device, Tensor, safetensors::MmapedSafetensors};
use candle_shards::Error;
use shardwright::Run;

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let (Some(config), Some(world_size), Some(name)) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("usage: candle-shards CONFIG WORLD_SIZE TENSOR".into());
    };
    let plan = Run::from_yaml(config).world_size(world_size.parse()?).plan()?;
    let ranks = candle_shards::load(&plan)?;

    // Rows of a linear layer's weight are its outputs: a rank's rows give its part of them.
    let weights = ranks.values().map(|shards| shards.get(&name).ok_or("no tensor of that name")).collect::<Result<Vec<_>, _>>()?;
    let &[_, inputs] = weights[0].dims() else {
        return Err(format!("'{name}' has no rows on these ranks, expected a matrix under fsdp2").into());
    };
    let batch = Tensor::arange(0f32, inputs as f32, &Device::Cpu)?.affine(1.0 / inputs as f64, -0.5)?.reshape((1, inputs))?;
    let mut outputs = Vec::new();
    for (rank, weight) in weights.iter().enumerate() {
        println!("rank {rank}: {:?} of {:?}", weight.dims(), weight.dtype());
        // A rank beyond the last row holds none.
        if weight.dim(0)? > 0 {
            outputs.push(batch.matmul(&weight.to_dtype(DType::F32)?.t()?)?);
        }
    }
    let sharded = Tensor::cat(&outputs, 1)?;

    let files: Vec<_> = plan.checkpoint().files().iter().map(|file| &file.path).collect();
    // SAFETY: nothing changes the files meanwhile.
    let whole = unsafe { MmapedSafetensors::multi(&files) }?.load(&name, &Device::Cpu)?.to_dtype(DType::F32)?;
    let expected = batch.matmul(&whole.t()?)?;
    let difference = (sharded - expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
    println!("{} outputs, largest difference from the whole weight's: {difference}", whole.dim(0)?);
    if difference > 1e-5 {
        return Err("the shards are not the weight".into());
    }
    Ok(())
}
