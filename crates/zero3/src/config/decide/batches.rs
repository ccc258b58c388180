//! The batch: its three keys, what accelerate and LLaMA-Factory fill in, and DeepSpeed's own check of the product.

use serde_json::Value as Json;
use shardwright_core::{
    diagnostic::{Diagnostic, Location},
    document::{Document, Origin},
    strategy_config::{BuildContext, Dialect},
    tree::Node,
};

use super::ConfigIs;
use crate::config::{
    batch::{self, BatchError},
    read,
};

/// A batch key: a positive integer, or `None` for auto and absent, with the place of what is written.
fn batch_key(root: &Node, key: &str, cx: &mut BuildContext<'_>) -> (Option<u64>, Option<Location>) {
    let Some(node) = root.get(key).filter(|n| !n.is_null()) else { return (None, None) };
    if node.as_str() == Some("auto") {
        return (None, None);
    }
    // Both engines calculate with it before DeepSpeed reads it.
    let value = read::integer(node).filter(|_| node.as_str().is_none()).and_then(|i| u64::try_from(i).ok());
    if value.is_none() {
        let message = format!("{key}: expected a positive integer or auto, found {}", node.describe());
        cx.diagnostics.push(Diagnostic::error("deepspeed-type", message).at(node.at.clone()));
    }
    (value, Some(node.at.clone()))
}

const TRAIN: &str = "train_batch_size";
const SEQUENCE: &str = "sequence_parallel_size";
const MICRO: &str = "train_micro_batch_size_per_gpu";
const ACCUMULATION: &str = "gradient_accumulation_steps";

