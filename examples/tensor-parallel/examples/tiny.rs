//! Writes a model of two layers and a few kilobytes.
//!
//! `cargo run --example tiny -- tiny`

use std::{fs, io, path::Path};

/// Names and shapes; bfloat16.
pub fn tensors() -> Vec<(String, Vec<u64>)> {
    let mut tensors = vec![("lm_head.weight".to_owned(), vec![11, 4]), ("model.embed_tokens.weight".to_owned(), vec![11, 4])];
    for layer in 0..2 {
        for (name, shape) in [
            ("self_attn.q_proj.weight", vec![7, 4]),
            ("self_attn.q_proj.bias", vec![7]),
            ("self_attn.o_proj.weight", vec![4, 7]),
            ("self_attn.o_proj.bias", vec![4]),
            ("mlp.up_proj.weight", vec![10, 4]),
            ("mlp.down_proj.weight", vec![4, 10]),
            ("norm.weight", vec![4]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}"), shape));
        }
    }
    tensors
}

/// Writes the checkpoint into a directory.
pub fn write(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let (mut header, mut data) = (Vec::new(), Vec::new());
    for (name, shape) in tensors() {
        let start = data.len();
        let numel: u64 = shape.iter().product();
        // Element i of a tensor is the bfloat16 whose bits are i, plus its place in the file: neighbours are different.
        data.extend((0..numel).flat_map(|i| (0x3f00 + (start as u64 + i) as u16 % 0x100).to_le_bytes()));
        header.push(format!(r#""{name}":{{"dtype":"BF16","shape":{shape:?},"data_offsets":[{start},{}]}}"#, data.len()));
    }
    let header = format!("{{{}}}", header.join(","));
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    fs::write(dir.join("model.safetensors"), file)?;
    fs::write(dir.join("config.json"), r#"{"model_type": "tiny_dense", "num_hidden_layers": 2, "hidden_size": 4}"#)
}

#[allow(dead_code, reason = "the tests include this file as a module")]
fn main() -> io::Result<()> {
    write(Path::new(&std::env::args().nth(1).unwrap_or_else(|| "tiny".into())))
}
