//! The engine's part of the conformance kit: loads of the suite's checkpoints through real files and the real pipeline.

use std::{collections::BTreeMap, fs, path::Path};

use shardwright_core::{ShardPlan, testkit};

use crate::{Checkpoint, Loader};

/// Loads by writing a checkpoint of two files and running [`Loader`] on it, all ranks at once: for
/// [`StrategyKit::loader`](testkit::StrategyKit::loader).
#[derive(Clone, Copy, Debug, Default)]
pub struct ThroughEngine;

impl testkit::Loader for ThroughEngine {
    fn load(&self, plan: &ShardPlan, checkpoint: &BTreeMap<String, Vec<u8>>) -> Result<Vec<Vec<Vec<u8>>>, String> {
        if plan.tensors.is_empty() {
            // A checkpoint without a tensor has no file.
            return Ok(vec![Vec::new(); plan.mesh.world_size() as usize]);
        }
        let dir = tempfile::tempdir().map_err(|e| format!("cannot make a directory for the checkpoint: {e}"))?;
        write(dir.path(), plan, checkpoint).map_err(|e| format!("cannot write the checkpoint: {e}"))?;
        let opened = Checkpoint::open(dir.path()).map_err(|e| e.to_string())?;
        let loaded = Loader::new(plan, &opened).load().map_err(|e| e.to_string())?;
        Ok(loaded.ranks.iter().map(|rank| rank.iter().map(|tensor| tensor.padded.to_vec()).collect()).collect())
    }
}

/// Every other tensor into the first file, the rest into the second.
fn write(dir: &Path, plan: &ShardPlan, checkpoint: &BTreeMap<String, Vec<u8>>) -> std::io::Result<()> {
    for (at, name) in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"].into_iter().enumerate() {
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for tensor in plan.tensors.iter().skip(at).step_by(2) {
            let start = data.len();
            data.extend_from_slice(&checkpoint[tensor.name.as_str()]);
            let entry = serde_json::json!({
                "dtype": tensor.source.safetensors_name(), "shape": tensor.shape, "data_offsets": [start, data.len()],
            });
            header.insert(tensor.name.to_string(), entry);
        }
        if header.is_empty() {
            continue;
        }
        let header = serde_json::Value::Object(header).to_string();
        let length = (header.len() as u64).to_le_bytes();
        fs::write(dir.join(name), [&length, header.as_bytes(), &data].concat())?;
    }
    Ok(())
}
