//! `shardwright plan` as a user runs it: the table, the JSON and its schema, exit codes, and the largest worlds.

#[path = "support/runner.rs"]
mod runner;
mod support;

use std::{
    fs,
    io::{Seek, Write},
    path::Path,
    process::Output,
};

use runner::{skip, tests};
use serde_json::{Value, json};
use shardwright_memory::{
    ledger::Place,
    output::{Certainty, Prediction, schema},
};
use support::{checkpoint, fsdp2_config, root, shardwright, stderr, write, zero3_config};

tests! {
    the_table_is_for_people_and_fits_100_columns,
    the_json_has_a_committed_schema,
    every_byte_has_a_formula_with_a_source,
    what_does_not_fit_exits_with_7_and_says_what_would,
    fixed_amounts_are_the_engines,
    what_is_trained_changes_the_memory,
    advice_is_what_the_changed_run_is_predicted_to_hold,
    the_largest_worlds_are_planned_and_their_page_stays_small,
    the_page_shows_the_numbers_of_json_and_table,
    the_report_of_a_load_is_a_page_too,
    predictions_hold_against_what_the_engines_allocated,
}

fn plan(args: &[&str]) -> Output {
    shardwright().current_dir(root()).arg("plan").args(args).output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "exit {:?}: {}", output.status.code(), stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn prediction(args: &[&str]) -> Prediction {
    let printed = text(&plan(&[args, &["--format", "json"]].concat()));
    serde_json::from_str(&printed).unwrap_or_else(|e| panic!("{e}: {printed}"))
}

fn the_table_is_for_people_and_fits_100_columns() {
    for (name, args) in [
        ("fsdp2", &["examples/fsdp2.yaml", "--world-size", "4"][..]),
        ("zero3", &["examples/zero3.yaml", "--world-size", "4", "--device-memory", "1GiB", "--compare"]),
        ("hsdp", &["examples/hsdp.yaml", "--world-size", "4"]),
        ("replicate", &["examples/replicate.yaml", "--world-size", "2", "--compare"]),
    ] {
        let output = plan(args);
        let table = String::from_utf8(output.stdout).unwrap();
        let long: Vec<&str> = table.lines().filter(|l| l.chars().count() > 100).collect();
        assert!(long.is_empty(), "{name}: {long:?}");
        insta::assert_snapshot!(format!("table_{name}"), table);
    }
}

/// What the program prints can be read by its own types, which refuse unknown fields, and the committed schema is theirs.
fn the_json_has_a_committed_schema() {
    let file = root().join("docs/plan.schema.json");
    let made = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
    if std::env::var_os("UPDATE_PLAN_SCHEMA").is_some() {
        fs::write(&file, &made).unwrap();
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), made, "run this test with UPDATE_PLAN_SCHEMA=1");
    let made = prediction(&["examples/zero3.yaml", "--world-size", "2", "--compare"]);
    assert_eq!(made.schema, "shardwright-plan-1");
    assert!(made.worlds.len() > 5, "{}", made.worlds.len());
}

/// Every item has a formula that is listed with a source, and items make up the totals.
fn every_byte_has_a_formula_with_a_source() {
    for config in ["examples/fsdp2.yaml", "examples/zero3.yaml", "examples/replicate.yaml"] {
        let made = prediction(&[config, "--world-size", "4"]);
        for row in made.worlds.iter().flat_map(|w| &w.ranks).flat_map(|g| &g.phases) {
            for (place, total) in [(Place::Device, row.device), (Place::Host, row.host), (Place::Nvme, row.nvme)] {
                let sum: u64 = row.items.iter().filter(|i| i.place == place).map(|i| i.bytes).sum();
                assert_eq!(sum, total, "{config} {:?} {place:?}", row.phase);
            }
            for item in &row.items {
                let formula = made.formulas.iter().find(|f| f.id == item.formula);
                let formula = formula.unwrap_or_else(|| panic!("{config}: no formula {}", item.formula));
                assert!(!formula.text.is_empty() && (formula.certainty == Certainty::Assumed || formula.source.len() > 10), "{formula:?}");
            }
        }
    }
}

