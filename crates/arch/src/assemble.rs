//! From a checkpoint's tensors and config.json to the model's parameters: how each is made, which module it is in, what is left over.

mod blocks;
mod made;
mod ties;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use shardwright_core::{Globs, TensorMeta};

use crate::{
    contract::Assembly,
    data::Data,
    lazy::Lazy,
    names::{Naming, Target},
    ops::{Around, Asks, Named},
    own::Architecture,
    regex::Regex,
    rename::{Renamer, Taken, Transform, sort_naturally},
    stored::Stored,
    tree::{Choices, Found, Kind, NONE, Tree},
};

pub use self::made::{Assembled, Made, Misfit, Missing, Options, Reason, Same, Unused, Use};

/// Names of config.json that hold the hidden size and the number of layers: `n_embd` for gpt2.
pub fn attribute(model_type: &str, name: &str) -> Option<String> {
    Data::embedded().get(":", model_type)?["attributes"][name].as_str().map(str::to_owned)
}

/// Whether a model type is in the data.
pub fn knows(model_type: &str) -> bool {
    Data::embedded().has(":", model_type)
}

/// The version of transformers that the data is of, for one of that first part.
pub fn version(major: u32) -> String {
    Data::of(major).version()
}

/// Every model type that transformers lists.
pub fn model_types() -> Vec<&'static str> {
    Data::embedded().names(":").filter(|name| !name.contains('/')).collect() // others are parts of a type
}

/// Why a model type that a major version of transformers lists has no class in the data; `None` where it has one, or is not listed.
pub fn without(major: u32, model_type: &str) -> Option<String> {
    Data::of(major).get(":", model_type)?["none"].as_str().map(str::to_owned)
}

/// The class that the engine makes for a model type.
fn class_of(data: &Data, model_type: &str, config: &Value, class: Use) -> Option<String> {
    let line = data.get(":", model_type)?;
    let of = |key: &str| line[key].as_str().map(str::to_owned);
    let declared = config["architectures"][0].as_str().filter(|c| data.has("!", c));
    // The config's own class, unless it is another type's or a head that LLaMA-Factory would replace by the language model's.
    let declared = declared.filter(|c| data.get("!", c).is_some_and(|l| l["type"] == line["type"] || l["type"] == model_type));
    let head = |c: &str| ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"].iter().any(|h| c.ends_with(h));
    let chosen = match class {
        Use::Cls => of("cls").or_else(|| declared.map(str::to_owned)),
        Use::Llm => declared.filter(|c| !head(c) || of("llm").is_none()).map(str::to_owned).or_else(|| of("llm")),
        Use::Other => declared.map(str::to_owned).or_else(|| of("base")),
    };
    chosen.or_else(|| of("base")).filter(|c| data.has("!", c))
}

/// Whether config.json ties embeddings, under an older name or its own, where the type lets it decide.
fn says_tied(line: &Value, config: &Value) -> Option<bool> {
    let older = || line["older"].as_object()?.iter().find_map(|(name, key)| config.get(name).filter(|_| key == TIE)?.as_bool());
    line["ties"].as_bool().or_else(older).or_else(|| config.get(TIE)?.as_bool())
}

const TIE: &str = "tie_word_embeddings";

/// Makes the model.
pub fn assemble(sources: &[TensorMeta], config: &Value, options: &Options<'_>) -> Assembled {
    let data = Data::of(options.transformers);
    let model_type = options.own.map_or(config["model_type"].as_str(), |own| own.like.as_deref());
    let tree_of = |data: &'static Data| {
        let class = class_of(data, model_type?, config, options.class)?;
        Some((Tree::new(data, &class, model_type?, config, options.own.is_some())?, class))
    };
    // Of a model type that 4 has, but whose class could not be built for the data: what 5 converts nothing of is built by 4 in the same way.
    let unconverted = || {
        let newest = Data::embedded();
        let known = options.transformers < 5 && model_type.and_then(|t| data.get(":", t)).is_some_and(|line| line["none"].is_string());
        let tree = known.then(|| tree_of(newest)).flatten()?;
        let converts = |(_, class, model_type, _): &(String, String, String, &Value)| newest.has(">", class) || newest.has(">", model_type);
        (!tree.0.models().iter().any(converts)).then_some(tree)
    };
    match (tree_of(data).or_else(unconverted), options.own) {
        (Some((tree, class)), own) => {
            let shown = own.and_then(|own| own.class.clone()).unwrap_or(class);
            Assembler::new(tree.data(), sources, config, options, &tree).run(shown)
        }
        (None, Some(own)) => {
            let shown = own.class.clone().or_else(|| config["architectures"][0].as_str().map(str::to_owned));
            Assembler::new(data, sources, config, options, &Tree::open(data, config))
                .run(shown.unwrap_or_else(|| "a class of its own".into()))
        }
        (None, None) => as_they_are(sources, config, options),
    }
}

