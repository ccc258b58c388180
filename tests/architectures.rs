//! Architectures from end to end: one of the user's own, versions of transformers, tensors that are left out, `inspect --as-model`, and what `resolve`
//! tells of them. The JSON Schema of a user's own is generated: `UPDATE_DOCS=1 cargo test --test architectures`.

#[path = "support/mod.rs"]
mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};
use support::{root, run, stderr};
use tempfile::TempDir;

fn good(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A checkpoint of float32 tensors, each element its own number.
fn model(dir: &Path, config: &Value, tensors: &[(String, Vec<usize>)]) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut next = 0u16;
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, shape)| {
            let one = |_| {
                next += 1;
                f32::from(next).to_le_bytes()
            };
            (0..shape.iter().product::<usize>()).flat_map(one).collect()
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape), bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    dir.to_owned()
}

/// The layout of examples/architectures/toy_moe.yaml: two layers of three experts.
fn toy(dir: &Path) -> PathBuf {
    let config = json!({"architectures": ["ToyMoeForCausalLM"], "model_type": "toy_moe", "auto_map": {"AutoModel": "toy.Toy"}});
    let mut tensors = vec![("transformer.embed_tokens.weight".to_owned(), vec![6, 4]), ("lm_head.weight".into(), vec![6, 4])];
    for layer in 0..2 {
        let under = format!("transformer.layers.{layer}");
        tensors.push((format!("{under}.mlp.router.weight"), vec![3, 4]));
        tensors.push((format!("{under}.mlp.router.bias"), vec![3]));
        tensors.push((format!("{under}.mtp.weight"), vec![2]));
        for expert in 0..3 {
            for (part, shape) in [("gate", vec![5, 4]), ("up", vec![5, 4]), ("down", vec![4, 5])] {
                tensors.push((format!("{under}.ffn.expert_{expert}.{part}.weight"), shape));
            }
        }
    }
    model(dir, &config, &tensors)
}

fn config(dir: &Path, model: &Path, shardwright: &str) -> PathBuf {
    let path = dir.join("train.yaml");
    let text = format!("model: {}\ndist_config: {{name: fsdp2}}\nshardwright: {shardwright}\n", model.display());
    fs::write(&path, text).unwrap();
    path
}

/// Saves a world of 2, checks it against its source, and gives the manifest.
fn saved(dir: &Path, config: &Path, model: &Path) -> Value {
    let shards = dir.join("saved");
    let _ = fs::remove_dir_all(&shards);
    good(&run(["load".as_ref(), config.as_os_str(), "--world-size".as_ref(), "2".as_ref(), "--save".as_ref(), shards.as_os_str()]));
    good(&run(["verify".as_ref(), shards.as_os_str(), "--against".as_ref(), model.as_os_str()]));
    serde_json::from_slice(&fs::read(shards.join("shardwright.manifest.json")).unwrap()).unwrap()
}

fn planned(manifest: &Value) -> Vec<(String, String)> {
    let tensors = manifest["plan"]["tensors"].as_array().unwrap();
    tensors.iter().map(|t| (t["name"].as_str().unwrap().to_owned(), t["kind"].as_str().unwrap().to_owned())).collect()
}

fn resolved(config: &Path) -> Value {
    serde_json::from_str(&good(&run(["resolve".as_ref(), config.as_os_str(), "--format".as_ref(), "json".as_ref()]))).unwrap()
}

#[test]
fn an_architecture_of_ones_own_is_followed_saved_and_verified() {
    let dir = TempDir::new().unwrap();
    let toy = toy(&dir.path().join("toy"));
    fs::copy(root().join("examples/architectures/toy_moe.yaml"), dir.path().join("architecture.yaml")).unwrap();
    let config = config(dir.path(), &toy, "{architecture: architecture.yaml}");
    let manifest = saved(dir.path(), &config, &toy);
    let of = |kind: &str| planned(&manifest).into_iter().filter(|t| t.1 == kind).map(|t| t.0).collect::<Vec<_>>();
    let layer = |i: u32, part: &str| format!("model.layers.{i}.mlp.{part}");
    let mut parameters = vec!["model.embed_tokens.weight".to_owned()];
    parameters.extend((0..2).flat_map(|i| ["experts.down", "experts.gate_up", "router.weight"].map(|part| layer(i, part))));
    assert_eq!(of("parameter").into_iter().filter(|n| n != "lm_head.weight").collect::<Vec<_>>(), parameters);
    assert_eq!(of("buffer"), (0..2).map(|i| layer(i, "router.bias")).collect::<Vec<_>>());
    let shape = |name: &str| manifest["plan"]["tensors"].as_array().unwrap().iter().find(|t| t["name"] == name).unwrap()["shape"].clone();
    assert_eq!(shape("model.layers.1.mlp.experts.gate_up"), json!([3, 10, 4]));
    assert_eq!(manifest["model"]["architecture"]["class"], "ToyMoeForCausalLM");
    let units: Vec<&str> = manifest["plan"]["units"].as_array().unwrap().iter().filter_map(|u| u["name"].as_str()).collect();
    assert!(units.contains(&"model.layers.0") && units.contains(&"model.layers.1"), "{units:?}");
    let document = resolved(&config);
    assert_eq!((&document["model"]["class"], &document["model"]["assembled"]), (&json!("ToyMoeForCausalLM"), &json!(4)));
    assert_eq!(document["model"]["architecture_data"], "shardwright.architecture");
}

