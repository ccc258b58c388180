//! The suite for precision policies.

use std::fmt;

use super::{
    corpus::{self, Random},
    registered::{Files, built, built_policy, registry},
    rules::caught,
    section::Section,
    violation::{Found, Rule, Violation},
};
use crate::{DType, Mesh, ModelFacts, ModelMeta, PlanInput, Precision, PrecisionPolicy, ShardPlan, TensorMeta, plan_checked};

type Build<'a> = Box<dyn Fn(&str) -> Result<Box<dyn PrecisionPolicy>, String> + 'a>;

/// The conformance suite for one precision policy.
pub struct PolicyKit<'a> {
    name: String,
    build: Build<'a>,
    sections: Vec<String>,
    registered: bool,
}

/// The suite for the precision policy that is registered under this name in the test's binary, over every strategy that is linked there.
pub fn policy(name: &str) -> PolicyKit<'static> {
    let owned = name.to_owned();
    let mut kit = PolicyKit::new(name, move |section| over("replicate", &owned, section).map(|(policy, _)| policy));
    kit.registered = true;
    kit
}

type Over = (Box<dyn PrecisionPolicy>, Box<dyn crate::ShardStrategy>);

fn over(strategy: &str, policy: &str, section: &str) -> Result<Over, String> {
    let strategy = built(strategy, "", &mesh(), &Files::new())?;
    let policy = built_policy(policy, section, &mesh(), strategy.strategy.name(), strategy.precision)?;
    Ok((policy.policy, strategy.strategy))
}

fn mesh() -> Mesh {
    Mesh::replicate_shard(2, 2).expect("a sound mesh")
}

impl<'a> PolicyKit<'a> {
    /// A suite for a policy that need not be registered; `build` makes it from a section (YAML without the name, empty for the default).
    pub fn new(name: impl Into<String>, build: impl Fn(&str) -> Result<Box<dyn PrecisionPolicy>, String> + 'a) -> Self {
        Self { name: name.into(), build: Box::new(build), sections: vec![String::new()], registered: false }
    }

    /// Proves the policy with this section too.
    #[must_use]
    pub fn section(mut self, yaml: impl Into<String>) -> Self {
        self.sections.push(yaml.into());
        self
    }

    /// Runs the suite and panics with the violation: for a `#[test]`.
    ///
    /// # Panics
    /// The policy breaks a rule.
    pub fn assert(&self) {
        if let Err(violation) = self.run() {
            panic!("{violation}");
        }
    }

