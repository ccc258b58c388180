//! From what a config calls `model` to a directory: a path, or a hub id in the local Hugging Face cache. Nothing is downloaded.
//! Which files of the directory may be opened is decided here too: links of the directory's own are followed, names in files do not lead out.

use std::{
    ffi::OsString,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use shardwright_core::ModelFacts;

use super::config;
use crate::{
    error::{EngineError, ErrorKind, Result},
    file::{cannot_open, read_bounded},
};

/// The name of a model's facts.
pub(super) const CONFIG: &str = "config.json";

/// Where the local Hugging Face cache is, by the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HubEnv {
    /// The directory of `models--org--name` folders; `None` where not even a home directory is known.
    pub cache: Option<PathBuf>,
    /// `HF_HUB_OFFLINE`. Nothing is ever downloaded; only the message differs.
    pub offline: bool,
}

impl HubEnv {
    /// As `huggingface_hub` finds it: `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME/hub`, `XDG_CACHE_HOME/huggingface/hub`,
    /// `~/.cache/huggingface/hub`; `~`, `$NAME` and `${NAME}` in them are expanded.
    pub fn from_env(env: impl Fn(&str) -> Option<OsString>) -> Self {
        let home = env("HOME").map(PathBuf::from);
        let path = |name: &str| {
            let value = PathBuf::from(env(name).filter(|v| !v.is_empty())?);
            let value = match (value.strip_prefix("~"), &home) {
                (Ok(rest), Some(home)) => home.join(rest),
                _ => value,
            };
            Some(value.to_str().map(|text| PathBuf::from(expanded(text, &env))).unwrap_or(value))
        };
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| path("HF_HOME").map(|p| p.join("hub")))
            .or_else(|| path("XDG_CACHE_HOME").map(|p| p.join("huggingface/hub")))
            .or_else(|| home.as_ref().map(|h| h.join(".cache/huggingface/hub")));
        let offline = env("HF_HUB_OFFLINE").and_then(|v| v.into_string().ok());
        let offline = offline.is_some_and(|v| ["1", "on", "yes", "true"].contains(&v.to_ascii_lowercase().as_str()));
        Self { cache, offline }
    }

    /// From this process's environment.
    pub fn from_process() -> Self {
        Self::from_env(|name| std::env::var_os(name))
    }
}

/// `$NAME` and `${NAME}` as Python's `os.path.expandvars` expands them: a variable that is not set stays as it is written.
fn expanded(text: &str, env: &impl Fn(&str) -> Option<OsString>) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('$') {
        let (before, dollar) = rest.split_at(at);
        out.push_str(before);
        let after = &dollar[1..];
        let (name, length) = match after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some((name, _)) => (name, name.len() + 2),
            None => {
                let end = after.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(after.len());
                (&after[..end], end)
            }
        };
        match env(name).filter(|_| !name.is_empty()).and_then(|value| value.into_string().ok()) {
            Some(value) => out.push_str(&value),
            None => out.push_str(&dollar[..=length]),
        }
        rest = &after[length..];
    }
    out + rest
}

/// Where a model lies, and its `config.json`; no header is read yet.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ModelDir {
    /// The directory.
    pub dir: PathBuf,
    /// The one file to read, where the user named a file.
    pub file: Option<String>,
    /// The text of `config.json`, where there is one.
    pub config_text: Option<String>,
    /// Of `model.safetensors` and an index beside it, the index counts, as for LLaMA-Factory's `init_on_meta`; transformers takes the file.
    pub index_first: bool,
}

impl ModelDir {
    /// What `config.json` says. A fact of an unexpected type counts as absent; [`Checkpoint::warnings`](super::Checkpoint::warnings) names it.
    ///
    /// # Errors
    /// [`ErrorKind::Checkpoint`] where it is not a JSON object.
    pub fn facts(&self) -> Result<ModelFacts> {
        Ok(self.config_value()?.map_or_else(ModelFacts::default, |config| config::facts(&config)))
    }