fn what_does_not_fit_exits_with_7_and_says_what_would() {
    let output = plan(&["examples/fsdp2.yaml", "--world-size", "4", "--device-memory", "1025MiB"]);
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("does not fit: the device has 1.07 GB"), "{table}");
    assert!(table.contains("what would save memory"), "{table}");
    assert!(table.contains("dist_config.offload_params: true") && table.contains("more traffic a step"), "{table}");
    for (args, code, said) in [
        (&["examples/fsdp2.yaml", "--device-memory", "many"][..], 2, "expected a number of bytes"),
        (&["examples/fsdp2.yaml", "--seq-len", "0"], 2, "0 is not in"),
        (&["bf16=true"], 2, "only overrides"),
        (&["examples/none.yaml"], 3, "examples/none.yaml"),
        (&["examples/fsdp2.yaml", "model=examples/none"], 4, "examples/none"),
    ] {
        let output = plan(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(said), "{args:?}: {}", stderr(&output));
    }
}

/// Parameters, gradients and states as the engines allocate them, computed here a second time by hand.
fn fixed_amounts_are_the_engines() {
    let dir = tempfile::tempdir().unwrap();
    let of = |made: &Prediction, phase: usize, category: &str| -> u64 {
        let items = &made.worlds[0].ranks[0].phases[phase].items;
        items.iter().filter(|i| i.category.name() == category && i.place == Place::Device).map(|i| i.bytes).sum()
    };
    let config = fsdp2_config(dir.path(), &checkpoint("tiny-gpt2-fp32"), 1, None);
    let made = prediction(&[config.to_str().unwrap(), "--world-size", "3"]);
    let tensors = &made.model.tensors;
    let padded: u64 = tensors.iter().map(|t| t.shape[0].div_ceil(3) * t.shape[1..].iter().product::<u64>() * 4).sum();
    assert_eq!(of(&made, 0, "parameters"), padded);
    let first: u64 = tensors.iter().map(|t| t.shape[0].div_ceil(3) * t.shape[1..].iter().product::<u64>() * 8 + 4).sum();
    assert_eq!(of(&made, 1, "optimizer_states"), first);
    assert_eq!(of(&made, 3, "gradients"), padded);

    let config = zero3_config(dir.path(), &checkpoint("tiny-qwen3-bf16"), true);
    let made = prediction(&[config.to_str().unwrap(), "--world-size", "3"]);
    let elements: u64 = made.model.tensors.iter().map(|t| t.shape.iter().product::<u64>().div_ceil(3)).sum();
    assert_eq!(of(&made, 0, "parameters"), 2 * elements);
    assert_eq!(of(&made, 0, "masters"), 4 * elements);
    assert_eq!(of(&made, 1, "optimizer_states"), 8 * elements + 4);
    assert_eq!(of(&made, 3, "gradients"), 2 * elements);
}

/// Adapters are planned like any other parameter; what is frozen has neither gradients nor states.
fn what_is_trained_changes_the_memory() {
    let dir = tempfile::tempdir().unwrap();
    let config = fsdp2_config(dir.path(), &checkpoint("tiny-qwen3-bf16"), 1, None);
    let config = config.to_str().unwrap();
    let whole = prediction(&[config, "--world-size", "2"]);
    let lora = prediction(&[config, "--world-size", "2", "peft_config.name=lora", "peft_config.r=4"]);
    let freeze = prediction(&[config, "--world-size", "2", "peft_config.name=freeze", "peft_config.freeze_trainable_layers=1"]);
    assert_eq!(whole.model.trainable, whole.model.parameters);
    // Rank 4 on seven matrices of each of three layers: q 60 to 64, k and v 60 to 32, o 64 to 60, gate and up 60 to 44, down 44 to 60.
    let pair = |input: u64, output: u64| 4 * (input + output);
    let layer = pair(60, 64) + 2 * pair(60, 32) + pair(64, 60) + 2 * pair(60, 44) + pair(44, 60);
    assert_eq!(lora.model.trainable, 3 * layer);
    assert_eq!(lora.run.tuning, "lora");
    assert_eq!(lora.model.parameters, whole.model.parameters + 3 * layer);
    assert!(freeze.model.trainable > 0 && freeze.model.trainable < whole.model.trainable / 2, "{}", freeze.model.trainable);
    let states = |made: &Prediction| {
        made.worlds[0].ranks[0].phases[3].items.iter().filter(|i| i.category.name() == "optimizer_states").map(|i| i.bytes).sum::<u64>()
    };
    assert!(states(&lora) < states(&whole) && states(&freeze) < states(&whole) && states(&freeze) > 0);
    let inference = prediction(&[config, "--world-size", "2", "shardwright.inference=true"]);
    assert_eq!(states(&inference), 0);
}

