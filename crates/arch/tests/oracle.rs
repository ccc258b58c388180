//! Models as the real engines have them: names, shapes, kinds and FSDP2's groups as recorded from `from_pretrained` and `fully_shard`, pieces as
//! transformers' own conversions move elements. One case a line in `cases.jsonl`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use shardwright_arch::{Assembled, Missing, Options, Reason, Unused, Use, assemble, hub_tensors};
use shardwright_core::{Assembly, DType, Globs, TensorMeta};

fn cases() -> Vec<Value> {
    include_str!("cases.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn sources(case: &Value) -> Vec<TensorMeta> {
    let shape = |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect::<Vec<_>>();
    let of = |(name, row): (&String, &Value)| {
        TensorMeta::new(name.as_str(), DType::from_spelling(row[0].as_str().unwrap()).unwrap(), shape(&row[1]))
    };
    case["tensors"].as_object().unwrap().iter().map(of).collect()
}

/// Of a case that has shapes alone: its tensors, all of one dtype.
fn by_name(case: &Value, dtype: DType) -> Vec<TensorMeta> {
    let shape = |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect::<Vec<_>>();
    let tensors = case["tensors"].as_object().unwrap().iter();
    let mut all: Vec<TensorMeta> = tensors.map(|(name, dims)| TensorMeta::new(name.as_str(), dtype, shape(dims))).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn made(case: &Value, config: &Value) -> Assembled {
    let class = if case["use"] == "cls" { Use::Cls } else { Use::Llm };
    assemble(
        &sources(case),
        config,
        &Options { class, exclude: &Globs::default(), tied_in_each_group: true, same: None, transformers: 5, own: None },
    )
}

/// Every element of a parameter, as (source, element).
fn elements(numel: u64, pieces: impl Iterator<Item = (String, u64, u64, Vec<[u64; 3]>)>) -> Vec<(String, u64)> {
    let mut out = vec![(String::new(), 0); usize::try_from(numel).unwrap()];
    for (source, from, to, loops) in pieces {
        for i in 0..loops.iter().map(|l| l[0]).product::<u64>() {
            let (mut left, mut s, mut t) = (i, from, to);
            for l in loops.iter().rev() {
                (s, t) = (s + left % l[0] * l[1], t + left % l[0] * l[2]);
                left /= l[0];
            }
            out[usize::try_from(t).unwrap()] = (source.clone(), s);
        }
    }
    out
}

#[test]
fn models_are_as_the_engines_have_them() {
    let mut wrong = Vec::new();
    for case in cases() {
        let found = made(&case, &case["config"]);
        let name = case["name"].as_str().unwrap();
        let mut differ = |what: &str, detail: String| wrong.push(format!("{name}: {what}: {detail}"));
        if found.class.as_deref() != case["class"].as_str() {
            differ("class", format!("{:?}", found.class));
        }
        if let Some(misfit) = found.misfits.first() {
            differ("misfit", misfit.to_string());
        }
        let missing: BTreeSet<&str> = case["missing"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        if found.missing.iter().map(|m| m.name.as_str()).collect::<BTreeSet<_>>() != missing {
            differ("missing", format!("{:?}", found.missing));
        }
        for (kind, buffer) in [("parameters", false), ("buffers", true)] {
            let want: BTreeMap<&str, &Value> =
                case[kind].as_object().unwrap().iter().map(|(n, s)| (n.as_str(), s)).filter(|(n, _)| !missing.contains(n)).collect();
            let have = found.tensors.iter().filter(|t| t.buffer.unwrap_or(!t.dtype.is_float()) == buffer);
            let have: BTreeMap<&str, Value> = have.map(|t| (t.name.as_str(), Value::from(t.shape.clone()))).collect();
            if have.keys().ne(want.keys()) || have.iter().any(|(n, s)| s != want[n]) {
                let odd: Vec<_> =
                    have.keys().filter(|n| !want.contains_key(*n)).chain(want.keys().filter(|n| !have.contains_key(*n))).take(3).collect();
                differ(kind, format!("{odd:?}"));
            }
        }
        let mut units: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for t in found.tensors.iter().filter(|t| !t.buffer.unwrap_or(!t.dtype.is_float())) {
            let module = t.name.rsplit_once('.').map_or("", |(m, _)| m);
            let unit = if t.embedding && !found.ties_embeddings { module } else { t.block.as_deref().unwrap_or("") };
            units.entry(unit.to_owned()).or_default().push(t.name.clone());
        }
        let have: BTreeSet<Vec<String>> = units.into_values().collect();
        let want = case["units"].as_array().unwrap().iter().map(|u| u.as_array().unwrap().iter().filter_map(Value::as_str));
        let want: BTreeSet<Vec<String>> =
            want.map(|u| u.filter(|n| !missing.contains(n)).map(str::to_owned).collect::<Vec<_>>()).filter(|u| !u.is_empty()).collect();
        if have != want {
            differ("units", format!("{:?}", have.symmetric_difference(&want).take(2).collect::<Vec<_>>()));
        }
    }
    assert!(wrong.is_empty(), "{} differences\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn elements_are_where_transformers_own_conversions_put_them() {
    let mut compared = 0;
    for case in cases() {
        let (found, sources) = (made(&case, &case["config"]), sources(&case));
        for (name, pieces) in case["pieces"].as_object().unwrap() {
            let tensor = found.tensors.iter().find(|t| t.name == *name).unwrap_or_else(|| panic!("{}: no {name}", case["name"]));
            let numel = tensor.shape.iter().product();
            let want = pieces.as_array().unwrap().iter().map(|p| {
                let loops = p[3].as_array().unwrap().iter().map(|l| [0, 1, 2].map(|i: usize| l[i].as_u64().unwrap()));
                (p[0].as_str().unwrap().to_owned(), p[1].as_u64().unwrap(), p[2].as_u64().unwrap(), loops.collect())
            });
            let named = |s: u32| sources[s as usize].name.to_string();
            let have: Vec<_> = match &tensor.assembly {
                Assembly::Whole(s) => vec![(named(*s), 0, 0, vec![[numel, 1, 1]])],
                Assembly::Pieces(pieces) => {
                    let loops = |p: &shardwright_core::Piece| p.loops.iter().map(|l| [l.size, l.source_stride, l.target_stride]).collect();
                    pieces.iter().map(|p| (named(p.source), p.source_offset, p.target_offset, loops(p))).collect()
                }
            };
            assert_eq!(elements(numel, have.into_iter()), elements(numel, want), "{}: {name}", case["name"]);
            compared += 1;
        }
    }
    assert!(compared > 20, "{compared}");
}

/// The first of the tensors that files on the hub may hold which make this model again: those that it was made of. Files without the base model's prefix
/// get it, and some of what is joined stays so, as nothing says where it was.
#[test]
fn names_of_the_hub_come_back() {
    let other = ["bloom", "gpt2", "gpt2-saved", "wav2vec2", "qwen3_vl_moe-saved"];
    let (mut compared, mut wrong) = (0, Vec::new());
    for case in cases().iter().filter(|case| case["use"] != "cls") {
        let (name, stored) = (case["name"].as_str().unwrap(), sources(case));
        let none = Globs::default();
        let options = Options { class: Use::Llm, exclude: &none, tied_in_each_group: false, same: None, transformers: 5, own: None };
        let made = |of: &[TensorMeta]| assemble(of, &case["config"], &options);
        let found = made(&stored);
        let Some(class) = &found.class else { continue };
        let unused: BTreeSet<u32> = found.unused.iter().map(|u| u.source).collect();
        let tied = |t: &TensorMeta| found.aliases.iter().any(|(alias, _)| *alias == *t.name);
        let used = stored.iter().zip(0..).filter(|(t, number)| !unused.contains(number) && !tied(t));
        let used: BTreeMap<String, Vec<u64>> = used.map(|(t, _)| (t.name.to_string(), t.shape.clone())).collect();
        let mut model: Vec<TensorMeta> = found.tensors.iter().map(|t| TensorMeta::new(t.name.as_str(), t.dtype, t.shape.clone())).collect();
        model.sort_by(|a, b| a.name.cmp(&b.name));
        let makes_it = |hub: &Vec<TensorMeta>| {
            let again = made(hub);
            let names = |of: &Assembled| of.tensors.iter().map(|t| (t.name.clone(), t.shape.clone())).collect::<BTreeMap<_, _>>();
            again.misfits.is_empty() && names(&again) == names(&found)
        };
        let hub = hub_tensors(&model, &case["config"], class).unwrap().into_iter().find(makes_it).unwrap_or_else(|| panic!("{name}"));
        let hub: BTreeMap<String, Vec<u64>> = hub.into_iter().map(|t| (t.name.to_string(), t.shape)).collect();
        compared += 1;
        if (hub != used) != other.contains(&name) {
            let odd: Vec<_> =
                hub.iter().filter(|t| !used.contains_key(t.0)).chain(used.iter().filter(|t| !hub.contains_key(t.0))).collect();
            wrong.push(format!("{name}: {:?}", odd.into_iter().take(3).collect::<Vec<_>>()));
        }
    }
    assert!(wrong.is_empty() && compared > 40, "of {compared}: {}", wrong.join("\n"));
}

/// The tag is often absent on the hub, where it is the class's default.
#[test]
fn the_default_of_tie_word_embeddings_is_the_classes() {
    for case in cases().iter().filter(|c| ["qwen3", "bert", "gpt2", "qwen2_vl", "t5"].contains(&c["name"].as_str().unwrap())) {
        let mut config = case["config"].clone();
        config.as_object_mut().unwrap().remove("tie_word_embeddings");
        let (with, without) = (made(case, &case["config"]), made(case, &config));
        assert_eq!((with.ties_embeddings, with.aliases), (without.ties_embeddings, without.aliases), "{}", case["name"]);
    }
}

/// The older name of the key comes first, as `from_pretrained` reads it.
#[test]
fn embeddings_are_tied_as_an_older_name_of_the_key_says() {
    let case = cases().into_iter().find(|c| c["name"] == "lfm2").unwrap();
    for (older, own, expected) in [
        (Some(false), None, false),
        (Some(true), None, true),
        (Some(false), Some(true), false),
        (None, Some(false), false),
        (None, None, true),
    ] {
        let mut config = case["config"].clone();
        for (key, value) in [("tie_embedding", older), ("tie_word_embeddings", own)] {
            config.as_object_mut().unwrap().remove(key);
            value.into_iter().for_each(|value| config[key] = value.into());
        }
        let found = made(&case, &config);
        assert_eq!((found.ties_embeddings, !found.aliases.is_empty()), (expected, expected), "{older:?} {own:?}");
        assert_eq!(found.missing.iter().any(|m| m.name == "lm_head.weight"), !expected, "{older:?} {own:?}");
    }
}

/// Layers that share a part: as many names are missing and tied as `from_pretrained` of transformers 5.24 says, where the checkpoint has all of them or
/// only the later ones, and which have values of their own.
#[test]
fn layers_share_a_part_in_turn() {
    // The layers that have the part, and of those that share it the first.
    for (name, part, of) in [("zamba", "shared_transf", vec![(2, 0), (3, 0)]), ("zamba2", "shared_transformer", vec![(4, 1), (5, 2)])] {
        let case = cases().into_iter().find(|c| c["name"] == name).unwrap();
        let stored = sources(&case);
        let under = |layer: u64| format!("model.layers.{layer}.{part}.");
        let later: Vec<TensorMeta> = stored
            .iter()
            .flat_map(|t| {
                of.iter().filter_map(move |&(layer, first)| Some((t, layer, t.name.as_str().strip_prefix(&under(first))?.to_owned())))
            })
            .map(|(t, layer, rest)| TensorMeta::new(format!("{}{rest}", under(layer)), t.dtype, t.shape.clone()))
            .collect();
        let whole: Vec<TensorMeta> = stored.iter().cloned().chain(later.iter().cloned()).collect();
        let firsts = |t: &TensorMeta| of.iter().any(|&(_, first)| t.name.as_str().starts_with(&under(first)));
        let only_later: Vec<TensorMeta> = whole.iter().filter(|t| !firsts(t)).cloned().collect();
        let equal = |_: u32, _: u32| true;
        let differ = |_: u32, _: u32| false;
        let run = |tensors: &[TensorMeta], same: &dyn Fn(u32, u32) -> bool| {
            let same = Some(shardwright_arch::Same(same));
            let options =
                Options { class: Use::Llm, exclude: &Globs::default(), tied_in_each_group: false, same, transformers: 5, own: None };
            let found = assemble(tensors, &case["config"], &options);
            assert!(found.missing.is_empty() && found.misfits.is_empty(), "{name}: {:?} {:?}", found.missing, found.misfits);
            (found.tensors.len(), found.unused.len(), found.aliases.len() - 1, found.untied.len())
        };
        let (few, many) = (stored.len(), later.len());
        assert_eq!(run(&stored, &differ), (few, 0, many, 0), "{name}");
        assert_eq!(run(&whole, &equal), (few, many, many, 0), "{name}");
        assert_eq!(run(&whole, &differ), (few + many, 0, 0, many), "{name}");
        assert_eq!(run(&only_later, &equal).0, few, "{name}");
    }
}

/// Optional parts of a layer, and parameters of them, where config.json says that the class has them, and where its null leaves it to all other layers: as
/// `from_pretrained` says. A layer that is gone misses all of them.
#[test]
fn what_every_other_layer_has_is_missed() {
    let mut case = cases().into_iter().find(|c| c["name"] == "glm4_moe").unwrap();
    let stored = case["tensors"].as_object().unwrap().clone();
    let last = stored.iter().filter(|(name, _)| name.starts_with("model.layers.1."));
    let more = last.flat_map(|(name, row)| [2, 3].map(|layer| (name.replace(".layers.1.", &format!(".layers.{layer}.")), row.clone())));
    let mut whole: serde_json::Map<String, Value> = stored.clone().into_iter().chain(more).collect();
    let norm = |layer: u64, part: &str| format!("model.layers.{layer}.self_attn.{part}.weight");
    let norms =
        (0..4).flat_map(|layer| ["q_norm", "k_norm"].map(|part| (norm(layer, part), json!(["bfloat16", [case["config"]["head_dim"]]]))));
    whole.extend(norms);
    case["config"]["num_hidden_layers"] = 4.into();
    let optional = ["q_norm", "k_norm"].map(|part| norm(2, part));
    for says in [json!(true), Value::Null] {
        let missing = |gone: &dyn Fn(&str) -> bool| {
            let mut case = case.clone();
            case["config"]["use_qk_norm"] = says.clone();
            case["tensors"] = whole.clone().into_iter().filter(|(name, _)| !gone(name)).collect::<serde_json::Map<_, _>>().into();
            made(&case, &case["config"]).missing.iter().map(|m| m.name.clone()).collect::<BTreeSet<_>>()
        };
        assert_eq!(missing(&|_| false), BTreeSet::new());
        for name in &optional {
            assert_eq!(missing(&|other| other == name), BTreeSet::from([name.clone()]));
        }
        let of_a_layer = missing(&|name| name.starts_with("model.layers.2."));
        assert!(optional.iter().all(|name| of_a_layer.contains(name)), "{of_a_layer:?}");
    }
}

/// Of a model with parts: transformers 5 reads the whole model's flag, 4.57 that of its language model, as seen in `from_pretrained` of both.
#[test]
fn before_5_the_language_models_part_says_whether_weights_are_tied() {
    let case = cases().into_iter().find(|c| c["name"] == "qwen2_vl").unwrap();
    for (whole, text) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut config = case["config"].clone();
        config["tie_word_embeddings"] = whole.into();
        config["text_config"]["tie_word_embeddings"] = text.into();
        let mut tensors = sources(&case);
        tensors.retain(|t| t.name.as_str() != "lm_head.weight");
        for (transformers, tied) in [(4, text), (5, whole)] {
            let none = &Globs::default();
            let options = Options { class: Use::Llm, exclude: none, tied_in_each_group: false, same: None, transformers, own: None };
            let found = assemble(&tensors, &config, &options);
            assert_eq!(found.missing.iter().any(|m| m.name == "lm_head.weight"), !tied, "{transformers}: {whole}, {text}");
        }
    }
}

/// Which module `fully_shard` has each parameter in, wrapped as LLaMA-Factory does, of classes of 4.57 and of 5.24: parts of types that transformers
/// does not list are wrapped like all others, and before 5 a model has the `_no_split_modules` of its own class alone.
#[test]
fn parts_of_models_are_wrapped() {
    let mut tried = 0;
    for line in include_str!("units.jsonl").lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let sources = by_name(&case, DType::BF16);
        let transformers = u32::try_from(case["transformers"].as_u64().unwrap()).unwrap();
        let (class, none) = (Use::Llm, &Globs::default());
        let options = Options { class, exclude: none, tied_in_each_group: false, same: None, transformers, own: None };
        let found = assemble(&sources, &case["config"], &options);
        for of in found.tensors.iter().filter(|of| of.buffer != Some(true)) {
            let module = of.name.rsplit_once('.').map_or("", |(module, _)| module);
            let unit = if of.embedding && !found.ties_embeddings { Some(module) } else { of.block.as_deref() };
            if let Some(expected) = case["units"].get(&of.name) {
                assert_eq!(unit, expected.as_str(), "{}: '{}'", case["type"], of.name);
                tried += 1;
            }
        }
    }
    assert!(tried >= 400, "{tried}");
}

/// How many parameters `from_pretrained` of transformers 5.24 calls missing where config.json makes layers of another kind than the checkpoint has.
#[test]
fn layers_are_of_the_kind_that_config_json_says() {
    let first = |n: u64| json!({ "first_k_dense_replace": n });
    let sparse = |step: u64, dense: &[u64]| json!({ "decoder_sparse_step": step, "mlp_only_layers": dense });
    let part = |keys: Value| json!({ "text_config": keys });
    let types = |first: &str, second: &str| json!({ "layer_types": [first, second] });
    let (linear, full) = ("linear_attention", "full_attention");
    let blocks = |kinds: &[&str]| json!({ "layers_block_type": kinds });
    let pattern = |letters: &str| json!({ "layers_block_type": null, "hybrid_override_pattern": letters });
    let rows = [
        ("lfm2", types("conv", "conv"), 3),
        ("lfm2", types(full, full), 6),
        ("lfm2", types("conv", full), 0),
        ("qwen3_next", types(linear, linear), 7),
        ("qwen3_next", types("mamba", "mamba"), 7), // as older files call it
        ("qwen3_next", types(full, full), 6),
        ("qwen3_5_text", types(linear, linear), 9),
        ("qwen3_5_text", types(full, full), 6),
        ("llama4_text", json!({ "moe_layers": [0] }), 9),
        ("llama4_text", json!({ "moe_layers": [1] }), 0),
        ("llama4_text", json!({ "moe_layers": null, "interleave_moe_layer_step": 1 }), 6),
        ("llama4_text", json!({ "moe_layers": null, "interleave_moe_layer_step": 2 }), 0),
        ("nemotron_h", blocks(&["mamba", "attention", "moe", "mlp", "attention"]), 4),
        ("nemotron_h", pattern("M*E-*"), 4),
        ("nemotron_h", pattern("M*E-M"), 0),
        ("recurrent_gemma-in-turn", json!({ "block_types": ["recurrent", "attention"] }), 23),
        ("recurrent_gemma-in-turn", json!({ "block_types": ["attention"] }), 15),
        ("lfm2_moe", json!({ "num_dense_layers": 1 }), 4), // a bias of the router's among them, which other layers have
        ("lfm2_moe", json!({ "num_dense_layers": 4 }), 6),
        ("lfm2_moe", json!({ "layer_types": ["conv", full, "conv", "conv"] }), 3),
        ("deepseek_v3-mtp", first(0), 7),
        ("deepseek_v3-mtp", first(1), 0),
        ("deepseek_v3-mtp", first(2), 3),
        ("glm4_moe", first(0), 7),
        ("glm4_moe", first(2), 3),
        ("qwen3_moe", sparse(1, &[]), 0),
        ("qwen3_moe", sparse(1, &[1]), 3),
        ("qwen3_moe", sparse(1, &[0, 1]), 6),
        ("qwen3_moe", sparse(2, &[]), 3),
        ("qwen3_moe", sparse(2, &[1]), 6),
        ("qwen3_next", sparse(2, &[0]), 3),
        ("qwen3_vl_moe", part(sparse(2, &[])), 3),
        ("ernie4_5_moe", json!({ "moe_layer_start_index": 1, "moe_layer_end_index": 0, "moe_layer_interval": 1 }), 3),
        ("ernie4_5_moe", json!({ "moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 2 }), 0),
    ];
    for (name, keys, missing) in rows {
        let case = cases().into_iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("no case {name}"));
        let mut config = case["config"].clone();
        let put = |into: &mut Value, keys: &Value| {
            keys.as_object().unwrap().iter().for_each(|(key, value)| into[key] = value.clone());
        };
        match keys.get("text_config") {
            Some(keys) => put(&mut config["text_config"], keys),
            None => put(&mut config, &keys),
        }
        let found = made(&case, &config);
        let names: Vec<&str> = found.missing.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names.len(), missing, "{name} {keys}: {names:?}");
        let (sources, further) = (sources(&case), ".layers.2."); // a layer that predicts further tokens, of no kind at all
        let no_part = |u: &&Unused| matches!(u.reason, Reason::NotInTheModel | Reason::OtherKind(..));
        let left = found.unused.iter().filter(no_part).map(|u| &sources[u.source as usize].name);
        let left: Vec<_> = left.filter(|name| !name.contains(further)).collect();
        assert_eq!(left.is_empty(), missing == 0, "{name} {keys}: {left:?}");
        // Each comes with the keys that decide.
        let because: Vec<_> = names.iter().map(|name| found.other_kind(name)).collect();
        let deciding = |keys: &str| keys.split(", ").any(|key| config.get(key).or(config["text_config"].get(key)).is_some());
        assert!(because.iter().all(|of| of.is_some_and(|(_, keys)| deciding(keys))), "{name} {keys}: {because:?}");
    }
}

/// Checkpoints from before the parts had types of their own say the whole model's, and have the text model's keys beside the parts.
#[test]
fn a_part_that_says_the_whole_models_type_is_what_it_always_is() {
    let mut tried = 0;
    for name in ["qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v"] {
        let case = cases().into_iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("no case {name}"));
        let whole = case["config"]["model_type"].clone();
        let mut config = case["config"].clone();
        config["vision_config"]["model_type"] = whole.clone();
        let mut configs = vec![config.clone()];
        config["text_config"]["model_type"] = whole;
        configs.push(config);
        if name == "qwen2_vl" {
            let mut flat = configs[0].clone();
            let text = flat.as_object_mut().unwrap().remove("text_config").unwrap();
            for (key, value) in text.as_object().unwrap() {
                flat.as_object_mut().unwrap().entry(key).or_insert(value.clone());
            }
            configs.push(flat);
        }
        let tensors =
            |config: &Value| made(&case, config).tensors.iter().map(|t| (t.name.clone(), t.shape.clone())).collect::<BTreeMap<_, _>>();
        let usual = tensors(&case["config"]);
        for config in &configs {
            let found = made(&case, config);
            assert!(found.misfits.is_empty() && found.unused.is_empty(), "{name}: {:?} {:?}", found.misfits, found.unused);
            assert_eq!(tensors(config), usual, "{name}");
            tried += 1;
        }
    }
    assert_eq!(tried, 9);
}

#[test]
fn what_the_class_drops_is_known_by_its_reason() {
    let case = cases().into_iter().find(|c| c["name"] == "deepseek_v3-mtp").unwrap();
    let found = made(&case, &case["config"]);
    let beyond = |r: &Reason| matches!(r, Reason::Beyond(list, 2, 2) if list == "model.layers");
    assert!(found.unused.iter().any(|u| beyond(&u.reason)), "{:?}", found.unused);
    let globs = Globs::new(["model.layers.2.*"]).unwrap();
    let options = Options { class: Use::Llm, exclude: &globs, tied_in_each_group: false, same: None, transformers: 5, own: None };
    let found = assemble(&sources(&case), &case["config"], &options);
    assert!(found.unused.iter().all(|u| u.reason == Reason::Excluded), "{:?}", found.unused);
}

#[test]
fn a_shape_that_the_config_contradicts_is_a_misfit() {
    let case = cases().into_iter().find(|c| c["name"] == "qwen3").unwrap();
    let mut config = case["config"].clone();
    config["hidden_size"] = 48.into();
    let found = made(&case, &config);
    let first = found.misfits.first().expect("a misfit").to_string();
    assert!(first.contains("hidden_size = 48"), "{first}");
}

/// Sizes that are products of heads, quotients, sums, and patches of an image, in parts and in whole models.
#[test]
fn each_size_that_the_config_decides_is_compared() {
    for (name, pointer) in [
        ("llama-tied", "/num_key_value_heads"),
        ("mixtral", "/num_attention_heads"),
        ("mixtral", "/num_key_value_heads"),
        ("phi3", "/num_key_value_heads"),
        ("deepseek_v3-mtp", "/qk_rope_head_dim"),
        ("deepseek_v3-mtp", "/kv_lora_rank"),
        ("granitemoe", "/num_attention_heads"),
        ("qwen2_vl", "/text_config/num_key_value_heads"),
        ("qwen2_vl", "/vision_config/spatial_merge_size"),
        ("siglip", "/vision_config/image_size"),
        ("dinov2", "/patch_size"),
    ] {
        let case = cases().into_iter().find(|c| c["name"] == name).unwrap();
        assert!(made(&case, &case["config"]).misfits.is_empty(), "{name}");
        let mut config = case["config"].clone();
        let key = config.pointer_mut(pointer).unwrap_or_else(|| panic!("{name} has no {pointer}"));
        *key = (key.as_u64().unwrap() * 2).into();
        let found: Vec<String> = made(&case, &config).misfits.iter().map(ToString::to_string).collect();
        let last = pointer.rsplit('/').next().unwrap();
        assert!(found.iter().any(|m| m.contains(last)), "{name} {pointer}: {found:?}");
    }
}

/// A list whose elements have the same names and other dims: a normalisation, then a convolution.
#[test]
fn variants_with_the_same_names_are_told_apart_by_their_dims() {
    let tensors = serde_json::json!({
        "encoder.stages.1.downsampling_layer.0.weight": ["bfloat16", [96]],
        "encoder.stages.1.downsampling_layer.0.bias": ["bfloat16", [96]],
        "encoder.stages.1.downsampling_layer.1.weight": ["bfloat16", [192, 96, 2, 2]],
        "encoder.stages.1.downsampling_layer.1.bias": ["bfloat16", [192]],
    });
    let config = serde_json::json!({"model_type": "convnext", "architectures": ["ConvNextModel"]});
    let case = serde_json::json!({"use": "llm", "tensors": tensors});
    let found = made(&case, &config);
    assert_eq!(found.class.as_deref(), Some("ConvNextModel"));
    assert_eq!(found.misfits.iter().map(ToString::to_string).collect::<Vec<_>>(), Vec::<String>::new());
    assert_eq!((found.tensors.len(), found.unused.len()), (4, 0));
}

/// What stands for a key that config.json lacks: the class's default, unless an older name says it or another key decides it; what the class makes of
/// other keys; and the numbers of a part that is not there as a whole.
#[test]
fn a_key_that_the_config_lacks_has_the_classs_default() {
    let case = |name: &str| cases().into_iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("no case {name}"));
    let without = |case: &Value, pointer: &str, key: &str| {
        let mut config = case["config"].clone();
        config.pointer_mut(pointer).and_then(Value::as_object_mut).unwrap().remove(key).unwrap_or_else(|| panic!("no {key}"));
        config
    };
    let misfits = |case: &Value, config: &Value| made(case, config).misfits.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (qwen3, qwen3_vl, bloom) = (case("qwen3"), case("qwen3_vl"), case("bloom"));
    let (llama, mixtral) = (case("llama-tied"), case("mixtral"));
    for (case, pointer, key, what) in [
        (&llama, "", "num_key_value_heads", "num_key_value_heads (not in config.json: num_attention_heads)"),
        (&qwen3_vl, "", "vision_config", "hidden_size (not in config.json, the default of 'qwen3_vl_vision') = 1152"),
        (&qwen3, "", "hidden_size", "hidden_size (not in config.json, the default of 'qwen3') = 4096"),
        (&qwen3_vl, "/vision_config", "hidden_size", "hidden_size (not in config.json, the default of 'qwen3_vl_vision') = 1152"),
        (&bloom, "", "hidden_size", "hidden_size (not in config.json, the default of 'bloom') = 64"),
    ] {
        let found = misfits(case, &without(case, pointer, key));
        assert!(found.iter().any(|m| m.contains(what)), "{key}: {found:?}");
    }
    let mut older = without(&bloom, "", "hidden_size");
    older["n_embed"] = bloom["config"]["hidden_size"].clone();
    for (case, config) in [(&bloom, &older), (&llama, &without(&llama, "", "head_dim")), (&mixtral, &mixtral["config"])] {
        assert_eq!(misfits(case, config), Vec::<String>::new());
    }
    // In either way the width of a head is the hidden size by the number of heads.
    for head_dim in [None, Some(Value::Null)] {
        let mut config = mixtral["config"].clone();
        config.as_object_mut().unwrap().remove("head_dim");
        config["num_attention_heads"] = 8.into();
        if let Some(value) = head_dim {
            config["head_dim"] = value;
        }
        let found = misfits(&mixtral, &config);
        assert!(found.iter().any(|m| m.contains("head_dim (not in config.json: hidden_size/num_attention_heads)")), "{found:?}");
    }
    let mut null = qwen3["config"].clone();
    null["head_dim"] = Value::Null;
    assert_eq!(misfits(&qwen3, &null), Vec::<String>::new());
    assert!(made(&qwen3, &without(&qwen3, "", "num_hidden_layers")).missing.iter().any(|m| m.name.contains("layers.20.")));
}

/// What a language model's class makes of a case's shapes under a config.
fn under(case: &Value, config: &Value) -> Assembled {
    let options = Options { class: Use::Llm, exclude: &Globs::default(), tied_in_each_group: true, same: None, transformers: 5, own: None };
    assemble(&by_name(case, DType::BF16), config, &options)
}

/// Under its own config every tensor is used, none is missing, and all sizes are config.json's.
fn assert_whole(case: &Value, name: &str) {
    let found = under(case, &case["config"]);
    let missing: Vec<&str> = found.missing.iter().map(|m| m.name.as_str()).collect();
    let unused: Vec<u32> = found.unused.iter().map(|u| u.source).collect();
    assert_eq!((found.misfits.first(), &missing[..], &unused[..]), (None, &[][..], &[][..]), "{}", case[name]);
}

/// Classes as transformers 5.24 builds them under configs that a change of one key does not reach: every tensor is a parameter, none is missing, and
/// the sizes are config.json's.
#[test]
fn models_of_unusual_configs_are_whole() {
    let mut tried = 0;
    for line in include_str!("whole.jsonl").lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        assert_whole(&case, "type");
        tried += 1;
    }
    assert!(tried >= 9, "{tried}");
}

