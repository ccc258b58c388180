//! Checkpoints to measure and to test with (feature `testkit`): shaped like real models, filled with random numbers, made without Python.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
};

use shardwright_core::{DType, TensorMeta};

/// The sizes of a Qwen3 model. Embeddings are tied, as in the small models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Qwen3 {
    /// Such as `0.6b`.
    pub name: &'static str,
    hidden: u64,
    intermediate: u64,
    layers: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    vocab: u64,
    /// Bytes after which a new file begins, as transformers would cut this size.
    file_bytes: u64,
}

impl Qwen3 {
    /// Qwen3-0.6B: 1.19 GB in bfloat16.
    pub const B0_6: Self = Self {
        name: "0.6b",
        hidden: 1024,
        intermediate: 3072,
        layers: 28,
        heads: 16,
        kv_heads: 8,
        head_dim: 128,
        vocab: 151_936,
        file_bytes: 400_000_000,
    };
    /// Qwen3-1.7B: 3.44 GB in bfloat16.
    pub const B1_7: Self = Self { name: "1.7b", hidden: 2048, intermediate: 6144, file_bytes: 1_000_000_000, ..Self::B0_6 };
    /// The same shape with 1 MB of weights.
    pub const TINY: Self =
        Self { name: "tiny", hidden: 64, intermediate: 192, layers: 4, vocab: 1000, head_dim: 16, file_bytes: 300_000, ..Self::B0_6 };

    /// The same with another number of layers, under a name of its own.
    #[must_use]
    pub fn with_layers(self, name: &'static str, layers: u64) -> Self {
        Self { name, layers, ..self }
    }

    /// Its tensors, in bfloat16, in the order in which the model's class defines them.
    pub fn tensors(&self) -> Vec<TensorMeta> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab, self.hidden])];
        for layer in 0..self.layers {
            let parts: [(&str, &[u64]); 11] = [
                ("self_attn.q_proj", &[q, self.hidden]),
                ("self_attn.k_proj", &[kv, self.hidden]),
                ("self_attn.v_proj", &[kv, self.hidden]),
                ("self_attn.o_proj", &[self.hidden, q]),
                ("self_attn.q_norm", &[self.head_dim]),
                ("self_attn.k_norm", &[self.head_dim]),
                ("mlp.gate_proj", &[self.intermediate, self.hidden]),
                ("mlp.up_proj", &[self.intermediate, self.hidden]),
                ("mlp.down_proj", &[self.hidden, self.intermediate]),
                ("input_layernorm", &[self.hidden]),
                ("post_attention_layernorm", &[self.hidden]),
            ];
            tensors.extend(parts.iter().map(|(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape.to_vec())));
        }
        tensors.push(("model.norm.weight".to_owned(), vec![self.hidden]));
        tensors.into_iter().map(|(name, shape)| TensorMeta::new(name, DType::BF16, shape)).collect()
    }

    /// Writes the checkpoint into `dir`, unless it is there already: several files, their index, `config.json` last.
    ///
    /// # Errors
    /// The operating system's.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        self.write_with(dir, Content::Random)
    }

    /// As [`Qwen3::write`], but with files that are holes behind their headers: all zeros, no space on a disk.
    ///
    /// # Errors
    /// The operating system's.
    pub fn write_sparse(&self, dir: &Path) -> io::Result<()> {
        self.write_with(dir, Content::Sparse)
    }

    fn write_with(&self, dir: &Path, content: Content) -> io::Result<()> {
        let config = dir.join("config.json");
        if config.is_file() {
            return Ok(());
        }
        write_checkpoint(dir, &self.tensors(), self.file_bytes, content)?;
        let Self { hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, .. } = self;
        let text = serde_json::json!({
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "dtype": "bfloat16", "hidden_size": hidden,
            "intermediate_size": intermediate, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": head_dim, "vocab_size": vocab, "tie_word_embeddings": true,
        });
        fs::write(config, text.to_string())
    }
}

/// What the data of a generated checkpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Random numbers.
    Random,
    /// Zeros that take no space.
    Sparse,
}

/// Writes those tensors in files of about `file_bytes` with an index.
///
/// # Errors
/// The operating system's, or a tensor too large to count.
pub fn write_checkpoint(dir: &Path, tensors: &[TensorMeta], file_bytes: u64, content: Content) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let bytes = |t: &TensorMeta| t.bytes().ok_or_else(|| io::Error::other(format!("tensor '{}' is too large", t.name)));
    let mut files: Vec<(u64, Vec<&TensorMeta>)> = Vec::new();
    for tensor in tensors {
        let size = bytes(tensor)?;
        match files.last_mut().filter(|f| f.0 + size <= file_bytes) {
            Some(file) => {
                file.0 += size;
                file.1.push(tensor);
            }
            None => files.push((size, vec![tensor])),
        }
    }
    let (count, mut index, mut random) = (files.len(), serde_json::Map::new(), Random(0x9e37_79b9_7f4a_7c15));
    for (number, (_, tensors)) in files.iter().enumerate() {
        let name = format!("model-{:05}-of-{count:05}.safetensors", number + 1);
        write_file(&dir.join(&name), tensors, content, &mut random)?;
        index.extend(tensors.iter().map(|t| (t.name.to_string(), name.clone().into())));
    }
    let total: u64 = files.iter().map(|f| f.0).sum();
    let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": index });
    fs::write(dir.join("model.safetensors.index.json"), index.to_string())
}

fn write_file(path: &Path, tensors: &[&TensorMeta], content: Content, random: &mut Random) -> io::Result<()> {
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for t in tensors {
        let end = at + t.bytes().unwrap_or(0);
        let entry = serde_json::json!({ "dtype": t.dtype.safetensors_name(), "shape": t.shape, "data_offsets": [at, end] });
        header.insert(t.name.to_string(), entry);
        at = end;
    }
    let mut header = serde_json::Value::Object(header).to_string();
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    if content == Content::Sparse {
        return file.into_inner()?.set_len(8 + header.len() as u64 + at);
    }
    let mut block = vec![0; 1 << 20];
    while at > 0 {
        let len = usize::try_from(at.min(block.len() as u64)).unwrap_or(block.len());
        random.fill(&mut block[..len]);
        file.write_all(&block[..len])?;
        at -= len as u64;
    }
    file.flush()
}

/// xorshift64: the same numbers everywhere.
struct Random(u64);

impl Random {
    /// Bytes that read as bfloat16 are normal numbers between 0.0078 and 0.03 of either sign, about what weights are.
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            let weights = (self.0 & 0x80ff_80ff_80ff_80ff) | 0x3c00_3c00_3c00_3c00;
            chunk.copy_from_slice(&weights.to_le_bytes()[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;

    #[test]
    fn a_generated_model_is_a_checkpoint_of_several_files() {
        let dir = tempfile::TempDir::new().unwrap();
        Qwen3::TINY.write(dir.path()).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.model().tensors.len(), 2 + 11 * 4);
        assert!(checkpoint.files().len() > 2 && checkpoint.warnings().is_empty());
        assert_eq!(checkpoint.model().facts.hidden_size, Some(64));
    }

    #[test]
    fn the_sizes_are_the_real_models() {
        let bytes = |m: Qwen3| m.tensors().iter().map(|t| t.bytes().unwrap()).sum::<u64>();
        assert_eq!(bytes(Qwen3::B0_6), 2 * 596_049_920);
        assert_eq!(bytes(Qwen3::B1_7), 2 * 1_720_574_976);
    }
}
