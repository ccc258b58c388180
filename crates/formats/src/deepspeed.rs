//! The two kinds of files of a DeepSpeed checkpoint, `*_model_states.pt` and `*_optim_states.pt`, of ZeRO stages 1 to 3.

use crate::{
    FormatError, ReadAt, Result,
    build::Value,
    globals::Global,
    pickle::{Id, Node, Pickle, Plain},
    torch_file::{Tensor, TorchFile},
};

/// What a `*_model_states.pt` holds.
#[derive(Clone, Debug, Default)]
pub struct ModelStates {
    /// Parameters and buffers: under stage 3 a parameter is an empty tensor.
    pub module: Vec<(String, Tensor)>,
    /// Which of them are buffers.
    pub buffers: Vec<String>,
    /// The trained parameters' shapes, in the optimizer's order, for each of its groups; under stage 3 for each sub-group.
    pub param_shapes: Vec<Vec<(String, Vec<u64>)>>,
    /// The frozen parameters' shapes.
    pub frozen_shapes: Vec<(String, Vec<u64>)>,
    /// The frozen parameters: under stage 3 this rank's partition.
    pub frozen: Vec<(String, Tensor)>,
    /// Tied names, and what they are tied to. Stage 3 does not record them.
    pub shared: Vec<(String, String)>,
    /// Ranks of the data-parallel group.
    pub dp_world_size: u64,
    /// Ranks of the model-parallel group.
    pub mp_world_size: u64,
    /// Everything else that is a plain value: step counters, the scheduler, what the client added.
    pub rest: Vec<(String, Plain)>,
    /// What else there is, and why it is not read.
    pub dropped: Vec<(String, String)>,
}

impl ModelStates {
    /// Every tensor of the file that is read.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.module.iter().chain(&self.frozen).map(|(_, tensor)| tensor)
    }
}

/// One group of an optimizer: hyperparameters by name.
pub type Group = Vec<(String, Plain)>;
/// A parameter's part of a flat partition: its name, first element and elements.
pub type Slice = (String, u64, u64);

/// What an `*_optim_states.pt` holds.
#[derive(Clone, Debug)]
pub struct OptimStates {
    /// ZeRO's stage.
    pub stage: u8,
    /// Ranks that the partitions are for.
    pub partitions: u64,
    /// This rank's flat partitions: one for each group, under stage 3 for each sub-group.
    pub flat: Vec<Flat>,
    /// The optimizer's groups: hyperparameters. `params` lists numbers of flat partitions.
    pub groups: Vec<Group>,
    /// Stages 1 and 2: for each group the parameters of this rank's partition, with first element and elements.
    pub slices: Option<Vec<Vec<Slice>>>,
    /// `ds_config`, where it is plain.
    pub config: Option<Plain>,
}

impl OptimStates {
    /// Every tensor of the file that is read.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.flat.iter().flat_map(|flat| {
            let step = flat.step.as_ref().and_then(Step::tensor);
            std::iter::once(&flat.fp32).chain(flat.states.iter().map(|(_, tensor)| tensor)).chain(step)
        })
    }
}

/// One flat partition.
#[derive(Clone, Debug)]
pub struct Flat {
    /// The fp32 masters.
    pub fp32: Tensor,
    /// States of the same size by name, such as `exp_avg`.
    pub states: Vec<(String, Tensor)>,
    /// The optimizer's step.
    pub step: Option<Step>,
}

/// A step, as a number or as a 0-d tensor.
#[derive(Clone, Debug)]
pub enum Step {
    /// A number.
    Number(f64),
    /// A tensor of one element.
    Tensor(Tensor),
}

impl Step {
    /// The tensor, where it is one.
    pub fn tensor(&self) -> Option<&Tensor> {
        match self {
            Self::Number(_) => None,
            Self::Tensor(tensor) => Some(tensor),
        }
    }
}

fn error(what: impl std::fmt::Display) -> FormatError {
    FormatError::new(format_args!("not a file of a DeepSpeed checkpoint: {what}"))
}

struct Reader<'a> {
    file: &'a TorchFile,
    source: &'a dyn ReadAt,
}

