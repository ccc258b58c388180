//! From a config's path to its resolution: reads the texts that the pure phases of `shardwright_config` ask for, and nothing else.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use shardwright_arch::Architecture;
use shardwright_config::{AtPath, Draft, Input, Look, Outcome, Supplied};
use shardwright_core::{
    diagnostic::{Severity, Source},
    registry::Registry,
    suggest::nearest,
};

use crate::{
    architecture::{is_made_on_meta, parse_architecture},
    checkpoint::{HubEnv, ModelDir},
    error::{EngineError, ErrorKind, Result},
    world::World,
};

/// A config file larger than this is none.
const MOST_BYTES: u64 = 16 << 20;

/// Files beside a missing one that are looked at.
const MOST_NEIGHBOURS: usize = 10_000;

/// A config with everything that it named and that was at hand.
#[derive(Debug)]
#[non_exhaustive]
pub struct Setup {
    /// What became of it, with every finding.
    pub outcome: Outcome,
    /// The model's directory, or why there is none. Resolution goes on without; loading cannot.
    pub model: Result<ModelDir>,
    /// The user's own architecture.
    pub architecture: Option<Architecture>,
}

/// Reads and resolves the config at `path` for `world`. Files that it names are sought beside it, then in the working directory.
///
/// # Errors
/// [`ErrorKind::Config`] where the config itself cannot be read. What is wrong inside of it is among the findings.
pub fn resolve(path: &Path, overrides: &[String], world: &World, registry: &Registry) -> Result<Setup> {
    let text = read_text(path).map_err(|why| EngineError::new(ErrorKind::Config, why).file(path))?;
    resolve_source(Source::new(path.display().to_string(), text), path, overrides, world, registry)
}

/// Resolves a config that is at hand as a text, as if it were the file at `path`.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_source(config: Source, path: &Path, overrides: &[String], world: &World, registry: &Registry) -> Result<Setup> {
    let env = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
    let draft = Draft::parse(&Input { config, overrides: overrides.to_vec(), env }, registry);
    let bases = bases(path);
    let mut model = match draft.model() {
        none if none.is_empty() => {
            Err(EngineError::new(ErrorKind::Config, "the config names no model; add model=DIR to the command line").file(path))
        }
        name => ModelDir::find(&name, &bases, &HubEnv::from_process()),
    };
    let supplied = Supplied {
        files: draft.files().into_iter().map(|name| (name.clone(), named_file(&name, &bases))).collect(),
        model: model.as_ref().ok().filter(|m| m.config_text.is_some()).map(ModelDir::facts).transpose()?,
        world_size: world.size,
        world_size_is_flag: world.size_is_flag,
    };
    let mut outcome = draft.resolve(&supplied, registry);
    if let (Ok(model), Some(resolved)) = (&mut model, &outcome.resolved) {
        model.index_first = is_made_on_meta(resolved);
    }
    let own = outcome.resolved.as_ref().and_then(|r| r.architecture.as_ref()).map(parse_architecture);
    let architecture = match own {
        None => None,
        Some(Ok(own)) => Some(own),
        Some(Err(found)) => {
            (outcome.resolved, outcome.diagnostics) = (None, [found, outcome.diagnostics].concat());
            None
        }
    };
    Ok(Setup { outcome, model, architecture })
}

impl Setup {
    /// Adds what keeps LLaMA-Factory from starting to train beside the config itself: no dataset, or paths where nothing lies that it can open.
    /// Where values are not shown, `errors_only`: a path may be one of another machine.
    pub fn check_start(&mut self, config: &Path, errors_only: bool) {
        let Some(resolved) = &self.outcome.resolved else { return };
        let beside = config.parent().unwrap_or(Path::new("")).to_owned();
        let (mut found, sources) = resolved.start_findings(&Disk { beside });
        if errors_only {
            found.retain(|d| d.severity == Severity::Error);
        }
        self.outcome.sources.extend(sources);
        self.outcome.add(found);
    }
}

/// The file system, for a config in a directory.
struct Disk {
    beside: PathBuf,
}

impl Look for Disk {
    fn at(&self, path: &str) -> AtPath {
        match std::fs::metadata(path) {
            Err(_) => AtPath::Missing,
            Ok(meta) if meta.is_dir() => AtPath::Directory,
            Ok(_) => AtPath::File,
        }
    }

    fn names(&self, directory: &str) -> Vec<String> {
        let entries = std::fs::read_dir(directory).into_iter().flatten().take(MOST_NEIGHBOURS);
        entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn is_beside_config(&self, path: &str) -> bool {
        self.beside.join(path).exists()
    }

    fn read(&self, path: &str) -> Result<Source, String> {
        read_text(Path::new(path)).map(|text| Source::new(path, text))
    }
}

/// Where relative names are sought: the config's directory, then the working directory.
fn bases(config: &Path) -> Vec<PathBuf> {
    let beside = config.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut bases = vec![beside.to_owned()];
    if beside != Path::new(".") {
        bases.push(PathBuf::from("."));
    }
    bases
}

fn named_file(name: &str, bases: &[PathBuf]) -> Result<Source, String> {
    let beside = |base: &PathBuf| if base.as_os_str() == "." { PathBuf::from(name) } else { base.join(name) };
    let places: Vec<PathBuf> = bases.iter().map(beside).collect();
    match places.iter().find(|p| p.exists()) {
        Some(path) => read_text(path).map(|text| Source::new(path.display().to_string(), text)),
        None => {
            let tried: Vec<String> = places.iter().map(|p| p.display().to_string()).collect();
            let near = places.iter().find_map(|p| neighbour(p)).map_or(String::new(), |near| format!("; did you mean {near}?"));
            Err(format!("no such file, tried {}{near}", tried.join(" and ")))
        }
    }
}

/// The file beside `path` whose name is nearly the same.
fn neighbour(path: &Path) -> Option<String> {
    let wanted = path.file_name()?.to_str()?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .ok()?
        .take(MOST_NEIGHBOURS)
        .filter_map(|entry| entry.ok().filter(|e| e.path().is_file())?.file_name().into_string().ok())
        .collect();
    names.sort();
    let near = nearest(wanted, names.iter().map(String::as_str))?;
    Some(path.with_file_name(near).display().to_string())
}

/// The text of a regular file of a size that a config may have.
///
/// # Errors
/// Why there is none.
pub fn read_text(path: &Path) -> std::result::Result<String, String> {
    // Opening a pipe would wait for who writes to it, and a device may never end.
    if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
        return Err("not a regular file".to_owned());
    }
    if path.as_os_str().is_empty() {
        return Err("the path is empty; name a file".into());
    }
    let file = File::open(path).map_err(|e| format!("cannot open the file: {e}"))?;
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(|e| format!("cannot read the file: {e}"))?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(format!("the file is larger than {MOST_BYTES} bytes, which no config is"));
    }
    String::from_utf8(bytes).map_err(|e| format!("the file is not UTF-8 text: byte {} begins no character", e.utf8_error().valid_up_to()))
}
