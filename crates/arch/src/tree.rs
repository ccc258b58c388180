//! The modules of a model's class under its config: which parameters and buffers it has, of which sizes, and in which modules.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::sync::LazyLock;

use serde_json::Value;

use crate::data::Data;
use crate::kinds;
use crate::size::{DEEPEST, Formula, Size};
use crate::stored::Stored;
use crate::switch::Switch;

/// What a name of the model stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A parameter.
    Parameter,
    /// A buffer that checkpoints hold.
    Buffer,
    /// A buffer that the class makes anew: a checkpoint's is not used.
    Fleeting,
}

#[derive(Clone, Debug)]
struct Entry {
    name: String,
    kind: Kind,
    /// The class makes it in float32 whatever the model's dtype.
    fp32: bool,
    shape: Option<Vec<Size>>,
    presence: Presence,
}

/// When a class has a part.
#[derive(Clone, Debug)]
enum Presence {
    Always,
    /// Under some configs, or in some layers: the checkpoint's tensors tell.
    Sometimes,
    /// Where one key says so.
    If(Switch),
}

impl Presence {
    fn is_always(&self) -> bool {
        matches!(self, Self::Always)
    }

    fn switch(&self) -> Option<&Switch> {
        if let Self::If(switch) = self { Some(switch) } else { None }
    }
}

#[derive(Clone, Debug)]
struct Child {
    name: String,
    variants: Vec<Variant>,
    /// Of a list.
    length: Size,
    presence: Presence,
    /// Of two variants: when it is the first.
    first: Option<Switch>,
}

#[derive(Clone, Debug)]
enum Variant {
    /// A module of the same config.
    Module(String),
    /// A model, of a sub-config where one is named.
    Model { key: String, class: String },
}

#[derive(Clone, Debug)]
struct Module {
    class: String,
    embedding: bool,
    model: bool,
    list: bool,
    /// Nothing is known of it: every name fits.
    open: bool,
    /// Keys switch some of its parts on.
    switches: bool,
    entries: Vec<Entry>,
    children: Vec<Child>,
}

/// A config, or a sub-config, with what is known of its type.
#[derive(Clone, Debug)]
struct Scope<'c> {
    config: &'c Value,
    model_type: String,
    line: Value,
    /// Keys that some layer has a value of its own for (`per_layer_config`).
    per_layer: BTreeSet<String>,
}

/// A place in the tree: a module under a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    module: usize,
    scope: usize,
}

/// A name that was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// What it stands for.
    pub kind: Kind,
    /// Made in float32 by the class.
    pub fp32: bool,
    /// Its sizes, as far as config.json gives them, with what each follows from.
    pub shape: Option<Vec<Option<(u64, String)>>>,
    /// Modules that it is in, outermost first: end of the module's path in the name, and place.
    pub modules: Vec<(usize, Place)>,
    /// An index that its list does not have: the list's path, the index, the length.
    pub beyond: Option<(String, u64, u64)>,
    /// Whether the class has it, where a key of config.json decides it, and what that says.
    pub switch: Option<Switched>,
}

/// Whether config.json switches a part on, and what it says: `attention_bias: false`.
pub type Switched = (bool, String);

/// What config.json says of the parts of a module: of its parameters, of its children, and of which are the first of two variants.
#[derive(Debug, Default)]
struct Switches {
    entries: Vec<Option<Switched>>,
    children: Vec<Option<Switched>>,
    firsts: Vec<Option<Switched>>,
}

/// Variants that elements have, by their path; [`NONE`] where there is no element.
pub type Choices = BTreeMap<String, usize>;

/// What [`Choices`] have where config.json says that a layer lacks a part.
pub const NONE: usize = usize::MAX;

/// A model's tree.
#[derive(Debug)]
pub struct Tree<'c> {
    data: &'static Data,
    modules: Vec<Module>,
    by_name: BTreeMap<String, usize>,
    scopes: Vec<Scope<'c>>,
    by_key: BTreeMap<(usize, String), usize>,
    /// Where the variants of each child lead.
    links: BTreeMap<Place, Vec<Vec<Place>>>,
    /// What config.json says of modules that have parts with a switch.
    switches: BTreeMap<Place, Switches>,
    /// Modules of the base model that this class leaves out.
    absent: Vec<String>,
    /// Of a key that config.json lacks, the class's default switches nothing: the class is only built like this one.
    like: bool,
    root: Place,
}

static NULL: Value = Value::Null;

/// A part that says nothing.
static EMPTY: LazyLock<Value> = LazyLock::new(|| Value::Object(serde_json::Map::new()));

