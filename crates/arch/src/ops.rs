//! transformers' conversion operations on [`Lazy`] tensors. What computes values, such as a dequantisation, is refused by name.

use serde_json::Value;

use crate::lazy::{Failure, Lazy};

/// Tensors by the pattern that they were collected under, or by the name that they get.
pub type Named = Vec<(String, Vec<Lazy>)>;

/// What an operation may ask of the model.
pub trait Asks {
    /// A number of config.json, in that sub-config where it is named and there.
    fn number(&self, sub: Option<&str>, key: &str) -> Option<u64>;
    /// A number of the config of the text model.
    fn text_number(&self, key: &str) -> Option<u64>;
    /// The shape of a parameter as its class makes it, as far as it is known.
    fn shape(&self, parameter: &str) -> Option<Vec<Option<u64>>>;
}

/// One operation: its class's name and its arguments.
#[derive(Clone, Debug)]
pub struct Op {
    name: String,
    arguments: Value,
}

/// What surrounds an operation.
pub struct Around<'a> {
    pub sources: &'a [String],
    pub targets: &'a [String],
    /// The first parameter that is made.
    pub layer: &'a str,
    pub model: &'a dyn Asks,
}

impl Op {
    /// From the data: `["Concatenate", {"dim": 1}]`.
    pub fn new(value: &Value) -> Self {
        Self { name: value[0].as_str().unwrap_or_default().to_owned(), arguments: value[1].clone() }
    }

    /// Its class's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The dim that it works on.
    pub fn dim(&self) -> usize {
        self.number("dim", 0)
    }

    /// The two dims that it exchanges.
    pub fn exchanged(&self) -> Option<(usize, usize)> {
        (self.name == "Transpose").then(|| (self.number("dim0", 0), self.number("dim1", 1)))
    }

    fn number(&self, key: &str, default: usize) -> usize {
        self.arguments[key].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(default)
    }

    fn flag(&self, key: &str) -> bool {
        self.arguments[key].as_bool().unwrap_or(false)
    }

