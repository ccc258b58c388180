//! How long a resolution takes, from the texts to the document: the largest of the example configs, warm.

use std::{collections::BTreeMap, hint::black_box};

use criterion::{Criterion, criterion_group, criterion_main};
use shardwright_config::{Draft, Input, Outcome, Supplied};
use shardwright_core::{ModelFacts, diagnostic::Source, registry::Registry};
// Linked for what they register.
use {shardwright_fsdp2 as _, shardwright_precision as _, shardwright_zero3 as _};

fn resolve(registry: &Registry, input: &Input, supplied: &Supplied) -> Outcome {
    Draft::parse(input, registry).resolve(supplied, registry)
}

fn benches(c: &mut Criterion) {
    let registry = Registry::linked().expect("the built-ins are linked");
    let config = serde_json::json!({"hidden_size": 4096, "num_hidden_layers": 36, "model_type": "qwen3"});
    let deepspeed = include_str!("../tests/resolve/examples/ds_z3_offload.json");
    let supplied = Supplied {
        files: BTreeMap::from([("ds.json".into(), Ok(Source::new("ds.json", deepspeed)))]),
        model: Some(ModelFacts::from_config(&config)),
        world_size: Some(64),
        world_size_is_flag: true,
    };
    let input =
        |text: &str| Input { config: Source::new("train.yaml", text), overrides: vec!["learning_rate=1e-5".into()], env: BTreeMap::new() };
    let cases = [
        ("fsdp2", input(include_str!("../tests/resolve/examples/full_fsdp2.yaml"))),
        ("deepspeed", input(include_str!("../tests/resolve/examples/full_deepspeed.yaml"))),
    ];
    let mut group = c.benchmark_group("resolve");
    for (name, input) in &cases {
        assert!(!resolve(&registry, input, &supplied).has_errors(), "{name}");
        group.bench_function(*name, |b| b.iter(|| resolve(&registry, black_box(input), &supplied)));
        group.bench_function(format!("{name} to json"), |b| {
            b.iter(|| resolve(&registry, black_box(input), &supplied).to_json().to_string());
        });
    }
    // What a fuzzer does all day: nothing of this is known, and every key is looked for in all sections.
    let unknown =
        input("modle: m\ntrainer: x\ndist_config: {name: fsdp2, offload_parms: true, stage: 3}\nshardwright: {oi: {threads: 2}}\n");
    group.bench_function("unknown keys", |b| b.iter(|| resolve(&registry, black_box(&unknown), &supplied)));
    group.finish();
}

criterion_group!(resolving, benches);
criterion_main!(resolving);
