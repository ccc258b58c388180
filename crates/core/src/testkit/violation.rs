//! The rules of the suite, and what is said when one is broken.

use std::fmt;

/// Whom a rule is tested for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subjects {
    /// Strategies.
    Strategies,
    /// Precision policies.
    Policies,
    /// Both.
    Both,
}

macro_rules! rules {
    ($($variant:ident $subjects:ident $name:literal $meaning:literal,)*) => {
        /// One rule of the contract that the suite tests.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Rule { $(#[doc = $meaning] $variant,)* }

        impl Rule {
            /// Every rule, in the order in which a plan is held against them.
            pub const ALL: &'static [Rule] = &[$(Rule::$variant,)*];

            /// Its stable name.
            pub const fn name(self) -> &'static str { match self { $(Rule::$variant => $name,)* } }

            /// What it demands, in one sentence.
            pub const fn meaning(self) -> &'static str { match self { $(Rule::$variant => $meaning,)* } }

            /// Whom it is tested for.
            pub const fn subjects(self) -> Subjects { match self { $(Rule::$variant => Subjects::$subjects,)* } }
        }
    };
}

rules! {
    Registered Both "registered" "the name is registered once, and the strategy and its plans report it",
    Total Both "total" "there is a plan or an error for every input, never a panic",
    Refusal Strategies "refusal" "only tensors that the author declared are refused, each by its name, and no mesh is refused",
    Complete Strategies "complete" "every tensor of the model is in the plan once, in order, with its shape, dtype and kind, for as many ranks as there are",
    Inputs Both "inputs" "the plan follows its input: the precision policy, the buffers, the trainable parameters; and a policy has a plan under every strategy",
    Buffers Strategies "buffers" "a buffer is whole on every rank in its own dtype",
    Gap Strategies "gap" "every element of a parameter, and nothing beyond it, is on a rank of each group",
    Overlap Strategies "overlap" "no element of a parameter is on two ranks of a group",
    Padding Strategies "padding" "a buffer holds its region, buffers that are padded are of one size, and some rank fills its own",
    Groups Strategies "units" "the parameter groups partition the parameters, and each has a name of its own",
    Validation Strategies "validation" "the plan's own validation, ShardPlan::check, comes to the same answer as counting",
    Deterministic Both "deterministic" "equal inputs give equal plans, from one instance or from many",
    Order Both "order" "a plan depends on its input alone: not on the order of tensors, nor on what was planned before",
    Serialises Strategies "serialises" "a plan written as JSON and read again is the same plan",
    Steps Strategies "steps" "planning takes a few steps a tensor (looks at names and sizes, questions to globs and to the policy), however many tensors and ranks there are, and the plan a few entries a tensor",
    Storable Policies "storable" "a policy gives every float parameter float dtypes, to the first of which its own can be cast",
    Config Both "config" "the default section, written and read again, is the same section and makes the same strategy, in any order of keys",
    UnknownKey Both "unknown-key" "an unknown key of the section is an error that names the key",
    Documented Both "documented" "every key of the section has a type and a description, and the summary is one line",
    Load Strategies "load" "what the ranks load, gathered, equals the checkpoint, and padding is zeros",
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A broken rule, with the smallest case that breaks it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Violation {
    /// Which rule.
    pub rule: Rule,
    /// Who broke it: `strategy 'acme/banded'`.
    pub subject: String,
    /// The smallest case found, in words; empty where there is none to tell.
    pub case: String,
    /// What was found there.
    pub found: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} violates '{}': {}", self.subject, self.rule, self.rule.meaning())?;
        if !self.case.is_empty() {
            writeln!(f, "  smallest case: {}", self.case)?;
        }
        write!(f, "  found: {}", self.found)
    }
}

impl std::error::Error for Violation {}

/// A rule and what was found, before it is known which case is the smallest.
pub(super) type Found = (Rule, String);