/// Nothing is known of the class: every tensor is a parameter or, by its dtype, a buffer.
fn as_they_are(sources: &[TensorMeta], config: &Value, options: &Options<'_>) -> Assembled {
    let (mut tensors, mut unused) = (Vec::new(), Vec::new());
    for (i, meta) in sources.iter().enumerate() {
        let source = u32::try_from(i).unwrap_or(u32::MAX);
        if options.exclude.matches(&meta.name) {
            unused.push(Unused { source, reason: Reason::Excluded });
            continue;
        }
        tensors.push(Made {
            name: meta.name.to_string(),
            dtype: meta.dtype,
            shape: meta.shape.clone(),
            buffer: None,
            keep_fp32: false,
            fp32: false,
            assembly: Assembly::Whole(source),
            block: None,
            embedding: false,
        });
    }
    let ties_embeddings = config["tie_word_embeddings"].as_bool().unwrap_or(true);
    Assembled { tensors, unused, ties_embeddings, ..Assembled::default() }
}

/// Names of a class that are looked at, at most.
const MOST: usize = 200_000;

struct Assembler<'a, 'c> {
    data: &'static Data,
    sources: &'a [TensorMeta],
    config: &'c Value,
    options: &'a Options<'a>,
    tree: &'a Tree<'c>,
    base: String,
    renamer: Renamer,
    choices: Choices,
    out: Assembled,
}

impl Asks for Assembler<'_, '_> {
    fn number(&self, sub: Option<&str>, key: &str) -> Option<u64> {
        self.tree.config_number(sub, key)
    }

    fn text_number(&self, key: &str) -> Option<u64> {
        let sub = ["text_config", "decoder", "generator", "thinker_config"]
            .into_iter()
            .find(|k| self.config.get(k).is_some_and(Value::is_object));
        self.tree.config_number(sub, key).or_else(|| self.config.get(sub?)?.get(key)?.as_u64())
    }

    fn shape(&self, parameter: &str) -> Option<Vec<Option<u64>>> {
        let found = self.tree.find(parameter, &self.choices)?;
        Some(found.shape?.into_iter().map(|size| size.map(|(n, _)| n)).collect())
    }
}

impl<'a, 'c> Assembler<'a, 'c> {
    fn new(data: &'static Data, sources: &'a [TensorMeta], config: &'c Value, options: &'a Options<'a>, tree: &'a Tree<'c>) -> Self {
        let mut assembler = Self {
            data,
            sources,
            config,
            options,
            tree,
            base: String::new(),
            renamer: Renamer::default(),
            choices: Choices::new(),
            out: Assembled::default(),
        };
        assembler.base = assembler.models().first().and_then(|(_, line, _)| line["base"].as_str().map(str::to_owned)).unwrap_or_default();
        assembler.renamer = Renamer::new(assembler.transforms());
        assembler
    }

    /// Every sub-model: path, the class's line, and whether its config ties embeddings.
    fn models(&self) -> Vec<(String, Value, bool)> {
        let tie = |model_type: &str, config: &Value| {
            let line = self.data.get(":", model_type).unwrap_or_default();
            says_tied(&line, config).or(line["tie"].as_bool()).unwrap_or(false)
        };
        // Before 5 it is the language model's part that says it.
        let of_text = |model_type: &str, config: &Value| {
            let part = |key: &&str| self.options.transformers < 5 && config.get(key).is_some_and(Value::is_object);
            let key = ["decoder", "generator", "text_config"].into_iter().find(part)?;
            let known = || Some(self.data.get(":", model_type)?["sub"][key].as_str()?.to_owned());
            let said = config[key]["model_type"].as_str().filter(|said| self.data.has(":", said));
            let text = said.map(str::to_owned).or_else(known)?;
            Some(tie(&text, &config[key]))
        };
        let all = self.tree.models().into_iter();
        all.map(|(path, class, model_type, config)| {
            let tied = of_text(&model_type, config).unwrap_or_else(|| tie(&model_type, config));
            (path, self.data.get("!", &class).unwrap_or_default(), tied)
        })
        .collect()
    }