    /// Runs it.
    ///
    /// # Errors
    /// Where the tensors do not fit the operation, as where transformers' own fails; where it computes.
    pub fn apply(&self, input: Named, around: &Around<'_>) -> Result<Named, Failure> {
        let Around { sources, targets, layer, model } = *around;
        match self.name.as_str() {
            "MergeModulelist" => {
                let single = input.len() == 1;
                input
                    .into_iter()
                    .map(|(pattern, tensors)| {
                        let name = if single { one(targets)?.clone() } else { pattern };
                        Ok((name, vec![Lazy::stack(tensors, self.number("dim", 0))?]))
                    })
                    .collect()
            }
            "Concatenate" => {
                let all = sources.iter().flat_map(|s| input.iter().filter(move |(p, _)| p == s)).flat_map(|(_, t)| t.iter().cloned());
                Ok(vec![(one(targets)?.clone(), vec![Lazy::cat(all.collect(), self.number("dim", 0))?])])
            }
            "Chunk" => {
                let tensor = first(input)?;
                let names = match self.arguments["num_shards_attribute"].as_str() {
                    None => targets.to_vec(),
                    Some(key) => {
                        let n = model.text_number(key).ok_or_else(|| format!("config.json does not say '{key}'"))?;
                        let n = n.min(tensor.shape.get(self.number("dim", 0)).copied().unwrap_or(0));
                        (0..n).map(|i| one(targets).map(|t| t.replace('*', &i.to_string()))).collect::<Result<_, _>>()?
                    }
                };
                let dim = self.number("dim", 0);
                let size = *tensor.shape.get(dim).ok_or("no such dim to chunk")?;
                let chunk = size.div_ceil((names.len() as u64).max(1)).max(1);
                let at = |i: usize| (i as u64 * chunk).min(size);
                let parts = names.into_iter().enumerate().filter(|&(i, _)| at(i) < size || i == 0);
                parts.map(|(i, name)| Ok((name, vec![tensor.narrow(dim, at(i), at(i + 1) - at(i))?]))).collect()
            }
            "Split" => {
                let (tensor, dim, mut start) = (first(input)?, self.number("dim", 0), 0);
                let total = *tensor.shape.get(dim).ok_or("no such dim to split")?;
                let sizes = self.sizes(total, dim, around)?;
                let parts = targets.iter().zip(sizes).map(|(name, size)| {
                    let part = tensor.narrow(dim, start, size)?;
                    start += size;
                    Ok((name.clone(), vec![part]))
                });
                parts.collect()
            }
            "Transpose" => {
                let name = if targets.len() > 1 { one(sources)? } else { one(targets)? }.clone();
                let tensor = first(input)?;
                let (a, b) = (self.number("dim0", 0), self.number("dim1", 1));
                // The class's shape decides where the operation looks at it; where that is not known, hub checkpoints are the transposed ones.
                let fits = |shape: Vec<Option<u64>>| {
                    let known = shape.iter().filter(|n| n.is_some()).count();
                    shape.len() == tensor.shape.len()
                        && known > 0
                        && shape.iter().zip(&tensor.shape).all(|(n, m)| n.is_none_or(|n| n == *m))
                };
                let as_it_is = self.flag("check_dims") && model.shape(layer).is_some_and(fits);
                Ok(vec![(name, vec![if as_it_is { tensor } else { tensor.transpose(a, b)? }])])
            }
            "Interleave" => {
                let (tensor, dim) = (first(input)?, self.number("dim", 0));
                let shape = tensor.shape.clone();
                let size = *shape.get(dim).ok_or("no such dim to interleave")?;
                let mut split = shape.clone();
                split.splice(dim..=dim, if self.flag("inverse") { [2, size / 2] } else { [size / 2, 2] });
                Ok(vec![(one_or_first(targets)?, vec![tensor.reshape(&split)?.transpose(dim, dim + 1)?.reshape(&shape)?])])
            }
            "PermuteForRope" => self.permute_for_rope(input, around),
            "Conv3dToLinear" => {
                let tensor = first(input)?;
                let flat = match *tensor.shape.as_slice() {
                    [n, a, b, c, d] => tensor.reshape(&[n, a * b * c * d])?,
                    [_, _] => tensor,
                    ref other => return Err(format!("a convolution's weight has 5 dims or 2, not shape {other:?}")),
                };
                Ok(vec![(one_or_first(targets)?, vec![flat])])
            }
            "LinearToConv3d" => {
                let tensor = first(input)?;
                let kernel = self.arguments["kernel_size"].as_array().map(Vec::as_slice).unwrap_or_default();
                let mut shape = vec![tensor.shape.first().copied().unwrap_or(0), self.number("in_channels", 1) as u64];
                shape.extend(kernel.iter().filter_map(Value::as_u64));
                Ok(vec![(one_or_first(targets)?, vec![tensor.reshape(&shape)?])])
            }
            "ErnieFuseAndSplitTextVisionExperts" => self.fuse_and_split(input, sources, targets),
            "Inkling2LoopMergeMessageQueries" => {
                let [(_, queries), (_, kv)] = input.as_slice() else { return Err("expected two tensors".into()) };
                let by_layer = |t: &[Lazy]| {
                    let t = t.first().cloned().ok_or("a tensor is missing")?;
                    let mut shape = vec![t.shape.first().copied().unwrap_or(0) / 2, 2];
                    shape.extend(t.shape.iter().skip(1));
                    t.reshape(&shape)
                };
                let (queries, kv) = (by_layer(queries)?, by_layer(kv)?);
                let parts = vec![queries.narrow(1, 0, 1)?, kv, queries.narrow(1, 1, 1)?];
                Ok(vec![(one_or_first(targets)?, vec![Lazy::cat(parts, 1)?])])
            }
            "Inkling2UnpadVocab" => {
                let tensor = first(input)?;
                let rows = model.text_number("unpadded_vocab_size").ok_or("config.json does not say 'unpadded_vocab_size'")?;
                let rows = rows.min(tensor.shape.first().copied().unwrap_or(0));
                Ok(vec![(one_or_first(targets)?, vec![tensor.narrow(0, 0, rows)?])])
            }
            // It leaves weights alone that are stored without scales.
            "Inkling2LoopDequantizeExperts" if input.len() == 1 => Ok(vec![(one_or_first(targets)?, vec![first(input)?])]),
            other => Err(format!("transformers computes its values ({other})")),
        }
    }

