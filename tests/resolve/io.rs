//! `shardwright.io`: its ranges stand in the config's crate a second time, and must be the engine's.

use shardwright_config::IoSettings;
use shardwright_engine::IoOptions;

use super::Case;

fn accepts(key: &str, value: &str) -> bool {
    let outcome = Case::new(format!("model: m\nshardwright: {{io: {{{key}: {value}}}}}\n")).outcome();
    for error in &outcome.diagnostics {
        assert_eq!(error.code, "config-value", "{error:?}");
        assert!(error.at.is_some() && error.message.contains(&format!("found the integer {value}")), "{error:?}");
    }
    outcome.resolved.is_some()
}

#[test]
fn a_config_takes_just_the_numbers_that_the_engine_takes() {
    type Set = fn(usize) -> IoOptions;
    let keys: [(&str, Set); 3] = [
        ("threads", |n| IoOptions { threads: Some(n), ..IoOptions::default() }),
        ("queue_depth", |n| IoOptions { queue_depth: Some(n), ..IoOptions::default() }),
        ("block_size", |n| IoOptions { block_size: Some(n), ..IoOptions::default() }),
    ];
    let ranges = [IoSettings::THREADS, IoSettings::QUEUE_DEPTH, IoSettings::BLOCK_SIZE];
    for ((key, options), range) in keys.into_iter().zip(ranges) {
        let (least, most) = (*range.start(), *range.end());
        for (number, taken) in
            [(0, false), (least - 1, false), (least, true), (least + 1, true), (most - 1, true), (most, true), (most + 1, false)]
        {
            let chosen = options(usize::try_from(number).unwrap()).choose();
            assert_eq!(chosen.is_ok(), taken, "{key} {number}: the engine's range is another: {chosen:?}");
            assert_eq!(accepts(key, &number.to_string()), taken, "{key} {number}: the config's range is another");
            if let Err(error) = chosen {
                assert!(error.to_string().contains(&format!("{least} to {most}")), "{error}");
            }
        }
    }
    let least = *IoSettings::RING_SIZE.start();
    assert_eq!([0, least - 1, least, u64::MAX].map(|n| accepts("ring_size", &n.to_string())), [false, false, true, true]);
    assert_eq!(least, 64 << 10, "the engine's smallest block");
}

/// One of the two, or the other set to false, is no contradiction.
#[test]
fn one_way_to_read_is_enough() {
    for (keys, taken) in [
        ("direct: true", true),
        ("mmap: true", true),
        ("direct: true, mmap: false", true),
        ("mmap: true, direct: false", true),
        ("mmap: true, direct: null", true),
        ("direct: false, mmap: false", true),
        ("direct: true, mmap: true", false),
        ("mmap: true, direct: true", false),
    ] {
        let case = Case::new(format!("model: m\nshardwright: {{io: {{{keys}}}}}\n"));
        assert_eq!(case.outcome().resolved.is_some(), taken, "{keys}");
        assert_eq!(case.codes().contains(&"io-direct-and-mmap"), !taken, "{keys}");
    }
    let both = Case::new("model: m\nshardwright: {io: {mmap: true}}\n").with("shardwright.io.direct=true");
    assert_eq!(both.codes(), ["io-direct-and-mmap"]);
    assert!(both.with("shardwright.io.mmap=false").codes().is_empty(), "an override takes back what the file says");
}