impl<'a> Reader<'a> {
    fn pickle(&self) -> &'a Pickle {
        &self.file.pickle
    }

    fn field(&self, id: Id, name: &str) -> Result<Id> {
        self.pickle().get(id, name).ok_or_else(|| error(format_args!("it has no '{name}'")))
    }

    fn items(&self, id: Id, name: &str) -> Result<&'a [Id]> {
        self.pickle().items(id).ok_or_else(|| error(format_args!("'{name}' is not a list")))
    }

    fn named(&self, id: Id, name: &str) -> Result<Vec<(String, Id)>> {
        let entries = self.pickle().dict(id).ok_or_else(|| error(format_args!("'{name}' is not a mapping")))?;
        let key =
            |id: Id| self.pickle().str(id).map(str::to_owned).ok_or_else(|| error(format_args!("'{name}' has a key that is not a string")));
        entries.iter().map(|(k, value)| Ok((key(*k)?, *value))).collect()
    }

    fn shapes(&self, id: Id, name: &str) -> Result<Vec<(String, Vec<u64>)>> {
        let shape = |(key, id): (String, Id)| match self.pickle().shape(id) {
            Some(shape) => Ok((key, shape)),
            None => Err(error(format_args!("'{name}' has a shape that is not one for '{key}'"))),
        };
        self.named(id, name)?.into_iter().map(shape).collect()
    }

    fn tensor(&self, id: Id, name: &str) -> Result<Tensor> {
        let tensor = self.file.tensor(self.source, id).map_err(|e| e.within(format_args!("'{name}'")))?;
        tensor.ok_or_else(|| error(format_args!("'{name}' is not a tensor")))
    }

    fn tensors(&self, id: Id, name: &str) -> Result<Vec<(String, Tensor)>> {
        let tensor = |(key, id): (String, Id)| self.tensor(id, &key).map(|t| (key, t));
        self.named(id, name)?.into_iter().map(tensor).collect()
    }

    fn number(&self, id: Id, name: &str) -> Result<u64> {
        let number = self.pickle().int(self.field(id, name)?).and_then(|n| u64::try_from(n).ok());
        number.ok_or_else(|| error(format_args!("'{name}' is not a number")))
    }

    fn is_none(&self, id: Id) -> bool {
        self.pickle().node(id) == Node::None
    }
}

/// Fields of a `*_model_states.pt` that are read as what they are.
const READ: [&str; 9] = [
    "module",
    "buffer_names",
    "param_shapes",
    "frozen_param_shapes",
    "frozen_param_fragments",
    "shared_params",
    "dp_world_size",
    "mp_world_size",
    "optimizer",
];

impl ModelStates {
    /// Reads a file.
    ///
    /// # Errors
    /// What is malformed, or missing.
    pub fn read(file: &TorchFile, source: &dyn ReadAt) -> Result<Self> {
        let reader = Reader { file, source };
        let root = file.pickle.root();
        let module = reader.tensors(reader.field(root, "module")?, "module")?;
        let optional = |name| file.pickle.get(root, name).filter(|id| !reader.is_none(*id));
        let names = |id| {
            let name =
                |id: &Id| file.pickle.str(*id).map(str::to_owned).ok_or_else(|| error("'buffer_names' has something else than names"));
            reader.items(id, "buffer_names")?.iter().map(name).collect::<Result<Vec<_>>>()
        };
        let groups = |id| reader.items(id, "param_shapes")?.iter().map(|id| reader.shapes(*id, "param_shapes")).collect::<Result<Vec<_>>>();
        let shared = |id| {
            let target = |(alias, id): (String, Id)| Some((alias, file.pickle.str(id)?.to_owned()));
            let shared = reader.named(id, "shared_params")?.into_iter().map(target).collect::<Option<Vec<_>>>();
            shared.ok_or_else(|| error("'shared_params' has something else than names"))
        };
        let (mut rest, mut dropped) = (Vec::new(), Vec::new());
        for (name, id) in reader.named(root, "the file")? {
            if READ.contains(&name.as_str()) {
                continue;
            }
            match file.pickle.plain(id) {
                Ok(plain) => rest.push((name, plain)),
                Err(e) => dropped.push((name, e.to_string())),
            }
        }
        if optional("optimizer").is_some() {
            dropped.push(("optimizer".into(), "the optimizer of a run without ZeRO is not read".into()));
        }
        Ok(Self {
            module,
            buffers: optional("buffer_names").map_or(Ok(Vec::new()), names)?,
            param_shapes: optional("param_shapes").map_or(Ok(Vec::new()), groups)?,
            frozen_shapes: optional("frozen_param_shapes").map_or(Ok(Vec::new()), |id| reader.shapes(id, "frozen_param_shapes"))?,
            frozen: optional("frozen_param_fragments").map_or(Ok(Vec::new()), |id| reader.tensors(id, "frozen_param_fragments"))?,
            shared: optional("shared_params").map_or(Ok(Vec::new()), shared)?,
            dp_world_size: reader.number(root, "dp_world_size")?,
            mp_world_size: reader.number(root, "mp_world_size")?,
            rest,
            dropped,
        })
    }
}

