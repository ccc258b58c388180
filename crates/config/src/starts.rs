//! What a LLaMA-Factory training opens beside its config when it starts: a dataset, an adapter, a checkpoint to go on from. Whether they are there
//! is looked up by the caller, since this crate opens no file. Source: LLaMA-Factory's `DataEngine`, `load_data_from_file` and `resume`, peft's
//! `PeftConfig`.

use shardwright_core::{
    diagnostic::{Diagnostic, Location, Source},
    text::short,
    tree::{Node, Value, yaml},
};

use crate::draft::Draft;

/// What is not where the training looks for it: it may be so on another machine.
const MISSING: &str = "path-not-found";
/// What is there, and cannot be opened as what it is for.
const UNUSABLE: &str = "path-not-usable";

/// What lies at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AtPath {
    /// Nothing.
    Missing,
    /// A file.
    File,
    /// A directory.
    Directory,
}

/// The file system as the training would see it.
pub trait Look {
    /// What lies at a path, seen from the working directory.
    fn at(&self, path: &str) -> AtPath;
    /// Names in a directory, as many as are worth a look.
    fn names(&self, directory: &str) -> Vec<String>;
    /// Whether something lies at a path, seen from the config's directory.
    fn is_beside_config(&self, path: &str) -> bool;
    /// The text of a file that [`Look::at`] has found.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn read(&self, path: &str) -> Result<Source, String>;
}

/// The paths that a LLaMA-Factory training opens.
#[derive(Clone, Debug)]
pub(super) struct Opens {
    /// The config's beginning, where a missing key is reported.
    start: Location,
    dataset: Option<Node>,
    adapters: Vec<Node>,
    checkpoint: Option<Node>,
}

impl Opens {
    /// Those of a draft; none where nothing is trained by LLaMA-Factory.
    pub(super) fn of(draft: &Draft) -> Option<Self> {
        let is_set = |key: &[&str]| draft.root.find(key).is_some_and(Node::is_truthy);
        let samples = ["sample_backend", "max_new_tokens"].iter().any(|key| draft.root.get(key).is_some());
        let other = draft.original.is_some() || draft.document.is_some() || samples || is_set(&["shardwright", "inference"]);
        if other || draft.sections.get("peft_config").is_some_and(|s| s.body.get("export_dir").is_some_and(Node::is_truthy)) {
            return None;
        }
        let text = |node: &Node| node.as_str().is_some_and(|text| !text.is_empty());
        let lora = draft.sections.get("peft_config").filter(|s| s.name == "lora");
        let adapters = match lora.and_then(|s| s.body.get("adapter_name_or_path")) {
            Some(Node { value: Value::Seq(items), .. }) => items.clone(),
            Some(one) => vec![one.clone()],
            None => Vec::new(),
        };
        Some(Self {
            start: draft.sources[0].at(0..0),
            dataset: draft.root.get("train_dataset").cloned(),
            adapters: adapters.into_iter().filter(text).collect(),
            checkpoint: draft.root.get("resume_from_checkpoint").filter(|n| text(n) && n.as_str() != Some("auto")).cloned(),
        })
    }

    /// What keeps the training from starting, as far as its files show.
    pub(super) fn findings(&self, look: &dyn Look) -> (Vec<Diagnostic>, Vec<Source>) {
        let (mut found, mut sources) = (Vec::new(), Vec::new());
        match &self.dataset {
            None => found.push(
                Diagnostic::warning("no-train-dataset", "there is no train_dataset, and without one LLaMA-Factory does not start to train")
                    .at(self.start.clone())
                    .help("for a training name one: a file, a directory or a dataset on the hub; a layout needs none"),
            ),
            Some(node) => dataset(node, look, &mut found, &mut sources),
        }
        for node in &self.adapters {
            adapter(node, look, &mut found);
        }
        if let Some(node) = &self.checkpoint {
            checkpoint(node, look, &mut found);
        }
        (found, sources)
    }
}

fn unusable(node: &Node, message: impl Into<Box<str>>, help: &str) -> Diagnostic {
    Diagnostic::error(UNUSABLE, message).at(node.at.clone()).help(help)
}

/// The warning on a path where nothing lies.
fn missing(node: &Node, key: &str, what: &str, hub: Option<&str>, look: &dyn Look) -> Diagnostic {
    let path = node.as_str().unwrap_or_default();
    let then = match hub {
        Some(repository) => format!("LLaMA-Factory looks for '{}' on the hub", short(repository)),
        None => "LLaMA-Factory fails".to_owned(),
    };
    let place = if path.starts_with('/') { "" } else { " in the working directory" };
    let message = format!("{key}: there is no {what} '{}'{place}, so that {then}", short(path));
    let help = if look.is_beside_config(path) {
        "it is beside this config: LLaMA-Factory looks from the directory that it is started in"
    } else if path.starts_with('~') {
        "LLaMA-Factory does not replace ~ by the home directory: write the path out"
    } else {
        "check the path; where the training runs elsewhere, it must be there"
    };
    Diagnostic::warning(MISSING, message).at(node.at.clone()).help(help)
}