/// A number of config.json that the class makes of others, or that the model around a part sets in it, whatever config.json has.
#[test]
fn a_number_that_the_class_replaces_is_not_compared() {
    let case = |model_type: &str| {
        let lines = include_str!("whole.jsonl").lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.into_iter().find(|case| case["type"] == model_type).unwrap()
    };
    for (model_type, pointer) in [("blip-2", "/qformer_config/encoder_hidden_size"), ("lightglue", "/hidden_size")] {
        let case = case(model_type);
        let mut config = case["config"].clone();
        let key = config.pointer_mut(pointer).unwrap();
        *key = (3 * key.as_u64().unwrap()).into();
        let options =
            Options { class: Use::Llm, exclude: &Globs::default(), tied_in_each_group: true, same: None, transformers: 5, own: None };
        assert_eq!(assemble(&by_name(&case, DType::F32), &config, &options).misfits, [], "{model_type}");
    }
}

/// Sizes in a part that is not a model itself, and the vocabulary of a head beside the language model.
#[test]
fn sizes_that_a_part_decides_are_compared() {
    let released: Vec<Value> = include_str!("released.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (name, pointer, key) in [
        ("dbrx", "/attn_config/kv_n_heads", "attn_config.kv_n_heads"),
        ("dbrx", "/ffn_config/ffn_hidden_size", "ffn_config.ffn_hidden_size"),
        ("mllama", "/text_config/vocab_size", "text_config.vocab_size"),
        ("qwen2vl-2b", "/num_key_value_heads", "num_key_value_heads"),
    ] {
        let case = released.iter().find(|case| case["name"] == name).unwrap();
        let mut config = case["config"].clone();
        let value = config.pointer_mut(pointer).unwrap();
        *value = (2 * value.as_u64().unwrap()).into();
        let misfits: Vec<String> = under(case, &config).misfits.iter().map(ToString::to_string).collect();
        assert!(misfits.iter().any(|m| m.contains(key)), "{name} {pointer}: {misfits:?}");
    }
}

