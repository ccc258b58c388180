//! Amounts of memory by place and category, and the timeline that finds the highest point of a phase.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where memory lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// The accelerator's memory; on a run without one, host memory that the engine treats as the device.
    Device,
    /// Host memory.
    Host,
    /// A local disk.
    Nvme,
}

impl Place {
    /// All places.
    pub const ALL: [Self; 3] = [Self::Device, Self::Host, Self::Nvme];

    /// The name in outputs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Host => "host",
            Self::Nvme => "nvme",
        }
    }
}

/// What memory is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// Shards of parameters, padding included.
    Parameters,
    /// Buffers of the model, whole on every rank.
    Buffers,
    /// Parameters that are gathered at the moment.
    Gathered,
    /// Gradients, whole and sharded.
    Gradients,
    /// float32 master weights.
    Masters,
    /// States of the optimizer.
    OptimizerStates,
    /// Activations kept for the backward pass.
    Activations,
    /// Logits, the loss and their gradients.
    Loss,
    /// Buffers of collectives.
    Communication,
    /// Temporary tensors of the optimizer step, of a load or of a save.
    Temporary,
    /// The context of the driver and the buffers of the collective library.
    Reserve,
}

impl Category {
    /// All categories, in the order of outputs.
    pub const ALL: [Self; 11] = [
        Self::Parameters,
        Self::Buffers,
        Self::Gathered,
        Self::Gradients,
        Self::Masters,
        Self::OptimizerStates,
        Self::Activations,
        Self::Loss,
        Self::Communication,
        Self::Temporary,
        Self::Reserve,
    ];

    /// The name in outputs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Parameters => "parameters",
            Self::Buffers => "buffers",
            Self::Gathered => "gathered",
            Self::Gradients => "gradients",
            Self::Masters => "masters",
            Self::OptimizerStates => "optimizer_states",
            Self::Activations => "activations",
            Self::Loss => "loss",
            Self::Communication => "communication",
            Self::Temporary => "temporary",
            Self::Reserve => "reserve",
        }
    }
}

const PLACES: usize = Place::ALL.len();
const CATEGORIES: usize = Category::ALL.len();

/// Bytes by place and category.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    bytes: [[u64; CATEGORIES]; PLACES],
}

impl Ledger {
    /// Bytes of a category in a place.
    pub fn get(&self, place: Place, category: Category) -> u64 {
        self.bytes[place as usize][category as usize]
    }

    /// Bytes in a place.
    pub fn total(&self, place: Place) -> u64 {
        self.bytes[place as usize].iter().fold(0, |sum, &n| sum.saturating_add(n))
    }

    /// Adds bytes.
    pub fn add(&mut self, place: Place, category: Category, bytes: u64) {
        let entry = &mut self.bytes[place as usize][category as usize];
        *entry = entry.saturating_add(bytes);
    }

    /// Takes bytes away.
    pub fn take(&mut self, place: Place, category: Category, bytes: u64) {
        let entry = &mut self.bytes[place as usize][category as usize];
        debug_assert!(*entry >= bytes, "{category:?} on {place:?} holds {entry}, {bytes} are freed");
        *entry = entry.saturating_sub(bytes);
    }

    /// Keeps, place by place, the larger one: a phase's highest point on the device and its highest in host memory may be apart.
    fn keep_larger(&mut self, other: &Self) {
        for place in Place::ALL {
            if other.total(place) > self.total(place) {
                self.bytes[place as usize] = other.bytes[place as usize];
            }
        }
    }
}

/// The part of a training step that memory is reported for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// From the start until the engine is ready.
    Load,
    /// The forward pass.
    Forward,
    /// The backward pass.
    Backward,
    /// The optimizer step.
    Step,
    /// Writing a checkpoint.
    Save,
}

impl Phase {
    /// All phases, in order.
    pub const ALL: [Self; 5] = [Self::Load, Self::Forward, Self::Backward, Self::Step, Self::Save];

    /// The name in outputs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::Step => "step",
            Self::Save => "save",
        }
    }
}

/// Allocations and releases in order. The highest point of each phase is kept.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    now: Ledger,
    phase: usize,
    peaks: [Ledger; Phase::ALL.len()],
}

impl Timeline {
    /// Begins a phase.
    pub fn begin(&mut self, phase: Phase) {
        self.phase = phase as usize;
        self.seen();
    }

    fn seen(&mut self) {
        let now = self.now;
        self.peaks[self.phase].keep_larger(&now);
    }

    /// Allocates.
    pub fn add(&mut self, place: Place, category: Category, bytes: u64) {
        self.now.add(place, category, bytes);
        self.seen();
    }

    /// Frees.
    pub fn take(&mut self, place: Place, category: Category, bytes: u64) {
        self.now.take(place, category, bytes);
    }

    /// Allocates and frees again.
    pub fn touch(&mut self, place: Place, category: Category, bytes: u64) {
        self.add(place, category, bytes);
        self.take(place, category, bytes);
    }

    /// What is held now.
    pub fn now(&self) -> &Ledger {
        &self.now
    }

    /// The highest point of each phase.
    pub fn peaks(&self) -> &[Ledger; Phase::ALL.len()] {
        &self.peaks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_reports_its_highest_point_and_nothing_of_another_phase() {
        let mut timeline = Timeline::default();
        timeline.begin(Phase::Load);
        timeline.add(Place::Device, Category::Parameters, 10);
        timeline.touch(Place::Device, Category::Temporary, 100);
        timeline.begin(Phase::Forward);
        timeline.touch(Place::Device, Category::Gathered, 5);
        let peaks = timeline.peaks();
        assert_eq!(peaks[Phase::Load as usize].total(Place::Device), 110);
        assert_eq!(peaks[Phase::Forward as usize].total(Place::Device), 15);
        assert_eq!(peaks[Phase::Forward as usize].get(Place::Device, Category::Gathered), 5);
        assert_eq!(timeline.now().total(Place::Device), 10);
    }
}
