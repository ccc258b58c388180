//! What the model's class makes of a checkpoint, for people and programs: each parameter with the tensors that it is made from, and the counts of a
//! resolution.

use std::collections::BTreeMap;

use serde::Serialize;
use shardwright_core::{Assembly, DType, Name, Piece, TensorKind, document::Origin};

use super::{Found, ModelOptions};
use crate::{checkpoint::Checkpoint, error::Result, setup::Setup};

/// A checkpoint as the model that its class makes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AsModel {
    /// The class, where the architecture is known.
    pub class: Option<String>,
    /// Which data says so.
    pub source: String,
    /// Why that data.
    pub why: String,
    /// What there is how often.
    pub counts: Counts,
    /// Parameters and buffers, by name.
    pub tensors: Vec<ModelTensor>,
    /// Tensors of the checkpoint that fill nothing, by name.
    pub unused: Vec<UnusedTensor>,
    /// Parameters that nothing fills, by name.
    pub missing: Vec<MissingTensor>,
    /// Second names of tied parameters, with the first.
    pub aliases: BTreeMap<String, String>,
    /// What is odd about it.
    pub warnings: Vec<String>,
}

/// A parameter or a buffer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ModelTensor {
    /// Its name in the model.
    pub name: String,
    /// `parameter` or `buffer`.
    pub kind: &'static str,
    /// Its element type in the checkpoint.
    pub dtype: DType,
    /// Its shape in the model.
    pub shape: Vec<u64>,
    /// Its elements.
    pub numel: u64,
    /// `whole` where it is one tensor, element for element, `parts` where it is one that ranks saved in parts, and `pieces` where
    /// tensors are joined or rearranged.
    pub made: &'static str,
    /// The tensors that it is made from, in the order of its elements.
    pub from: Vec<FromTensor>,
}

/// A tensor that a parameter is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FromTensor {
    /// Its name in the checkpoint.
    pub tensor: String,
    /// How many of its elements are in the parameter.
    pub elements: u64,
}

/// A tensor of the checkpoint that fills nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct UnusedTensor {
    /// Its name in the checkpoint.
    pub tensor: String,
    /// Why.
    pub reason: String,
}

/// A parameter that nothing fills.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MissingTensor {
    /// Its name in the model.
    pub name: String,
    /// Its shape, where config.json gives it.
    pub shape: Option<Vec<u64>>,
}

/// How many there are of what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counts {
    /// Parameters of the model.
    pub parameters: u64,
    /// Buffers that the checkpoint holds.
    pub buffers: u64,
    /// Those of both that are made from several tensors, or rearranged.
    pub assembled: u64,
    /// Those of both that have another name in the checkpoint.
    pub renamed: u64,
    /// Tensors of the checkpoint that fill nothing.
    pub unused: u64,
    /// Parameters that nothing fills.
    pub missing: u64,
    /// Second names of tied parameters.
    pub tied: u64,
}

impl Counts {
    fn each(&self) -> [(&'static str, u64); 7] {
        [
            ("parameters", self.parameters),
            ("buffers", self.buffers),
            ("assembled", self.assembled),
            ("renamed", self.renamed),
            ("unused", self.unused),
            ("missing", self.missing),
            ("tied", self.tied),
        ]
    }

    fn of(found: &Found, checkpoint: &Checkpoint) -> Self {
        let model = &found.model;
        let count = |n: usize| n as u64;
        let mut out = Self {
            unused: count(model.unused.len()),
            missing: count(model.missing.len()),
            tied: count(model.aliases.len()),
            ..Self::default()
        };
        for (meta, assembly) in model.meta.tensors.iter().zip(&model.assemblies) {
            let is_buffer = meta.kind.map_or(!meta.dtype.is_float(), |kind| kind == TensorKind::Buffer);
            *(if is_buffer { &mut out.buffers } else { &mut out.parameters }) += 1;
            match assembly {
                // Parts that ranks saved of the parameter itself.
                Assembly::Pieces(pieces) if checkpoint.stored(pieces).is_some_and(|name| *name == meta.name) => {}
                Assembly::Pieces(_) => out.assembled += 1,
                Assembly::Whole(source) => {
                    let same = checkpoint.sources().get(*source as usize).is_some_and(|t| t.name == meta.name);
                    out.renamed += u64::from(!same);
                }
            }
        }
        out
    }
}

impl Checkpoint {
    /// The name of the one tensor that all these pieces lie in, whatever parts it was saved in.
    fn stored(&self, pieces: &[Piece]) -> Option<&Name> {
        let name = |piece: &Piece| self.sources().get(piece.source as usize).map(|source| &source.name);
        let first = pieces.first().and_then(name)?;
        pieces.iter().all(|piece| name(piece) == Some(first)).then_some(first)
    }

