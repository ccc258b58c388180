//! The conformance kit: one call runs the conformance suite for a strategy or a precision policy, built in or not.
//!
//! The suite plans models of every awkward shape on every awkward world and holds each plan against the contract of
//! [`ShardStrategy`](crate::ShardStrategy), rule by rule ([`Rule`] lists them). It counts elements one by one and shares no arithmetic with
//! [`ShardPlan::check`](crate::ShardPlan::check), so that each checks the other. What it finds, it shrinks: the message names the rule, the
//! smallest case that breaks it, and what was found there.
//!
//! Nothing here opens a file. A load through the engine is a hook ([`Loader`]) that the engine's own `testkit` fills.

mod case;
mod corpus;
mod count;
mod load;
mod policy;
mod registered;
mod rules;
mod section;
mod shrink;
mod strategy;
#[cfg(test)]
mod tests;
mod violation;

pub use self::{
    count::elements,
    load::Loader,
    policy::{PolicyKit, policy},
    strategy::{StrategyKit, Summary, strategy},
    violation::{Rule, Subjects, Violation},
};
