//! The conformance kit with the engine behind it: what a strategy's or a policy's own tests call.
//!
//! ```no_run
//! use acme_strategy as _;
//! # mod acme_strategy {}
//!
//! #[test]
//! fn it_conforms() {
//!     shardwright::testkit::strategy("acme/strategy").assert();
//! }
//! ```

pub use shardwright_core::testkit::{Loader, PolicyKit, Rule, StrategyKit, Subjects, Summary, Violation, policy};

/// The suite for the strategy that is registered under this name in the test's binary, with loads through the engine.
pub fn strategy(name: &str) -> StrategyKit<'static> {
    shardwright_core::testkit::strategy(name).loader(&shardwright_engine::testkit::ThroughEngine)
}
