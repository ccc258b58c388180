//! An architecture of a user's own, for models whose code is not in transformers: what `shardwright.architecture` names.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shardwright_core::{Globs, suggest::nearest};

use crate::{data::Data, rename::Transform};

/// How a model's parameters are made from the tensors of a checkpoint, where the built-in data does not say or is to be changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// The version of this format: 1.
    #[schemars(range(min = 1, max = 1))]
    pub format: u32,
    /// The class, as it is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// A model type of transformers that this one is built like, such as `llama`: its modules, conversions and tied weights hold too, after those of
    /// this file. Without it every name is taken for one of the model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub like: Option<String>,
    /// Renames, in order; each applies to the name that the one before it left.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rename: Vec<Rename>,
    /// Parameters that are made from several tensors, or from one whose dims are rearranged. Names match after all renames.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assemble: Vec<Assemble>,
    /// Globs of checkpoint tensors that are not part of the model.
    #[serde(default, skip_serializing_if = "Globs::is_empty")]
    pub exclude: Globs,
    /// Globs of the model's names that are buffers: whole on every rank. Integer and boolean tensors are buffers anyway.
    #[serde(default, skip_serializing_if = "Globs::is_empty")]
    pub buffers: Globs,
    /// Globs of parameters that stay in float32 whatever the model's dtype.
    #[serde(default, skip_serializing_if = "Globs::is_empty")]
    pub keep_fp32: Globs,
    /// Second names of parameters, each with the parameter's first name: `lm_head.weight: model.embed_tokens.weight`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tied: BTreeMap<String, String>,
    /// Globs of the modules that FSDP wraps, such as `model.layers.*`. `*` does not stop at a dot: of a module that matches, what is inside of it is
    /// not wrapped once more.
    #[serde(default, skip_serializing_if = "Globs::is_empty")]
    pub wrap: Globs,
    /// Globs of modules that are an `nn.Embedding`.
    #[serde(default, skip_serializing_if = "Globs::is_empty")]
    pub embeddings: Globs,
}

/// A rename.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    /// A regular expression; what it matches first is replaced.
    pub from: String,
    /// What it is replaced by; `\1` to `\9` are its groups.
    pub to: String,
}

/// Parameters made from several tensors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Assemble {
    /// Ends of the names of the tensors; `*` stands for a number, such as an expert's.
    #[schemars(length(min = 1))]
    pub from: Vec<String>,
    /// Ends of the names of the parameters.
    #[schemars(length(min = 1))]
    pub to: Vec<String>,
    /// What is done, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
}

/// A step of an assembly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// The tensors of each pattern, by number, become one along a new dim.
    Stack(u32),
    /// The results of all patterns, in order, are joined along a dim.
    Concatenate(u32),
    /// Two dims are swapped.
    Transpose([u32; 2]),
    /// One tensor is cut along a dim into equal parts, one a name of `to`.
    Chunk(u32),
    /// Rows of two halves along a dim take turns.
    Interleave(u32),
}

/// What is wrong with an architecture: the key, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {what}")]
pub struct Flaw {
    /// Dotted, with indices: `rename[0].from`.
    pub key: String,
    /// Why.
    pub what: String,
}

impl Architecture {
    /// The JSON Schema of the format.
    pub fn schema() -> Value {
        schemars::schema_for!(Self).to_value()
    }

    /// Finds what cannot be followed.
    ///
    /// # Errors
    /// The first flaw.
    pub fn check(&self) -> Result<(), Flaw> {
        let flaw = |key: String, what: String| Err(Flaw { key, what });
        if self.format != 1 {
            return flaw("format".into(), format!("expected 1, found {}", self.format));
        }
        if let Some(like) = self.like.as_deref().filter(|like| !Data::embedded().has(":", like)) {
            let near = nearest(like, Data::embedded().names(":")).map_or(String::new(), |near| format!("; did you mean '{near}'?"));
            return flaw("like".into(), format!("'{like}' is not a model type of transformers {}{near}", Data::embedded().version()));
        }
        for (i, rename) in self.rename.iter().enumerate() {
            if let Err(error) = Transform::new(&rename.row()) {
                return flaw(format!("rename[{i}].from"), error.to_string());
            }
        }
        for (i, assemble) in self.assemble.iter().enumerate() {
            for (key, names) in [("from", &assemble.from), ("to", &assemble.to)] {
                if names.is_empty() || names.iter().any(String::is_empty) {
                    return flaw(format!("assemble[{i}].{key}"), "expected at least one name".into());
                }
            }
            if let Err(error) = Transform::new(&assemble.row()) {
                return flaw(format!("assemble[{i}].from"), error.to_string());
            }
        }
        if let Some((alias, _)) = self.tied.iter().find(|(alias, name)| alias == name || self.tied.contains_key(*name)) {
            return flaw(format!("tied.{alias}"), "expected the parameter's first name, which must not be an alias itself".into());
        }
        Ok(())
    }

    /// Its transforms, in order. What [`Architecture::check`] refuses is left out.
    pub(crate) fn transforms(&self) -> impl Iterator<Item = Transform> {
        let rows = self.rename.iter().map(Rename::row).chain(self.assemble.iter().map(Assemble::row));
        rows.filter_map(|row| Transform::new(&row).ok())
    }

    /// The module of a name that FSDP wraps; empty for the root.
    pub(crate) fn block<'n>(&self, name: &'n str) -> &'n str {
        let mut modules = name.match_indices('.').map(|(dot, _)| &name[..dot]);
        modules.find(|module| self.wrap.matches(module)).unwrap_or_default()
    }
}

impl Rename {
    fn row(&self) -> Value {
        json!(["Substitute", format!("(?P<g0>{})", self.from), [self.from], [self.to], {}])
    }
}

impl Assemble {
    fn row(&self) -> Value {
        let regexes: Vec<String> =
            self.from.iter().enumerate().map(|(i, name)| format!(r"(?P<g{i}>(?<![^.]){}(?!\w))", pattern(name))).collect();
        let ops: Vec<Value> = self.steps.iter().map(Step::row).collect();
        json!(["WeightConverter", regexes.join("|"), self.from, self.to, { "ops": ops }])
    }
}

/// A name as a regular expression, `*` any number.
fn pattern(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 8);
    for c in name.chars() {
        match c {
            '*' => out.push_str(r"\d+"),
            c if c.is_ascii_alphanumeric() || c == '_' => out.push(c),
            c => out.extend(['\\', c]),
        }
    }
    out
}

impl Step {
    fn row(&self) -> Value {
        match self {
            Self::Stack(dim) => json!(["MergeModulelist", { "dim": dim }]),
            Self::Concatenate(dim) => json!(["Concatenate", { "dim": dim }]),
            Self::Transpose([a, b]) => json!(["Transpose", { "dim0": a, "dim1": b }]),
            Self::Chunk(dim) => json!(["Chunk", { "dim": dim }]),
            Self::Interleave(dim) => json!(["Interleave", { "dim": dim }]),
        }
    }
}
