//! Deflates the architecture data, so that the text under `data/` stays diffable and the binary small.

use std::{env, error::Error, fs, path::Path};

#[expect(clippy::disallowed_methods, reason = "a build script reads its input and writes its output; the crate itself does neither")]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let out = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?;
    for name in ["transformers", "transformers-4"] {
        let data = format!("data/{name}.txt");
        println!("cargo::rerun-if-changed={data}");
        let text = fs::read(data)?;
        fs::write(Path::new(&out).join(name).with_extension("z"), miniz_oxide::deflate::compress_to_vec(&text, 9))?;
        println!("cargo::rustc-env=SHARDWRIGHT_ARCH_BYTES_{}={}", name.to_uppercase().replace('-', "_"), text.len());
    }
    Ok(())
}