/// Whatever saves memory is predicted anew: each change really makes the peak smaller, those that fit come first, and each says its cost.
fn advice_is_what_the_changed_run_is_predicted_to_hold() {
    let dir = tempfile::tempdir().unwrap();
    hollow(dir.path(), 1024, 4096, 4, 32_000);
    let text = format!(
        "model: {}\ndist_config: {{name: fsdp2, reshard_after_forward: false}}\ninit_config: {{name: init_on_meta}}\n",
        dir.path().display()
    );
    let config = write(dir.path(), "train.yaml", &text);
    let args =
        [config.to_str().unwrap(), "--world-size", "4", "micro_batch_size=4", "enable_activation_checkpointing=false", "--format", "json"];
    let predict = |more: &[&str]| -> Prediction { serde_json::from_slice(&plan(&[&args[..], more].concat()).stdout).unwrap() };
    let now = predict(&[]);
    let all = &now.worlds[0].advice;
    let of = |part: &str| all.iter().find(|a| a.change.contains(part)).unwrap_or_else(|| panic!("no {part} in {all:?}"));
    for (change, with) in [
        ("activation_checkpointing", &["enable_activation_checkpointing=true"][..]),
        ("reshard_after_forward", &["dist_config.reshard_after_forward=true"]),
        ("offload_params", &["dist_config.offload_params=true"]),
        ("micro_batch_size: 2", &["micro_batch_size=2", "global_batch_size=16"]),
    ] {
        let then = &predict(with).worlds[0];
        assert_eq!((of(change).device, of(change).host), (then.peak.device, then.peak.host), "{change}");
        let traffic = i64::try_from(then.traffic.total()).unwrap() - i64::try_from(now.worlds[0].traffic.total()).unwrap();
        assert_eq!(of(change).traffic, traffic, "{change}");
        assert!(of(change).device < now.worlds[0].peak.device);
    }
    assert_eq!(predict(&[]), now, "the same input gives the same prediction");
    // A budget that only the smallest of them meets.
    let least = all.iter().map(|a| a.device).min().unwrap();
    let tight = predict(&["--device-memory", &least.to_string()]);
    let first = &tight.worlds[0].advice[0];
    assert_eq!((tight.worlds[0].fits, first.fits), (Some(false), Some(true)), "{first:?}");
    let whole = write(dir.path(), "whole.yaml", &format!("model: {}\n", dir.path().display()));
    let whole = plan(&[whole.to_str().unwrap(), "--world-size", "4", "--device-memory", "1GiB", "--format", "json"]);
    assert_eq!(whole.status.code(), Some(7), "{}", stderr(&whole));
    let whole: Prediction = serde_json::from_slice(&whole.stdout).unwrap();
    assert!(whole.worlds[0].advice.iter().any(|a| a.change == "dist_config.name: fsdp2"), "another strategy is advice too");
}

/// A checkpoint of a real size with headers alone: its data is a hole in the file.
fn hollow(dir: &Path, hidden: u64, inner: u64, layers: u64, vocab: u64) {
    let kv = hidden / 8;
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, hidden])];
    for i in 0..layers {
        let layer = |name: &str, shape: Vec<u64>| (format!("model.layers.{i}.{name}.weight"), shape);
        tensors.extend([
            layer("self_attn.q_proj", vec![hidden, hidden]),
            layer("self_attn.k_proj", vec![kv, hidden]),
            layer("self_attn.v_proj", vec![kv, hidden]),
            layer("self_attn.o_proj", vec![hidden, hidden]),
            layer("mlp.gate_proj", vec![inner, hidden]),
            layer("mlp.up_proj", vec![inner, hidden]),
            layer("mlp.down_proj", vec![hidden, inner]),
            layer("input_layernorm", vec![hidden]),
            layer("post_attention_layernorm", vec![hidden]),
        ]);
    }
    tensors.extend([("model.norm.weight".to_owned(), vec![hidden]), ("lm_head.weight".to_owned(), vec![vocab, hidden])]);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": hidden / 128, "num_key_value_heads": kv / 128, "head_dim": 128,
        "vocab_size": vocab, "tie_word_embeddings": false, "dtype": "bfloat16", "hidden_act": "silu",
    });
    hollow_of(dir, tensors, &config);
}