    /// Sizes of the parts of a split: the class's, of which one may be unknown.
    fn sizes(&self, total: u64, dim: usize, around: &Around<'_>) -> Result<Vec<u64>, Failure> {
        let head = one_or_first(around.targets)?;
        let known: Vec<Option<u64>> = around
            .targets
            .iter()
            .map(|t| around.model.shape(&around.layer.replace(&head, t)).and_then(|shape| shape.get(dim).copied().flatten()))
            .collect();
        let rest = total.checked_sub(known.iter().flatten().sum()).ok_or("the parts are larger than the tensor")?;
        match known.iter().filter(|k| k.is_none()).count() {
            0 if rest == 0 => {}
            1 => {}
            _ => return Err("the sizes of its parts do not follow from config.json".into()),
        }
        Ok(known.into_iter().map(|k| k.unwrap_or(rest)).collect())
    }

    fn permute_for_rope(&self, input: Named, around: &Around<'_>) -> Result<Named, Failure> {
        let (many_targets, many_sources) = (around.targets.len() > 1, around.sources.len() > 1);
        let only: Option<Vec<&str>> =
            self.arguments["permute_layer_names"].as_array().map(|a| a.iter().filter_map(Value::as_str).collect());
        input
            .into_iter()
            .map(|(pattern, tensors)| {
                let name = if many_targets != many_sources { pattern.clone() } else { one(around.targets)?.clone() };
                if only.as_ref().is_some_and(|names| !names.iter().any(|n| pattern.contains(n))) {
                    return Ok((name, tensors));
                }
                let tensor = tensors.into_iter().next().ok_or("a tensor is missing")?;
                let shape = tensor.shape.clone();
                let heads = around.model.number(self.arguments["subconfig_key"].as_str(), "num_attention_heads").unwrap_or(1).max(1);
                let rows = shape.first().copied().unwrap_or(0);
                let half = rows / heads / 2;
                let mut split = if self.flag("inverse") { vec![heads, 2, half] } else { vec![heads, half, 2] };
                split.extend(shape.iter().skip(1));
                let out = if shape.len() > 2 { tensor } else { tensor.reshape(&split)?.transpose(1, 2)?.reshape(&shape)? };
                Ok((name, vec![out]))
            })
            .collect()
    }

    fn fuse_and_split(&self, input: Named, sources: &[String], targets: &[String]) -> Result<Named, Failure> {
        let mut fused: Vec<Vec<Lazy>> = vec![Vec::new(); targets.len()];
        for source in sources {
            let tensors = input.iter().find(|(p, _)| p == source).map(|(_, t)| t).ok_or_else(|| format!("nothing matches '{source}'"))?;
            let size = tensors.len().div_ceil(targets.len().max(1)).max(1);
            for (group, into) in tensors.chunks(size).zip(&mut fused) {
                into.push(Lazy::stack(group.to_vec(), self.number("stack_dim", 0))?);
            }
        }
        let joined = targets.iter().zip(fused).filter(|(_, parts)| !parts.is_empty());
        joined.map(|(name, parts)| Ok((name.clone(), vec![Lazy::cat(parts, self.number("concat_dim", 1))?]))).collect()
    }
}

fn one(names: &[String]) -> Result<&String, Failure> {
    match names {
        [name] => Ok(name),
        _ => Err(format!("expected one pattern, found {names:?}")),
    }
}

fn one_or_first(names: &[String]) -> Result<String, Failure> {
    names.first().cloned().ok_or_else(|| "no pattern".into())
}

fn first(input: Named) -> Result<Lazy, Failure> {
    let mut input = input.into_iter();
    match (input.next(), input.next()) {
        (Some((_, tensors)), None) => tensors.into_iter().next().ok_or_else(|| "a tensor is missing".into()),
        _ => Err("expected the tensors of one pattern".into()),
    }
}