/// config.json with the keys and widths that models were released with, some by older names and others left out; fewer layers and experts.
#[test]
fn released_models_are_whole_and_another_width_or_depth_shows() {
    let mut tried = 0;
    for line in include_str!("released.jsonl").lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        assert_whole(&case, "name");
        let part = if case["config"]["text_config"]["hidden_size"].is_u64() { "/text_config" } else { "" };
        let doubled = |keys: &[&str]| {
            let mut config = case["config"].clone();
            let key = keys.iter().map(|key| format!("{part}/{key}")).find(|key| config.pointer(key).is_some());
            let value = config.pointer_mut(&key.unwrap_or_else(|| panic!("{}: none of {keys:?}", case["name"]))).unwrap();
            let other = 2 * value.as_u64().unwrap();
            *value = other.into();
            (under(&case, &config), other)
        };
        // Another width than that of the tensors, and more layers.
        let (wider, other) = doubled(&["hidden_size", "d_model", "n_embd", "n_embed"]);
        assert!(wider.misfits.iter().any(|m| m.to_string().contains(&format!("= {other}"))), "{}: {:?}", case["name"], wider.misfits);
        let (deeper, _) = doubled(&["num_hidden_layers", "n_layer", "n_layers", "num_layers"]);
        assert!(!deeper.missing.is_empty(), "{}", case["name"]);
        tried += 1;
    }
    assert!(tried >= 30, "{tried}");
}

