//! Any checkpoint to any other: `source` describes what there is as [`Contents`], `target` plans the files that are wanted, `write` moves
//! the bytes in blocks. Memory does not grow with the model. [`diff`] compares two checkpoints element for element.

mod contents;
mod data;
mod diff;
mod names;
mod parts;
mod source;
mod stage;
mod target;
mod trainer;
mod write;

use std::{
    fs,
    io::{self, Write as _},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use shardwright_core::DType;

pub use self::{
    contents::{Contents, Format, Group, Kind, Optimizer, State, Tensor},
    data::Data,
    diff::{Difference, Differences, diff},
    names::Names,
    source::is_other_format,
};
pub(crate) use self::{parts::Parts, source::is_parted, stage::check_finished};
use self::{stage::Stage, write::OutFile};
use crate::{
    checkpoint::Stamp,
    digest::{Hasher, Sha256},
    error::{EngineError, ErrorKind, Result},
    load::CancelToken,
};

/// What to convert to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// Safetensors with whole tensors, as `from_pretrained` reads them.
    Hf,
    /// Safetensors with one file for each rank of FSDP2.
    HfSharded,
    /// torch's distributed checkpoint, `model/` and `optimizer/`.
    Dcp,
    /// DeepSpeed ZeRO-3.
    Zero3,
    /// DeepSpeed's universal checkpoint.
    Universal,
}

/// How to convert.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConvertOptions {
    /// What to convert to.
    pub to: Target,
    /// Ranks that the target's parts are for.
    pub ranks: u32,
    /// Groups of ranks that each hold the whole model, as under hybrid sharding; they divide `ranks`.
    pub replicas: u32,
    /// The dtype of parameters; optimizer states and buffers keep theirs.
    pub dtype: Option<DType>,
    /// Leaves the optimizer out.
    pub params_only: bool,
    /// Bytes of tensors in one file of [`Target::Hf`], at most.
    pub max_file_size: u64,
    /// DeepSpeed's `sub_group_size`, which must be the run's own.
    pub sub_group_size: u64,
    /// Whose names the tensors of [`Target::Hf`] get; without one they keep theirs. For [`Names::Model`] see [`Contents::with_model_names`].
    pub names: Option<Names>,
    /// The directory of DeepSpeed's files, which `latest` names; without one the source's, else `global_step` and the step.
    pub tag: Option<String>,
    /// A directory whose config and tokenizer are copied to a Hugging Face target; else the source's.
    pub config: Option<PathBuf>,
}

impl ConvertOptions {
    /// Converts for one rank, with the formats' own defaults.
    pub fn new(to: Target) -> Self {
        Self {
            to,
            ranks: 1,
            replicas: 1,
            dtype: None,
            params_only: false,
            max_file_size: 5_000_000_000,
            sub_group_size: 1_000_000_000,
            names: None,
            tag: None,
            config: None,
        }
    }
}

impl Contents {
    /// Names a tied alias that the checkpoint itself does not record.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] where `name` is not there, or is another tensor than `alias` has data of.
    pub fn tie(&mut self, alias: &str, name: &str) -> Result<()> {
        let error = |what: String| EngineError::new(ErrorKind::Config, what);
        let target = self.tensor(name).ok_or_else(|| error(format!("cannot tie '{alias}' to '{name}', which is not there")))?;
        if let Some(own) = self.tensor(alias) {
            if own.data.shape() != target.data.shape() {
                return Err(error(format!("cannot tie '{alias}' to '{name}': their shapes differ")));
            }
            self.tensors.retain(|t| t.name != alias);
        }
        self.notes.retain(|note| !note.starts_with(&format!("'{alias}' has no data of its own")));
        self.aliases.retain(|(a, _)| a != alias);
        self.aliases.push((alias.to_owned(), name.to_owned()));
        Ok(())
    }
}

/// A conversion that was planned: nothing is written yet.
#[derive(Debug)]
pub struct Conversion<'a> {
    contents: &'a Contents,
    files: Vec<OutFile<'a>>,
    copied: Vec<(String, PathBuf)>,
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
            (true, true) => side_files(from)?,
            (true, false) => {
                let same_ranks = contents.ranks == Some(u64::from(options.ranks));
                let (mine, of_ranks): (Vec<_>, Vec<_>) = trainer::files(from)?.into_iter().partition(|file| same_ranks || !file.of_rank);
                if let Some(file) = of_ranks.first() {
                    let what = "states of data loaders and random numbers, which are of another number of ranks";
                    lost.push(format!("{what}: {} files such as {}", of_ranks.len(), file.name));
                }
                mine.into_iter().map(|file| (file.name, file.path)).collect()
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
        self.files.iter().map(OutFile::source_bytes).fold(0, u64::saturating_add)
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
        let kept = |stage: &Stage, of: &dyn Fn(&OutFile<'_>) -> u64| -> u64 {
            self.files.iter().filter(|f| stage.has(&f.name)).map(of).fold(0, u64::saturating_add)
        };
        let (resumed, resumed_source) = (kept(&stage, &|f| f.size), kept(&stage, &|f| f.source_bytes()));
        check_room(parent, self.bytes() - resumed)?;
        let source_bytes = self.source_bytes() - resumed_source;
        write::write(&mut stage, &mut self.files, &self.contents.files, watch, cancel)?;
        let mut copied = 0;
        for (name, from) in &self.copied {
            let to = stage.path.join(name);
            if let Some(dir) = to.parent() {
                fs::create_dir_all(dir).map_err(|e| EngineError::io("cannot make the directory", dir, e))?;
            }
            copied += fs::copy(from, &to).map_err(|e| EngineError::io("cannot copy the file", from, e))?;
            fs::File::open(&to).and_then(|f| f.sync_all()).map_err(|e| EngineError::io("cannot bring the file to the disk", &to, e))?;
        }
        self.contents.files.check_unchanged()?;
        let (files, bytes) = (self.files.len() + self.copied.len(), self.bytes() + copied);
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
            write!(out, "{file:?}").map_err(reported)?;
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

/// Config and tokenizer of a directory, with their paths.
fn side_files(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let entries = fs::read_dir(dir).map_err(|e| EngineError::io("cannot list the directory", dir, e))?;
    let mut names: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names.retain(|name| crate::save::is_copied(name) && fs::metadata(dir.join(name)).is_ok_and(|m| m.is_file()));
    Ok(names.into_iter().map(|name| (name.clone(), dir.join(name))).collect())
}

/// Refuses a target that holds something.
///
/// # Errors
/// [`ErrorKind::Exists`] where it does.
pub fn check_free(target: &Path) -> Result<()> {
    match fs::read_dir(target).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(EngineError::new(ErrorKind::Exists, "something is there already, and nothing is written over it").file(target)),
    }
}

/// Compares what is to be written with what the disk has.
fn check_room(dir: &Path, bytes: u64) -> Result<()> {
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes()).map_err(|e| EngineError::io("not a path", dir, e.into()))?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: a string that ends in zero, and room for the answer, which is read only where the call has filled it.
    let free = unsafe {
        match libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) {
            0 => {
                let stat = stat.assume_init();
                stat.f_bavail.saturating_mul(stat.f_frsize)
            }
            _ => return Ok(()), // a file system that does not tell
        }
    };
    match bytes > free {
        true => Err(EngineError::new(ErrorKind::Io, "there is no room on the disk")
            .file(dir)
            .expected(format_args!("{bytes} bytes"))
            .found(free)),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests;