    /// `config.json` as a value, where there is one.
    pub(crate) fn config_value(&self) -> Result<Option<serde_json::Value>> {
        let Some(text) = &self.config_text else { return Ok(None) };
        let error = |what: String| EngineError::new(ErrorKind::Checkpoint, what).file(self.dir.join(CONFIG));
        let value = serde_json::from_str(&config::without_constants(text)).map_err(|e| error(format!("not valid JSON: {e}")))?;
        match config::kind(&value) {
            kind if kind == "an object" => Ok(Some(value)),
            other => Err(error("no model's config".into()).expected("an object").found(other)),
        }
    }

    /// A directory, or a single file of safetensors or of `torch.save`.
    ///
    /// # Errors
    /// [`ErrorKind::Checkpoint`] where nothing is there, [`ErrorKind::Io`] where it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let meta = fs::metadata(path).map_err(|e| cannot_open(path, e))?;
        let (dir, file) = if meta.is_dir() {
            (path.to_owned(), None)
        } else {
            let is_known = |name: &&str| [".safetensors", ".bin", ".pt", ".pth"].iter().any(|end| name.ends_with(end));
            let Some(name) = path.file_name().and_then(|n| n.to_str()).filter(is_known) else {
                let what = "neither a directory nor a .safetensors, .bin, .pt or .pth file";
                return Err(EngineError::new(ErrorKind::Checkpoint, what).file(path));
            };
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
            (parent.to_owned(), Some(name.to_owned()))
        };
        let mut found = Self { dir, file, config_text: None, index_first: false };
        if file_exists(&found.dir.join(CONFIG))? {
            let path = found.resolve(CONFIG)?;
            found.config_text = Some(read_text(&path)?);
        }
        Ok(found)
    }

    /// A path relative to one of `base_dirs` (the first that has it), or a hub id in the local cache.
    ///
    /// # Errors
    /// As [`ModelDir::open`]; where nothing is found, all the places that were tried.
    pub fn find(model: &str, base_dirs: &[impl AsRef<Path>], env: &HubEnv) -> Result<Self> {
        let mut tried = Vec::new();
        for base in base_dirs {
            let path = base.as_ref().join(model);
            if path.exists() {
                return Self::open(&path);
            }
            tried.push(path);
        }
        if base_dirs.is_empty() || Path::new(model).is_absolute() {
            tried = vec![PathBuf::from(model)];
            if tried[0].exists() {
                return Self::open(&tried[0]);
            }
        }
        match (is_hub_id(model), &env.cache) {
            (true, Some(cache)) => find_in_cache(model, cache, &tried, env.offline),
            _ => Err(not_found(model, &tried, "")),
        }
    }

    /// The path of a file of this directory, symbolic links checked.
    pub(super) fn resolve(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        if self.file.as_deref() == Some(name) {
            return Ok(path); // the user named this very file
        }
        // A name from a file may not lead out; a link that the directory's owner made may.
        let plain = Path::new(name).components().all(|c| matches!(c, std::path::Component::Normal(_)));
        if plain && path.canonicalize().map_err(|e| cannot_open(&path, e))?.is_file() {
            return Ok(path);
        }
        let real = path.canonicalize().map_err(|e| cannot_open(&path, e))?;
        let dir = self.dir.canonicalize().map_err(|e| cannot_open(&self.dir, e))?;
        if real.starts_with(&dir) {
            return Ok(path);
        }
        Err(EngineError::new(ErrorKind::Checkpoint, "the file is not in the checkpoint's directory")
            .file(path)
            .expected(format_args!("a file in {}", dir.display()))
            .found(real.display()))
    }

    /// Names in the directory, sorted; dotfiles are left out.
    pub(super) fn list(&self) -> Result<Vec<String>> {
        let cannot = |e| EngineError::io("cannot list the directory", &self.dir, e);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(cannot)? {
            let name = entry.map_err(cannot)?.file_name();
            let Some(name) = name.to_str() else { continue };
            if !name.starts_with('.') {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

/// What to say of files of a directory that are links which lead out of it, to another place than the cache's own blobs.
pub(crate) fn led_out<'p>(dir: &Path, files: impl Iterator<Item = &'p Path>) -> Option<String> {
    let real_dir = dir.canonicalize().ok()?;
    let blobs = hub_blobs(&real_dir);
    let outside = |path: &'p Path| {
        let real = path.canonicalize().ok()?;
        let inside = real.starts_with(&real_dir) || blobs.as_ref().is_some_and(|blobs| real.starts_with(blobs));
        (!inside).then_some((path, real))
    };
    let linked: Vec<(&Path, PathBuf)> = files.filter_map(outside).collect();
    let (path, to) = linked.first()?;
    let (path, to, dir) = (path.display(), to.display(), dir.display());
    Some(match linked.len() {
        1 => format!("{path}: a link that leads out of the checkpoint's directory, to {to}"),
        n => format!("{dir}: {n} files are links that lead out of the directory, '{path}' to {to}"),
    })
}

/// Like `Path::exists`, but permission denied is an error.
fn file_exists(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(EngineError::io("cannot look at the file", path, e)),
    }
}

