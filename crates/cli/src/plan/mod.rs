//! `shardwright plan`: predicts the memory of a run. The model of memory is `shardwright_memory`; here configs, headers and worlds are brought
//! together, and the prediction is rendered.

mod compare;
mod table;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::Value as Json;
use shardwright_config::{ADVICE, Resolved, output::origin_in_short};
use shardwright_core::{ModelMeta, PlanInput, ShardPlan, TensorKind, Trainable, plan_checked, registry::Registry, text::shown};
use shardwright_engine::{
    Checkpoint, World, WorldFlags,
    architecture::{ModelOptions, parse_architecture},
    setup::{self, Setup},
};
use shardwright_memory::{
    Architecture, Budget, Settings, adapters, adapters_trained, advise, advise_strategies, formulas,
    output::{self, Decision, Prediction},
    predict,
};

use crate::{
    args::{PlanArgs, PlanFormat},
    exit::{Exit, Failure},
    output::{Written, check_writable, print, print_next, print_note, write_whole},
    page::{self, Page},
    plugins::Plugins,
    render,
};

/// Runs the command.
pub fn run(args: &PlanArgs, plugins: Plugins) -> Result<Exit, Failure> {
    let (configs, overrides) = arguments(args)?;
    if configs.len() > 1 && args.format == PlanFormat::Html {
        return Err(Failure::new(Exit::Usage, "--format html takes one CONFIG; --compare puts strategies and world sizes on its page"));
    }
    let written = if args.format == PlanFormat::Json { Written::Plan } else { Written::Page };
    args.out.as_deref().map(|file| check_writable(file, written)).transpose()?;
    let registry = plugins().map_err(|d| render::failure(&[d], &[]))?;
    let mut predictions = Vec::new();
    for config in &configs {
        predictions.push((config.display().to_string(), one(args, config, &overrides, &registry)?));
    }
    let text = match args.format {
        PlanFormat::Table => {
            predictions.iter().map(|(config, p)| table::render(config, p, configs.len() > 1)).collect::<Vec<_>>().join("\n")
        }
        PlanFormat::Json => json(&predictions)?,
        PlanFormat::Html => page::render(Page::Plan { plan: &predictions[0].1 })?,
    };
    match &args.out {
        Some(file) => write_whole(file, &text, written)?,
        None => print(&text)?,
    }
    let fits = predictions.iter().all(|(_, p)| p.worlds.first().is_none_or(|w| w.fits != Some(false)));
    if args.format == PlanFormat::Table {
        let config = configs[0].display();
        print_next(&format!("shardwright plan {config} … --compare --format html --out plan.html shows other strategies and world sizes"));
    }
    Ok(if fits { Exit::Done } else { Exit::Memory })
}

/// What has an equals sign and is no file is an override.
fn arguments(args: &PlanArgs) -> Result<(Vec<PathBuf>, Vec<String>), Failure> {
    let (overrides, configs): (Vec<String>, Vec<String>) =
        args.configs.iter().cloned().partition(|a| a.contains('=') && !Path::new(a).exists());
    if configs.is_empty() {
        return Err(Failure::new(Exit::Usage, "no CONFIG is given, only overrides"));
    }
    Ok((configs.into_iter().map(PathBuf::from).collect(), overrides))
}

fn json(predictions: &[(String, Prediction)]) -> Result<String, Failure> {
    let text = match predictions {
        [(_, one)] => serde_json::to_string_pretty(one),
        all => serde_json::to_string_pretty(&all.iter().map(|(config, p)| (config, p)).collect::<BTreeMap<_, _>>()),
    };
    text.map(|t| t + "\n").map_err(|e| Failure::new(Exit::Io, format_args!("cannot render JSON: {e}")))
}

/// A config that is decided, with its model's headers.
struct Case<'a> {
    args: &'a PlanArgs,
    config: &'a Path,
    overrides: &'a [String],
    registry: &'a Registry,
    checkpoint: Checkpoint,
    /// `config.json`; null where there is none.
    model_config: Json,
    /// The model as its class has it, by whether a tied weight is a parameter of each parameter group.
    models: RefCell<BTreeMap<(bool, bool), ModelMeta>>,
}

