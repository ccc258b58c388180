//! Loading into memory of the caller's: parts of parameters, each into a buffer of its own. This is what foreign runtimes fill their tensors with.

use std::{collections::BTreeMap, ops::Range, time::Instant};

use shardwright_core::{
    Assembly, DType, Mesh, Model, ModelFacts, ModelMeta, Name, Placement, PlanInput, Precision, PrecisionPolicy, Region, ShardPlan,
    TensorMeta, local, model::numel,
};

use super::{
    CancelToken, IoChoice, IoOptions, LoadStats, Progress,
    layout::{Alike, RankLayout, Tables},
    machine::Machine,
    on_device::DeviceLoad,
    pipeline::{Extent, Foreign, Job, Places},
    schedule::{Schedule, order_of},
};
use crate::{
    checkpoint::Checkpoint,
    device::{DeviceOptions, Devices},
    error::{EngineError, ErrorKind, Result},
    source::Opener,
};

/// One parameter, or the part of it that is wanted here, and where it goes.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its name, for messages; each once.
    pub name: Name,
    /// The whole parameter's shape, in elements.
    pub shape: Vec<u64>,
    /// What it is made of: indices into [`Checkpoint::sources`].
    pub assembly: Assembly,
    /// A dtype that values are rounded through before they are cast.
    pub rounded: Option<DType>,
    /// What is wanted.
    pub part: Part,
    /// Where it goes.
    pub to: Destination,
}

/// The part of a parameter that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Indices for each dim.
    Box(Vec<Range<u64>>),
    /// Row-major flat elements.
    Flat(Range<u64>),
}

/// Memory of the caller's, on the host or on a device. The part fills it from its start, row-major without gaps; what is left over is set to zero.
#[derive(Clone, Copy, Debug)]
pub struct Destination {
    /// Address of the first byte; any alignment.
    pub address: usize,
    /// Size in bytes.
    pub bytes: u64,
    /// What its elements are.
    pub dtype: DType,
}

/// The dtype of each destination, by name.
#[derive(Debug)]
struct AsAsked(BTreeMap<Name, DType>);

impl PrecisionPolicy for AsAsked {
    fn decide(&self, parameter: &TensorMeta, _: bool) -> Precision {
        Precision::uniform(self.0.get(&parameter.name).copied().unwrap_or(parameter.dtype))
    }

    fn buffer(&self, buffer: &TensorMeta) -> DType {
        self.decide(buffer, false).storage
    }
}

