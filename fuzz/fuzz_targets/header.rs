//! See `shardwright_fuzz::header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    shardwright_fuzz::header(data);
});