fn hollow_of(dir: &Path, tensors: Vec<(String, Vec<u64>)>, config: &Value) {
    let mut at = 0;
    let mut header = serde_json::Map::new();
    for (name, shape) in tensors {
        let end = at + shape.iter().product::<u64>() * 2;
        header.insert(name, json!({ "dtype": "BF16", "shape": shape, "data_offsets": [at, end] }));
        at = end;
    }
    let header = Value::Object(header).to_string();
    let mut file = fs::File::create(dir.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let start = file.stream_position().unwrap();
    file.set_len(start + at).unwrap();
    write(dir, "config.json", &config.to_string());
}

/// A model of 70 billion parameters on 1,024 ranks.
fn the_largest_worlds_are_planned_and_their_page_stays_small() {
    let dir = tempfile::tempdir().unwrap();
    hollow(dir.path(), 8192, 28_672, 80, 128_256);
    for config in [
        write(
            dir.path(),
            "fsdp2.yaml",
            &format!("model: {}\ndist_config: {{name: fsdp2}}\ninit_config: {{name: init_on_meta}}\n", dir.path().display()),
        ),
        zero3_config(dir.path(), dir.path(), true),
    ] {
        let made = prediction(&[config.to_str().unwrap(), "--world-size", "1024", "--device-memory", "80GiB"]);
        assert_eq!(made.worlds[0].ranks.iter().map(|g| g.count).sum::<u32>(), 1024);
        assert_eq!(made.model.parameters / 1_000_000_000, 70);
        assert_eq!(made.worlds[0].fits, Some(true));
        let page = text(&plan(&[config.to_str().unwrap(), "--world-size", "1024", "--compare", "--format", "html"]));
        assert!(page.len() < 2_000_000, "{} bytes", page.len());
    }
}

/// What a reader does with the page: looks at the numbers, moves the slider, walks over the map by keyboard, asks for dark. Its answers go
/// into the page itself, from where the browser prints them.
const READER: &str = r##"<script>
"use strict";
const key = (name) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
const all = (selector) => [...document.querySelectorAll(selector)];
const numbers = () => all("main [data-bytes]").map((e) => [Number(e.dataset.bytes), e.textContent]);
const read = { title: document.title, numbers: numbers(), sizes: [], unnamed: 0, outside: 0 };
const slider = document.getElementById("size");
for (let i = 0; slider && i <= slider.max; i += 1) {
  slider.value = i;
  slider.dispatchEvent(new Event("input"));
  read.sizes.push([Number(document.querySelector("output").textContent), Number(document.querySelector("p strong[data-bytes]").dataset.bytes)]);
}
read.background = getComputedStyle(document.body).backgroundColor;
document.getElementById("theme").click();
read.changed = getComputedStyle(document.body).backgroundColor;
const cell = document.querySelector('[role=gridcell][tabindex="0"]');
cell.focus();
read.first = document.activeElement.getAttribute("aria-label");
key("ArrowDown");
read.second = document.activeElement.getAttribute("aria-label");
read.reachable = all('[role=gridcell][tabindex="0"]').length;
read.detail = document.querySelector("[aria-live]").textContent;
read.unnamed = all("[role=img], [role=gridcell], [role=grid], [role=region]").filter((e) => !e.getAttribute("aria-label")).length
  + all("input, select").filter((e) => !e.labels.length).length + all("table").filter((t) => !t.caption && !t.closest("[aria-live]")).length;
read.outside = performance.getEntriesByType("resource").length;
document.body.dataset.read = JSON.stringify(read);
</script></body>"##;

/// Chromium's answer to a page with the reader in it. Without Chromium the test is skipped.
fn browse(page: &Path) -> Value {
    let programs = ["chromium", "chromium-browser", "google-chrome"];
    let program = programs.into_iter().find(|p| std::process::Command::new(p).arg("--version").output().is_ok_and(|o| o.status.success()));
    let Some(program) = program else {
        skip("no chromium, which `apt-get install chromium` brings");
    };
    let with = fs::read_to_string(page).unwrap().replace("</body>", READER);
    let read = page.with_extension("read.html");
    fs::write(&read, with).unwrap();
    let profile = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(program)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--window-size=1200,900"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}", read.canonicalize().unwrap().display()))
        .output()
        .unwrap();
    let dom = String::from_utf8_lossy(&output.stdout).into_owned();
    let answer = dom.split("data-read=\"").nth(1).unwrap_or_else(|| panic!("the page's script failed: {}", stderr(&output)));
    let answer = answer.split('"').next().unwrap().replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    serde_json::from_str(&answer).unwrap()
}