#[test]
fn what_is_wrong_with_an_architecture_is_reported_with_its_place() {
    let dir = TempDir::new().unwrap();
    let toy = toy(&dir.path().join("toy"));
    let config = config(dir.path(), &toy, "{architecture: own.yaml}");
    for (text, needle) in [
        ("format: 2\n", "expected 1, found 2"),
        ("format: 1\nlike: lama\n", "did you mean 'llama'?"),
        ("format: 1\nrename: [{from: '(', to: a}]\n", "rename[0].from"),
        ("format: 1\nrenames: []\n", "renames"),
        ("format: 1\ntied: {a: a}\n", "tied.a"),
    ] {
        fs::write(dir.path().join("own.yaml"), text).unwrap();
        let output = run(["load".as_ref(), config.as_os_str(), "--world-size".as_ref(), "2".as_ref()]);
        assert_eq!(output.status.code(), Some(3), "{text}: {}", stderr(&output));
        assert!(stderr(&output).contains(needle) && stderr(&output).contains("own.yaml"), "{text}: {}", stderr(&output));
    }
    fs::remove_file(dir.path().join("own.yaml")).unwrap();
    let output = run(["load".as_ref(), config.as_os_str(), "--world-size".as_ref(), "2".as_ref()]);
    assert!(output.status.code() == Some(3) && stderr(&output).contains("cannot read 'own.yaml'"), "{}", stderr(&output));
}

#[test]
fn a_type_that_nothing_describes_is_reported_and_names_can_be_left_out() {
    let dir = TempDir::new().unwrap();
    let toy = toy(&dir.path().join("toy"));
    let config = config(dir.path(), &toy, "{exclude: ['*.mtp.*', lm_head.weight]}");
    let output = run(["load".as_ref(), config.as_os_str(), "--world-size".as_ref(), "2".as_ref()]);
    let reported = stderr(&output);
    assert!(reported.contains("model type 'toy_moe'") && reported.contains("its code comes with the checkpoint"), "{reported}");
    assert!(reported.contains("shardwright.architecture"), "{reported}");
    let manifest = saved(dir.path(), &config, &toy);
    let names = planned(&manifest);
    assert!(names.len() == 23 && names.iter().all(|(name, _)| !name.contains("mtp") && name != "lm_head.weight"), "{names:?}");
    assert_eq!(manifest["model"]["exclude"], json!(["*.mtp.*", "lm_head.weight"]));
}

/// A recorded architecture's checkpoint.
fn recorded(dir: &Path, name: &str) -> PathBuf {
    let cases = fs::read_to_string(root().join("crates/arch/tests/cases.jsonl")).unwrap();
    let case = cases.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()).find(|c| c["name"] == name).unwrap();
    let shape = |v: &Value| v.as_array().unwrap().iter().map(|n| usize::try_from(n.as_u64().unwrap()).unwrap()).collect();
    let mut tensors: Vec<(String, Vec<usize>)> =
        case["tensors"].as_object().unwrap().iter().map(|(n, t)| (n.clone(), shape(&t[1]))).collect();
    tensors.sort();
    fs::create_dir_all(dir).unwrap();
    let mut config = case["config"].clone();
    if let Some(experts) = config.get("num_local_experts").cloned() {
        config["num_experts"] = experts; // as released configs, and transformers 4, call them
    }
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let zeros: Vec<Vec<u8>> = tensors.iter().map(|(_, shape)| vec![0; 4 * shape.iter().product::<usize>()]).collect();
    let views = tensors.iter().zip(&zeros).map(|((n, s), b)| (n, TensorView::new(Dtype::F32, s.clone(), b).unwrap()));
    serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    dir.to_owned()
}

