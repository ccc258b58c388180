//! The suite for strategies: which cases are planned, in which order, and what an author may declare.

use std::fmt;

use super::{
    case::Case,
    corpus::{self, MESHES, Random},
    load::{self, Loader},
    registered::{Files, built, describe, registry},
    rules::{Setting, caught, entries, plan_holds, same},
    section::Section,
    shrink::smallest,
    violation::{Found, Rule, Violation},
};
use crate::{Mesh, PlanError, ShardPlan, ShardStrategy, TensorMeta, diagnostic::Source};

type Build<'a> = Box<dyn Fn(&str, &Mesh, &Files) -> Result<Box<dyn ShardStrategy>, String> + 'a>;
type Fits<'a> = Box<dyn Fn(&Mesh) -> bool + 'a>;
type Refuses<'a> = Box<dyn Fn(&TensorMeta, &Mesh) -> bool + 'a>;

/// The suite for the strategy that is registered under this name in the test's binary: name its crate (`use acme_strategy as _;`).
pub fn strategy(name: &str) -> StrategyKit<'static> {
    let owned = name.to_owned();
    let mut kit = StrategyKit::new(name, |_, _| Err("this strategy is made by the registry".to_owned()));
    kit.build = Box::new(move |section, mesh, files| Ok(built(&owned, section, mesh, files)?.strategy));
    kit.registered = true;
    kit
}