/// Table, JSON and page say the same numbers.
fn the_page_shows_the_numbers_of_json_and_table() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("plan.html");
    let args = ["examples/fsdp2.yaml", "global_batch_size=null", "--world-size", "4", "--device-memory", "2GiB", "--compare"];
    text(&plan(&[&args[..], &["--format", "html", "--out", page.to_str().unwrap()]].concat()));
    let made = prediction(&args);
    let html = fs::read_to_string(&page).unwrap();
    let inside = html.split(r#"id="data">"#).nth(1).unwrap().split("</script>").next().unwrap();
    let inside: Value = serde_json::from_str(inside).unwrap();
    assert_eq!(serde_json::from_value::<Prediction>(inside["plan"].clone()).unwrap(), made, "the page's data is the JSON");
    let again = plan(&[&args[..], &["--format", "html", "--out", page.to_str().unwrap()]].concat());
    assert!(again.status.success(), "a page of ours may be written over: {}", stderr(&again));
    fs::write(dir.path().join("mine.html"), "<p>mine").unwrap();
    let mine = plan(&[&args[..], &["--format", "html", "--out", dir.path().join("mine.html").to_str().unwrap()]].concat());
    assert_eq!(mine.status.code(), Some(6), "another's page is left alone");

    let table = text(&plan(&args));
    let first = &made.worlds[0];
    let read = browse(&page);
    let numbers: Vec<(u64, &str)> =
        read["numbers"].as_array().unwrap().iter().map(|n| (n[0].as_u64().unwrap(), n[1].as_str().unwrap())).collect();
    let shown = |bytes: u64| numbers.iter().find(|(n, _)| *n == bytes).unwrap_or_else(|| panic!("{bytes} is not on the page")).1;
    for row in first.ranks.iter().flat_map(|g| &g.phases) {
        assert!(table.contains(shown(row.device)), "{} of the page is not in the table", shown(row.device));
        shown(row.host);
    }
    for world in &made.worlds {
        for n in [world.peak.device, world.traffic.gather, world.traffic.reduce] {
            assert!(table.contains(shown(n)), "{} of the page is not in the table", shown(n));
        }
    }
    let mut sizes: Vec<(u32, u64)> =
        made.worlds.iter().filter(|w| w.strategy == first.strategy).map(|w| (w.world_size, w.peak.device)).collect();
    sizes.sort_unstable();
    assert_eq!(read["sizes"], json!(sizes), "the slider goes over all worlds");
    assert_ne!(read["background"], read["changed"], "light and dark");
    assert_ne!(read["first"], read["second"], "arrow keys move");
    assert_eq!((&read["reachable"], &read["unnamed"], &read["outside"]), (&json!(1), &json!(0), &json!(0)), "{read}");
    let detail = read["detail"].as_str().unwrap();
    for part in ["model.layers.0.", "float32, computed in bfloat16", "strategy.name = fsdp2", "examples/fsdp2.yaml:11"] {
        assert!(detail.contains(part), "no '{part}' in {detail}");
    }
}