#[test]
fn before_transformers_5_experts_are_apart() {
    let dir = TempDir::new().unwrap();
    let model = recorded(&dir.path().join("qwen3_moe"), "qwen3_moe");
    let names = |settings: &str| {
        let config = config(dir.path(), &model, settings);
        let manifest = saved(dir.path(), &config, &model);
        let document = resolved(&config);
        let names: Vec<String> = planned(&manifest).into_iter().map(|t| t.0).collect();
        let group = manifest["plan"]["units"].as_array().unwrap().iter().any(|u| u["name"] == "model.layers.0");
        assert!(group, "{}", manifest["plan"]["units"]);
        (names, manifest, document)
    };
    let (now, manifest, document) = names("{}");
    assert!(now.iter().any(|n| n.ends_with("layers.0.mlp.experts.gate_up_proj")), "{now:?}");
    assert!(manifest["model"]["source"].as_str().unwrap().starts_with("transformers 5."), "{}", manifest["model"]);
    assert!(document["model"]["architecture_data"].as_str().unwrap().starts_with("transformers 5."));
    let (then, manifest, document) = names("{engines: {transformers: '4.57'}}");
    assert!(then.iter().any(|n| n.ends_with("layers.0.mlp.experts.1.gate_proj.weight")), "{then:?}");
    assert!(then.iter().all(|n| !n.contains("gate_up_proj")), "{then:?}");
    assert_eq!(manifest["model"]["transformers"], "4.57");
    assert!(manifest["model"]["source"].as_str().unwrap().starts_with("transformers 4."), "{}", manifest["model"]);
    assert_eq!(document["model"]["class"], "Qwen3MoeForCausalLM");
    assert_eq!(document["provenance"]["/model/architecture_data"]["rule"], "shardwright.engines.transformers");
    assert_eq!((&document["model"]["assembled"], &document["model"]["unused"]), (&json!(0), &json!(0)));
}

#[test]
fn inspect_shows_what_each_parameter_is_made_from() {
    let dir = TempDir::new().unwrap();
    let model = recorded(&dir.path().join("qwen3_moe"), "qwen3_moe");
    let table = good(&run(["inspect".as_ref(), model.as_os_str(), "--as-model".as_ref()]));
    assert!(table.starts_with("Qwen3MoeForCausalLM, by transformers 5."), "{table}");
    let line = table.lines().find(|l| l.starts_with("model.layers.0.mlp.experts.gate_up_proj ")).unwrap();
    assert!(line.contains("parameter") && line.contains("model.layers.0.mlp.experts.{0.."), "{line}");
    let json: Value = serde_json::from_str(&good(&run([
        "inspect".as_ref(),
        model.as_os_str(),
        "--as-model".as_ref(),
        "--format".as_ref(),
        "json".as_ref(),
    ])))
    .unwrap();
    let tensors = json["tensors"].as_array().unwrap();
    for tensor in tensors {
        let sum: u64 = tensor["from"].as_array().unwrap().iter().map(|f| f["elements"].as_u64().unwrap()).sum();
        assert_eq!(Some(sum), tensor["numel"].as_u64(), "{tensor}");
    }
    let fused = tensors.iter().find(|t| t["name"] == "model.layers.0.mlp.experts.gate_up_proj").unwrap();
    assert_eq!((&fused["made"], &fused["kind"]), (&json!("pieces"), &json!("parameter")));
    let first: Vec<&str> = fused["from"].as_array().unwrap().iter().take(2).filter_map(|f| f["tensor"].as_str()).collect();
    assert_eq!(first, ["model.layers.0.mlp.experts.0.gate_proj.weight", "model.layers.0.mlp.experts.0.up_proj.weight"]);
    assert_eq!(json["counts"]["parameters"].as_u64().unwrap() + json["counts"]["buffers"].as_u64().unwrap(), tensors.len() as u64);
    let apart = good(&run(["inspect".as_ref(), model.as_os_str(), "--as-model".as_ref(), "--transformers".as_ref(), "4.57".as_ref()]));
    assert!(apart.lines().any(|l| l.starts_with("model.layers.0.mlp.experts.0.down_proj.weight ") && l.ends_with("itself")), "{apart}");
}

