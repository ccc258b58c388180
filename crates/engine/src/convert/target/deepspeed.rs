//! DeepSpeed checkpoints of ZeRO stage 3, for any number of ranks, and universal ones.

use std::{collections::BTreeMap, sync::Arc};

use shardwright_core::DType;
use shardwright_formats::{
    build::Value,
    deepspeed::write::{group, loss_scaler, shapes, stage3},
    pickle::Plain,
};

use super::planner::{Planned, Planner, all, missing_optimizer, partition};
use crate::{
    contents::{Data, Group, Kind, Optimizer, State, Tensor},
    convert::files::{FilePlan, OutFile, Part, Torch},
    error::{EngineError, ErrorKind, Result},
};

/// What a model's file says anew; everything else of the source's is kept.
const OWN: [&str; 5] = ["dp_world_size", "mp_world_size", "ds_config", "ds_version", "universal_checkpoint_info"];
/// The states that DeepSpeed's files have, beside the masters.
const STATES: [&str; 2] = ["exp_avg", "exp_avg_sq"];

/// A parameter with its states.
#[derive(Clone, Copy)]
struct Param<'a> {
    tensor: &'a Tensor,
    state: &'a State,
}

impl<'a> Param<'a> {
    fn data(&self, key: &str) -> Result<&'a Data> {
        if key == "fp32" {
            return Ok(&self.tensor.data);
        }
        let missing = || {
            let what = format!("the optimizer has no '{key}' of it; DeepSpeed's files are written for AdamW alone");
            EngineError::new(ErrorKind::Config, what).tensor(&self.tensor.name)
        };
        self.state.tensors.iter().find(|(name, _)| name == key).map(|(_, data)| data).ok_or_else(missing)
    }
}

/// Parameters that are flattened together.
struct SubGroup<'a> {
    group: usize,
    params: Vec<Param<'a>>,
}

impl<'a> Planner<'a> {
    /// The dtype that parameters are trained in.
    fn compute(&self) -> DType {
        self.options.dtype.or(self.contents.compute).unwrap_or(DType::BF16)
    }

