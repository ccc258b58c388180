//! The trait that decides layout, what it is given, and the helper that most strategies build their plan with.

use std::fmt::Debug;

use crate::{
    check::CheckError,
    glob::Globs,
    mesh::Mesh,
    model::{ModelMeta, TensorKind, TensorMeta},
    name::Name,
    panics::caught,
    placement::Placement,
    plan::{Offload, ParamGroup, Reshard, ShardPlan, TensorPlan},
    precision::{Precision, PrecisionPolicy},
    text::shown,
    trainable::Trainable,
};

/// Decides where every tensor lies, as data.
///
/// # Contract
/// `plan` is pure (no file, environment, clock or thread), total (a plan or a [`PlanError`] for every input, never a panic) and
/// deterministic (equal inputs give equal plans, whatever the order of a hash map). Shapes are in elements, outermost dim first.
/// In the plan every parameter is in exactly one parameter group and is tiled exactly once by each group of its placement; buffers are replicated.
/// The engine validates all of that with [`ShardPlan::check`] before it allocates a byte.
pub trait ShardStrategy: Debug + Send + Sync {
    /// The name it reports, as registered: `fsdp2`, `vendor/name`.
    fn name(&self) -> &str;

    /// Whether a tied weight is a parameter of each parameter group that has it, instead of one under its first name.
    fn ties_per_group(&self) -> bool {
        false
    }

    /// Whether the engine has whole weights when it ties them: of names that config.json ties, a checkpoint that has both with other values then keeps
    /// both. Where it has partitions it cannot tell, and ties them.
    fn compares_tied(&self) -> bool {
        true
    }

    /// The plan for this model on this mesh.
    ///
    /// # Errors
    /// A tensor that the strategy cannot place (by name), or a mesh that it cannot use.
    fn plan(&self, input: &PlanInput<'_>) -> Result<ShardPlan, PlanError>;
}

/// Everything a plan may depend on.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct PlanInput<'a> {
    /// The model's tensors and facts.
    pub model: &'a ModelMeta,
    /// All ranks, as the config arranges them.
    pub mesh: &'a Mesh,
    /// Decides each parameter's dtypes.
    pub precision: &'a dyn PrecisionPolicy,
    /// Float tensors that are buffers all the same.
    pub buffers: &'a Globs,
    /// Modules whose parameters form a group of their own, instead of the strategy's own choice; empty means that choice.
    pub units: &'a Globs,
    /// Which parameters the optimizer changes.
    pub trainable: &'a Trainable,
}

impl<'a> PlanInput<'a> {
    /// An input with no extra buffers or parameter groups and every parameter trainable.
    pub fn new(model: &'a ModelMeta, mesh: &'a Mesh, precision: &'a dyn PrecisionPolicy) -> Self {
        static NONE: Globs = Globs::none();
        static ALL: Trainable = Trainable::All;
        Self { model, mesh, precision, buffers: &NONE, units: &NONE, trainable: &ALL }
    }

    /// The kind of a tensor: what its class says, else integers and booleans are buffers and floats are parameters; buffers too is what the
    /// config names.
    pub fn kind(&self, tensor: &TensorMeta) -> TensorKind {
        if let Some(kind) = tensor.kind {
            return if self.buffers.matches(&tensor.name) { TensorKind::Buffer } else { kind };
        }
        if tensor.dtype.is_float() && !self.buffers.matches(&tensor.name) { TensorKind::Parameter } else { TensorKind::Buffer }
    }

    /// The tensors that are parameters, in the model's order.
    pub fn parameters(&self) -> impl Iterator<Item = &'a TensorMeta> {
        self.model.tensors.iter().filter(|tensor| self.kind(tensor) == TensorKind::Parameter)
    }

    /// Plans every tensor: `place` is asked for each parameter, buffers are replicated in their own dtype. Parameter groups are empty; add them
    /// with [`groups_by`] or by hand.
    ///
    /// # Errors
    /// What `place` answers; a storage dtype that the checkpoint's has no cast to.
    pub fn plan_tensors(
        &self,
        strategy: &str,
        mut place: impl FnMut(&TensorMeta) -> Result<Placement, PlanError>,
    ) -> Result<ShardPlan, PlanError> {
        let tensors = self.model.tensors.iter().map(|tensor| self.plan_tensor(tensor, &mut place)).collect::<Result<_, _>>()?;
        Ok(ShardPlan { strategy: strategy.to_owned(), mesh: self.mesh.clone(), tensors, groups: Vec::new() })
    }

    fn plan_tensor(
        &self,
        tensor: &TensorMeta,
        place: &mut impl FnMut(&TensorMeta) -> Result<Placement, PlanError>,
    ) -> Result<TensorPlan, PlanError> {
        let kind = self.kind(tensor);
        let trainable = kind == TensorKind::Parameter && self.trainable.contains(&tensor.name);
        let (placement, precision) = match kind {
            TensorKind::Buffer => (Placement::replicated(), Precision::uniform(self.precision.buffer(tensor))),
            TensorKind::Parameter => (place(tensor)?, self.precision.decide(tensor, trainable)),
        };
        if !tensor.dtype.casts_to(precision.storage) {
            return Err(PlanError::NoCast { tensor: tensor.name.clone(), from: tensor.dtype, to: precision.storage });
        }
        Ok(TensorPlan {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            source: tensor.dtype,
            kind,
            trainable,
            placement,
            precision,
            rounded: self
                .precision
                .rounded(tensor, &self.model.facts)
                .filter(|r| tensor.dtype.casts_to(*r) && r.casts_to(precision.storage)),
            persistent: false,
            offload: Offload::None,
        })
    }
}

