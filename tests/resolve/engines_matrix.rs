//! Some hundreds of configs, made key by key, against what LLaMA-Factory v1, accelerate and DeepSpeed make of them: `engines_matrix.py` runs
//! them and records `engines_matrix.json`, and `engines_published.py` those of `published.json`. `engines_started.py` trains with its configs. Every row
//! agrees, or is listed below with the reason.

use serde_json::Value as Json;

use shardwright_config::{AtPath, Look};
use shardwright_core::diagnostic::{Severity, Source};

use crate::{Case, examples::differences, modules::qwen3};

fn recorded(text: &str) -> Vec<Json> {
    let recorded: Json = serde_json::from_str(text).unwrap();
    recorded["rows"].as_array().unwrap().clone()
}

/// Tells a row by its YAML, its DeepSpeed file, and what that file holds.
type Matches = fn(&str, &str, &Json) -> bool;

/// Rows whose answer is another than the engines', and why.
const KNOWN: &[(&str, Matches)] = &[
    ("the recording takes no step, in which a norm in quotes and gradients in int8 fail", |_, _, file| {
        let is_first = file["zero_optimization"]["stage"] == 1;
        file["gradient_clipping"] == "1.0" || is_first && file["data_types"]["grad_accum_dtype"] == "int8"
    }),
    ("a clipping norm beyond all numbers is shown as it is written", |_, text, _| text.contains("\"gradient_clipping\": Infinity")),
    ("read, and not started: deepspeed.initialize refuses it, as the later rows show", |_, _, file| {
        file["zero_optimization"]["cpu_offload"] == true && file["train_micro_batch_size_per_gpu"].is_null()
    }),
    ("the recording makes no groups of ranks, which DeepSpeed refuses where they do not divide the world", |_, _, file| {
        file["zero_optimization"]["zero_hpz_partition_size"] == 3
    }),
    ("the recording starts no processes, and torchrun takes neither 0 of them, nor null, nor a word", |yaml, _, _| {
        ["0\n", "null\n", "four\n"].iter().any(|number| yaml.contains(&format!("num_processes: {number}")))
    }),
    ("accelerate hands a number in quotes on, which is shown as the number", |yaml, _, _| {
        !yaml.contains("DEEPSPEED") && yaml.contains("num_processes: '4'\n")
    }),
    ("fp16 does not run on the CPU of the recording machine", |yaml, _, file| {
        let is_on = |on: &Json| on.as_str().is_some_and(|text| ["yes", "on", "1", "true"].contains(&&*text.to_lowercase()));
        yaml.contains("distributed_type: DEEPSPEED") && is_on(&file["fp16"]["enabled"])
    }),
    ("Megatron-LM runs and is not laid out", |yaml, _, _| yaml.contains("MEGATRON_LM")),
    ("the recording stops before the plugin, which takes the versions 1 and 2 alone", |yaml, _, _| yaml.contains("fsdp_version: 3")),
    ("the class is one of the model's, or it is not", |yaml, _, _| yaml.contains("moe_layer_cls_names")),
    ("transformers' Trainer fills it, and accelerate by itself does not", |yaml, _, _| yaml.contains("gradient_accumulation_steps: auto")),
    ("the recording machine had no FP8 library", |yaml, _, _| yaml.contains("mixed_precision: fp8")),
    ("tensor parallelism runs and is not laid out", |yaml, _, _| yaml.contains("tp_size: 2")),
    ("FSDP version 1 runs and is not laid out", |yaml, _, _| {
        let two = ["version: 2", "version: '2'"].iter().any(|v| yaml.contains(v)) && !yaml.contains("version: 2, version: 1");
        let two = two && !yaml.ends_with("\nfsdp_config: {}\n"); // of a key that stands there twice the later counts
        yaml.contains("distributed_type: FSDP") && !two
    }),
];

