//! A conversion: planned, then run.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
};

use super::{
    beside::{self, Beside},
    files::FilePlan,
    names::Names,
    options::{ConvertOptions, Target},
    stage::{Stage, check_free},
    target, trainer, write,
};
use crate::{
    codes,
    contents::Contents,
    digest::{Hasher, Sha256},
    error::{EngineError, ErrorKind, Result},
    file::{self, Stamp},
    load::CancelToken,
};

/// A conversion that was planned: nothing is written yet.
#[derive(Debug)]
pub struct Conversion<'a> {
    contents: &'a Contents,
    files: Vec<FilePlan<'a>>,
    copied: Vec<Beside>,
    lost: Vec<String>,
}

/// What a conversion has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Converted {
    /// Files written.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of tensors read.
    pub source_bytes: u64,
    /// Bytes of files that a killed conversion had completed.
    pub resumed: u64,
}

impl<'a> Conversion<'a> {
    /// Plans the files of the target.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] where the target cannot hold what the source has, [`ErrorKind::Checkpoint`] where the source contradicts itself.
    pub fn plan(contents: &'a Contents, options: &ConvertOptions) -> Result<Self> {
        if options.ranks == 0 || options.ranks > 65_536 {
            return Err(EngineError::new(ErrorKind::World, "the number of ranks makes no sense")
                .expected("1 to 65536")
                .found(options.ranks));
        }
        if options.replicas == 0 || !options.ranks.is_multiple_of(options.replicas) {
            return Err(EngineError::new(ErrorKind::World, "replicas do not divide the ranks")
                .expected(format_args!("a divisor of {}", options.ranks))
                .found(options.replicas));
        }
        if options.replicas > 1 && matches!(options.to, Target::Zero3 | Target::Universal) {
            return Err(EngineError::new(ErrorKind::Config, "ZeRO-3 partitions over all ranks: it has no replicas"));
        }
        if let Some(dtype) = options.dtype.filter(|d| !d.is_float() || d.bits() < 8) {
            return Err(EngineError::new(ErrorKind::Config, "parameters cannot be of that dtype")
                .expected("a float of whole bytes")
                .found(dtype));
        }
        if let Some(dtype) = options.dtype {
            let codes = codes::find(contents.tensors.iter().map(|t| (t.name.as_str(), t.data.dtype)));
            if let Some(codes) = codes.filter(|codes| codes.dtype != dtype) {
                let what = format!("cannot cast a quantized checkpoint: its weights are codes, with scales in '{}'", codes.scales);
                let help =
                    "leave --dtype out, or dequantize it first: load it with transformers, call model.dequantize() and save_pretrained";
                return Err(EngineError::new(ErrorKind::Config, format!("{what}; {help}"))
                    .file(&contents.path)
                    .tensor(codes.name)
                    .expected(dtype)
                    .found(codes.dtype));
            }
        }
        if options.names == Some(Names::Hub) && options.to != Target::Hf {
            return Err(EngineError::new(ErrorKind::Config, "only --to hf has the hub's names; trainers resume by the model's"));
        }
        let is_name = |tag: &&String| !tag.is_empty() && !tag.contains('/') && !tag.starts_with('.');
        if let Some(tag) = options.tag.as_ref().filter(|tag| !is_name(tag)) {
            return Err(EngineError::new(ErrorKind::Config, "the tag is not a directory's name").found(format_args!("'{tag}'")));
        }
        let target::Planned { files, mut lost } = target::plan(contents, options)?;
        let of_model = matches!(options.to, Target::Hf | Target::HfSharded);
        let from = options.config.as_deref().filter(|_| of_model).unwrap_or(&contents.path);
        let copied = match (from.is_dir(), of_model) {
            (false, _) => Vec::new(),
            (true, true) => beside::of_model(from)?,
            (true, false) => {
                let same_ranks = contents.ranks == Some(u64::from(options.ranks));
                let (mine, of_ranks): (Vec<_>, Vec<_>) = trainer::files(from)?.into_iter().partition(|file| same_ranks || !file.of_rank);
                if let Some(file) = of_ranks.first() {
                    let what = "states of data loaders and random numbers, which are of another number of ranks";
                    lost.push(format!("{what}: {} files such as {}", of_ranks.len(), file.name));
                }
                mine.into_iter().map(|file| Beside::new(file.name, file.path)).collect::<Result<_>>()?
            }
        };
        Ok(Self { contents, files, copied, lost })
    }