    fn optimizer_or_refuse(&self) -> Result<&'a Optimizer> {
        match (&self.contents.optimizer, self.options.params_only) {
            (Some(optimizer), false) => Ok(optimizer),
            (_, true) => Err(EngineError::new(
                ErrorKind::Config,
                "--params-only has no meaning for DeepSpeed's checkpoints, which are resumed from the optimizer's",
            )),
            (None, _) => Err(missing_optimizer()),
        }
    }

    /// Sub-groups as DeepSpeed cuts them, by the elements of a rank's partitions.
    fn sub_groups(&self, optimizer: &'a Optimizer) -> Result<Vec<SubGroup<'a>>> {
        let ranks = self.ranks();
        let states: BTreeMap<&str, &State> = optimizer.states.iter().rev().map(|s| (s.param.as_str(), s)).collect();
        let mut out = Vec::new();
        for (number, group) in optimizer.groups.iter().enumerate() {
            let mut params = Vec::new();
            for name in &group.params {
                let error = |what: &str| EngineError::new(ErrorKind::Checkpoint, what).tensor(name);
                let tensor = self.contents.tensor(name).ok_or_else(|| error("the optimizer has it and the model does not"))?;
                let state = states.get(name.as_str()).ok_or_else(|| error("the optimizer has no states of it"))?;
                params.push(Param { tensor, state });
            }
            let size = |p: &Param<'_>| p.tensor.data.numel().div_ceil(ranks);
            let whole = params.iter().map(size).fold(0, u64::saturating_add) <= self.options.sub_group_size;
            let (mut sub, mut filled) = (Vec::new(), 0u64);
            for param in params {
                filled = filled.saturating_add(size(&param));
                sub.push(param);
                if !whole && filled >= self.options.sub_group_size {
                    out.push(SubGroup { group: number, params: std::mem::take(&mut sub) });
                    filled = 0;
                }
            }
            if !sub.is_empty() {
                out.push(SubGroup { group: number, params: sub });
            }
        }
        Ok(out)
    }

    /// What of the source's states has no place in DeepSpeed's files.
    fn lost_states(&self, optimizer: &Optimizer) -> Vec<String> {
        let others: Vec<&str> = optimizer.state_names().into_iter().filter(|n| !STATES.contains(n)).collect();
        if others.is_empty() { Vec::new() } else { vec![format!("the optimizer's states {}", others.join(", "))] }
    }

    pub(super) fn zero3(&self) -> Result<Planned<'a>> {
        let optimizer = self.optimizer_or_refuse()?;
        let sub_groups = Arc::new(self.sub_groups(optimizer)?);
        let tag = self.tag();
        let prefix = if self.compute() == DType::BF16 { "bf16_" } else { "" };
        let mut files = Vec::new();
        for rank in 0..self.ranks() {
            files.push(self.model_states_deferred(&tag, rank, &sub_groups)?);
            let name = format!("{tag}/{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt");
            let (planner, sub_groups) = (self.clone(), Arc::clone(&sub_groups));
            files.push(FilePlan::deferred(move || planner.optim_states(&name, rank, optimizer, &sub_groups))?);
        }
        files.push(OutFile::literal("latest", tag.into_bytes()).into());
        Ok(Planned { files, lost: self.lost_states(optimizer) })
    }

    fn tag(&self) -> String {
        let named = self.options.tag.clone().or_else(|| self.contents.tag.clone());
        named.unwrap_or_else(|| format!("global_step{}", self.contents.step().unwrap_or(0)))
    }

    fn model_states_deferred(&self, tag: &str, rank: u64, sub_groups: &Arc<Vec<SubGroup<'a>>>) -> Result<FilePlan<'a>> {
        let (planner, tag, sub_groups) = (self.clone(), tag.to_owned(), Arc::clone(sub_groups));
        FilePlan::deferred(move || planner.model_states(&tag, rank, &sub_groups))
    }

    /// A rank's `*_model_states.pt`.
    fn model_states(&self, tag: &str, rank: u64, sub_groups: &[SubGroup<'a>]) -> Result<OutFile<'a>> {
        let mut torch = Torch::default();
        let compute = self.compute();
        let mut module = Vec::new();
        for (name, tensor) in self.with_aliases() {
            let value = match tensor.kind {
                Kind::Buffer => torch.tensor(tensor.data.dtype, &tensor.data.shape, all(&tensor.data))?,
                _ => torch.tensor(compute, &[0], Vec::new())?,
            };
            module.push((Value::str(name), value));
        }
        let of_kind = |kind| self.contents.tensors.iter().filter(move |t| t.kind == kind);
        let mut fragments = Vec::new();
        for tensor in of_kind(Kind::Frozen) {
            let (partition, parts) = partition(&tensor.data, self.ranks(), rank)?;
            fragments.push((Value::str(&tensor.name), torch.tensor(compute, &[partition], parts)?));
        }
        let param_shapes = sub_groups.iter().map(|sub| shapes(sub.params.iter().map(|p| (p.tensor.name.as_str(), p.tensor.data.shape()))));
        let mut fields = vec![
            ("module", Value::ordered(module)),
            ("buffer_names", Value::list(of_kind(Kind::Buffer).map(|t| Value::str(&t.name)))),
            ("optimizer", Value::none()),
            ("param_shapes", Value::list(param_shapes)),
            ("frozen_param_shapes", shapes(of_kind(Kind::Frozen).map(|t| (t.name.as_str(), t.data.shape())))),
            ("shared_params", Value::dict([])),
            ("frozen_param_fragments", Value::ordered(fragments)),
        ];
        let step = self.contents.step().unwrap_or(0);
        let defaults = [
            ("lr_scheduler", Plain::None),
            ("data_sampler", Plain::None),
            ("random_ltd", Plain::None),
            ("sparse_tensor_module_names", Plain::List(Vec::new())),
            ("skipped_steps", Plain::Int(0)),
            ("global_steps", Plain::Int(step)),
            ("global_samples", Plain::Int(0)),
        ];
        for (key, default) in &defaults {
            fields.push((key, Value::plain(self.contents.value(key).unwrap_or(default))));
        }
        for (key, value) in &self.contents.values {
            if !OWN.contains(&key.as_str()) && !defaults.iter().any(|(k, _)| k == key) {
                fields.push((key, Value::plain(value)));
            }
        }
        fields.push(("dp_world_size", Value::size(self.ranks())));
        fields.push(("mp_world_size", Value::int(1)));
        fields.push(("ds_config", self.config()));
        fields.push(("ds_version", self.version()));
        let mut file = OutFile::new(format!("{tag}/zero_pp_rank_{rank}_mp_rank_00_model_states.pt"));
        file.torch(torch, &Value::fields(fields))?;
        Ok(file)
    }

    fn config(&self) -> Value {
        self.contents.value("ds_config").map_or_else(|| Value::dict([]), Value::plain)
    }

    fn version(&self) -> Value {
        Value::str(self.contents.version.as_deref().unwrap_or("0.19.8"))
    }

    fn groups(&self, optimizer: &Optimizer, sub_groups: &[SubGroup<'_>]) -> Value {
        let group = |(number, values): (usize, &Group)| {
            let mine = sub_groups.iter().enumerate().filter(|(_, sub)| sub.group == number);
            group(&values.values, mine.map(|(index, _)| Value::size(index as u64)).collect::<Vec<_>>())
        };
        Value::list(optimizer.groups.iter().enumerate().map(group))
    }

    /// A rank's `*_optim_states.pt`.
    fn optim_states(&self, name: &str, rank: u64, optimizer: &Optimizer, sub_groups: &[SubGroup<'a>]) -> Result<OutFile<'a>> {
        let mut torch = Torch::default();
        let flat = |torch: &mut Torch<'a>, sub: &SubGroup<'a>, key: &str| -> Result<Value> {
            let (mut len, mut parts) = (0u64, Vec::new());
            for param in &sub.params {
                let data = param.data(key)?;
                let (partition, mut more) = partition(data, self.ranks(), rank)?;
                len += partition;
                parts.append(&mut more);
            }
            torch.tensor(DType::F32, &[len], parts)
        };
        let (mut state, mut masters) = (Vec::new(), Vec::new());
        for (number, sub) in sub_groups.iter().enumerate() {
            let step = torch.scalar(step(sub)?)?;
            let mut fields = vec![("step", step)];
            for key in STATES {
                fields.push((key, flat(&mut torch, sub, key)?));
            }
            state.push((Value::size(number as u64), Value::fields(fields)));
            masters.push(flat(&mut torch, sub, "fp32")?);
        }
        let fields = [
            ("zero_stage", stage3()),
            ("loss_scaler", loss_scaler()),
            ("dynamic_loss_scale", Value::bool(false)),
            ("overflow", Value::bool(false)),
            ("partition_count", Value::size(self.ranks())),
            ("optimizer_state_dict", Value::fields([("state", Value::dict(state)), ("param_groups", self.groups(optimizer, sub_groups))])),
            ("fp32_flat_groups", Value::list(masters)),
        ];
        let root = [("optimizer_state_dict", Value::fields(fields)), ("ds_config", self.config()), ("ds_version", self.version())];
        let mut file = OutFile::new(name);
        file.torch(torch, &Value::fields(root))?;
        Ok(file)
    }

    pub(super) fn universal(&self) -> Result<Planned<'a>> {
        let optimizer = self.optimizer_or_refuse()?;
        let sub_groups = Arc::new(self.sub_groups(optimizer)?);
        let tag = format!("{}_universal", self.tag());
        let mut files = Vec::new();
        for rank in 0..self.ranks() {
            files.push(self.model_states_deferred(&tag, rank, &sub_groups)?);
        }
        for param in sub_groups.iter().flat_map(|sub| &sub.params) {
            let name = &param.tensor.name;
            if name.contains('/') || name == ".." || name.is_empty() {
                return Err(EngineError::new(ErrorKind::Config, "the name cannot be a directory's").tensor(name));
            }
            for key in ["fp32", STATES[0], STATES[1]] {
                let data = param.data(key)?;
                let name = format!("{tag}/zero/{name}/{key}.pt");
                files.push(FilePlan::deferred(move || {
                    let mut torch = Torch::default();
                    let value = torch.tensor(DType::F32, &[data.numel()], vec![Part::Elements(data, 0..data.numel())])?;
                    let mut file = OutFile::new(name.as_str());
                    file.torch(torch, &value)?;
                    Ok(file)
                })?);
            }
        }
        let mut torch = Torch::default();
        let mut state = Vec::new();
        for (number, sub) in sub_groups.iter().enumerate() {
            state.push((Value::size(number as u64), Value::fields([("step", torch.scalar(step(sub)?)?)])));
        }
        let root = Value::fields([
            ("zero_stage", stage3()),
            ("loss_scaler", loss_scaler()),
            ("dynamic_loss_scale", Value::bool(false)),
            ("overflow", Value::bool(false)),
            ("partition_count", Value::size(self.ranks())),
            ("optimizer_state_dict", Value::fields([("state", Value::dict(state)), ("param_groups", self.groups(optimizer, &sub_groups))])),
        ]);
        let mut file = OutFile::new(format!("{tag}/zero/optimizer_state.pt"));
        file.torch(torch, &root)?;
        files.push(file.into());
        files.push(OutFile::literal("latest", tag.clone().into_bytes()).into());
        files.push(OutFile::literal("latest_universal", tag.into_bytes()).into());
        let mut lost = self.lost_states(optimizer);
        let kept = self.contents.tensors.iter().filter(|t| t.kind != Kind::Trained).count();
        if kept > 0 {
            lost.push(format!(
                "DeepSpeed itself ignores frozen parameters and buffers of a universal checkpoint: {kept} of them keep their initial values"
            ));
        }
        Ok(Planned { files, lost })
    }
}

/// The step of all parameters of a sub-group, which share one.
fn step(sub: &SubGroup<'_>) -> Result<f32> {
    let first = sub.params.first().map_or(0.0, |p| p.state.step);
    if let Some(other) = sub.params.iter().find(|p| p.state.step.total_cmp(&first).is_ne()) {
        let error = EngineError::new(ErrorKind::Config, "parameters of one group are at different steps, and DeepSpeed keeps one for all");
        return Err(error.tensor(&other.tensor.name).expected(first).found(other.state.step));
    }
    #[expect(clippy::cast_possible_truncation, reason = "torch keeps steps as float32")]
    Ok(first as f32)
}