impl OptimStates {
    /// Reads a file.
    ///
    /// # Errors
    /// What is malformed, missing, or of a stage that is not read.
    pub fn read(file: &TorchFile, source: &dyn ReadAt) -> Result<Self> {
        let reader = Reader { file, source };
        let root = file.pickle.root();
        let state = reader.field(root, "optimizer_state_dict")?;
        let config = file.pickle.get(root, "ds_config").and_then(|id| file.pickle.plain(id).ok());
        Ok(Self { config, ..reader.optimizer(state)? })
    }

    /// Reads `zero/optimizer_state.pt` of a universal checkpoint: the same without flat tensors.
    ///
    /// # Errors
    /// What is malformed, or missing.
    pub fn read_universal(file: &TorchFile, source: &dyn ReadAt) -> Result<(Vec<Group>, Option<Step>)> {
        let reader = Reader { file, source };
        let root = file.pickle.root();
        let base = file.pickle.get(root, "optimizer_state_dict").or_else(|| file.pickle.get(root, "base_optimizer_state"));
        let base = base.ok_or_else(|| error("it has no 'optimizer_state_dict'"))?;
        let step = file.pickle.get(base, "state").and_then(|s| file.pickle.dict(s)).and_then(|s| s.first()).map(|(_, first)| *first);
        let step = step.and_then(|first| file.pickle.get(first, "step")).map(|id| reader.step(id)).transpose()?;
        Ok((reader.groups(base)?, step))
    }
}

