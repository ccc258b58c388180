//! The built-ins run the suite that an outsider's strategy and policy run.

use shardwright::testkit::{policy, strategy};

#[test]
fn replicate_conforms() {
    strategy("replicate").assert();
}

#[test]
fn fsdp2_conforms() {
    let kit = strategy("fsdp2").refuses("0-d parameters, as fully_shard does", |tensor, _| tensor.shape.is_empty());
    kit.section("reshard_after_forward: 2\noffload_params: true", |mesh| mesh.size_of("mp_shard").is_multiple_of(2)).assert();
}

#[test]
fn zero3_conforms() {
    let kit = strategy("zero3").section("zero_optimization: {stage: 3, mics_shard_size: 2}", |mesh| mesh.world_size().is_multiple_of(2));
    kit.section("zero_optimization: {stage: 3, stage3_param_persistence_threshold: 40}", |_| true).assert();
}

#[test]
fn the_policies_conform() {
    policy("mixed").section("storage: bfloat16\nreduce: float32").assert();
    policy("uniform").section("dtype: float16").assert();
    policy("pins").section("pins:\n  '*.norm.*': float32\n  '*.experts.*': {storage: bfloat16, compute: float32}").assert();
}