    /// What the model's class makes of this checkpoint.
    ///
    /// # Errors
    /// As [`Checkpoint::find_model`].
    pub fn as_model(&self, options: &ModelOptions<'_>) -> Result<AsModel> {
        let found = self.find_model(options)?;
        let counts = Counts::of(&found, self);
        let name = |source: u32| self.source_name(source as usize);
        let model = found.model;
        let of = |(meta, assembly): (&shardwright_core::TensorMeta, &Assembly)| {
            let numel = meta.numel().unwrap_or(u64::MAX);
            let (made, from) = match assembly {
                Assembly::Whole(source) => ("whole", vec![FromTensor { tensor: name(*source), elements: numel }]),
                Assembly::Pieces(pieces) => {
                    let mut order: Vec<u32> = Vec::new();
                    let mut elements: BTreeMap<u32, u64> = BTreeMap::new();
                    for piece in pieces {
                        let sum = elements.entry(piece.source).or_insert_with(|| {
                            order.push(piece.source);
                            0
                        });
                        *sum = sum.saturating_add(piece.loops.iter().map(|l| l.size).product());
                    }
                    if let (Some(tensor), false) = (self.stored(pieces), self.is_safetensors()) {
                        let (parts, made) = (order.len(), if *tensor == meta.name { "parts" } else { "pieces" });
                        let tensor = if parts == 1 { tensor.to_string() } else { format!("{tensor}, in {parts} parts") };
                        (made, vec![FromTensor { tensor, elements: elements.values().sum() }])
                    } else {
                        ("pieces", order.into_iter().map(|s| FromTensor { tensor: name(s), elements: elements[&s] }).collect())
                    }
                }
            };
            let is_buffer = meta.kind.map_or(!meta.dtype.is_float(), |kind| kind == TensorKind::Buffer);
            let kind = if is_buffer { "buffer" } else { "parameter" };
            ModelTensor { name: meta.name.to_string(), kind, dtype: meta.dtype, shape: meta.shape.clone(), numel, made, from }
        };
        let mut unused: Vec<UnusedTensor> =
            model.unused.iter().map(|u| UnusedTensor { tensor: name(u.source), reason: u.reason.clone() }).collect();
        unused.sort_by(|a, b| a.tensor.cmp(&b.tensor));
        Ok(AsModel {
            class: found.class,
            source: found.source,
            why: options.why(),
            counts,
            tensors: model.meta.tensors.iter().zip(&model.assemblies).map(of).collect(),
            unused,
            missing: model.missing.iter().map(|m| MissingTensor { name: m.name.to_string(), shape: m.shape.clone() }).collect(),
            aliases: model.aliases.iter().map(|(a, n)| (a.to_string(), n.to_string())).collect(),
            warnings: found.warnings,
        })
    }
}

impl ModelTensor {
    /// What it is made from, in a line: consecutive numbers are shown as a range.
    pub fn made_from(&self) -> String {
        let names: Vec<&str> = self.from.iter().map(|f| f.tensor.as_str()).collect();
        match names.as_slice() {
            [] => "nothing: it has no elements".into(),
            [only] if *only == self.name && self.made == "whole" => "itself".into(),
            [only] if self.made == "whole" => (*only).into(),
            [only] if self.made == "parts" => format!("itself{}", only.strip_prefix(self.name.as_str()).unwrap_or_default()),
            [only] => format!("{only}, rearranged"),
            several => ranges(several).join(" + "),
        }
    }
}

/// Parts of a name, and the range of each that is a number.
type Spans<'n> = (Vec<&'n str>, Vec<Option<(u64, u64)>>);

