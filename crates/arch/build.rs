//! Deflates the architecture data, so that the text under `data/` stays diffable and the binary small.

use std::{env, error::Error, fs, path::Path};

#[expect(clippy::disallowed_methods, reason = "a build script reads its input and writes its output; the crate itself does neither")]
fn main() -> Result<(), Box<dyn Error>> {
    const DATA: &str = "data/transformers.txt";
    println!("cargo::rerun-if-changed={DATA}");
    println!("cargo::rerun-if-changed=build.rs");
    let text = fs::read(DATA)?;
    let out = Path::new(&env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?).join("transformers.z");
    fs::write(out, miniz_oxide::deflate::compress_to_vec(&text, 9))?;
    println!("cargo::rustc-env=SHARDWRIGHT_ARCH_BYTES={}", text.len());
    Ok(())
}