/// Where config.json switches a part on that the checkpoint lacks, or off one that it has, by saying so or by saying nothing: what `from_pretrained` of
/// transformers 5.24 reports as missing and as unexpected.
#[test]
fn what_config_json_switches_on_and_off_is_missed_and_left_out() {
    let mut tried = (0, 0, 0);
    for line in include_str!("switches.jsonl").lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let sources = by_name(&case, DType::F32);
        let class = Use::Llm;
        let options = Options { class, exclude: &Globs::default(), tied_in_each_group: true, same: None, transformers: 5, own: None };
        let found = assemble(&sources, &case["config"], &options);
        let what = format!("{} {} of {}", case["type"], case["keys"], case["config"]);
        assert_eq!(found.misfits, [], "{what}");
        let reported = |key: &str| case[key].as_array().unwrap().iter().map(|n| n.as_str().unwrap().to_owned()).collect::<Vec<_>>();
        let missing: Vec<String> = found.missing.iter().map(|m| m.name.clone()).collect();
        assert_eq!(missing.iter().collect::<BTreeSet<_>>(), reported("missing").iter().collect(), "{what}");
        // The engine reports the names that the class would have.
        let last = |name: &str| name.rsplitn(4, '.').take(3).map(str::to_owned).collect::<Vec<_>>();
        let unused: BTreeSet<_> = found.unused.iter().map(|u| last(&sources[u.source as usize].name)).collect();
        assert_eq!(unused, reported("unexpected").iter().map(|name| last(name)).collect(), "{what}");
        let by_key = |says: &str| {
            case["keys"].as_array().unwrap().iter().any(|key| says.contains(key.as_str().unwrap().rsplit('.').next().unwrap()))
        };
        for unused in &found.unused {
            let named = match &unused.reason {
                Reason::Off(says) | Reason::OtherKind(_, says) => by_key(says),
                _ => false,
            };
            assert!(named, "{:?} {what}", unused.reason);
        }
        let named = |m: &Missing| m.switch.as_deref().or_else(|| Some(found.other_kind(&m.name)?.1)).is_some_and(by_key);
        assert!(found.missing.iter().all(named), "{:?} {what}", found.missing);
        tried = (tried.0 + 1, tried.1 + usize::from(!found.missing.is_empty()), tried.2 + usize::from(!found.unused.is_empty()));
    }
    assert!(tried.0 >= 40 && tried.1 >= 15 && tried.2 >= 15, "{tried:?}");
}
