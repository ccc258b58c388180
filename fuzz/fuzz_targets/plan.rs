//! See `shardwright_fuzz::plan`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    shardwright_fuzz::plan(data);
});