    /// transformers' `get_model_conversion_mapping`.
    fn transforms(&self) -> Vec<Transform> {
        let mut out: Vec<Transform> = self.options.own.into_iter().flat_map(Architecture::transforms).collect();
        if self.options.transformers < 5 {
            // The class's own renames alone, after the old names of norms.
            let (legacy, root) = (self.data.get(">", "legacy"), self.tree.models().into_iter().next());
            let class = root.and_then(|(_, class, ..)| self.data.get(">", &class));
            let rows = legacy.iter().chain(&class).filter_map(Value::as_array).flatten();
            out.extend(rows.filter_map(|row| Transform::new(row).ok()));
            return out;
        }
        let mut seen: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let covered = |seen: &BTreeMap<String, Vec<String>>, key: &str, path: &str| {
            let under = |s: &String| s.is_empty() || path.strip_prefix(s.as_str()).is_some_and(|rest| rest.starts_with('.'));
            seen.get(key).is_some_and(|paths| paths.iter().any(under))
        };
        for (path, class, model_type, _) in self.tree.models() {
            if covered(&seen, &class, &path) {
                continue;
            }
            let by_class = self.data.get(">", &class);
            if by_class.is_none() && covered(&seen, &model_type, &path) {
                continue;
            }
            let is_by_class = by_class.is_some();
            let Some(rows) = by_class.or_else(|| self.data.get(">", &model_type)) else { continue };
            let scope = path.strip_prefix(self.base.as_str()).unwrap_or(&path);
            let scope = scope.strip_prefix('.').unwrap_or(scope);
            let transforms = rows.as_array().into_iter().flatten().filter_map(|row| Transform::new(row).ok());
            out.extend(transforms.map(|t| if path.is_empty() { t } else { t.scoped(&self.base, scope) }));
            seen.entry(class).or_default().push(path.clone());
            if !is_by_class {
                seen.entry(model_type).or_default().push(path);
            }
        }
        let legacy = self.data.get(">", "legacy").unwrap_or_default();
        out.extend(legacy.as_array().into_iter().flatten().filter_map(|row| Transform::new(row).ok()));
        out
    }

    fn run(mut self, class: String) -> Assembled {
        self.out.model_type = self.config["model_type"].as_str().map(str::to_owned);
        self.out.class = Some(class);
        self.out.version = Some(self.data.version());
        let names = Naming { renamer: &mut self.renamer, tree: self.tree, base: &self.base }.targets(self.sources);
        self.choose(&names);
        let models = self.models();
        // LLaMA-Factory reads the flag with a default of its own.
        let line = self.out.model_type.as_deref().and_then(|t| self.data.get(":", t)).unwrap_or_default();
        self.out.ties_embeddings = says_tied(&line, self.config).or(line["tie"].as_bool()).unwrap_or(true);
        let patterns = |key: &str| -> Vec<Regex> {
            let all = models.iter().filter_map(|(_, line, _)| line[key].as_array()).flatten().filter_map(Value::as_str);
            all.filter_map(|p| Regex::new(&if key == "fp32" { p.replace('*', ".*") } else { p.to_owned() }).ok()).collect()
        };
        let (ignored, strict) = (patterns("unexpected"), patterns("fp32"));
        let collected = self.collect(names, &ignored);
        let mut made = self.make(collected, &strict);
        self.tie(&mut made, &models);
        self.blocks(&mut made, &models);
        self.finish(made)
    }

    /// Decides the variants of elements that may be of several classes: by config.json where that says it, else by what the checkpoint has.
    fn choose(&mut self, names: &[Target]) {
        let mut votes = BTreeMap::new();
        for target in names.iter().filter(|target| target.found) {
            if let Some((part, false, keys)) = self.tree.part(&target.name) {
                self.out.other_kinds.insert(part.to_owned(), keys);
                self.choices.insert(part.to_owned(), NONE);
                continue;
            }
            let count = u32::try_from(target.from.len()).unwrap_or(u32::MAX);
            self.tree.vote(&target.name, count, &mut votes);
        }
        for (path, votes) in votes {
            // Of equals the one that leaves less to be missed.
            let best = votes.iter().enumerate().min_by_key(|&(i, &(votes, least))| (std::cmp::Reverse(votes), least, i));
            let Some((best, _)) = best else { continue };
            let chosen = self.tree.decided(&path).map_or(best, |(chosen, keys)| {
                if chosen != best {
                    self.out.other_kinds.insert(path.clone(), keys);
                }
                chosen
            });
            self.choices.insert(path, chosen);
        }
    }

