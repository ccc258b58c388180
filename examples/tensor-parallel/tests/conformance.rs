//! The conformance kit, on this strategy.

use shardwright::testkit::strategy;
use tensor_parallel as _;

#[test]
fn tensor_parallel_conforms() {
    let pairs = |mesh: &shardwright_core::Mesh| mesh.size_of("mp_shard").is_multiple_of(2);
    let summary = strategy("example/tensor-parallel")
        .section("tp_size: 2\ntp_plan: {'*': colwise}", pairs)
        .section("tp_size: 2\ntp_plan: {'*': rowwise}", pairs)
        .section("tp_size: 2\ntp_plan: {'*.{q_proj,up_proj}': colwise, '*.{o_proj,down_proj}': rowwise}", pairs)
        .assert();
    println!("{summary}");
}
