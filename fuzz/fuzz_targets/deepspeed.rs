//! See `shardwright_fuzz::deepspeed`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    shardwright_fuzz::deepspeed(data);
});