    /// The tensors of each parameter, with the converter and the patterns that took them.
    fn collect(&mut self, names: Vec<Target>, ignored: &[Regex]) -> BTreeMap<String, (Taken, Vec<(usize, u32)>)> {
        let mut collected: BTreeMap<String, (Taken, Vec<(usize, u32)>)> = BTreeMap::new();
        let (tree, sources) = (self.tree, self.sources);
        let own = self.options.own;
        let excluded = |name: &str| self.options.exclude.matches(name) || own.is_some_and(|own| own.exclude.matches(name));
        for Target { name: target, found, mut from } in names {
            from.retain(|&(source, _)| {
                let out = excluded(&sources[source as usize].name);
                if out {
                    self.out.unused.push(Unused { source, reason: Reason::Excluded });
                }
                !out
            });
            let Some(&(_, taken)) = from.first() else { continue };
            match if found { tree.find(&target, &self.choices) } else { None } {
                None => {
                    let fleeting = tree.find(&target, &Choices::new()).is_some_and(|f| f.kind == Kind::Fleeting);
                    let other_kind = self.out.other_kind(&target).map(|(path, keys)| Reason::OtherKind(path.to_owned(), keys.to_owned()));
                    let drops = ignored.iter().any(|r| r.search(&target).is_some());
                    self.out.unused.extend(from.iter().map(|&(source, _)| {
                        let reason = if fleeting {
                            Reason::MadeAnew
                        } else if drops || ignored.iter().any(|r| r.search(&sources[source as usize].name).is_some()) {
                            Reason::Ignored
                        } else {
                            other_kind.clone().unwrap_or(Reason::NotInTheModel)
                        };
                        Unused { source, reason }
                    }));
                }
                Some(Found { beyond: Some((list, index, length)), .. }) => {
                    let reason = Reason::Beyond(list, index, length);
                    self.out.unused.extend(from.iter().map(|&(source, _)| Unused { source, reason: reason.clone() }));
                }
                Some(Found { switch: Some((false, says)), .. }) => {
                    let reason = if ignored.iter().any(|r| r.search(&target).is_some()) { Reason::Ignored } else { Reason::Off(says) };
                    self.out.unused.extend(from.iter().map(|&(source, _)| Unused { source, reason: reason.clone() }));
                }
                Some(_) => {
                    let mut tensors: Vec<(usize, u32)> = from.iter().map(|&(source, taken)| (taken.map_or(0, |t| t.1), source)).collect();
                    sort_naturally(&mut tensors, |t| &sources[t.1 as usize].name);
                    collected.insert(target, (taken, tensors));
                }
            }
        }
        collected
    }

    fn make(&mut self, collected: BTreeMap<String, (Taken, Vec<(usize, u32)>)>, strict: &[Regex]) -> BTreeMap<String, Made> {
        let mut made = BTreeMap::new();
        for (name, (taken, tensors)) in collected {
            let sources: Vec<u32> = tensors.iter().map(|t| t.1).collect();
            match taken {
                None => {
                    let (first, others) = (sources[0], &sources[1..]);
                    self.out.unused.extend(others.iter().map(|&source| Unused { source, reason: Reason::Twice(name.clone()) }));
                    let shape = self.sources[first as usize].shape.clone();
                    self.put(&mut made, name, shape, Assembly::Whole(first), &sources[..1], strict);
                }
                Some((converter, _)) => match self.convert(&name, converter, &tensors) {
                    Ok(parts) => {
                        for (name, tensor) in parts {
                            let assembly = tensor.assembly(|s| &self.sources[s as usize].shape);
                            self.put(&mut made, name, tensor.shape, assembly, &sources, strict);
                        }
                    }
                    Err(why) => {
                        let source_name = self.sources[sources[0] as usize].name.to_string();
                        self.out.misfits.push(Misfit::Conversion { name, source_name, more: sources.len() - 1, why });
                    }
                },
            }
        }
        made
    }

    fn convert(&self, name: &str, converter: usize, tensors: &[(usize, u32)]) -> Result<Vec<(String, Lazy)>, String> {
        let converter = &self.renamer.converters[converter];
        let mut input: Named = Vec::new();
        for &(pattern, source) in tensors {
            let lazy = Lazy::whole(source, &self.sources[source as usize].shape);
            let pattern = &converter.sources[pattern];
            match input.iter_mut().find(|(p, _)| p == pattern) {
                Some((_, list)) => list.push(lazy),
                None => input.push((pattern.clone(), vec![lazy])),
            }
        }
        let around = Around { sources: &converter.sources, targets: &converter.targets, layer: name, model: self };
        for op in converter.operations().unwrap_or_default() {
            input = op.apply(input, &around)?;
        }
        let full = name.replace("*.", "0.");
        let split = input.iter().find_map(|(key, _)| full.split_once(key.as_str()));
        let (before, after) = split.ok_or_else(|| format!("none of {:?} is in '{full}'", converter.targets))?;
        let whole = |(key, list): (String, Vec<Lazy>)| Some((format!("{before}{key}{after}"), list.into_iter().next()?));
        Ok(input.into_iter().filter_map(whole).collect())
    }