/// The batch triple: what the file leaves open is filled from the YAML, then DeepSpeed's own check applies.
pub(super) fn batches(root: &Node, file: ConfigIs, document: &mut Document, cx: &mut BuildContext<'_>) {
    let (train, train_at) = batch_key(root, TRAIN, cx);
    let (micro, micro_at) = batch_key(root, MICRO, cx);
    let (mut accumulation, accumulation_at) = batch_key(root, ACCUMULATION, cx);
    let training = cx.training;
    // accelerate fills what is "auto" from the YAML; an accumulation that its file lacks it writes as 1 before that, and null it multiplies by.
    let is_absent = file == ConfigIs::File && root.get(ACCUMULATION).is_none();
    if is_absent {
        accumulation = Some(1);
    }
    if let Some(null) = root.get(ACCUMULATION).filter(|node| file == ConfigIs::File && node.is_null()) {
        let message = format!("{ACCUMULATION} is null, with which accelerate fails: it multiplies by it");
        let help = "write \"auto\", which follows from the YAML, or a number";
        cx.diagnostics.push(Diagnostic::error("deepspeed-type", message).at(null.at.clone()).help(help));
    }
    let is_auto = |key: &str| root.get(key).is_some_and(|node| node.as_str() == Some("auto"));
    let open = |key: &str| root.get(key).is_none_or(Node::is_null);
    if file == ConfigIs::File && training.dialect == Dialect::Accelerate && open(MICRO) && train.is_none() && train_at.is_none() {
        if let Some(node) = root.get(TRAIN).filter(|_| is_auto(TRAIN)) {
            let message = format!("{TRAIN}: accelerate fills this auto only where {MICRO} is given too, and refuses to start");
            let help = format!("write \"{MICRO}\": \"auto\" too");
            return cx.diagnostics.push(Diagnostic::error("deepspeed-auto-left", message).at(node.at.clone()).help(help));
        }
        return cx.diagnostics.push(batch_error(BatchError::Missing, u64::from(training.world_size.value), Some(root.at.clone())));
    }
    if micro.is_none() && training.batch_is_unknown() {
        return batch_of_the_loader(train.zip(train_at), accumulation.zip(accumulation_at), document);
    }
    let yaml_micro = training.micro_batch_size.value;
    let step = u64::from(training.dp_size.value).saturating_mul(yaml_micro).max(1);
    let yaml_accumulation =
        training.accumulation.value.unwrap_or_else(|| training.global_batch_size.value.map_or(1, |global| (global / step).max(1)));
    // Ranks that share a sequence share its samples.
    let sharing = if training.dialect == Dialect::Accelerate { u64::from(training.cp_size.value).max(1) } else { 1 };
    let world = u64::from(training.world_size.value) / sharing;
    // DeepSpeed divides the ranks by the file's `sequence_parallel_size`; accelerate does not when it fills an "auto".
    let sequence = root.get(SEQUENCE).and_then(read::integer).and_then(|n| u64::try_from(n).ok()).unwrap_or(1).max(1);
    let (counted, world) = (world, world / sequence);
    if counted % sequence != 0 || (sequence > 1 && is_auto(TRAIN)) {
        let message = format!(
            "{SEQUENCE} {sequence} divides the {counted} ranks for DeepSpeed's batch check, and accelerate fills {TRAIN} for all of them: they differ"
        );
        let at = root.get(SEQUENCE).map(|node| node.at.clone());
        let help = format!("leave {TRAIN} out, and let {SEQUENCE} divide the number of ranks");
        return cx.diagnostics.push(Diagnostic::error("deepspeed-batch", message).at(at).help(help));
    }
    let from_yaml = training.dialect == Dialect::LlamaFactory;
    for (key, yaml_key, value, at, yaml, written) in [
        (MICRO, "micro_batch_size", micro, &micro_at, yaml_micro, training.micro_batch_size.location()),
        (ACCUMULATION, "global_batch_size", accumulation, &accumulation_at, yaml_accumulation, training.global_batch_size.location()),
    ] {
        if let (Some(value), true) = (value, from_yaml && value.is_some_and(|v| v != yaml)) {
            let is = if key == ACCUMULATION && is_absent { "absent, which accelerate takes for 1," } else { &format!("{value} here,") };
            let message =
                format!("{key} is {is} but {yaml_key} of the YAML makes it {yaml}; DeepSpeed uses {value}, LLaMA-Factory's loop {yaml}");
            let mut diagnostic =
                Diagnostic::warning("batch-disagrees", message).at(at.clone().unwrap_or_else(|| root.at.clone())).help("write auto");
            if let Some(written) = written {
                diagnostic = diagnostic.and(written, format!("{yaml_key} here"));
            }
            cx.diagnostics.push(diagnostic);
        }
    }
    if let (true, Some(node)) = (from_yaml, root.get(TRAIN).filter(|node| node.as_str() == Some("auto"))) {
        on_cpu(&node.at, yaml_micro, world, cx);
    }
    // accelerate fills what is "auto", and leaves what is absent to DeepSpeed.
    let left_out = training.dialect == Dialect::Accelerate && train.is_some() && open(MICRO);
    let filled = (train, micro.or((!left_out).then_some(yaml_micro)), Some(accumulation.unwrap_or(yaml_accumulation)));
    let place = [&train_at, &micro_at, &accumulation_at].into_iter().find_map(Clone::clone);
    let batch = match batch::infer(filled.0, filled.1, filled.2, world) {
        Ok(batch) => batch,
        Err(error) => return cx.diagnostics.push(batch_error(error, world, place)),
    };
    let written = |at: &Option<Location>, rule: &str, from: &[&str]| match at {
        Some(at) => Origin::Written(at.clone()),
        None => Origin::rule(rule, from.iter().copied()),
    };
    let micro_origin = || match left_out {
        true => Origin::rule("train_batch_size / (accumulation * ranks)", ["/batch/global", "/batch/accumulation", "/mesh/world_size"]),
        false => written(&micro_at, "auto: micro_batch_size of the YAML", &["/training/micro_batch_size"]),
    };
    let accumulation_origin = || match is_absent {
        true => Origin::rule("absent: 1, as accelerate writes it", [] as [&str; 0]),
        false => written(
            &accumulation_at,
            "auto: global_batch_size of the YAML / (dp * micro)",
            &["/training/global_batch_size", "/mesh/dp", "/training/micro_batch_size"],
        ),
    };
    let train_origin =
        || written(&train_at, "micro * accumulation * world_size", &["/batch/micro", "/batch/accumulation", "/mesh/world_size"]);
    document.set(&["batch", "micro"], batch.micro, micro_origin());
    document.set(&["batch", "accumulation"], batch.accumulation, accumulation_origin());
    document.set(&["batch", "global"], batch.train, train_origin());
    document.set(&["deepspeed", TRAIN], batch.train, train_origin());
    document.set(&["deepspeed", MICRO], batch.micro, micro_origin());
    document.set(&["deepspeed", ACCUMULATION], batch.accumulation, accumulation_origin());
}