/// transformers 5 compares names that it ties where the checkpoint has both: as seen in `from_pretrained` of 5.24 (apart), under ZeRO-3 (tied, for it
/// has partitions then), on meta (tied before anything is loaded), and in 4.57 (tied).
#[test]
fn names_with_other_values_are_not_tied_where_the_engine_compares_them() {
    let dir = TempDir::new().unwrap();
    let shapes = |tensors: &mut Vec<(String, Vec<usize>)>| {
        let layer = |name: &str, shape: &[usize]| (format!("model.layers.0.{name}.weight"), shape.to_vec());
        tensors.extend([("model.embed_tokens.weight".to_owned(), vec![6, 4]), ("model.norm.weight".into(), vec![4])]);
        tensors.extend(["q_proj", "k_proj", "v_proj", "o_proj"].map(|n| layer(&format!("self_attn.{n}"), &[4, 4])));
        tensors.extend(["gate_proj", "up_proj"].map(|n| layer(&format!("mlp.{n}"), &[5, 4])));
        tensors.extend([layer("mlp.down_proj", &[4, 5]), layer("input_layernorm", &[4]), layer("post_attention_layernorm", &[4])]);
    };
    let mut tensors = vec![("lm_head.weight".to_owned(), vec![6, 4])];
    shapes(&mut tensors);
    let text = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": true, "hidden_size": 4, "intermediate_size": 5,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 2, "vocab_size": 6
    });
    let differs = model(&dir.path().join("differs"), &text, &tensors);
    // The same tensors with lm_head's bytes in both places.
    let file = differs.join("model.safetensors");
    let whole = fs::read(&file).unwrap();
    let read = safetensors::SafeTensors::deserialize(&whole).unwrap();
    let head = read.tensor("lm_head.weight").unwrap().data().to_vec();
    let equal = dir.path().join("equal");
    fs::create_dir_all(&equal).unwrap();
    fs::write(equal.join("config.json"), text.to_string()).unwrap();
    let views = tensors.iter().map(|(name, shape)| {
        let data = if name == "model.embed_tokens.weight" { &head[..] } else { read.tensor(name).unwrap().data() };
        (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap())
    });
    serialize_to_file(views, None, &equal.join("model.safetensors")).unwrap();
    let heads = |model: &Path, dist: &str, more: &str| {
        let path = dir.path().join("tied.yaml");
        fs::write(&path, format!("model: {}\ndist_config: {dist}\n{more}\n", model.display())).unwrap();
        let shards = dir.path().join("shards");
        let _ = fs::remove_dir_all(&shards);
        let output = run(["load".as_ref(), path.as_os_str(), "--world-size".as_ref(), "2".as_ref(), "--save".as_ref(), shards.as_os_str()]);
        let said = stderr(&output);
        good(&output);
        good(&run(["verify".as_ref(), shards.as_os_str(), "--against".as_ref(), model.as_os_str()]));
        let manifest: Value = serde_json::from_slice(&fs::read(shards.join("shardwright.manifest.json")).unwrap()).unwrap();
        let count = planned(&manifest).iter().filter(|(name, _)| name == "lm_head.weight" || name == "model.embed_tokens.weight").count();
        (count, said.contains("'lm_head.weight' to 'model.embed_tokens.weight', but the checkpoint has both"))
    };
    fs::write(dir.path().join("ds.json"), r#"{"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1}"#).unwrap();
    let zero3 = "{name: deepspeed, config_file: ds.json}";
    let on_meta = "init_config: {name: init_on_meta}";
    let before = "shardwright: {engines: {transformers: '4.57'}}";
    assert_eq!(heads(&differs, "{name: fsdp2}", ""), (2, true));
    assert_eq!(heads(&equal, "{name: fsdp2}", ""), (1, false));
    assert_eq!(heads(&differs, "{name: fsdp2}", on_meta), (1, false));
    assert_eq!(heads(&differs, "{name: fsdp2}", before), (1, false));
    assert_eq!(heads(&differs, zero3, ""), (1, false));
}

