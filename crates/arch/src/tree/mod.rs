//! The modules of a model's class under its config: which parameters and buffers it has, of which sizes, and in which modules.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::sync::LazyLock;

use serde_json::Value;

use self::module::{Child, Module, Presence, Variant, open, parse};
use crate::data::Data;
use crate::switch::Switch;

mod expected;
mod find;
mod layers;
mod module;
mod numbers;

pub use self::find::Found;
pub use self::module::Kind;

/// A config, or a sub-config, with what is known of its type.
#[derive(Clone, Debug)]
struct Scope<'c> {
    config: &'c Value,
    model_type: String,
    line: Value,
    /// Keys that some layer has a value of its own for (`per_layer_config`).
    per_layer: BTreeSet<String>,
    /// Keys that the config of the whole model sets in this part, whatever config.json has.
    set: BTreeSet<String>,
}

/// A place in the tree: a module under a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    module: usize,
    scope: usize,
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

/// The variant chosen for each module that has several, by its path; [`NONE`] where the module is absent.
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

/// Whether a list of words has this one.
fn has_word(list: &Value, word: &str) -> bool {
    list.as_array().is_some_and(|words| words.iter().any(|w| w == word))
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
        self.scopes.push(Scope { config, model_type, line, per_layer, set: BTreeSet::new() });
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
        // Older files have the keys of some parts at the top.
        let is_flat = found.is_none() && has_word(&self.scopes[scope].line["flat"], key);
        // Of a part that is not there as a whole, what the class makes is known.
        let made = self.scopes[scope].line["parts"][key].as_object().filter(|_| found.is_none()).cloned();
        let whole = self.scopes[scope].config;
        let config = if is_flat { whole } else { found.unwrap_or(if made.is_some() { &EMPTY } else { &NULL }) };
        let usual = self.data.get("!", class).and_then(|l| l["type"].as_str().map(str::to_owned)).unwrap_or_default();
        // A part of one type is of that type whatever config.json says; older ones say the whole model's.
        let line = &self.scopes[scope].line;
        let is_free = !is_flat && (line["sub"][key].is_null() || has_word(&line["auto"], key));
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
            self.scopes[sub].set = set.iter().filter_map(|key| key.strip_prefix('=').map(str::to_owned)).collect();
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

    fn is_absent(&self, name: &str) -> bool {
        self.absent.iter().any(|module| name.strip_prefix(module.as_str()).is_some_and(|rest| rest.starts_with('.')))
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
}
