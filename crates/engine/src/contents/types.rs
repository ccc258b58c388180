//! What a checkpoint of any format holds: parameters, buffers, optimizer states, and the plain values around them.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
};

use shardwright_core::DType;
use shardwright_formats::pickle::Plain;

use super::data::{Data, Files};
use crate::error::{EngineError, ErrorKind, Result};

/// A checkpoint's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// Hugging Face safetensors: single, indexed, or saved by ranks.
    Safetensors,
    /// `pytorch_model.bin`, or another file of `torch.save` with a state dict.
    TorchSave,
    /// torch's distributed checkpoint.
    Dcp,
    /// DeepSpeed's, of that ZeRO stage.
    DeepSpeed(u8),
    /// DeepSpeed's universal checkpoint.
    Universal,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Safetensors => f.write_str("safetensors"),
            Self::TorchSave => f.write_str("torch.save"),
            Self::Dcp => f.write_str("torch distributed checkpoint"),
            Self::DeepSpeed(stage) => write!(f, "DeepSpeed ZeRO-{stage}"),
            Self::Universal => f.write_str("DeepSpeed universal"),
        }
    }
}

/// What a tensor of the model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A parameter that the optimizer has, or of which nothing else is known.
    Trained,
    /// A parameter that the optimizer does not have.
    Frozen,
    /// A buffer.
    Buffer,
}

/// One tensor of the model.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Where it lies. A trained parameter of a DeepSpeed checkpoint is its fp32 master.
    pub data: Data,
}

/// An optimizer's states.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Optimizer {
    /// Its groups, in order.
    pub groups: Vec<Group>,
    /// The states of each parameter that has some.
    pub states: Vec<State>,
}

impl Optimizer {
    /// Names of its parameters, in its order.
    pub fn params(&self) -> impl Iterator<Item = &str> {
        self.groups.iter().flat_map(|g| g.params.iter().map(String::as_str))
    }

    /// The step that all parameters agree on, or the greatest.
    pub fn step(&self) -> f64 {
        self.states.iter().map(|s| s.step).fold(0.0, f64::max)
    }

    /// Names of the states, such as `exp_avg`.
    pub fn state_names(&self) -> BTreeSet<&str> {
        self.states.iter().flat_map(|s| s.tensors.iter().map(|(name, _)| name.as_str())).collect()
    }
}

/// A group of parameters with its hyperparameters.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Group {
    /// Names of its parameters, in order.
    pub params: Vec<String>,
    /// Its hyperparameters, without `params`.
    pub values: Vec<(String, Plain)>,
}

/// One parameter's states.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct State {
    /// The parameter.
    pub param: String,
    /// Steps taken.
    pub step: f64,
    /// States of the parameter's shape, such as `exp_avg`, sorted by name.
    pub tensors: Vec<(String, Data)>,
}

/// A checkpoint of any format.
#[derive(Debug)]
#[non_exhaustive]
pub struct Contents {
    /// Where it is.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// The version that wrote it, where it says so.
    pub version: Option<String>,
    /// Ranks that saved it, where that is known.
    pub ranks: Option<u64>,
    /// The directory of DeepSpeed's files that `latest` names.
    pub tag: Option<String>,
    /// The tensors of the model, sorted by name.
    pub tensors: Vec<Tensor>,
    /// Tied names, and what each is tied to.
    pub aliases: Vec<(String, String)>,
    /// The optimizer.
    pub optimizer: Option<Optimizer>,
    /// Plain values beside them: steps, scheduler, what the client added.
    pub values: Vec<(String, Plain)>,
    /// The dtype that training computed in, where the checkpoint says so.
    pub compute: Option<DType>,
    /// What is there and cannot be carried, or was assumed.
    pub notes: Vec<String>,
    pub(crate) files: Files,
}

impl Contents {
    /// Tensors, and nothing else known of the checkpoint yet.
    pub(super) fn of_tensors(path: &Path, format: Format, tensors: Vec<Tensor>, files: Files) -> Self {
        Self {
            path: path.to_owned(),
            format,
            version: None,
            ranks: None,
            tag: None,
            tensors,
            aliases: Vec::new(),
            optimizer: None,
            values: Vec::new(),
            compute: None,
            notes: Vec::new(),
            files,
        }
    }

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

    /// Names tied aliases that the checkpoint itself does not record, each with what it is tied to.
    ///
    /// # Errors
    /// As [`Contents::tie`].
    pub fn tied(mut self, ties: &[(String, String)]) -> Result<Self> {
        ties.iter().try_for_each(|(alias, name)| self.tie(alias, name))?;
        Ok(self)
    }

    /// Bytes of all tensors, the optimizer's states included.
    pub fn bytes(&self) -> u64 {
        let states = self.optimizer.iter().flat_map(|o| &o.states).flat_map(|s| &s.tensors).map(|(_, data)| data);
        self.tensors.iter().map(|t| &t.data).chain(states).map(Data::bytes).fold(0, u64::saturating_add)
    }

    /// A tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok().map(|i| &self.tensors[i])
    }

    /// The paths of the files that are read.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.files.paths()
    }

    /// A plain value beside the tensors.
    pub fn value(&self, name: &str) -> Option<&Plain> {
        self.values.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Steps that training has taken, where it is known.
    pub fn step(&self) -> Option<i64> {
        match self.value("global_steps") {
            Some(Plain::Int(n)) => Some(*n),
            #[expect(clippy::cast_possible_truncation, reason = "a count of steps")]
            _ => self.optimizer.as_ref().map(|o| o.step() as i64),
        }
    }

    /// Every tensor by a name of its own: the model's, and the optimizer's states as `state.<parameter>.<state>`.
    pub(crate) fn all(&self) -> impl Iterator<Item = (String, &Data)> {
        let states = self.optimizer.iter().flat_map(|o| &o.states);
        let states = states.flat_map(|s| s.tensors.iter().map(move |(name, data)| (format!("state.{}.{name}", s.param), data)));
        self.tensors.iter().map(|t| (t.name.clone(), &t.data)).chain(states)
    }
}