impl<'c> Tree<'c> {
    /// The tree of a class under a model type's config; `None` where it is not in the data. `like`: a user's own class is built like it.
    pub fn new(data: &'static Data, class: &str, model_type: &str, config: &'c Value, like: bool) -> Option<Self> {
        let line = data.get("!", class)?;
        let mut tree = Self {
            data,
            modules: Vec::new(),
            by_name: BTreeMap::new(),
            scopes: Vec::new(),
            by_key: BTreeMap::new(),
            links: BTreeMap::new(),
            switches: BTreeMap::new(),
            absent: line["absent"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect(),
            like,
            root: Place { module: 0, scope: 0 },
        };
        tree.scope(config, model_type.to_owned());
        tree.root.module = tree.load(line["root"].as_str()?);
        tree.load_all(tree.root);
        // Parts may be models that leave out some of theirs.
        let parts = tree.models().into_iter().filter(|(path, ..)| !path.is_empty());
        let lacks = |(path, class, ..): (String, String, String, &Value)| {
            let line = data.get("!", &class).unwrap_or_default();
            line["absent"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(|name| format!("{path}.{name}"))
                .collect::<Vec<_>>()
        };
        let absent: Vec<String> = parts.flat_map(lacks).collect();
        tree.absent.extend(absent);
        Some(tree)
    }

    /// A tree that has every name.
    pub fn open(data: &'static Data, config: &'c Value) -> Self {
        let mut tree = Self {
            data,
            modules: vec![open("model")],
            by_name: BTreeMap::new(),
            scopes: Vec::new(),
            by_key: BTreeMap::new(),
            links: BTreeMap::new(),
            switches: BTreeMap::new(),
            absent: Vec::new(),
            like: true,
            root: Place { module: 0, scope: 0 },
        };
        tree.scope(config, String::new());
        tree
    }

    /// The data that it is of.
    pub fn data(&self) -> &'static Data {
        self.data
    }

    /// True where nothing is known of the model: every name is one of its.
    pub fn is_open(&self) -> bool {
        self.modules[self.root.module].open
    }

    fn scope(&mut self, config: &'c Value, model_type: String) -> usize {
        let line = self.data.get(":", &model_type).unwrap_or_default();
        let layers = config["per_layer_config"].as_object().into_iter().flat_map(serde_json::Map::values);
        let per_layer = layers.filter_map(Value::as_object).flat_map(|own| own.keys().cloned()).collect();
        self.scopes.push(Scope { config, model_type, line, per_layer });
        self.scopes.len() - 1
    }

    fn load(&mut self, name: &str) -> usize {
        if let Some(&found) = self.by_name.get(name) {
            return found;
        }
        let module = self.data.get("", name).map_or_else(|| open(name), |line| parse(name, &line));
        self.modules.push(module);
        self.by_name.insert(name.to_owned(), self.modules.len() - 1);
        self.modules.len() - 1
    }

    /// Loads all that can be reached, so that later look-ups change nothing.
    fn load_all(&mut self, from: Place) {
        let mut todo = vec![from];
        while let Some(place) = todo.pop() {
            if self.links.contains_key(&place) {
                continue;
            }
            let children = self.modules[place.module].children.clone();
            let links: Vec<Vec<Place>> = children.iter().map(|c| c.variants.iter().map(|v| self.enter(place, v)).collect()).collect();
            todo.extend(links.iter().flatten());
            self.links.insert(place, links);
            let module = &self.modules[place.module];
            if module.switches {
                let of = |switch: Option<&Switch>| self.switched(place.scope, switch?);
                let switches = Switches {
                    entries: module.entries.iter().map(|e| of(e.presence.switch())).collect(),
                    children: module.children.iter().map(|c| of(c.presence.switch())).collect(),
                    firsts: self
                        .children(place)
                        .map(|(c, places)| of(c.first.as_ref().filter(|_| !self.has_rule(place.scope, places))))
                        .collect(),
                };
                self.switches.insert(place, switches);
            }
        }
    }

    /// Whether a key of a scope's config, by any of its names, switches a part on; else the class's default, where nothing but the key decides it.
    fn switched(&self, scope: usize, switch: &Switch) -> Option<Switched> {
        let Scope { config, line, per_layer, .. } = &self.scopes[scope];
        // Keys that are not listed may say what the class does not heed.
        let default = line["switches"].get(&switch.key)?.get(0).filter(|_| !self.like);
        let names = self.names(scope, &switch.key);
        if !config.is_object() || names.iter().any(|name| per_layer.contains(*name)) {
            return None;
        }
        let said = names.into_iter().find_map(|name| Some((name, config.get(name)?)));
        let on = switch.decides(said.map(|(_, value)| value), default)?;
        let text = match (said, default) {
            (Some((name, value)), _) => format!("{name}: {value}"),
            (None, Some(default)) => format!("{} is not in it, and {default} by default", switch.key),
            (None, None) => return None,
        };
        Some((on, text))
    }

    /// Whether layers have a rule for which of two classes stands.
    fn has_rule(&self, scope: usize, places: &[Place]) -> bool {
        let [one, other] = places else { return false };
        let (one, other, rules) = (self.class(*one), self.class(*other), &self.scopes[scope].line["kinds"]);
        rules.get(format!("{one}/{other}")).or_else(|| rules.get(format!("{other}/{one}"))).is_some()
    }

    /// What config.json says of a module's parts, where keys switch some of them on.
    fn switches(&self, at: Place) -> Option<&Switches> {
        if self.modules[at.module].switches { self.switches.get(&at) } else { None }
    }

    fn enter(&mut self, at: Place, variant: &Variant) -> Place {
        match variant {
            Variant::Module(name) => Place { module: self.load(name), scope: at.scope },
            Variant::Model { key, class } => {
                let (scope, class) = self.sub_model(at.scope, key, class);
                let root = self.data.get("!", &class).and_then(|l| l["root"].as_str().map(str::to_owned));
                Place { module: self.load(root.as_deref().unwrap_or("?")), scope }
            }
        }
    }

    /// The scope of a sub-model, and its class: the usual one, or another where the sub-config is of another type.
    fn sub_model(&mut self, scope: usize, key: &str, class: &str) -> (usize, String) {
        if key.is_empty() {
            return (scope, class.to_owned());
        }
        let found = self.scopes[scope].config.get(key).filter(|part| !part.is_null());
        // Of a part that is not there as a whole, what the class makes is known.
        let made = self.scopes[scope].line["parts"][key].as_object().filter(|_| found.is_none()).cloned();
        let config = found.unwrap_or(if made.is_some() { &EMPTY } else { &NULL });
        let usual = self.data.get("!", class).and_then(|l| l["type"].as_str().map(str::to_owned)).unwrap_or_default();
        // A part of one type is of that type whatever config.json says; older ones say the whole model's.
        let line = &self.scopes[scope].line;
        let is_free = line["sub"][key].is_null() || line["auto"].as_array().is_some_and(|keys| keys.iter().any(|k| k == key));
        let declared = config["model_type"].as_str().filter(|_| is_free).unwrap_or(&usual).to_owned();
        let class = if declared == usual { class.to_owned() } else { self.other_class(&declared, &usual, class) };
        let set: Vec<String> = line["sets"][key].as_array().into_iter().flatten().filter_map(|k| k.as_str().map(str::to_owned)).collect();
        let known = self.by_key.get(&(scope, key.to_owned())).copied();
        let sub = known.unwrap_or_else(|| {
            let sub = self.scope(config, declared);
            for list in ["defaults", "derived", "switches"] {
                if let Some(keys) = self.scopes[sub].line[list].as_object_mut() {
                    keys.retain(|key, _| !set.contains(key));
                }
            }
            for (key, value) in made.into_iter().flatten() {
                let line = &mut self.scopes[sub].line;
                if let Some(switch) = line["switches"].get_mut(&key) {
                    *switch = Value::Array(vec![value.clone()]);
                }
                if value.as_u64().is_some_and(|n| n > 0) {
                    line["defaults"][key] = value;
                }
            }
            self.by_key.insert((scope, key.to_owned()), sub);
            sub
        });
        (sub, class)
    }

    /// The class of another model type that takes the part of `class`: its language model where that is one, else its base model.
    fn other_class(&self, model_type: &str, usual: &str, class: &str) -> String {
        let Some(line) = self.data.get(":", model_type) else {
            // A type without a line of its own is an alias, such as `siglip_vision_model` in older configs.
            return class.to_owned();
        };
        let role = if self.data.get(":", usual).is_some_and(|l| l["llm"] == class && l["base"] != class) { "llm" } else { "base" };
        line[role].as_str().or_else(|| line["base"].as_str()).unwrap_or(class).to_owned()
    }

    /// The children of a place, with where each of their variants leads.
    fn children(&self, at: Place) -> impl Iterator<Item = (&Child, &[Place])> {
        let links = self.links.get(&at).map(Vec::as_slice).unwrap_or_default();
        self.modules[at.module].children.iter().zip(links.iter().map(Vec::as_slice))
    }

    /// Whether some name is a number that no list has: of a module in a sequence, `0`, unlike the others.
    pub fn has_numbered(&self) -> bool {
        let numbered = |name: &str| name.split('.').any(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
        let of = |m: &Module| m.entries.iter().any(|e| numbered(&e.name)) || m.children.iter().any(|c| numbered(&c.name));
        self.modules.iter().any(of) || self.absent.iter().any(|name| numbered(name))
    }

    /// Finds a name of the model.
    pub fn find(&self, name: &str, choices: &Choices) -> Option<Found> {
        if self.is_absent(name) {
            return None;
        }
        self.find_in(self.root, name, 0, (choices, None), &mut vec![(0, self.root)], (None, None))
    }

    /// Finds a name of the model among all variants, as a tensor of that many dims: where variants have the same names, as a normalisation and a
    /// convolution in one list, it is their dims that tell them apart.
    pub fn find_of_rank(&self, name: &str, dims: usize) -> Option<Found> {
        if self.is_absent(name) {
            return None;
        }
        self.find_in(self.root, name, 0, (&Choices::new(), Some(dims)), &mut vec![(0, self.root)], (None, None))
    }

    fn find_in(
        &self,
        at: Place,
        name: &str,
        start: usize,
        (choices, dims): (&Choices, Option<usize>),
        modules: &mut Vec<(usize, Place)>,
        (beyond, within): (Option<(String, u64, u64)>, Option<&Switched>),
    ) -> Option<Found> {
        let module = &self.modules[at.module];
        let switches = self.switches(at);
        let rest = &name[start..];
        if module.open {
            // Nothing tells but the name.
            let of_a_norm = ["running_mean", "running_var", "num_batches_tracked"];
            let kind = if of_a_norm.iter().any(|n| rest.ends_with(n)) && !self.is_open() { Kind::Buffer } else { Kind::Parameter };
            return Some(Found { kind, fp32: false, shape: None, modules: modules.clone(), beyond, switch: within.cloned() });
        }
        if let Some((i, entry)) = module.entries.iter().enumerate().find(|(_, e)| e.name == rest) {
            if dims.is_some_and(|dims| entry.shape.as_ref().is_some_and(|s| s.len() != dims)) {
                return None;
            }
            let shape = entry.shape.as_ref().map(|s| s.iter().map(|size| self.size(at.scope, size)).collect());
            let switch = stronger(within, switches.and_then(|s| s.entries[i].as_ref())).cloned();
            return Some(Found { kind: entry.kind, fp32: entry.fp32, shape, modules: modules.clone(), beyond, switch });
        }
        let (segment, _) = rest.split_once('.')?;
        let end = start + segment.len();
        let (mut off, depth) = (None, modules.len());
        for (c, (child, places)) in self.children(at).enumerate() {
            let mut beyond = beyond.clone();
            if child.name == "*" {
                let Ok(index) = segment.parse::<u64>() else { continue };
                if let Some((length, _)) = self.size(at.scope, &child.length)
                    && index >= length
                    && beyond.is_none()
                {
                    beyond = Some((name[..start.saturating_sub(1)].to_owned(), index, length));
                }
            } else if child.name != segment {
                continue;
            }
            let chosen = if child.variants.len() > 1 || !child.presence.is_always() { choices.get(&name[..end]).copied() } else { None };
            let within = stronger(within, switches.and_then(|s| s.children[c].as_ref()));
            let first = switches.and_then(|s| s.firsts[c].as_ref());
            for (i, &next) in places.iter().enumerate() {
                if chosen.is_some_and(|c| c != i) {
                    continue;
                }
                modules.push((end, next));
                let variant = first.map(|(first, says)| ((i == 0) == *first, says.clone()));
                let within = stronger(within, variant.as_ref());
                match self.find_in(next, name, end + 1, (choices, dims), modules, (beyond.clone(), within)) {
                    // Another variant may have it.
                    Some(found) if found.is_off() && places.len() > 1 => off = off.or(Some(found)),
                    Some(found) => return Some(found),
                    None => {}
                }
                modules.truncate(depth);
            }
        }
        off
    }

    fn is_absent(&self, name: &str) -> bool {
        self.absent.iter().any(|module| name.strip_prefix(module.as_str()).is_some_and(|rest| rest.starts_with('.')))
    }

    /// The place of a name in the order of the class's parameters.
    pub fn order(&self, name: &str) -> Vec<u64> {
        let mut out = Vec::new();
        self.order_in(self.root, name, &mut out);
        out
    }

    fn order_in(&self, at: Place, rest: &str, out: &mut Vec<u64>) -> bool {
        if let Some(i) = self.modules[at.module].entries.iter().position(|e| e.name == rest) {
            out.extend([0, i as u64]);
            return true;
        }
        let Some((segment, rest)) = rest.split_once('.') else { return false };
        for (i, (child, places)) in self.children(at).enumerate() {
            let index = if child.name == "*" { segment.parse().ok() } else { (child.name == segment).then_some(0) };
            let Some(index) = index else { continue };
            for &place in places {
                let before = out.len();
                out.extend([1, i as u64, index]);
                if self.order_in(place, rest, out) {
                    return true;
                }
                out.truncate(before);
            }
        }
        false
    }

    /// Adds `count` votes for each variant, at each place that has several, under which the name is one of the model's. Beside the votes stands
    /// how many parameters the variant has at least.
    pub fn vote(&self, name: &str, count: u32, votes: &mut BTreeMap<String, Vec<(u32, usize)>>) {
        self.vote_in(self.root, name, 0, count, votes);
    }

    fn vote_in(&self, at: Place, name: &str, start: usize, count: u32, votes: &mut BTreeMap<String, Vec<(u32, usize)>>) -> bool {
        let module = &self.modules[at.module];
        let rest = &name[start..];
        if module.open || module.entries.iter().any(|e| e.name == rest) {
            return true;
        }
        let Some((segment, _)) = rest.split_once('.') else { return false };
        let end = start + segment.len();
        let mut found = false;
        let number = !segment.is_empty() && segment.bytes().all(|b| b.is_ascii_digit());
        for (child, places) in self.children(at).filter(|(c, _)| c.name == segment || c.name == "*" && number) {
            for (i, &next) in places.iter().enumerate() {
                if self.vote_in(next, name, end + 1, count, votes) {
                    found = true;
                    if child.variants.len() > 1 {
                        let least = || places.iter().map(|&place| (0, self.least(place))).collect();
                        // A path may lead through modules whose variants there are not the same.
                        let of = votes.entry(name[..end].to_owned()).or_insert_with(least);
                        if of.len() < places.len() {
                            of.extend(least().into_iter().skip(of.len()));
                        }
                        of[i].0 += count;
                    }
                }
            }
        }
        found
    }

    /// How many parameters a module has at least, lists aside.
    fn least(&self, at: Place) -> usize {
        let own = self.modules[at.module].entries.iter().filter(|e| e.presence.is_always() && e.kind != Kind::Fleeting).count();
        let children = self.children(at).filter(|(c, _)| c.presence.is_always() && c.name != "*");
        own + children.filter_map(|(_, places)| places.first()).map(|&place| self.least(place)).sum::<usize>()
    }

    /// A key's names: its own, and others that config.json may have in its place.
    fn names<'k>(&'k self, scope: usize, key: &'k str) -> Vec<&'k str> {
        let line = &self.scopes[scope].line;
        let aliases = [&line["attributes"], &line["older"]].into_iter().filter_map(Value::as_object).flatten();
        let others = aliases.filter_map(|(alias, real)| match real.as_str()? {
            real if real == key => Some(alias.as_str()),
            real if alias == key => Some(real),
            _ => None,
        });
        iter::once(key).chain(others).collect()
    }

    /// Which of several variants stands at a path, where config.json decides it, and by which keys: the engine makes that one, whatever the checkpoint has.
    pub fn decided(&self, path: &str) -> Option<(usize, String)> {
        self.decided_in(self.root, path, 0).flatten()
    }

    /// `None` where the path leads nowhere from here.
    fn decided_in(&self, at: Place, path: &str, start: usize) -> Option<Option<(usize, String)>> {
        let segment = path[start..].split('.').next()?;
        let end = start + segment.len();
        let number = !segment.is_empty() && segment.bytes().all(|b| b.is_ascii_digit());
        let mut children = self.children(at).enumerate().filter(|(_, (c, _))| c.name == segment || c.name == "*" && number);
        children.find_map(|(c, (_, places))| match end == path.len() {
            true => (places.len() > 1).then(|| self.by_rule(at, c, places, path)),
            false => places.iter().find_map(|&next| self.decided_in(next, path, end + 1)),
        })
    }

    /// The variant of a module's child at a path, where layers' rules or a switch say it, and by which keys.
    fn by_rule(&self, at: Place, child: usize, places: &[Place], path: &str) -> Option<(usize, String)> {
        let switch = || self.switches(at)?.firsts[child].as_ref().map(|(first, says)| (usize::from(!first), says.clone()));
        self.by_layer(at.scope, places, path).or_else(switch)
    }

    fn by_layer(&self, scope: usize, places: &[Place], path: &str) -> Option<(usize, String)> {
        let classes: Vec<&str> = places.iter().map(|&place| self.class(place)).collect();
        if let [one, other] = classes[..] {
            let (first, keys) = self.first_stands(scope, one, other, path)?;
            return Some((usize::from(!first), keys));
        }
        // Each of several has a rule of its own.
        classes
            .iter()
            .enumerate()
            .find_map(|(i, class)| self.first_stands(scope, class, "", path).filter(|(stands, _)| *stands).map(|(_, keys)| (i, keys)))
    }

    /// The part of a layer that a name is in, where config.json decides whether the layer has it: whether it has, and by which keys.
    pub fn part<'n>(&self, name: &'n str) -> Option<(&'n str, bool, String)> {
        self.part_in(self.root, name, 0)
    }

    fn part_in<'n>(&self, at: Place, name: &'n str, start: usize) -> Option<(&'n str, bool, String)> {
        let (segment, _) = name[start..].split_once('.')?;
        let end = start + segment.len();
        let number = segment.bytes().all(|b| b.is_ascii_digit());
        self.children(at).filter(|(c, _)| c.name == segment || c.name == "*" && number).find_map(|(child, places)| {
            let decided = if child.presence.is_always() { None } else { self.has_part(at, child, &name[..end]) };
            match decided {
                Some((has, keys)) => Some((&name[..end], has, keys)),
                None => places.iter().find_map(|&next| self.part_in(next, name, end + 1)),
            }
        })
    }

