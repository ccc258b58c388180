//! The conformance kit, on this strategy.

use expert_parallel as _;
use shardwright::testkit::strategy;

#[test]
fn expert_parallel_conforms() {
    let pairs = |mesh: &shardwright_core::Mesh| mesh.size_of("mp_shard").is_multiple_of(2);
    let summary = strategy("example/expert-parallel")
        .section("ep_size: 2", pairs)
        .section("ep_size: 1\nreshard_after_forward: false", |_| true)
        .section("experts: mlp", |_| true)
        .assert();
    println!("{summary}");
}