/// A plan with what its memory depends on.
struct Planned {
    plan: ShardPlan,
    settings: Settings,
    architecture: Architecture,
}

fn one(args: &PlanArgs, config: &Path, overrides: &[String], registry: &Registry) -> Result<Prediction, Failure> {
    let world = World::from_process(WorldFlags { rank: None, world_size: args.world_size })?;
    let setup = setup::resolve(config, overrides, &world, registry)?;
    let Setup { outcome, model, .. } = setup;
    let Some(resolved) = &outcome.resolved else { return Err(render::failure(&outcome.diagnostics, &outcome.sources)) };
    let (advice, findings): (Vec<_>, Vec<_>) = outcome.diagnostics.iter().cloned().partition(|d| ADVICE.contains(&d.code));
    render::warn(&findings, &outcome.sources);
    let undecided = resolved.undecided();
    if !undecided.is_empty() {
        return Err(render::failure(&undecided, &outcome.sources));
    }
    let checkpoint = model?.checkpoint()?;
    let model_config = checkpoint.config_text().and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Json::Null);
    let case = Case { args, config, overrides, registry, checkpoint, model_config, models: RefCell::default() };
    let planned = case.plan(resolved, true)?;
    render::warn(&advice, &outcome.sources);
    let budget = Budget { device: args.device_memory.map(|s| s.0), host: args.host_memory.map(|s| s.0) };
    let mut first = case.predict(&planned, &budget);
    first.advice = advise(&planned.plan, &planned.architecture, &planned.settings, &first, &budget);
    let ranks = planned.plan.mesh.world_size();
    let mut worlds = Vec::new();
    if args.compare {
        let left_out;
        (worlds, left_out) = case.compare(&outcome, ranks, &budget);
        if !left_out.is_empty() {
            print_note(&format!("note: not compared, for the config does not resolve so: {}", left_out.join(", ")));
        }
        advise_strategies(&mut first, worlds.iter().filter(|w| w.world_size == ranks));
    } else if first.fits == Some(false) {
        advise_strategies(&mut first, &case.other_strategies(&outcome, ranks, &budget));
    }
    worlds.insert(0, first);
    let mut prediction = describe(resolved, &planned);
    (prediction.worlds, prediction.budget) = (worlds, budget);
    Ok(prediction)
}

impl Case<'_> {
    /// The validated plan, adapters included. Warnings are printed where `speak`.
    fn plan(&self, resolved: &Resolved, speak: bool) -> Result<Planned, Failure> {
        let on_cpu = resolved.device.as_deref() == Some("cpu");
        let settings = Settings::from_document(&resolved.document, resolved.strategy.name(), self.args.seq_len, on_cpu);
        let mut model = self.model(resolved, speak)?;
        let mut trained: &Trainable = &resolved.trainable;
        let adapted;
        if let Some(lora) = settings.lora.as_ref().filter(|_| !settings.inference) {
            model = adapters(&model, lora);
            adapted = adapters_trained(lora);
            trained = adapted.as_ref().unwrap_or(trained);
        }
        let mut wanted = PlanInput::new(&model, &resolved.mesh, resolved.precision.as_ref());
        (wanted.buffers, wanted.units, wanted.trainable) = (&resolved.buffers, &resolved.units, trained);
        let plan = plan_checked(resolved.strategy.as_ref(), &wanted)?;
        let architecture = Architecture::new(&model, &self.model_config);
        Ok(Planned { plan, settings, architecture })
    }

    /// The model as its class has it.
    fn model(&self, resolved: &Resolved, speak: bool) -> Result<ModelMeta, Failure> {
        let tied = (resolved.strategy.ties_per_group(), resolved.strategy.compares_tied());
        if let Some(known) = self.models.borrow().get(&tied) {
            return Ok(known.clone());
        }
        let own = resolved.architecture.as_ref().and_then(|text| parse_architecture(text).ok());
        let found = self.checkpoint.find_model(&ModelOptions::of(resolved, own.as_ref()))?;
        if speak {
            self.checkpoint.warnings().iter().chain(&found.warnings).for_each(|w| print_note(&format!("warning: {}", shown(w))));
        }
        self.models.borrow_mut().insert(tied, found.model.meta.clone());
        Ok(found.model.meta)
    }

    fn predict(&self, planned: &Planned, budget: &Budget) -> output::World {
        let mut world = predict(&planned.plan, &planned.architecture, &planned.settings);
        world.fits = budget.fits(world.peak.device, world.peak.host);
        world
    }
}