    /// Whether a layer has a part that not all layers of its class have, where config.json decides it, and by which keys.
    fn has_part(&self, at: Place, child: &Child, path: &str) -> Option<(bool, String)> {
        let part = format!("{}.{}", self.class(at), child.name);
        self.first_stands(at.scope, &format!("+{part}"), &format!("-{part}"), path)
    }

    /// Whether the first of two kinds of what is at a path in a list stands there, and the keys of config.json that say so.
    fn first_stands(&self, scope: usize, one: &str, other: &str, path: &str) -> Option<(bool, String)> {
        let layer = path.rsplit('.').find_map(|part| part.parse().ok())?;
        let given =
            |key: &str| self.names(scope, key).into_iter().find_map(|name| self.scopes[scope].config.get(name).filter(|v| !v.is_null()));
        let rules = &self.scopes[scope].line["kinds"];
        let of = |first: &str, second: &str| rules[format!("{first}/{second}")].as_array();
        let (first, keys) = kinds::first_stands([of(one, other), of(other, one)], layer, given)?;
        let named = |key| self.names(scope, key).into_iter().find(|name| self.scopes[scope].config.get(name).is_some());
        Some((first, keys.into_iter().filter_map(named).collect::<Vec<_>>().join(", ")))
    }

    /// A key's number in a scope's config, by any of its names, and what it was called. A key that config.json does not have has the class's default,
    /// where the config is there and nothing else decides the key, or is made of other keys as the class makes it.
    fn number(&self, scope: usize, key: &str, depth: u32) -> Option<(u64, String)> {
        let Scope { config, line, model_type, per_layer } = &self.scopes[scope];
        if let Some(list) = key.strip_prefix('#') {
            let found = self.names(scope, list).into_iter().find_map(|name| Some((name, config.get(name).filter(|v| !v.is_null())?)));
            let (name, value) = found?;
            let length = value.as_array().map(Vec::len).or_else(|| value.as_str().map(|text| text.chars().count()))?;
            return Some((u64::try_from(length).ok()?, format!("the length of {name}")));
        }
        let names = self.names(scope, key);
        // Layers may have a number of their own.
        if names.iter().any(|name| per_layer.contains(*name)) {
            return None;
        }
        let found = names.iter().find_map(|name| config.get(name));
        if let Some(found) = found.filter(|found| !found.is_null()) {
            return Some((found.as_u64()?, key.to_owned()));
        }
        if found.is_none()
            && config.is_object()
            && let Some(default) = names.iter().find_map(|name| line["defaults"][name].as_u64())
        {
            return Some((default, format!("{key} (not in config.json, the default of '{model_type}')")));
        }
        if depth == DEEPEST {
            return None;
        }
        let formula = names.iter().find_map(|name| line["derived"][name].as_str())?;
        let (value, of) = Formula::parse(formula)?.value(|key| self.number(scope, key, depth + 1))?;
        Some((value, format!("{key} (not in config.json: {of})")))
    }

