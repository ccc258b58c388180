//! See `shardwright_fuzz::index`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    shardwright_fuzz::index(data);
});