/// Sorts a plan's parameters into parameter groups by the name of the module that claims each; `group_of` answers with the module's name, empty for
/// the root. Parameter groups are in the order in which their first tensor occurs, the root last; the order inside is by tensor name.
pub fn groups_by<'a>(plan: &'a [TensorPlan], reshard: Reshard, group_of: impl Fn(&'a TensorPlan) -> &'a str) -> Vec<ParamGroup> {
    let mut index = std::collections::BTreeMap::new();
    let mut units: Vec<ParamGroup> = Vec::new();
    for (i, tensor) in plan.iter().enumerate().filter(|(_, t)| t.kind == TensorKind::Parameter) {
        let name = group_of(tensor);
        let at = *index.entry(name).or_insert_with(|| {
            units.push(ParamGroup::new(name, reshard));
            units.len() - 1
        });
        units[at].tensors.push(i);
    }
    units.sort_by_key(|u| u.name.is_empty());
    units
}

/// The modules that a parameter is in, deepest first: for `model.norm.weight` these are `model.norm` and `model`.
pub fn modules(parameter: &str) -> impl Iterator<Item = &str> {
    parameter.rmatch_indices('.').map(|(at, _)| &parameter[..at])
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A tensor that the strategy cannot place.
    #[error("tensor '{}': {reason}", shown(tensor))]
    Tensor {
        /// Its name.
        tensor: Name,
        /// What was expected and found.
        reason: String,
    },
    /// A dtype that cannot become the storage dtype.
    #[error(
        "tensor '{}': there is no cast from its dtype {from} to the storage dtype {to}; name it under shardwright.buffers to keep it as it is",
        shown(tensor)
    )]
    NoCast {
        /// Its name.
        tensor: Name,
        /// In the checkpoint.
        from: crate::DType,
        /// What the policy decided.
        to: crate::DType,
    },
    /// A mesh that the strategy cannot use.
    #[error("mesh: {0}")]
    Mesh(String),
    /// The strategy's own code, or the policy's that it asked, panicked.
    #[error("strategy '{strategy}' panicked while it planned: {what}")]
    Panicked {
        /// The strategy's name.
        strategy: String,
        /// What the panic says.
        what: String,
    },
    /// The strategy's plan does not hold.
    #[error("strategy '{strategy}' made a plan that does not hold: {source}")]
    Unsound {
        /// The strategy's name.
        strategy: String,
        /// The violation.
        source: CheckError,
    },
}

impl PlanError {
    /// An error about one tensor.
    pub fn tensor(tensor: &TensorMeta, reason: impl Into<String>) -> Self {
        Self::Tensor { tensor: tensor.name.clone(), reason: reason.into() }
    }
}

/// Plans and validates: the one way from an input to a plan that may be loaded.
///
/// # Errors
/// The strategy's own, [`PlanError::Panicked`] or [`PlanError::Unsound`].
pub fn plan_checked(strategy: &dyn ShardStrategy, input: &PlanInput<'_>) -> Result<ShardPlan, PlanError> {
    let panicked = |what| PlanError::Panicked { strategy: strategy.name().to_owned(), what };
    let plan = caught(|| strategy.plan(input)).map_err(panicked)??;
    let unsound = |source| PlanError::Unsound { strategy: strategy.name().to_owned(), source };
    let (planned, given) = (plan.mesh.world_size(), input.mesh.world_size());
    if planned != given {
        return Err(unsound(CheckError::World { planned, given }));
    }
    plan.check(input.model).map_err(unsound)?;
    Ok(plan)
}
