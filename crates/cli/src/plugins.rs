//! Where a command gets strategies and precision policies from.

use shardwright_core::{diagnostic::Diagnostic, registry::Registry};

/// Makes the registry of strategies and precision policies.
pub type Plugins = fn() -> Result<Registry, Diagnostic>;