/// Names that differ in numbers alone as one, with the range of each number.
fn ranges(names: &[&str]) -> Vec<String> {
    let number = |part: &str| part.parse::<u64>().ok().filter(|_| part.bytes().all(|b| b.is_ascii_digit()));
    let mut groups: Vec<Spans<'_>> = Vec::new();
    for name in names {
        let parts: Vec<&str> = name.split('.').collect();
        let same = |of: &[&str]| {
            of.len() == parts.len() && of.iter().zip(&parts).all(|(a, b)| a == b || number(a).is_some() && number(b).is_some())
        };
        match groups.iter_mut().find(|(of, _)| same(of)) {
            Some((_, spans)) => {
                for (span, part) in spans.iter_mut().zip(&parts) {
                    if let (Some((low, high)), Some(n)) = (span, number(part)) {
                        (*low, *high) = ((*low).min(n), (*high).max(n));
                    }
                }
            }
            None => {
                let spans = parts.iter().map(|part| number(part).map(|n| (n, n))).collect();
                groups.push((parts, spans));
            }
        }
    }
    let shown = |(parts, spans): Spans<'_>| {
        let part = |(part, span): (&str, Option<(u64, u64)>)| match span {
            Some((low, high)) if low != high => format!("{{{low}..{high}}}"),
            _ => part.to_owned(),
        };
        parts.into_iter().zip(spans).map(part).collect::<Vec<_>>().join(".")
    };
    groups.into_iter().map(shown).collect()
}

impl Setup {
    /// Writes into the resolution what the model's class is, which data says so, and what there is how often in the checkpoint at hand; and adds what
    /// keeps a training of that model from starting.
    pub fn describe_model(&mut self) {
        let (Some(resolved), Ok(dir)) = (&mut self.outcome.resolved, &self.model) else { return };
        let options = ModelOptions::of(resolved, self.architecture.as_ref());
        let (source, why) = (options.source(), options.why());
        let rule = |rule: &str, from: &str| Origin::rule(rule, [from.to_owned()]);
        let mut rows: Vec<(&str, serde_json::Value, Origin)> = Vec::new();
        let mut findings = Vec::new();
        match dir.clone().checkpoint().map(|checkpoint| (checkpoint.find_model(&options), checkpoint)) {
            // Without weights there is nothing to count.
            Err(_) => {}
            Ok((Err(error), _)) => rows.push(("misfit", error.to_string().into(), rule("the checkpoint's headers", "/model/name"))),
            Ok((Ok(found), checkpoint)) => {
                rows.push(("class", found.class.clone().into(), rule(&found.source, "/model/model_type")));
                findings = resolved.misfits(&found.model);
                let counts = Counts::of(&found, &checkpoint);
                rows.extend(counts.each().map(|(key, n)| (key, n.into(), rule("the checkpoint's headers", "/model/name"))));
            }
        }
        rows.insert(0, ("architecture_data", source.into(), rule(&why, "/shardwright/engines/transformers")));
        for (key, value, origin) in rows {
            resolved.document.set(&["model", key], value, origin);
        }
        self.outcome.add(findings);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_run_are_a_range() {
        let names = ["l.0.e.0.gate", "l.0.e.0.up", "l.0.e.1.gate", "l.0.e.1.up", "other"];
        assert_eq!(ranges(&names), ["l.0.e.{0..1}.gate", "l.0.e.{0..1}.up", "other"]);
    }
}