/// Reads each item's part into its memory; nothing else is read. Everything is validated before the first byte is written.
///
/// # Errors
/// [`ErrorKind::Plan`] for items that do not fit the checkpoint or their memory, naming the tensor; [`ErrorKind::Config`] for options out of range;
/// [`ErrorKind::Io`], [`ErrorKind::Checkpoint`] where a file changed meanwhile, [`ErrorKind::Cancelled`]: the memory's content is undefined then.
///
/// # Safety
/// Every destination is memory of `bytes` bytes that may be written from any thread, that no other destination overlaps, and that nothing else reads or
/// writes until the call returns.
pub unsafe fn fill(
    checkpoint: &Checkpoint,
    items: &[Item],
    io: &IoOptions,
    progress: Option<&(dyn Fn(&Progress<'_>) + Sync)>,
    cancel: &CancelToken,
) -> Result<LoadStats> {
    let started = Instant::now();
    let Prepared { choice, plan, extents, layout, schedule, .. } = Prepared::new(checkpoint, items, io)?;
    let places: Vec<_> = extents.into_iter().map(Foreign::of).collect();
    for (place, tensor) in places.iter().zip(&plan.tensors) {
        let used = tensor.precision.storage.bytes(tensor.numel()).and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
        // SAFETY: the caller's memory, of which the part fills the first bytes: `local_plan` compared both sizes.
        unsafe { place.start.add(used).write_bytes(0, place.bytes - used) };
    }
    let opener = Opener::new(choice.method);
    let job = Job { checkpoint, schedule, places: Places::Foreign(places), choice, opener, device: None, cancel: cancel.clone(), progress };
    Ok(job.run(&[layout], started)?.stats)
}

/// As [`fill`], into memory on a device: the smaller dtype crosses the bus, and all has arrived when it returns, so that any stream may read it.
///
/// `devices` are opened for one rank. They keep the ring of pinned memory for the next call.
///
/// # Errors
/// As [`fill`]; [`ErrorKind::Plan`] for memory that is not on the device, [`ErrorKind::Device`] where the device has no room for the staging memory, or
/// fails.
///
/// # Safety
/// As for [`fill`], of memory on the device: no work that uses it is under way or begins before the call returns, on any stream.
pub unsafe fn fill_on_device(
    checkpoint: &Checkpoint,
    items: &[Item],
    (devices, options): (&Devices, DeviceOptions),
    io: &IoOptions,
    progress: Option<&(dyn Fn(&Progress<'_>) + Sync)>,
    cancel: &CancelToken,
) -> Result<LoadStats> {
    let started = Instant::now();
    let Prepared { choice, plan, model, extents, layout, schedule } = Prepared::new(checkpoint, items, io)?;
    let load = DeviceLoad {
        plan: &plan,
        assemblies: &model.assemblies,
        checkpoint,
        ranks: &[0],
        layouts: &[layout],
        io: io.clone(),
        cancel: cancel.clone(),
        progress,
        opener: Opener::new(choice.method),
        started,
    };
    load.run((devices, options), choice, schedule, Some(extents)).map(|(_, _, stats)| stats)
}

/// A validated fill: the items' parts as a plan of one rank, where they go, and what is read for them.
struct Prepared {
    choice: IoChoice,
    plan: ShardPlan,
    model: Model,
    extents: Vec<Extent>,
    layout: RankLayout,
    schedule: Schedule,
}

impl Prepared {
    fn new(checkpoint: &Checkpoint, items: &[Item], io: &IoOptions) -> Result<Self> {
        let choice = io.choose_on(&Machine::here(checkpoint.files().first().map(|f| f.path.as_path())))?;
        validate(checkpoint, items)?;
        let (plan, model, extents) = local_plan(checkpoint, items)?;
        let order = order_of(&model.assemblies, checkpoint);
        let schedule = Schedule::of(&plan, &model.assemblies, checkpoint, &[0], &order, choice.block_size)?;
        let layout = RankLayout::new(&plan, 0, &order, &Alike::new(&plan), &mut Tables::default())?;
        Ok(Self { choice, plan, model, extents, layout, schedule })
    }
}

fn wrong(item: &Item, what: impl Into<String>) -> EngineError {
    EngineError::new(ErrorKind::Plan, what).tensor(&item.name)
}

/// Every parameter's pieces fit its sources and tile it, whatever part of it is wanted.
fn validate(checkpoint: &Checkpoint, items: &[Item]) -> Result<()> {
    let mut whole: Vec<(TensorMeta, Assembly)> = Vec::with_capacity(items.len());
    for item in items {
        let dtype = item.assembly.first().and_then(|source| checkpoint.sources().get(source as usize)).map_or(item.to.dtype, |s| s.dtype);
        whole.push((TensorMeta::new(item.name.clone(), dtype, item.shape.clone()), item.assembly.clone()));
    }
    whole.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    let (tensors, assemblies) = whole.into_iter().unzip();
    let model = model_of(tensors, assemblies)?;
    model.check(checkpoint.sources()).map_err(|e| EngineError::new(ErrorKind::Plan, e.what).tensor(&e.tensor))
}

fn model_of(tensors: Vec<TensorMeta>, assemblies: Vec<Assembly>) -> Result<Model> {
    let twice = |name| EngineError::new(ErrorKind::Plan, "the tensor is asked for twice").tensor(name);
    let mut model = Model::identity(ModelMeta::new(tensors, ModelFacts::default()).map_err(twice)?);
    model.assemblies = assemblies;
    Ok(model)
}

/// The parts as parameters of their own, whole on the only rank, in the order of their names.
fn local_plan(checkpoint: &Checkpoint, items: &[Item]) -> Result<(ShardPlan, Model, Vec<Extent>)> {
    let mut parts = Vec::with_capacity(items.len());
    for item in items {
        let source = item.assembly.first().and_then(|source| checkpoint.sources().get(source as usize));
        let dtype = source.map_or(item.to.dtype, |s| s.dtype);
        let size = numel(&item.shape).unwrap_or(u64::MAX);
        let (pieces, count) = match &item.part {
            Part::Box(ranges) => {
                let pieces = local::pieces_in_box(&item.assembly, &item.shape, ranges).map_err(|what| wrong(item, what))?;
                (pieces, ranges.iter().map(|r| r.end - r.start).product())
            }
            Part::Flat(range) if range.start <= range.end && range.end <= size => {
                let region = Region::Flat { range: range.clone() };
                let pieces = local::local_pieces(&item.assembly, &item.shape, &region).map_err(|what| wrong(item, what))?;
                (pieces, range.end - range.start)
            }
            Part::Flat(range) => return Err(wrong(item, format!("elements {range:?} of {size} are asked for"))),
        };
        let bytes = item.to.dtype.bytes(count).ok_or_else(|| wrong(item, "its size overflows"))?;
        if bytes > item.to.bytes {
            return Err(wrong(item, "its memory is too small").expected(format_args!("at least {bytes} bytes")).found(item.to.bytes));
        }
        let held = usize::try_from(item.to.bytes).map_err(|_| wrong(item, "its memory is larger than any address space"))?;
        if item.to.address == 0 && held > 0 {
            return Err(wrong(item, "its memory has no address; a tensor on the meta device has none"));
        }
        let meta = TensorMeta::new(item.name.clone(), dtype, [count]);
        parts.push((meta, Assembly::Pieces(pieces), Extent { address: item.to.address, bytes: held }, item));
    }
    parts.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    let policy = AsAsked(parts.iter().map(|p| (p.0.name.clone(), p.3.to.dtype)).collect());
    let rounded: Vec<_> = parts.iter().map(|p| p.3.rounded).collect();
    let (mut tensors, mut assemblies, mut places) = (Vec::new(), Vec::new(), Vec::new());
    for (meta, assembly, place, _) in parts {
        tensors.push(meta);
        assemblies.push(assembly);
        places.push(place);
    }
    let model = model_of(tensors, assemblies)?;
    let refused = |what: String| EngineError::new(ErrorKind::Plan, what);
    let mesh = Mesh::replicate_shard(1, 1).map_err(refused)?;
    let planned = PlanInput::new(&model.meta, &mesh, &policy).plan_tensors("fill", |_| Ok(Placement::replicated()));
    let mut plan = planned.map_err(|e| refused(e.to_string()))?;
    for (tensor, through) in plan.tensors.iter_mut().zip(rounded) {
        tensor.rounded = through;
    }
    Ok((plan, model, places))
}