    /// Runs the suite.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn run(&self) -> Result<(), Violation> {
        let subject = format!("precision policy '{}'", self.name);
        let violation = |case: String, (rule, found): Found| Violation { rule, subject: subject.clone(), case, found };
        if self.registered {
            self.registered().map_err(|found| violation(String::new(), found))?;
        }
        for section in &self.sections {
            let case = |what: &str| if section.is_empty() { what.to_owned() } else { format!("{what}, section {{{}}}", section.trim()) };
            self.decides(section).map_err(|(tensor, found)| violation(case(&tensor), found))?;
            if self.registered {
                self.plans(section).map_err(|found| violation(case("a decoder and mixtures of experts on 2 × 2 ranks"), found))?;
            }
        }
        Ok(())
    }

    fn registered(&self) -> Result<(), Found> {
        let registry = registry()?;
        let entry = registry.policy(&self.name).map_err(|e| (Rule::Registered, super::registered::describe(&e)))?;
        Section::from(*entry).holds(self.sections.iter().map(String::as_str))
    }

    fn policy(&self, section: &str) -> Result<Box<dyn PrecisionPolicy>, Found> {
        caught("building", || (self.build)(section))?.map_err(|e| (Rule::Config, format!("the section makes no policy: {e}")))
    }

    /// Every tensor, one by one: a failure is reported for one tensor.
    fn decides(&self, section: &str) -> Result<(), (String, Found)> {
        let nowhere = |found: Found| (String::new(), found);
        let (policy, fresh) = (self.policy(section).map_err(nowhere)?, self.policy(section).map_err(nowhere)?);
        let mut asked: Vec<(TensorMeta, bool)> = tensors().into_iter().flat_map(|t| [(t.clone(), true), (t, false)]).collect();
        let mut first = Vec::new();
        for (tensor, trainable) in &asked {
            let at = |found: Found| (format!("tensor '{}' {} {:?}, trainable {trainable}", tensor.name, tensor.dtype, tensor.shape), found);
            let decided = caught("deciding", || policy.decide(tensor, *trainable)).map_err(at)?;
            storable(tensor, decided).map_err(at)?;
            first.push((tensor.name.clone(), *trainable, decided));
        }
        Random::new(11).shuffle(&mut asked);
        for (tensor, trainable) in &asked {
            let at = |found: Found| (format!("tensor '{}' {} {:?}, trainable {trainable}", tensor.name, tensor.dtype, tensor.shape), found);
            let before = first.iter().find(|(name, t, _)| *name == tensor.name && t == trainable).map(|(_, _, decided)| *decided);
            let again = caught("deciding", || policy.decide(tensor, *trainable)).map_err(at)?;
            let other = caught("deciding", || fresh.decide(tensor, *trainable)).map_err(at)?;
            if Some(again) != before {
                return Err(at((Rule::Order, format!("asked in another order it decides {again:?}, before {before:?}"))));
            }
            if other != again {
                return Err(at((Rule::Deterministic, format!("another instance decides {other:?}, the first {again:?}"))));
            }
        }
        Ok(())
    }

    /// Over every strategy that is linked: the plan holds, follows the policy, and its gather groups separate the dtypes.
    fn plans(&self, section: &str) -> Result<(), Found> {
        for entry in registry()?.strategies() {
            // A strategy that needs a section of its own, or a file, has its own suite.
            let Ok((policy, strategy)) = over(entry.name, &self.name, section) else { continue };
            for tensors in [corpus::decoder(), corpus::experts()] {
                let model = ModelMeta::new(tensors, ModelFacts::default()).expect("the corpus has each name once");
                let plan = caught("planning", || plan_checked(&*strategy, &PlanInput::new(&model, &mesh(), &*policy)))?;
                let plan = plan.map_err(|e| (Rule::Inputs, format!("under '{}' there is no plan: {e}", entry.name)))?;
                groups_are_of_one_dtype(&plan).map_err(|what| (Rule::Inputs, format!("under '{}' {what}", entry.name)))?;
            }
        }
        Ok(())
    }
}

/// Parameters of every name and shape of the corpus.
fn tensors() -> Vec<TensorMeta> {
    let all = [corpus::shapes(), corpus::decoder(), corpus::experts(), corpus::random(5)].concat();
    let mut seen = std::collections::BTreeSet::new();
    all.into_iter().filter(|t| t.dtype.is_float() && seen.insert(t.name.clone())).collect()
}

fn storable(tensor: &TensorMeta, decided: Precision) -> Result<(), Found> {
    let dtypes: [(&str, DType); 3] = [("storage", decided.storage), ("compute", decided.compute), ("reduce", decided.reduce)];
    if let Some((what, dtype)) = dtypes.iter().find(|(_, dtype)| !dtype.is_float()) {
        return Err((Rule::Storable, format!("its {what} dtype is {dtype}, which is no float")));
    }
    if !tensor.dtype.casts_to(decided.storage) {
        return Err((Rule::Storable, format!("it is stored as {}, to which there is no cast from {}", decided.storage, tensor.dtype)));
    }
    Ok(())
}

fn groups_are_of_one_dtype(plan: &ShardPlan) -> Result<(), String> {
    for group in &plan.groups {
        let groups = plan.gather_groups(group);
        let grouped: usize = groups.values().map(Vec::len).sum();
        let mixed = groups.iter().any(|(dtype, members)| members.iter().any(|&t| plan.tensors[t].precision.compute != *dtype));
        if grouped != group.tensors.len() || mixed {
            return Err(format!("the gather groups of parameter group '{}' do not separate its dtypes", group.name));
        }
    }
    Ok(())
}

impl fmt::Debug for PolicyKit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyKit").field("name", &self.name).field("sections", &self.sections).finish_non_exhaustive()
    }
}