    fn put(
        &mut self,
        made: &mut BTreeMap<String, Made>,
        name: String,
        shape: Vec<u64>,
        assembly: Assembly,
        sources: &[u32],
        strict: &[Regex],
    ) {
        let meta = |s: u32| &self.sources[s as usize];
        let Some(mut found) = self.tree.find(&name, &self.choices).filter(|f| f.kind != Kind::Fleeting && !f.is_off()) else { return };
        if found.shape.as_ref().is_some_and(|expected| expected.len() != shape.len())
            && let Some(other) = self.tree.find_of_rank(&name, shape.len()).filter(|f| f.kind != Kind::Fleeting)
        {
            found = other;
        }
        let dtype = meta(sources[0]).dtype;
        if let Some(&other) = sources.iter().find(|&&s| meta(s).dtype != dtype) {
            let (first, second) = (meta(sources[0]).name.to_string(), meta(other).name.to_string());
            self.out.misfits.push(Misfit::Dtypes { name, first, a: dtype, second, b: meta(other).dtype });
            return;
        }
        if let Some(expected) = &found.shape {
            let same = expected.len() == shape.len() && expected.iter().zip(&shape).all(|(e, s)| e.as_ref().is_none_or(|(n, _)| n == s));
            if !same {
                let text: Vec<String> = expected.iter().map(|e| e.as_ref().map_or("?".to_owned(), |(n, _)| n.to_string())).collect();
                let differs = expected.iter().zip(&shape).filter_map(|(e, s)| e.as_ref().filter(|(n, _)| n != s));
                let mut from: Vec<String> = differs.map(|(n, from)| format!("{from} = {n}")).collect();
                if from.is_empty() {
                    from = expected.iter().flatten().map(|(n, from)| format!("{from} = {n}")).collect();
                }
                from.dedup();
                let (expected, from) = (format!("[{}]", text.join(", ")), from.join(", "));
                self.out.misfits.push(Misfit::Shape { name: name.clone(), found: shape.clone(), expected, from });
            }
        }
        let own = |globs: fn(&Architecture) -> &Globs| self.options.own.is_some_and(|own| globs(own).matches(&name));
        let keep_fp32 = strict.iter().any(|r| r.search(&name).is_some()) || own(|own| &own.keep_fp32);
        let buffer = Some(found.kind == Kind::Buffer || self.tree.is_open() && !dtype.is_float() || own(|own| &own.buffers));
        let of = Made { name: name.clone(), dtype, shape, buffer, keep_fp32, fp32: found.fp32, assembly, block: None, embedding: false };
        made.entry(name).or_insert(of);
    }

    fn finish(mut self, made: BTreeMap<String, Made>) -> Assembled {
        let alias: BTreeSet<&str> = self.out.aliases.iter().map(|(a, _)| a.as_str()).collect();
        let expected = self.tree.expected(&self.choices, MOST, &Stored::new(made.keys()));
        let absent = expected.into_iter().filter(|(name, ..)| !made.contains_key(name) && !alias.contains(name.as_str()));
        // A frozen normalisation has no counter, and no use for one.
        let counts =
            |name: &str| name.strip_suffix("num_batches_tracked").is_some_and(|norm| made.contains_key(&format!("{norm}running_mean")));
        let absent = absent.filter(|(name, ..)| !counts(name));
        let failed: BTreeSet<&str> = self
            .out
            .misfits
            .iter()
            .filter_map(|m| if let Misfit::Conversion { name, .. } = m { Some(name.as_str()) } else { None })
            .collect();
        let missing = |(name, _, shape): (String, _, _)| {
            let switch = self.tree.find(&name, &self.choices).and_then(|found| found.switch).map(|(_, says)| says);
            Missing { name, shape, switch }
        };
        let missing: Vec<Missing> = absent.filter(|(name, ..)| !failed.contains(name.as_str())).map(missing).collect();
        if let Some((part, true, keys)) = missing.first().and_then(|first| self.tree.part(&first.name)) {
            self.out.other_kinds.insert(part.to_owned(), keys);
        }
        self.out.missing = missing;
        self.out.unused.sort_by_key(|u| u.source);
        self.out.tensors = made.into_values().collect();
        self.out
    }
}