/// Layers of another kind than the checkpoint has: the key that decides is named, with what is left out and what nothing fills.
#[test]
fn a_layer_of_another_kind_is_reported_with_the_key_that_decides() {
    let dir = TempDir::new().unwrap();
    let model = recorded(&dir.path().join("qwen3_moe"), "qwen3_moe");
    let path = model.join("config.json");
    let mut changed: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    changed["mlp_only_layers"] = json!([1]);
    fs::write(&path, changed.to_string()).unwrap();
    let output = run(["inspect".as_ref(), model.as_os_str(), "--as-model".as_ref()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    good(&output);
    let keys = "config.json (decoder_sparse_step, mlp_only_layers)";
    for expected in [
        format!(
            "'model.layers.1.mlp.experts.0.down_proj.weight' the first: they are not part of Qwen3MoeForCausalLM with its layers as {keys} makes them"
        ),
        "no tensor fills 3 parameters of Qwen3MoeForCausalLM, 'model.layers.1.mlp.gate_proj.weight'".to_owned(),
        format!("{keys} makes 'model.layers.1.mlp' of another kind than the checkpoint's"),
    ] {
        assert!(said.contains(&expected), "{expected:?} is not in {said}");
    }
}

#[test]
fn the_schema_of_an_architecture_is_documented() {
    let schema = good(&run(["schema", "--architecture"]));
    let page = root().join("docs/architecture.schema.json");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&page, &schema).unwrap();
    }
    assert!(fs::read_to_string(&page).is_ok_and(|was| was == schema), "out of date: UPDATE_DOCS=1 cargo test --test architectures");
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let keys = |v: &Value| v["properties"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let example = fs::read_to_string(root().join("examples/architectures/toy_moe.yaml")).unwrap();
    let used = example.lines().filter(|l| !l.starts_with([' ', '#', '-'])).filter_map(|l| l.split_once(':')).map(|(key, _)| key);
    for key in used {
        assert!(keys(&schema).iter().any(|k| k == key), "{key}");
    }
}

/// A llama of one layer whose query projection has a bias, or not, under a config.json that says the other: the warnings name parameter and key.
#[test]
fn what_config_json_switches_on_or_off_is_told_with_its_key() {
    let dir = TempDir::new().unwrap();
    let layer = |name: &str, shape: &[usize]| (format!("model.layers.0.{name}"), shape.to_vec());
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![6, 4]), ("model.norm.weight".into(), vec![4])];
    tensors.push(("lm_head.weight".into(), vec![6, 4]));
    tensors.extend(["q_proj", "k_proj", "v_proj", "o_proj"].map(|n| layer(&format!("self_attn.{n}.weight"), &[4, 4])));
    tensors.extend(["gate_proj", "up_proj"].map(|n| layer(&format!("mlp.{n}.weight"), &[5, 4])));
    tensors.extend([layer("mlp.down_proj.weight", &[4, 5]), layer("input_layernorm.weight", &[4])]);
    tensors.push(layer("post_attention_layernorm.weight", &[4]));
    let biases = ["q_proj", "k_proj", "v_proj", "o_proj"].map(|n| layer(&format!("self_attn.{n}.bias"), &[4]));
    for (stored, says, needle) in [
        (
            true,
            Some(false),
            "4 tensors are left out, 'model.layers.0.self_attn.k_proj.bias' the first: they are not part of LlamaForCausalLM with \
                             config.json (attention_bias: false)",
        ),
        (true, None, "are not part of LlamaForCausalLM with config.json (attention_bias is not in it, and false by default)"),
        (
            false,
            Some(true),
            "no tensor fills 4 parameters of LlamaForCausalLM with config.json (attention_bias: true), \
                             'model.layers.0.self_attn.q_proj.bias' [4] the first",
        ),
        (true, Some(true), ""),
        (false, Some(false), ""),
        (false, None, ""),
    ] {
        let mut text = json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4, "intermediate_size": 5, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 2, "vocab_size": 6
        });
        says.into_iter().for_each(|says: bool| text["attention_bias"] = says.into());
        let all = if stored { [&tensors[..], &biases[..]].concat() } else { tensors.clone() };
        let checkpoint = model(&dir.path().join("model"), &text, &all);
        let config = config(dir.path(), &checkpoint, "{}");
        let output = run(["load".as_ref(), config.as_os_str(), "--world-size".as_ref(), "2".as_ref()]);
        good(&output);
        let warnings = stderr(&output);
        assert_eq!(warnings.contains("attention_bias"), !needle.is_empty(), "{stored} {says:?}: {warnings}");
        assert!(warnings.contains(needle), "{stored} {says:?}: {warnings}");
        let biased = planned(&saved(dir.path(), &config, &checkpoint)).iter().filter(|(name, _)| name.ends_with("bias")).count();
        assert_eq!(biased, if stored && says == Some(true) { 4 } else { 0 }, "{stored} {says:?}");
    }
}