/// The conformance suite for one strategy.
pub struct StrategyKit<'a> {
    name: String,
    build: Build<'a>,
    files: Files,
    /// What the strategy says that its name is, where that is not the registered one.
    reports: Option<String>,
    sections: Vec<(String, Fits<'a>)>,
    refuses: Vec<(String, Refuses<'a>)>,
    aligned: u64,
    loader: Option<&'a dyn Loader>,
    /// Whether the registry's entry of that name is held against the rules for sections.
    registered: bool,
}

impl<'a> StrategyKit<'a> {
    /// A suite for a strategy that need not be registered; `build` makes it from a section (YAML without the name, empty for the default).
    pub fn new(name: impl Into<String>, build: impl Fn(&str, &Mesh) -> Result<Box<dyn ShardStrategy>, String> + 'a) -> Self {
        let default: (String, Fits<'a>) = (String::new(), Box::new(|_| true));
        Self {
            name: name.into(),
            build: Box::new(move |section, mesh, _| build(section, mesh)),
            files: Files::new(),
            reports: None,
            sections: vec![default],
            refuses: Vec::new(),
            aligned: 1,
            loader: None,
            registered: false,
        }
    }

    /// Declares meshes that the default section cannot be used on: `fits` answers for those it can.
    #[must_use]
    pub fn default_on(mut self, fits: impl Fn(&Mesh) -> bool + 'a) -> Self {
        self.sections[0].1 = Box::new(fits);
        self
    }

    /// Proves the strategy with this section too, on every mesh that `fits`.
    #[must_use]
    pub fn section(mut self, yaml: impl Into<String>, fits: impl Fn(&Mesh) -> bool + 'a) -> Self {
        self.sections.push((yaml.into(), Box::new(fits)));
        self
    }

    /// Declares that what the section builds is another strategy, of this name (`deepspeed` builds `zero3`).
    #[must_use]
    pub fn reports(mut self, name: impl Into<String>) -> Self {
        self.reports = Some(name.into());
        self
    }

    /// Supplies a file that sections name, by the name they give it: nothing is read.
    #[must_use]
    pub fn file(mut self, name: impl Into<String>, text: &str) -> Self {
        let name = name.into();
        self.files.insert(name.clone(), Source::new(name, text));
        self
    }

    /// Declares tensors that the strategy may refuse (FSDP2: 0-d parameters). A refusal that is not declared is a violation.
    #[must_use]
    pub fn refuses(mut self, what: impl Into<String>, refuses: impl Fn(&TensorMeta, &Mesh) -> bool + 'a) -> Self {
        self.refuses.push((what.into(), Box::new(refuses)));
        self
    }

    /// Declares that buffers are padded up to a multiple of this many elements, beyond what their regions need.
    #[must_use]
    pub fn aligned(mut self, elements: u64) -> Self {
        self.aligned = elements.max(1);
        self
    }

    /// Proves loads as well, through this loader.
    #[must_use]
    pub fn loader(mut self, loader: &'a dyn Loader) -> Self {
        self.loader = Some(loader);
        self
    }

    /// Runs the suite and panics with the violation: for a `#[test]`.
    ///
    /// # Panics
    /// The strategy breaks a rule.
    pub fn assert(&self) -> Summary {
        match self.run() {
            Ok(summary) => summary,
            Err(violation) => panic!("{violation}"),
        }
    }

    /// Runs the suite.
    ///
    /// # Errors
    /// The first rule that is broken, with the smallest case that breaks it.
    pub fn run(&self) -> Result<Summary, Violation> {
        if self.registered {
            self.section_holds().map_err(|(rule, found)| self.reported(rule, String::new(), found))?;
        }
        let mut summary = Summary::default();
        for case in self.cases() {
            match self.judge(&case) {
                Ok(of_case) => summary.add(&of_case),
                Err(found) => return Err(self.violation(case, found)),
            }
        }
        self.growth().map_err(|(case, (rule, found))| self.reported(rule, case, found))?;
        Ok(summary)
    }

    fn violation(&self, case: Case, found: Found) -> Violation {
        let (case, (rule, found)) = smallest(case, found, |case| self.judge(case).err());
        self.reported(rule, case.to_string(), found)
    }

    fn reported(&self, rule: Rule, case: String, found: String) -> Violation {
        Violation { rule, subject: format!("strategy '{}'", self.name), case, found }
    }

    /// The registry's entry against the rules for sections; and the default section, spelled out, makes the same plans as none.
    fn section_holds(&self) -> Result<(), Found> {
        let registry = registry()?;
        let entry = registry.strategy(&self.name).map_err(|e| (Rule::Registered, describe(&e)))?;
        let section = Section::from(*entry);
        section.holds(self.sections.iter().map(|(yaml, _)| yaml.as_str()))?;
        for &mesh in MESHES.iter().filter(|m| m.0 * m.1 <= 8) {
            let default = Case::new("", mesh, corpus::decoder());
            if !(self.sections[0].1)(&default.mesh()) {
                continue;
            }
            let spelled = Case { section: section.spelled_out(), ..default.clone() };
            let plan = |case: &Case| Ok(self.planned(case, &*self.strategy(case)?)?.plan);
            let what = |what: String| (Rule::Config, format!("on {default}: {what}"));
            same(&plan(&default)?, &plan(&spelled)?, "the plan of the default section spelled out").map_err(what)?;
        }
        Ok(())
    }

    /// Small worlds first, so that what is found is small already.
    fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for (section, fits) in &self.sections {
            for &mesh in MESHES {
                let case = |tensors| Case::new(section, mesh, tensors);
                if !fits(&case(Vec::new()).mesh()) {
                    continue;
                }
                let fixed = [Vec::new(), corpus::shapes(), corpus::decoder(), corpus::experts()];
                cases.extend(fixed.map(case));
                if matches!(mesh, (1, 1) | (1, 1000)) {
                    cases.push(case(corpus::wide(400, corpus::GROWTHS[0].1)));
                }
                cases.extend((1..=8).map(|seed| case(corpus::random(seed * u64::from(mesh.0 * mesh.1)))));
            }
        }
        cases
    }

    /// Steps at one size and at four times that: a strategy that looks at all tensors for each, wherever it keeps them, takes sixteen times
    /// as many, one that sorts them not quite five times. And on few ranks and on many: looking at names is not a matter of ranks.
    fn growth(&self) -> Result<(), (String, Found)> {
        const TENSORS: u32 = 256;
        for (section, fits) in &self.sections {
            let case = |mesh, count, name| Case::new(section, mesh, corpus::wide(count, name));
            let fitting = |meshes: &[(u32, u32)]| meshes.iter().copied().find(|&mesh| fits(&Case::new(section, mesh, Vec::new()).mesh()));
            let Some(few) = fitting(MESHES) else { continue };
            for &(what, name) in corpus::GROWTHS {
                let (one, four) = (case(few, TENSORS, name), case(few, 4 * TENSORS, name));
                let reported = |found| (format!("{what}, {TENSORS} tensors and {}, on {}", 4 * TENSORS, one.ranks()), found);
                self.grows(&one, &four, 8, "tensors").map_err(reported)?;
            }
            let Some(many) = fitting(&[(1, 1000), (1, 64), (8, 8)]) else { continue };
            let (one, other) = (case(few, TENSORS, corpus::GROWTHS[0].1), case(many, TENSORS, corpus::GROWTHS[0].1));
            let reported = |found| (format!("{TENSORS} tensors on {} and on {}", one.ranks(), other.ranks()), found);
            self.grows(&one, &other, 2, "ranks").map_err(reported)?;
        }
        Ok(())
    }

    fn grows(&self, small: &Case, large: &Case, allowed: u64, of: &str) -> Result<(), Found> {
        let steps = |case: &Case| Setting::new(case).steps(&*self.strategy(case)?);
        let (few, many) = (steps(small)?, steps(large)?);
        if many <= allowed * few {
            return Ok(());
        }
        let times = many / few.max(1);
        Err((Rule::Steps, format!("planning takes {few} steps and then {many}, {times} times as many, for more {of}")))
    }

    fn strategy(&self, case: &Case) -> Result<Box<dyn ShardStrategy>, Found> {
        let built = caught("building", || (self.build)(&case.section, &case.mesh(), &self.files))?;
        built.map_err(|e| (Rule::Refusal, format!("the section makes no strategy on this mesh: {e}")))
    }

    /// Holds one case against every rule.
    fn judge(&self, case: &Case) -> Result<Summary, Found> {
        let strategy = self.strategy(case)?;
        let name = self.reports.as_ref().unwrap_or(&self.name);
        if strategy.name() != name {
            return Err((Rule::Registered, format!("it says that its name is '{}'", strategy.name())));
        }
        let Planned { case, setting, plan } = self.planned(case, &*strategy)?;
        steps(&setting, &plan)?;
        plan_holds(&setting, name, &plan, self.aligned)?;
        self.deterministic(&case, &*strategy, &plan)?;
        self.order(&case, &plan)?;
        let loads = match self.loader {
            Some(loader) if loadable(&case) => load::holds(loader, &*strategy, &case).map(|()| 1)?,
            _ => 0,
        };
        Ok(Summary { plans: 1, tensors: plan.tensors.len(), shards: plan.tensors.len() * case.world_size() as usize, loads })
    }

    /// Plans the case without the tensors that the strategy refuses and may refuse.
    fn planned(&self, case: &Case, strategy: &dyn ShardStrategy) -> Result<Planned, Found> {
        let mut case = case.clone();
        loop {
            let setting = Setting::new(&case);
            let refused = match setting.plan(strategy)? {
                Ok(plan) => return Ok(Planned { case, setting, plan }),
                Err(PlanError::Tensor { tensor, reason }) => (tensor, reason),
                Err(other) => return Err((Rule::Refusal, other.to_string())),
            };
            let Some(at) = case.tensors.iter().position(|t| t.name == refused.0) else {
                return Err((Rule::Refusal, format!("it refuses tensor '{}', which the model does not have", refused.0)));
            };
            let tensor = case.tensors.remove(at);
            if !self.refuses.iter().any(|(_, may)| may(&tensor, &case.mesh())) {
                return Err((
                    Rule::Refusal,
                    format!("it refuses tensor '{}' {} {:?}: {}", tensor.name, tensor.dtype, tensor.shape, refused.1),
                ));
            }
        }
    }

    fn deterministic(&self, case: &Case, strategy: &dyn ShardStrategy, plan: &ShardPlan) -> Result<(), Found> {
        for attempt in 0..4 {
            let fresh = self.strategy(case)?;
            let (strategy, which) = if attempt == 0 { (strategy, "the same instance") } else { (&*fresh, "another instance") };
            let again = Setting::new(case).plan(strategy)?.map_err(|e| (Rule::Deterministic, format!("{which} now refuses: {e}")))?;
            same(plan, &again, &format!("the plan by {which}")).map_err(|what| (Rule::Deterministic, what))?;
        }
        Ok(())
    }

    fn order(&self, case: &Case, plan: &ShardPlan) -> Result<(), Found> {
        let mut shuffled = case.clone();
        Random::new(7).shuffle(&mut shuffled.tensors);
        let other = Case { tensors: corpus::random(3), ..case.clone() };
        let strategy = self.strategy(case)?;
        // What comes of the other model does not matter, only that it is forgotten.
        let _ = Setting::new(&other).plan(&*strategy)?;
        let again = Setting::new(&shuffled).plan(&*strategy)?;
        let again = again.map_err(|e| (Rule::Order, format!("after another model it refuses: {e}")))?;
        same(plan, &again, "the plan after another model").map_err(|what| (Rule::Order, what))
    }
}

/// What came of one case: the tensors that were planned, and how.
struct Planned {
    case: Case,
    setting: Setting,
    plan: ShardPlan,
}

/// A step is a decision asked of the policy or an entry of the plan: what can be counted from outside.
fn steps(setting: &Setting, plan: &ShardPlan) -> Result<(), Found> {
    let tensors = plan.tensors.len() as u64;
    let too_many = |what: String| Err((Rule::Steps, format!("{what} for {tensors} tensors on {} ranks", plan.mesh.world_size())));
    if setting.asked() > 2 * tensors {
        return too_many(format!("the policy was asked {} times", setting.asked()));
    }
    let bounds = tensors * (u64::from(plan.mesh.world_size()) + 1);
    let cuts = || plan.tensors.iter().flat_map(|t| &t.placement.cuts);
    let cut_by_bounds = cuts().any(|cut| matches!(cut.layout, crate::Layout::Bounds { .. }));
    let more_cuts: usize = plan.tensors.iter().map(|t| t.placement.cuts.len().saturating_sub(1)).sum();
    let allowed = 4 * tensors + 4 + more_cuts as u64 + if cut_by_bounds { bounds } else { 0 };
    match entries(plan) {
        entries if entries > allowed => too_many(format!("the plan has {entries} entries, expected at most {allowed},")),
        _ => Ok(()),
    }
}

/// Small enough to be written and read many times over.
fn loadable(case: &Case) -> bool {
    let bytes: Option<u64> = case.tensors.iter().map(TensorMeta::bytes).sum();
    case.world_size() <= 8 && bytes.is_some_and(|bytes| bytes <= 1 << 16)
}

/// What the suite went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Models planned, each on one mesh with one section.
    pub plans: usize,
    /// Tensors in those plans.
    pub tensors: usize,
    /// Tensors times ranks.
    pub shards: usize,
    /// Models loaded and compared.
    pub loads: usize,
}

impl Summary {
    fn add(&mut self, other: &Self) {
        self.plans += other.plans;
        self.tensors += other.tensors;
        self.shards += other.shards;
        self.loads += other.loads;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} plans, {} tensors, {} shards, {} loads: every rule holds", self.plans, self.tensors, self.shards, self.loads)
    }
}

impl fmt::Debug for StrategyKit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sections: Vec<&str> = self.sections.iter().map(|(s, _)| s.as_str()).collect();
        let refuses: Vec<&str> = self.refuses.iter().map(|(what, _)| what.as_str()).collect();
        f.debug_struct("StrategyKit")
            .field("name", &self.name)
            .field("sections", &sections)
            .field("refuses", &refuses)
            .finish_non_exhaustive()
    }
}