/// accelerate fills a `train_batch_size` of "auto" with micro batch times accumulation times the ranks that it counts. Without a GPU it finds no
/// backend and counts one, whatever the micro batch; DeepSpeed multiplies by all ranks, and refuses the difference.
fn on_cpu(at: &Location, micro: u64, world: u64, cx: &mut BuildContext<'_>) {
    let variable = &cx.training.deepspeed_on_cpu;
    if !variable.value || world < 2 {
        return;
    }
    let message = format!(
        "{TRAIN} is auto: without a GPU accelerate counts one rank and fills it for micro_batch_size {micro} on that one, and LLaMA-Factory fails in \
         DeepSpeed's batch check, which counts {world}; with a GPU per rank it runs"
    );
    let mut warning = Diagnostic::warning("deepspeed-batch-on-cpu", message).at(at.clone()).help(format!("leave {TRAIN} out"));
    if let Some(variable) = variable.location() {
        warning = warning.and(variable, "DeepSpeed runs on CPUs here".to_owned());
    }
    cx.diagnostics.push(warning);
}

/// LLaMA-Factory builds the model under ZeRO-3 before it knows the batch, and before DeepSpeed knows the ranks: a micro batch or an accumulation
/// that the file leaves open is 1 there, so is the number of ranks, and DeepSpeed checks the product. A `train_batch_size` of "auto" is left out.
pub(super) fn at_loading(root: &Node, cx: &mut BuildContext<'_>) {
    // Python's comparison with 3, to which a string is never equal.
    let stage = root.find(&["zero_optimization", "stage"]).filter(|stage| stage.as_str().is_none());
    if stage.and_then(read::integer) != Some(3) {
        return;
    }
    // What is null is neither "auto" nor absent, and nobody fills it.
    if let (None, Some(null)) = (root.get(TRAIN).filter(|node| !node.is_null()), root.get(MICRO).filter(|node| node.is_null())) {
        let message =
            format!("{MICRO} is null and {TRAIN} is not given: while LLaMA-Factory loads the model under ZeRO-3, DeepSpeed refuses that");
        return cx
            .diagnostics
            .push(Diagnostic::error("deepspeed-batch", message).at(null.at.clone()).help("write \"auto\", or leave it out"));
    }
    let number = |key: &str| read::integer(root.get(key)?).and_then(|i| u64::try_from(i).ok());
    let (Some(train), Some(at)) = (number(TRAIN), root.get(TRAIN).map(|node| node.at.clone())) else { return };
    let (micro, accumulation) = (number(MICRO).unwrap_or(1), number(ACCUMULATION).unwrap_or(1));
    if let Err(BatchError::NotEqual(_)) = batch::infer(Some(train), Some(micro), Some(accumulation), 1) {
        let message = format!(
            "{TRAIN} is {train}; while LLaMA-Factory loads the model under ZeRO-3, DeepSpeed expects {MICRO} {micro} times {ACCUMULATION} \
             {accumulation} times 1 rank, for it does not know the others yet"
        );
        cx.diagnostics.push(Diagnostic::error("deepspeed-batch", message).at(at).help("write \"train_batch_size\": \"auto\""));
    }
}

/// accelerate fills the micro batch from the data loader when training starts.
fn batch_of_the_loader(train: Option<(u64, Location)>, accumulation: Option<(u64, Location)>, document: &mut Document) {
    let later = || Origin::rule("auto: the data loader decides when training starts", [] as [&str; 0]);
    let entry = |given: Option<(u64, Location)>| match given {
        Some((value, at)) => (Json::from(value), Origin::Written(at)),
        None => (Json::Null, later()),
    };
    let accumulation = match accumulation {
        None => (Json::from(1), Origin::rule("auto: 1, as accelerate fills it", [] as [&str; 0])),
        given => entry(given),
    };
    for (short, key, (value, origin)) in
        [("micro", MICRO, (Json::Null, later())), ("accumulation", ACCUMULATION, accumulation), ("global", TRAIN, entry(train))]
    {
        document.set(&["batch", short], value.clone(), origin.clone());
        document.set(&["deepspeed", key], value, origin);
    }
}

fn batch_error(error: BatchError, world: u64, at: Option<Location>) -> Diagnostic {
    let message = match error {
        BatchError::Missing => "either train_batch_size or train_micro_batch_size_per_gpu must be given".to_owned(),
        BatchError::TooLarge => "the batch has more samples than 64 bits count".to_owned(),
        BatchError::NotPositive(b) => {
            format!("{TRAIN} {}, {MICRO} {} and {ACCUMULATION} {} must all be positive, on {world} ranks", b.train, b.micro, b.accumulation)
        }
        BatchError::NotEqual(b) => {
            format!("{TRAIN} is {}, expected {MICRO} {} times {ACCUMULATION} {} times {world} ranks", b.train, b.micro, b.accumulation)
        }
    };
    Diagnostic::error("deepspeed-batch", message).at(at).help("write auto for the keys that should follow from the YAML")
}