    fn size(&self, scope: usize, size: &Size) -> Option<(u64, String)> {
        match size {
            Size::Unknown => None,
            Size::Formula(formula) => formula.value(|key| self.number(scope, key, 0)),
        }
    }

    /// A key of the root's config, or of a sub-config.
    pub fn config_number(&self, sub: Option<&str>, key: &str) -> Option<u64> {
        let scope = sub.and_then(|sub| self.by_key.get(&(0, sub.to_owned()))).copied().unwrap_or(0);
        self.number(scope, key, 0).map(|(n, _)| n)
    }

    /// What a number or a formula of the data comes to under the config of the module at a path.
    pub fn size_in(&self, path: &str, formula: &Value) -> Option<u64> {
        if let Some(number) = formula.as_u64() {
            return Some(number);
        }
        let mut at = self.root;
        for segment in path.split('.').filter(|segment| !segment.is_empty()) {
            let number = segment.bytes().all(|b| b.is_ascii_digit());
            at = *self.children(at).find(|(c, _)| c.name == segment || c.name == "*" && number)?.1.first()?;
        }
        self.size(at.scope, &Size::of(formula)).map(|(n, _)| n)
    }

    /// The class of a module.
    pub fn class(&self, place: Place) -> &str {
        &self.modules[place.module].class
    }

