//! Where `load` puts the shards: what was asked for, what is said about it, and shards that may lie on a device.

use shardwright_config::Place;
use shardwright_engine::{
    device::{DeviceLoaded, DeviceOptions, DeviceRequest, DeviceShards, Devices, Downcast, choose, probe},
    load::{LoadStats, Loaded, RankShards, RankStats},
};

use crate::{
    args::{DowncastOn, IoArgs},
    exit::{Exit, Failure},
    input::Input,
    output::print_note,
};

/// Opens the devices of these ranks; `None` for host memory. The flag wins over the config. A choice other than plain `cpu` is reported.
pub fn of(flag: Option<DeviceRequest>, input: &Input, ranks: &[u32]) -> Result<Option<Devices>, Failure> {
    let set = || input.resolved.device.as_deref().map(str::parse).transpose();
    let request = match flag {
        Some(request) => request,
        None => set().map_err(|e: String| Failure::new(Exit::Config, format_args!("shardwright.device: {e}")))?.unwrap_or_default(),
    };
    let local = input.world.rank.and(input.world.local_rank);
    let choice = choose(request, probe, local, ranks)?;
    if request != DeviceRequest::Cpu {
        let place = if choice.ordinals.is_some() { "cuda" } else { "cpu" };
        print_note(&format!("device: {place}: {}", choice.reason));
    }
    Ok(choice.ordinals.map(|ordinals| Devices::open(&ordinals)).transpose()?)
}

/// How bytes get to a device: a flag wins over the config, and what neither says is the engine's choice.
pub fn options(args: &IoArgs, input: &Input) -> DeviceOptions {
    let (io, default) = (&input.resolved.io, DeviceOptions::default());
    let ring = args.ring_size.or(io.ring_size).map(|size| usize::try_from(size.0).unwrap_or(usize::MAX));
    let downcast = match (args.downcast, io.downcast) {
        (Some(DowncastOn::Host), _) | (None, Some(Place::Host)) => Downcast::Host,
        (Some(DowncastOn::Device), _) | (None, Some(Place::Device)) => Downcast::Device,
        (None, None) => default.downcast,
    };
    DeviceOptions { ring_bytes: ring.unwrap_or(default.ring_bytes), downcast }
}

/// Shards, wherever they are.
pub enum Placed<'p> {
    Host(Loaded<'p>),
    Device(DeviceLoaded<'p>),
}

impl<'p> Placed<'p> {
    /// The whole load's figures.
    pub fn stats(&self) -> &LoadStats {
        match self {
            Self::Host(loaded) => &loaded.stats,
            Self::Device(loaded) => &loaded.stats,
        }
    }

    /// Each rank's figures.
    pub fn ranks(&self) -> Vec<&RankStats> {
        match self {
            Self::Host(loaded) => loaded.ranks.iter().map(RankShards::stats).collect(),
            Self::Device(loaded) => loaded.ranks.iter().map(DeviceShards::stats).collect(),
        }
    }

    /// In host memory, for what needs their bytes there: digests, reports, files. From a device they are copied.
    pub fn on_host(self) -> Result<Loaded<'p>, Failure> {
        match self {
            Self::Host(loaded) => Ok(loaded),
            Self::Device(loaded) => Ok(loaded.download()?),
        }
    }
}