/// Everything but the worlds.
fn describe(resolved: &Resolved, planned: &Planned) -> Prediction {
    let Planned { plan, settings, architecture } = planned;
    let elements = |trained: bool| {
        let parameters = plan.tensors.iter().filter(|t| t.kind == TensorKind::Parameter && (t.trainable || !trained));
        parameters.map(shardwright_core::TensorPlan::numel).fold(0, u64::saturating_add)
    };
    let tuning = match (settings.inference, &settings.lora, resolved.document.get("/training/peft_config/name").and_then(Json::as_str)) {
        (true, ..) => "inference",
        (_, Some(_), _) => "lora",
        (.., Some("freeze")) => "freeze",
        _ => "full",
    };
    let mut assumptions = settings.assumed.clone();
    if !architecture.is_known() {
        assumptions.push("no formula for the activations of this architecture: the sizes of its matrices stand in for one".to_owned());
    }
    if !settings.on_cpu {
        assumptions.push("1 GiB of each device for the driver's context and the collective library".to_owned());
    }
    Prediction {
        schema: output::SCHEMA.to_owned(),
        version: shardwright_core::VERSION.to_owned(),
        model: output::Model {
            name: resolved.model.clone(),
            model_type: resolved.document.get("/model/model_type").and_then(Json::as_str).map(str::to_owned),
            parameters: elements(false),
            trainable: elements(true),
            tensors: plan.tensors.iter().map(|t| output::Tensor { name: t.name.to_string(), shape: t.shape.clone() }).collect(),
        },
        run: output::Run {
            optimizer: settings.optimizer.name().to_owned(),
            micro_batch: settings.micro_batch,
            accumulation: settings.accumulation,
            seq_len: settings.seq_len,
            activation_checkpointing: settings.checkpointing,
            tuning: tuning.to_owned(),
        },
        budget: Budget::default(),
        worlds: Vec::new(),
        formulas: formulas::all(&architecture.formula(), settings),
        decisions: decisions(resolved),
        assumptions,
    }
}

/// Sections whose values change memory.
const DECIDING: [&str; 6] = ["/strategy/", "/precision/", "/mesh/", "/batch/", "/deepspeed/zero_optimization/", "/deepspeed/bf16/"];
/// Keys of `training` that do.
const DECIDING_KEYS: [&str; 7] = [
    "/training/cutoff_len",
    "/training/enable_activation_checkpointing",
    "/training/flash_attn",
    "/training/optim_config",
    "/training/peft_config",
    "/training/init_config",
    "/training/save_ckpt_as_hf",
];

fn decisions(resolved: &Resolved) -> Vec<Decision> {
    let decides = |pointer: &str| {
        DECIDING.iter().any(|d| pointer.starts_with(d))
            || DECIDING_KEYS.iter().any(|d| pointer == *d || pointer.starts_with(&format!("{d}/")))
    };
    let leaves = resolved.document.leaves().into_iter().filter(|(pointer, ..)| decides(pointer));
    leaves
        .map(|(pointer, value, origin)| Decision {
            key: pointer[1..].replace('/', "."),
            value: value.as_str().map_or_else(|| value.to_string(), str::to_owned),
            from: origin_in_short(origin),
        })
        .collect()
}