    /// What the source has and the target will not.
    pub fn lost(&self) -> &[String] {
        &self.lost
    }

    /// The files to be written, with their sizes.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.files.iter().map(|f| (f.name.as_str(), f.size))
    }

    /// Bytes of all files to be written.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.size).fold(0, u64::saturating_add)
    }

    /// Bytes of tensors to be read: what progress counts up to.
    pub fn source_bytes(&self) -> u64 {
        self.files.iter().map(|f| f.source_bytes).fold(0, u64::saturating_add)
    }

    /// Writes the target. It appears whole, under its name, once all of it is on the disk; until then its files are in a hidden directory
    /// beside it. Where this process is killed, the next conversion of the same source with the same options keeps the files there that are
    /// complete; any other removes them.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] where something is there already, [`ErrorKind::Io`] where there is no room or the disk fails,
    /// [`ErrorKind::Cancelled`] where `cancel` says so.
    pub fn run(mut self, target: &Path, watch: &(dyn Fn(u64) + Sync), cancel: &CancelToken) -> Result<Converted> {
        check_free(target)?;
        let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let name = target.file_name().ok_or_else(|| EngineError::new(ErrorKind::Config, "not a name for a directory").file(target))?;
        fs::create_dir_all(parent).map_err(|e| EngineError::io("cannot make the directory", parent, e))?;
        let mut stage = Stage::create(parent, name, self.identity()?, |name| self.files.iter().find(|f| f.name == name).map(|f| f.size))?;
        let kept = |stage: &Stage, of: &dyn Fn(&FilePlan<'_>) -> u64| -> u64 {
            self.files.iter().filter(|f| stage.has(&f.name)).map(of).fold(0, u64::saturating_add)
        };
        let (resumed, resumed_source) = (kept(&stage, &|f| f.size), kept(&stage, &|f| f.source_bytes));
        let copied = self.copied.iter().map(Beside::bytes).fold(0, u64::saturating_add);
        file::check_space(parent, (self.bytes() - resumed).saturating_add(copied), "the converted checkpoint")?;
        let source_bytes = self.source_bytes() - resumed_source;
        let (files, bytes) = (self.files.len() + self.copied.len(), self.bytes() + copied);
        self.contents.files.watch_sums();
        write::write(&mut stage, std::mem::take(&mut self.files), &self.contents.files, watch, cancel)?;
        // Of what an earlier process has read it noted no checksums.
        self.contents.files.check_sums(resumed > 0)?;
        self.copied.iter().try_for_each(|file| file.copy(&stage.path, cancel))?;
        self.contents.files.check_unchanged()?;
        self.copied.iter().try_for_each(Beside::check_unchanged)?;
        stage.commit(target, parent)?;
        Ok(Converted { files: files as u64, bytes, source_bytes, resumed })
    }

    /// What must be the same for files of an earlier process to be taken for this one's: the plan to the last byte's place, and the files it
    /// reads from.
    fn identity(&self) -> Result<Sha256> {
        let mut hasher = Hasher::default();
        let mut out = io::BufWriter::new(&mut hasher);
        let reported = |e| EngineError::io("cannot compare", &self.contents.path, e);
        for file in &self.files {
            write!(out, "{} {}", file.name, file.digest()?).map_err(reported)?;
        }
        for path in self.contents.files() {
            let meta = fs::metadata(path).map_err(|e| EngineError::io("cannot look at the file", path, e))?;
            write!(out, "{path:?} {:?}", Stamp::of(&meta)).map_err(reported)?;
        }
        out.flush().map_err(reported)?;
        drop(out);
        Ok(hasher.finish())
    }
}
