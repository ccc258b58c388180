//! Whether what a conversion wrote is whole, and is what its source has.

use std::{collections::BTreeSet, path::Path};

use super::{
    diff::{Difference, Differences, diff},
    names::Names,
    options::{ConvertOptions, Target},
    sums::{Sums, check_sums},
};
use crate::{
    contents::{Contents, Format, Kind},
    error::Result,
    load::CancelToken,
};

/// What [`verify`] found.
#[derive(Debug)]
#[non_exhaustive]
pub struct Checked {
    /// The checkpoint, with the model's names if these were what could be compared.
    pub contents: Contents,
    /// Files, and what their checksums say.
    pub sums: Sums,
    /// How the source differs, if there is one.
    pub found: Option<Differences>,
}

impl Checked {
    /// True unless something differs from the source, or nothing was there to be compared.
    pub fn is_right(&self) -> bool {
        self.found.as_ref().is_none_or(Differences::is_right)
    }
}

/// Compares the checksums that the files of a checkpoint state, and every element with the source. Where tensors have the hub's names on one side,
/// both are made into the model, as a load does. `watch` is called with the bytes of each step, [`bytes_to_verify`] in all at most.
///
/// # Errors
/// [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) where a checksum differs or a file is malformed, [`ErrorKind::Io`](crate::ErrorKind::Io)
/// where one cannot be read, [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled).
pub fn verify(contents: Contents, source: Option<Contents>, watch: &(dyn Fn(u64) + Sync), cancel: &CancelToken) -> Result<Checked> {
    let sums = check_sums(&contents, watch, cancel)?;
    let Some(source) = source else { return Ok(Checked { contents, sums, found: None }) };
    let names = |contents: &Contents| contents.tensors.iter().map(|t| t.name.clone()).collect::<BTreeSet<_>>();
    let (contents, source) = match names(&source) == names(&contents) {
        true => (contents, source),
        false => (contents.with_model_names()?, source.with_model_names()?),
    };
    let found = carried(&source, &contents, contents.optimizer.is_some(), watch, cancel)?;
    Ok(Checked { contents, sums, found: Some(found) })
}

/// Reads back what a conversion by these options wrote, and compares every element with what it was made of. `ties` are names that the target
/// does not record as tied, alias first. `watch` is called with the bytes of each step, twice [`Contents::bytes`] in all at most.
///
/// # Errors
/// As [`verify`].
pub fn read_back(
    contents: &Contents,
    options: &ConvertOptions,
    target: &Path,
    ties: &[(String, String)],
    watch: &(dyn Fn(u64) + Sync),
    cancel: &CancelToken,
) -> Result<Differences> {
    let target = Contents::open(target)?;
    let dir = options.config.as_deref().unwrap_or(&contents.path);
    let target = match options.names {
        Some(Names::Hub) if contents.is_of_hub(dir)? => target,
        // Made into the model again, as a load makes it.
        Some(Names::Hub) => target.with_model_names()?,
        _ => target.tied(ties)?,
    };
    let states = !options.params_only && !matches!(options.to, Target::Hf | Target::HfSharded);
    carried(contents, &target, states, watch, cancel)
}

/// The most bytes that [`verify`] calls its `watch` with, in all.
pub fn bytes_to_verify(contents: &Contents, source: Option<&Contents>) -> u64 {
    let sums = contents.bytes();
    source.map_or(sums, |source| sums.saturating_mul(2).saturating_add(source.bytes()))
}

/// How a target differs from its source, but for what it cannot have: tied names, frozen parameters of a universal checkpoint, which are in
/// partitions only, and where it has no `states` those of the optimizer. A name that only the target knows as tied is not a difference.
fn carried(source: &Contents, target: &Contents, states: bool, watch: &(dyn Fn(u64) + Sync), cancel: &CancelToken) -> Result<Differences> {
    let is_lost = |name: &str| {
        let tensor = source.tensor(name);
        let state = !states && tensor.is_none() && name.starts_with("state.");
        let frozen = target.format == Format::Universal && tensor.is_some_and(|t| t.kind == Kind::Frozen);
        state || frozen || source.aliases.iter().any(|(alias, _)| alias == name)
    };
    let mut found = diff(source, target, false, watch, cancel)?;
    let is_tied = |name: &str| target.aliases.iter().any(|(alias, _)| alias == name);
    found.different.retain(|(name, difference)| match difference {
        Difference::OnlyFirst => !is_lost(name),
        Difference::OnlySecond => !is_tied(name),
        _ => true,
    });
    Ok(found)
}