    /// Whether it is an `nn.Embedding`.
    pub fn is_embedding(&self, place: Place) -> bool {
        self.modules[place.module].embedding
    }

    /// Whether it is a list.
    pub fn is_list(&self, place: Place) -> bool {
        self.modules[place.module].list
    }

    /// Every sub-model: its path, its class and its model type, in the order of the modules.
    pub fn models(&self) -> Vec<(String, String, String, &'c Value)> {
        let mut out = Vec::new();
        self.models_in(self.root, "", 0, &mut out);
        out
    }

    fn models_in(&self, at: Place, path: &str, depth: u32, out: &mut Vec<(String, String, String, &'c Value)>) {
        let module = &self.modules[at.module];
        if module.model {
            let scope = &self.scopes[at.scope];
            out.push((path.to_owned(), module.class.clone(), scope.model_type.clone(), scope.config));
        }
        if depth > 40 {
            return;
        }
        for (child, places) in self.children(at) {
            // The elements of a list of models are alike; what holds for the first holds for all by their patterns.
            let names = if child.name == "*" {
                let length = self.size(at.scope, &child.length).map_or(1, |(n, _)| n.min(64));
                let many = places.first().is_some_and(|place| self.modules[place.module].model);
                (0..if many { length } else { 1 }).map(|i| i.to_string()).collect()
            } else {
                vec![child.name.clone()]
            };
            for name in names {
                let path = if path.is_empty() { name } else { format!("{path}.{name}") };
                for &place in places {
                    self.models_in(place, &path, depth + 1, out);
                }
            }
        }
    }

    /// Names of parameters and saved buffers that the class has under every config, with their shapes; at most `most`. What not every config has, as a
    /// bias, an element of a list has where others do; a list of unknown length has the elements that are stored.
    pub fn expected(&self, choices: &Choices, most: usize, stored: &Stored<'_>) -> Vec<(String, Kind, Option<Vec<u64>>)> {
        let mut out = Vec::new();
        self.expected_in(self.root, "", (choices, stored), most, &mut out);
        out.retain(|(name, ..)| !self.is_absent(name));
        out
    }

    fn expected_in(
        &self,
        at: Place,
        path: &str,
        (choices, stored): (&Choices, &Stored<'_>),
        most: usize,
        out: &mut Vec<(String, Kind, Option<Vec<u64>>)>,
    ) {
        let module = &self.modules[at.module];
        let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        let elsewhere = |name: &str| stored.all_others_have(&join(name), choices);
        let switches = self.switches(at);
        let has = |presence: &Presence, switch: Option<&Switched>, name: &str| match switch {
            Some((on, _)) => *on,
            None => presence.is_always() || elsewhere(name),
        };
        for (i, entry) in module.entries.iter().enumerate() {
            if entry.kind == Kind::Fleeting || !has(&entry.presence, switches.and_then(|s| s.entries[i].as_ref()), &entry.name) {
                continue;
            }
            let sizes = entry.shape.as_ref().map(|s| s.iter().map(|size| self.size(at.scope, size).map(|(n, _)| n)).collect());
            out.push((join(&entry.name), entry.kind, sizes.flatten()));
        }
        let in_list = path.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
        for (c, (child, places)) in self.children(at).enumerate() {
            let decided = || if in_list { self.has_part(at, child, &join(&child.name)).map(|(has, _)| has) } else { None };
            let switch = switches.and_then(|s| s.children[c].as_ref());
            let given = || switch.is_none() && self.is_given(at, child);
            if !child.presence.is_always() && !decided().unwrap_or_else(|| given() || has(&child.presence, switch, &child.name)) {
                continue;
            }
            let names: Vec<String> = if child.name == "*" {
                match self.size(at.scope, &child.length) {
                    Some((length, _)) => (0..length.min(most as u64)).map(|i| i.to_string()).collect(),
                    None => stored.elements(path).iter().map(u64::to_string).collect(),
                }
            } else {
                vec![child.name.clone()]
            };
            for name in names {
                if out.len() > most {
                    return;
                }
                let path = join(&name);
                let place = match places {
                    [only] => Some(only),
                    several => {
                        let chosen = choices.get(&path).copied().or_else(|| Some(self.by_rule(at, c, several, &path)?.0));
                        chosen.and_then(|i| several.get(i))
                    }
                };
                if let Some(&place) = place {
                    self.expected_in(place, &path, (choices, stored), most, out);
                }
            }
        }
    }

    /// Whether a part that not every such model has is one that config.json describes.
    fn is_given(&self, at: Place, child: &Child) -> bool {
        let key = |variant: &Variant| {
            if let Variant::Model { key, .. } = variant { !key.is_empty() && self.scopes[at.scope].config[key].is_object() } else { false }
        };
        child.variants.iter().all(key)
    }
}

/// Of what two keys say of a part and of what it is in, that which leaves it out; else that of the part.
fn stronger<'s>(outer: Option<&'s Switched>, own: Option<&'s Switched>) -> Option<&'s Switched> {
    outer.filter(|(on, _)| !on).or(own).or(outer)
}

impl Found {
    /// Whether the class lacks it, as config.json has it.
    pub fn is_off(&self) -> bool {
        self.switch.as_ref().is_some_and(|(on, _)| !on)
    }
}

fn open(name: &str) -> Module {
    let class = name.to_owned();
    Module { class, embedding: false, model: false, list: false, open: true, switches: false, entries: Vec::new(), children: Vec::new() }
}

/// `[flags, [[name, kind, sizes, when]], [[name, variants, length, when, when it is the first of two]]]`. When it is there: a switch, 0 where more than
/// one key decides it; always where there is nothing, or 1.
fn parse(name: &str, line: &Value) -> Module {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    fn list(v: &Value) -> &[Value] {
        v.as_array().map(Vec::as_slice).unwrap_or_default()
    }
    let switch = |v: Option<&Value>| v.and_then(Value::as_str).map(Switch::parse);
    let presence = |when: Option<&Value>| match switch(when) {
        Some(switch) => Presence::If(switch),
        None if when.is_none_or(|when| when == 1) => Presence::Always,
        None => Presence::Sometimes,
    };
    let flags = text(&line[0]);
    let entries = list(&line[1]).iter().map(|row| {
        let (kind, fp32) = match row[1].as_str().unwrap_or_default() {
            "f" => (Kind::Parameter, true),
            "b" => (Kind::Buffer, false),
            "B" => (Kind::Buffer, true),
            "n" => (Kind::Fleeting, false),
            _ => (Kind::Parameter, false),
        };
        let shape = row[2].as_array().map(|sizes| sizes.iter().map(Size::of).collect());
        Entry { name: text(&row[0]), kind, fp32, shape, presence: presence(row.get(3)) }
    });
    let children = list(&line[2]).iter().map(|row| {
        let variants = list(&row[1]).iter().filter_map(Value::as_str).map(|v| match v.strip_prefix('@').and_then(|v| v.split_once(':')) {
            Some((key, class)) => Variant::Model { key: key.to_owned(), class: class.to_owned() },
            None => Variant::Module(v.to_owned()),
        });
        Child {
            name: text(&row[0]),
            variants: variants.collect(),
            length: Size::of(&row[2]),
            presence: presence(row.get(3)),
            first: switch(row.get(4)),
        }
    });
    let class = name.split('#').next().unwrap_or(name).to_owned();
    let (entries, children): (Vec<Entry>, Vec<Child>) = (entries.collect(), children.collect());
    let switched = |presence: &Presence| presence.switch().is_some();
    let switches = entries.iter().any(|e| switched(&e.presence)) || children.iter().any(|c| switched(&c.presence) || c.first.is_some());
    Module {
        class,
        embedding: flags.contains('E'),
        model: flags.contains('M'),
        list: flags.contains('L'),
        open: false,
        switches,
        entries,
        children,
    }
}