/// The name of a repository as the hub has it: NAME or OWNER/NAME.
fn is_repository(name: &str) -> bool {
    let part = |part: &str| {
        let is_edge = |c: char| matches!(c, '.' | '-');
        !part.is_empty()
            && !part.starts_with(is_edge)
            && !part.ends_with(is_edge)
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    name.split('/').count() <= 2 && name.split('/').all(part) && !name.contains("--") && !name.contains("..")
}

/// What the loader of datasets reads, by the ends of names.
const DATA: [&str; 6] = ["arrow", "csv", "json", "jsonl", "parquet", "txt"];

/// The end of a name after its last dot, as Python has it.
fn extension(path: &str) -> Option<&str> {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.trim_start_matches('.').rsplit_once('.').map(|(_, extension)| extension)
}

fn dataset(node: &Node, look: &dyn Look, found: &mut Vec<Diagnostic>, sources: &mut Vec<Source>) {
    let Some(path) = node.as_str().filter(|path| !path.is_empty()) else { return };
    let at = look.at(path);
    if !path.ends_with(".yaml") {
        match at {
            // With the end of a file's name it was meant as one, and not as a dataset on the hub.
            AtPath::Missing if is_repository(path) && extension(path).is_none_or(|end| end != "yml" && !DATA.contains(&end)) => {}
            AtPath::Missing => {
                found.push(missing(node, "train_dataset", "file or directory", Some(path).filter(|path| is_repository(path)), look));
            }
            there => data(node, "train_dataset", &there, look, found),
        }
        return;
    }
    if at == AtPath::File {
        return match look.read(path) {
            Ok(source) => {
                described(node, &source, look, found);
                sources.push(source);
            }
            Err(why) => found.push(unusable(node, format!("train_dataset: cannot read '{}': {why}", short(path)), "check the file")),
        };
    }
    let (repository, _) = path.rsplit_once('/').unwrap_or_default();
    if !is_repository(repository) || !repository.contains('/') {
        found.push(missing(node, "train_dataset", "file", Some(repository).filter(|name| is_repository(name)), look));
    }
}

/// Data that is read from where it lies.
fn data(node: &Node, key: &str, at: &AtPath, look: &dyn Look, found: &mut Vec<Diagnostic>) {
    let path = node.as_str().unwrap_or_default();
    let is_data = |name: &str| extension(name).is_some_and(|end| DATA.contains(&end));
    let shown = short(path);
    let what = match at {
        AtPath::Directory => {
            let names = look.names(path);
            if names.iter().any(|name| is_data(name)) {
                return;
            }
            if names.is_empty() {
                format!("the empty directory '{shown}'")
            } else {
                format!("the directory '{shown}' with no such file in it")
            }
        }
        _ if is_data(path) => return,
        _ => format!("the file '{shown}'"),
    };
    let message = format!("{key}: expected data whose name ends with .{}, found {what}", DATA.join(", ."));
    let help = "LLaMA-Factory tells the format by the end of the name; a YAML that describes datasets ends with .yaml";
    found.push(unusable(node, message, help));
}

/// A YAML that describes datasets, by name.
fn described(node: &Node, source: &Source, look: &dyn Look, found: &mut Vec<Diagnostic>) {
    let mut odd = Vec::new();
    let root = match yaml::parse(source, &mut odd) {
        Ok(root) => root,
        Err(error) => return found.push(error.and(node.at.clone(), "named here")),
    };
    if !root.is_map() || root.entries().is_empty() {
        let message = format!("expected a mapping of names to datasets, found {}", root.describe());
        let error = Diagnostic::error(UNUSABLE, message).at(root.at).and(node.at.clone(), "named here");
        return found.push(error.help("write NAME: {path: FILE, source: local}, or {path: OWNER/DATASET} for one on the hub"));
    }
    for entry in root.entries() {
        let name = short(&entry.key);
        let Some(path) = entry.value.get("path").filter(|_| entry.value.is_map()) else {
            let message = format!("{name}: expected a mapping with a path, found {}", entry.value.describe());
            let error = Diagnostic::error(UNUSABLE, message).at(entry.at.clone()).and(node.at.clone(), "named here");
            found.push(error.help("write NAME: {path: FILE, source: local}, or {path: OWNER/DATASET} for one on the hub"));
            continue;
        };
        if entry.value.get("source").and_then(Node::as_str) != Some("local") {
            continue;
        }
        let Some(text) = path.as_str() else { continue };
        match look.at(text) {
            AtPath::Missing => found.push(missing(path, &format!("{name}.path"), "file or directory", None, look)),
            there => data(path, &format!("{name}.path"), &there, look, found),
        }
    }
}

fn adapter(node: &Node, look: &dyn Look, found: &mut Vec<Diagnostic>) {
    const KEY: &str = "peft_config.adapter_name_or_path";
    let path = node.as_str().unwrap_or_default();
    match look.at(path) {
        AtPath::Directory if look.at(&format!("{path}/adapter_config.json")) == AtPath::File => {}
        AtPath::Missing if is_repository(path) && path.contains('/') => {}
        AtPath::Missing => found.push(missing(node, KEY, "directory", Some(path).filter(|path| is_repository(path)), look)),
        there => {
            let what = if there == AtPath::File { "a file" } else { "a directory without one" };
            let message = format!("{KEY}: expected a directory with an adapter_config.json, found {what}: '{}'", short(path));
            found.push(unusable(node, message, "name the directory that peft saved the adapter to"));
        }
    }
}

fn checkpoint(node: &Node, look: &dyn Look, found: &mut Vec<Diagnostic>) {
    const KEY: &str = "resume_from_checkpoint";
    let path = node.as_str().unwrap_or_default();
    match look.at(path) {
        AtPath::Directory if look.at(&format!("{path}/metadata.json")) == AtPath::File => {}
        AtPath::Missing => found.push(missing(node, KEY, "directory", None, look)),
        there => {
            let what = if there == AtPath::File { "a file" } else { "a directory without one" };
            let message = format!("{KEY}: expected a directory with a metadata.json, found {what}: '{}'", short(path));
            found.push(unusable(
                node,
                message,
                "name a checkpoint-N directory that LLaMA-Factory has saved, or auto for the newest under output_dir",
            ));
        }
    }
}
