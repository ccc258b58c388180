//! See `shardwright_fuzz::yaml`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    shardwright_fuzz::yaml(data);
});