/// A config is a few KiB; a file that is far larger is none.
const MAX_CONFIG: u64 = 16 << 20;

fn read_text(path: &Path) -> Result<String> {
    let bytes = read_bounded(path, MAX_CONFIG, "too long for a config")?;
    let refuse = |at: usize| EngineError::new(ErrorKind::Checkpoint, "not UTF-8").file(path).offset(at as u64);
    String::from_utf8(bytes).map_err(|e| refuse(e.utf8_error().valid_up_to()))
}

/// `name` or `org/name`, as the hub allows them.
fn is_hub_id(model: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && !p.starts_with(['.', '-'])
            && !p.contains("--")
            && !p.contains("..")
            && p.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    model.split('/').count() <= 2 && model.split('/').all(part)
}

fn find_in_cache(model: &str, cache: &Path, tried: &[PathBuf], offline: bool) -> Result<ModelDir> {
    let repo = cache.join(format!("models--{}", model.replace('/', "--")));
    if !repo.is_dir() {
        let hint = if offline { "HF_HUB_OFFLINE is set" } else { "nothing is downloaded here; 'hf download' would fetch it" };
        let mut tried = tried.to_vec();
        tried.push(repo);
        return Err(not_found(model, &tried, hint));
    }
    let main = repo.join("refs/main");
    if !main.exists() {
        return Err(EngineError::new(ErrorKind::Checkpoint, format!("the cached model '{model}' has no revision 'main'")).file(main));
    }
    let revision = read_text(&main)?;
    let revision = revision.trim();
    let plain = !revision.is_empty() && revision.chars().all(|c| c.is_ascii_alphanumeric());
    if !plain {
        return Err(EngineError::new(ErrorKind::Checkpoint, "not a revision").file(main).expected("a commit's hash").found(revision));
    }
    let snapshot = repo.join("snapshots").join(revision);
    if !snapshot.is_dir() {
        return Err(EngineError::new(ErrorKind::Checkpoint, format!("the cached model '{model}' lacks its snapshot")).file(snapshot));
    }
    ModelDir::open(&snapshot)
}

fn not_found(model: &str, tried: &[PathBuf], hint: &str) -> EngineError {
    let mut what = format!("no model '{model}'; tried");
    for (i, path) in tried.iter().enumerate() {
        let _ = write!(what, "{} {}", if i == 0 { "" } else { "," }, path.display());
    }
    if !hint.is_empty() {
        let _ = write!(what, " ({hint})");
    }
    EngineError::new(ErrorKind::Checkpoint, what)
}

/// The blobs of the hub cache that a snapshot's links lead to: `models--x/snapshots/REV` has them at `models--x/blobs`.
fn hub_blobs(dir: &Path) -> Option<PathBuf> {
    let snapshots = dir.ancestors().find(|a| a.file_name().is_some_and(|n| n == "snapshots"))?;
    let repo = snapshots.parent().filter(|r| r.file_name().is_some_and(|n| n.to_string_lossy().starts_with("models--")))?;
    repo.join("blobs").canonicalize().ok()
}