fn the_report_of_a_load_is_a_page_too() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("load.html");
    let args = ["load", "examples/zero3.yaml", "--world-size", "3", "--format", "json", "--report", page.to_str().unwrap()];
    let report = support::json(&shardwright().current_dir(root()).args(args).output().unwrap());
    let read = browse(&page);
    assert_eq!(read["title"], "Load report");
    for rank in report["ranks"].as_array().unwrap() {
        let read = read["numbers"].as_array().unwrap();
        assert!(read.iter().any(|n| n[0] == rank["bytes_read"]), "{}", rank["bytes_read"]);
    }
    assert!(read["detail"].as_str().unwrap().contains("model.layers.0."), "{read}");
    assert_eq!((&read["unnamed"], &read["outside"]), (&json!(0), &json!(0)), "{read}");
}

/// What torch 2.15 and DeepSpeed 0.19.8 allocated on rank 0, recorded by scripts/plan-measure.py; docs/plan.md has the table.
fn predictions_hold_against_what_the_engines_allocated() {
    let recorded = support::read_json(&root().join("tests/plan_measured.json"));
    let dir = tempfile::tempdir().unwrap();
    let mut off = Vec::new();
    let cases = recorded["cases"].as_array().unwrap();
    for case in cases {
        let text = |key: &str| case[key].as_str().unwrap();
        let (name, engine, variant) = (text("model"), text("engine"), text("variant"));
        let model = dir.path().join(name);
        if !model.exists() {
            fs::create_dir(&model).unwrap();
            let recorded = &recorded["models"][name];
            hollow_of(&model, serde_json::from_value(recorded["tensors"].clone()).unwrap(), &recorded["config"]);
        }
        let mut yaml = format!(
            "model: {}\nmicro_batch_size: {}\ncutoff_len: {}\nenable_activation_checkpointing: {}\nshardwright: {{device: cpu}}\n",
            model.display(),
            recorded["batch"],
            recorded["sequence"],
            variant != "no-checkpointing"
        );
        if engine == "fsdp2" {
            yaml += "init_config: {name: init_on_meta}\n";
            yaml += &format!("dist_config: {{name: fsdp2, reshard_after_forward: {}}}\n", variant != "no-reshard");
        } else {
            let mut zero = json!({"stage": 3, "reduce_bucket_size": 300_000, "stage3_prefetch_bucket_size": 100_000, "stage3_param_persistence_threshold": 1000});
            if variant == "small-limits" {
                (zero["stage3_max_reuse_distance"], zero["stage3_max_live_parameters"]) = (json!(0), json!(500_000));
            }
            let config = json!({"train_micro_batch_size_per_gpu": recorded["batch"], "zero_optimization": zero, "bf16": {"enabled": true}});
            write(dir.path(), "ds.json", &config.to_string());
            yaml += "dist_config: {name: deepspeed, config_file: ds.json}\n";
        }
        let config = write(dir.path(), "train.yaml", &yaml);
        let made = prediction(&[config.to_str().unwrap(), "--world-size", &case["ranks"].to_string()]);
        let group = made.worlds[0].ranks.iter().find(|g| g.ranks[0][0] == 0).unwrap();
        let phase = |name: &str| group.phases.iter().find(|p| p.phase.name() == name).unwrap();
        let of = |in_phase: &str, category: &str| -> u64 {
            phase(in_phase).items.iter().filter(|i| i.place == Place::Device && i.category.name() == category).map(|i| i.bytes).sum()
        };
        for (what, predicted, most) in [
            ("parameters", of("load", "parameters"), 0.03),
            ("masters", of("load", "masters"), 0.03),
            ("gradients", of("step", "gradients"), 0.03),
            ("optimizer_states", of("step", "optimizer_states"), 0.03),
            ("forward", phase("forward").device, 0.15),
            ("backward", phase("backward").device, 0.15),
            ("step", phase("step").device, 0.15),
        ] {
            let measured = case["measured"][what].as_u64().unwrap();
            let error = (predicted as f64 - measured as f64).abs() / (measured as f64).max(1.0);
            if error > most {
                off.push(format!("{name} {engine} {variant} on {}: {what} predicted {predicted}, measured {measured}", case["ranks"]));
            }
        }
    }
    assert!(cases.len() >= 30 && off.is_empty(), "{off:#?}");
}