/// The same of `published.json`, whose configs have the shapes of public examples.
const KNOWN_PUBLISHED: &[(&str, Matches)] = &[
    ("FSDP version 1 runs and is not laid out", |yaml, _, _| {
        yaml.contains(r#""distributed_type": "FSDP""#) && !yaml.contains(r#""fsdp_version": 2"#)
    }),
    ("tensor parallelism runs and is not laid out", |yaml, _, _| yaml.contains(r#"tp_size": 2"#)),
    ("fsdpturbo cuts experts over a mesh of their own, and is not laid out", |yaml, _, _| yaml.contains("fsdpturbo")),
    ("the recording machine had neither an FP8 library nor MPI", |yaml, _, _| {
        yaml.contains("fp8_config") || yaml.contains("mpirun_config")
    }),
    ("fp16 does not run on the CPU of the recording machine", |yaml, _, file| {
        yaml.contains("distributed_type: DEEPSPEED") && file["fp16"]["enabled"] == true
    }),
    ("the recording has one process, too few for sequence parallelism", |yaml, _, _| yaml.contains(r#"sp_size": 2"#)),
];

/// The same of LLaMA-Factory 0.9.5, which the answers are not for where its successor differs.
const KNOWN_RELEASED: &[(&str, Matches)] =
    &[("the recording builds no trainer, which refuses context parallelism without flash attention", |yaml, _, _| {
        yaml.contains(r#""cp_size": 2"#) && !yaml.contains("flash_attention_2")
    })];

/// The same of `engines_started.json`, whose rows LLaMA-Factory 0.9.5's trainer ran to the end of a step.
const KNOWN_STARTED: &[(&str, Matches)] = &[
    ("later versions refuse unknown keys of their sections, and 0.9.5 passes over them, misspelled ones too", |yaml, _, _| {
        ["peft_config", "dist_config"].iter().any(|key| yaml.contains(key)) && (yaml.contains("foo: 1") || yaml.contains("loraplus"))
    }),
    ("shardwright's own key, and warned of as such", |yaml, _, _| yaml.contains("dtype: bfloat16")),
    ("later versions have these keys and take several kernels; a warning says that 0.9.5 does not", |yaml, _, _| {
        ["\ncp_size", "\nmp_shard_size", "\npref_beta", "\ncustom_chat_template", "\ndist_timeout", "auto,liger_kernel"]
            .iter()
            .any(|key| yaml.contains(key))
    }),
    ("later versions have the optimizer; a warning says that 0.9.5 does not", |yaml, _, _| yaml.contains("muon")),
    ("a string is repeated as often as an epoch has steps, and whether that is a number depends on the data", |yaml, _, _| {
        yaml.contains("save_epochs: '1'")
    }),
    ("it fails where the first checkpoint is saved, which the one step of the recording does not reach", |yaml, _, _| {
        yaml.contains("save_total_limit: '3'\nsave_epochs: 1")
    }),
    ("tags that make bytes or pairs, which no key takes", |yaml, _, _| {
        ["!!binary", "!!omap", "!!pairs"].iter().any(|tag| yaml.contains(tag))
    }),
    ("how deep Python reads depends on what calls it; beyond 72 levels of YAML and 120 of JSON nothing is read here", |yaml, text, _| {
        ["[", "{a: "].iter().any(|open| yaml.contains(&open.repeat(73))) || text.contains(&"[".repeat(121))
    }),
    ("the recording machine has no hub to look on, and what is in data is not read here", |yaml, _, _| {
        ["owner/name'", "name'", "owner/name/dataset_info.yaml'", "tiny/tokenizer'", "tiny'", "tiny/config.json'"]
            .iter()
            .any(|path| yaml.contains(&format!("train_dataset: '{path}")))
            || yaml.contains("adapter_name_or_path: 'owner/nope'")
    }),
    ("nothing checks these: a batch with a part of a sample in it, and a size beyond 64 bits", |_, text, _| {
        let parts = ["train_micro_batch_size_per_gpu", "gradient_accumulation_steps"];
        parts.iter().any(|key| [": 1.5", ": 0.5"].iter().any(|size| text.contains(&format!("\"{key}\"{size}"))))
            || text.contains(&10_i128.pow(30).to_string())
    }),
    ("liger and the fused kernels want a card", |yaml, _, _| yaml.contains("name: liger_kernel, include_kernels")),
    ("the classes are for other trainers than the one that recorded", |yaml, _, _| yaml.contains("model_class")),
];

/// The folder that the started configs were recorded in.
struct Recorded;

impl Look for Recorded {
    fn at(&self, path: &str) -> AtPath {
        match path.trim_start_matches("./") {
            "tiny" | "tied" => AtPath::Directory,
            "data.yaml" | "data.json" | "a.yaml" => AtPath::File,
            _ if ["tiny/", "tied/"].iter().any(|folder| path.strip_prefix(folder).is_some_and(|name| MODEL.contains(&name))) => {
                AtPath::File
            }
            _ => AtPath::Missing,
        }
    }

    fn names(&self, _: &str) -> Vec<String> {
        MODEL.map(str::to_owned).to_vec()
    }

    fn is_beside_config(&self, path: &str) -> bool {
        self.at(path) != AtPath::Missing
    }

    fn read(&self, path: &str) -> Result<Source, String> {
        let text = if path == "data.yaml" { "d: {path: data.json, source: local}" } else { "model: tiny" };
        Ok(Source::new(path, text))
    }
}

const MODEL: [&str; 4] = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];

#[test]
fn configs_start_where_llamafactorys_own_trainer_starts_with_them() {
    let rows = recorded(include_str!("engines_started.json"));
    assert!(rows.len() > 150, "{}", rows.len());
    let mut wrong = Vec::new();
    let mut used = vec![false; KNOWN_STARTED.len()];
    for row in &rows {
        let (yaml, text) = (row["yaml"].as_str().unwrap(), row["deepspeed"].as_str().unwrap_or_default());
        let mut case = Case::new(yaml).deepspeed(text);
        case.env.insert("DS_ACCELERATOR".into(), "cpu".into());
        let outcome = case.outcome();
        let misfits = outcome.resolved.as_ref().map(|r| r.misfits(&qwen3(yaml.contains("model: tied")))).unwrap_or_default();
        let paths = outcome.resolved.as_ref().map(|r| r.start_findings(&Recorded).0).unwrap_or_default();
        let is_refused = outcome.has_errors() || misfits.iter().any(|d| d.severity == Severity::Error) || !paths.is_empty();
        let codes: Vec<&str> = outcome.diagnostics.iter().chain(&misfits).chain(&paths).map(|d| d.code).collect();
        let differs = is_refused != row["answer"]["error"].is_string();
        match KNOWN_STARTED.iter().position(|(_, matches)| matches(yaml, text, &Json::Null)) {
            Some(at) => used[at] |= differs,
            None if differs => wrong.push(format!("{yaml} {text}: {codes:?}, and there {}", row["answer"])),
            None => {}
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    let stale: Vec<&str> = KNOWN_STARTED.iter().zip(used).filter(|(_, used)| !used).map(|((reason, _), _)| *reason).collect();
    assert!(stale.is_empty(), "listed as differences, and none any more: {stale:?}");
}

#[test]
fn every_row_is_as_the_engines_answer_it() {
    compare(&recorded(include_str!("engines_matrix.json")), KNOWN, 1000);
}

#[test]
fn configs_shaped_as_public_examples_are_as_the_engines_answer_them() {
    compare(&recorded(include_str!("engines_published.json")), KNOWN_PUBLISHED, 50);
}

#[test]
fn configs_shaped_as_public_examples_are_as_the_release_of_llamafactory_answers_them() {
    compare(&recorded(include_str!("engines_released.json")), KNOWN_RELEASED, 70);
}

/// Without a GPU accelerate counts one rank, and DeepSpeed all of them.
#[test]
fn a_batch_that_fails_on_cpus_is_warned_of_where_deepspeed_runs_on_them() {
    let rows = recorded(include_str!("engines_cpu.json"));
    let mut refused = 0;
    for row in &rows {
        let text = |key: &str| row[key].as_str().unwrap();
        let mut case = Case::new(text("yaml")).deepspeed(text("deepspeed")).world(8);
        assert!(!case.codes().contains(&"deepspeed-batch-on-cpu"), "nothing is said of machines with a GPU");
        case.env.insert("DS_ACCELERATOR".into(), "cpu".into());
        let error = row["answer"]["error"].as_str();
        refused += usize::from(error.is_some());
        assert!(error.is_none_or(|e| e.contains("Check batch related parameters")), "{row}");
        assert_eq!(case.codes().contains(&"deepspeed-batch-on-cpu"), error.is_some(), "{row}");
    }
    assert!(refused > 0 && refused < rows.len(), "{refused}");
}

fn compare(rows: &[Json], known_rows: &[(&str, Matches)], least: usize) {
    assert!(rows.len() > least, "{}", rows.len());
    let mut wrong = Vec::new();
    let mut used = vec![false; known_rows.len()];
    for row in rows {
        let (yaml, text) = (row["yaml"].as_str().unwrap(), row["deepspeed"].as_str().unwrap_or_default());
        let mut case = Case::new(yaml);
        case.hidden_size = Some(64);
        case.deepspeed = row["deepspeed"].as_str().map(str::to_owned);
        case.world = row["world"].as_u64().map(|w| u32::try_from(w).unwrap());
        if row["engine"] == "accelerate" {
            case = case.with("micro_batch_size=1");
        }
        let outcome = case.outcome();
        let codes: Vec<&str> = outcome.diagnostics.iter().map(|d| d.code).collect();
        let found: Vec<String> = match (row["answer"]["error"].as_str(), outcome.has_errors()) {
            (Some(error), false) => vec![format!("is refused by the engines and not here ({codes:?}): {error}")],
            (None, true) => vec![format!("runs and is refused here: {codes:?}")],
            (Some(_), true) => Vec::new(),
            (None, false) => differences(row, &outcome.to_json()),
        };
        let file: Json = serde_json::from_str(text).unwrap_or(Json::Null);
        let known = known_rows.iter().position(|(_, matches)| matches(yaml, text, &file));
        match known {
            Some(at) => used[at] |= !found.is_empty(),
            None if found.is_empty() => {}
            None => wrong.push(format!("{yaml} {text}: {}", found.join("; "))),
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    let stale: Vec<&str> = known_rows.iter().zip(used).filter(|(_, used)| !used).map(|((reason, _), _)| *reason).collect();
    assert!(stale.is_empty(), "listed as differences, and none any more: {stale:?}");
}