impl Reader<'_> {
    fn optimizer(&self, state: Id) -> Result<OptimStates> {
        let stage = self.field(state, "zero_stage")?;
        let value = self.pickle().call(stage, Global::ZeroStage).and_then(|(args, _)| self.pickle().int(*args.first()?));
        let stage = value
            .or_else(|| self.pickle().int(stage))
            .and_then(|n| u8::try_from(n).ok())
            .ok_or_else(|| error("its stage is not a number"))?;
        let partitions = match self.items(self.field(state, "partition_count")?, "partition_count") {
            Ok(list) => list.iter().filter_map(|id| self.pickle().int(*id)).max().and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
            Err(_) => self.number(state, "partition_count")?,
        };
        let (masters, base) = match stage {
            1 | 2 => ("single_partition_of_fp32_groups", "base_optimizer_state"),
            3 => ("fp32_flat_groups", "optimizer_state_dict"),
            other => return Err(error(format_args!("ZeRO stage {other} has no partitions"))),
        };
        let base = self.field(state, base)?;
        let masters = self.items(self.field(state, masters)?, masters)?;
        // An elastic checkpoint has a list of states and no groups.
        let states = self.pickle().get(base, "state").ok_or_else(|| error("it is an elastic checkpoint, whose groups are not recorded"))?;
        let of = |number: usize| {
            let same = |(key, _): &&(Id, Id)| self.pickle().int(*key).and_then(|n| usize::try_from(n).ok()) == Some(number);
            self.pickle().dict(states)?.iter().find(same).map(|(_, value)| *value)
        };
        let flat = masters.iter().enumerate().map(|(number, id)| self.flat(*id, of(number))).collect::<Result<_>>()?;
        let slices = self.pickle().get(state, "param_slice_mappings").filter(|_| stage < 3);
        let slices = slices.map(|id| self.slices(id)).transpose()?;
        Ok(OptimStates { stage, partitions, flat, groups: self.groups(base)?, slices, config: None })
    }

    fn flat(&self, master: Id, state: Option<Id>) -> Result<Flat> {
        let fp32 = self.tensor(master, "fp32")?;
        let (mut states, mut step) = (Vec::new(), None);
        for (name, id) in state.map_or(Ok(Vec::new()), |id| self.named(id, "state"))? {
            match name.as_str() {
                "step" => step = Some(self.step(id)?),
                _ => match self.file.tensor(self.source, id)? {
                    Some(tensor) => states.push((name, tensor)),
                    None => {
                        return Err(FormatError::new(format_args!(
                            "the optimizer's state '{name}' is not a plain tensor; it may be quantised"
                        )));
                    }
                },
            }
        }
        Ok(Flat { fp32, states, step })
    }

    fn step(&self, id: Id) -> Result<Step> {
        match self.pickle().plain(id).ok().and_then(|p| p.number()) {
            Some(number) => Ok(Step::Number(number)),
            None => self.tensor(id, "step").map(Step::Tensor),
        }
    }

    fn groups(&self, base: Id) -> Result<Vec<Group>> {
        let groups = self.items(self.field(base, "param_groups")?, "param_groups")?;
        let value = |(name, id): (String, Id)| match self.pickle().plain(id) {
            Ok(plain) => Ok((name, plain)),
            Err(e) => match self.file.tensor(self.source, id)? {
                Some(_) => Err(FormatError::new(format_args!("the optimizer's '{name}' is a tensor, which is not read"))),
                None => Err(e.within(format_args!("the optimizer's '{name}'"))),
            },
        };
        groups.iter().map(|id| self.named(*id, "param_groups")?.into_iter().map(value).collect()).collect()
    }

    fn slices(&self, id: Id) -> Result<Vec<Vec<Slice>>> {
        let malformed = || error("'param_slice_mappings' is not what DeepSpeed writes");
        let address = |(name, id): (String, Id)| {
            let (args, state) = self.pickle().call(id, Global::FragmentAddress).ok_or_else(malformed)?;
            let number = |key: &str, position: usize| {
                let value = state.and_then(|s| self.pickle().get(s, key)).or_else(|| args.get(position).copied());
                value.and_then(|v| self.pickle().int(v)).and_then(|n| u64::try_from(n).ok()).ok_or_else(malformed)
            };
            Ok((name, number("start", 1)?, number("numel", 0)?))
        };
        let group = |id: &Id| self.named(*id, "param_slice_mappings")?.into_iter().map(address).collect();
        self.items(id, "param_slice_mappings")?.iter().map(group).collect()
    }
}

/// What goes into the files of a stage 3 checkpoint beside tensors.
pub mod write {
    use super::{Plain, Value};

    /// `ZeroStageEnum(3)`.
    pub fn stage3() -> Value {
        Value::global("deepspeed.runtime.zero.config", "ZeroStageEnum").call([Value::int(3)])
    }

    /// A loss scaler that does not scale.
    pub fn loss_scaler() -> Value {
        let state = Value::fields([("cur_scale", Value::float(1.0)), ("dynamic", Value::bool(false))]);
        Value::global("deepspeed.runtime.fp16.loss_scaler", "LossScaler").object(Some(&state))
    }

    /// An ordered mapping from names to shapes.
    pub fn shapes<'a>(shapes: impl IntoIterator<Item = (&'a str, &'a [u64])>) -> Value {
        Value::ordered(shapes.into_iter().map(|(name, shape)| (Value::str(name), Value::shape(shape))))
    }

    /// One group of an optimizer, with `params` replaced.
    pub fn group(values: &[(String, Plain)], params: impl IntoIterator<Item = Value>) -> Value {
        let params = Value::list(params);
        let kept = values.iter().filter(|(key, _)| key != "params").map(|(key, value)| (Value::str(key), Value::plain(value)));
        Value::dict(kept.chain([(Value::str("params"), params)]))
    }
}
