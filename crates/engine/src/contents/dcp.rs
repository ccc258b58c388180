//! torch's distributed checkpoints, as LLaMA-Factory, accelerate, transformers and plain `dcp.save` lay them out.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use shardwright_core::DType;
use shardwright_formats::{ReadAt, Window, dcp::Metadata, pickle::Plain, torch_file::TorchFile};

use super::{
    common::{self, malformed},
    data::{Bytes, Data, Files},
    types::{Contents, Format, Group, Kind, Optimizer, State, Tensor},
};
use crate::error::{EngineError, ErrorKind, Result};

/// Directories of one checkpoint that each have a `.metadata`.
pub(super) fn find(path: &Path, names: &[String]) -> Option<Vec<PathBuf>> {
    if names.iter().any(|n| n == ".metadata") {
        return Some(vec![path.to_owned()]);
    }
    let has = |name: &str| path.join(name).join(".metadata").is_file().then(|| path.join(name));
    let model = has("model").or_else(|| has("pytorch_model_fsdp_0"))?;
    let optimizer = has("optimizer").or_else(|| has("optimizer_0"));
    Some([model].into_iter().chain(optimizer).collect())
}

/// Where a name belongs.
enum Place {
    Model(String),
    State(String, String),
    Group(String, String),
    /// Under a key of the trainer's own.
    Trainer(String),
}

/// Keys that say no more than that what follows is the model or the optimizer.
const PREFIXES: [&str; 5] = ["model", "optimizer", "optim", "app", "state_dict"];

/// Keys under which trainers that save everything at once, as torchtitan does, keep neither the model nor the optimizer.
const TRAINERS: [&str; 6] = ["train_state", "lr_scheduler", "scheduler", "dataloader", "rng_state", "extra_state"];

fn place(name: &str, path: Option<&Vec<Plain>>, second: bool) -> Place {
    let key = |plain: &Plain| match plain {
        Plain::Str(text) => text.clone(),
        Plain::Int(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let mut keys: Vec<String> = path.map_or_else(|| vec![name.to_owned()], |path| path.iter().map(key).collect());
    let mut of_optimizer = second;
    while keys.len() > 1 && PREFIXES.contains(&keys[0].as_str()) {
        of_optimizer |= keys.remove(0).starts_with("optim");
    }
    if keys.len() > 1 && TRAINERS.contains(&keys[0].as_str()) {
        return Place::Trainer(keys.swap_remove(0));
    }
    let flat = keys.join(".");
    let in_state = |rest: &str| rest.rsplit_once('.').map(|(param, state)| Place::State(param.to_owned(), state.to_owned()));
    let in_group = |rest: &str| rest.rsplit_once('.').map(|(group, key)| Place::Group(group.to_owned(), key.to_owned()));
    // A model's own tensor may be called so too: only in an optimizer's directory, or under its own key, is one a state.
    let nested = keys.len() > 1 || of_optimizer;
    let state = flat.strip_prefix("state.").filter(|_| nested).and_then(in_state);
    let group = flat.strip_prefix("param_groups.").filter(|_| nested).and_then(in_group);
    state.or(group).unwrap_or(Place::Model(flat))
}

/// Hyperparameters by the key of their group, in the order of first appearance.
#[derive(Default)]
struct Groups {
    places: BTreeMap<String, usize>,
    groups: Vec<(String, Vec<(String, Plain)>)>,
}

impl Groups {
    fn add(&mut self, group: String, key: String, value: Plain) {
        let next = self.groups.len();
        let place = *self.places.entry(group.clone()).or_insert(next);
        if place == next {
            self.groups.push((group, Vec::new()));
        }
        self.groups[place].1.push((key, value));
    }
}

#[derive(Default)]
struct Found {
    tensors: Vec<Tensor>,
    states: BTreeMap<String, State>,
    groups: Groups,
    files: Files,
    notes: Vec<String>,
    /// What is not carried, how often and the first of it, by the key that it is under.
    left: BTreeMap<String, (usize, String)>,
    ranks: usize,
}

impl Found {
    fn leave(&mut self, key: &str, name: &str) {
        self.left.entry(key.to_owned()).or_insert_with(|| (0, name.to_owned())).0 += 1;
    }
}

pub(super) fn open(path: &Path, dirs: &[PathBuf]) -> Result<Contents> {
    let mut found = Found::default();
    for (number, dir) in dirs.iter().enumerate() {
        read(dir, number > 0, &mut found)?;
    }
    let Found { tensors, states, groups, files, mut notes, left, ranks } = found;
    notes.extend(left.into_iter().map(|(key, (count, first))| match count {
        1 => format!("value '{first}' is not carried"),
        _ => format!("{count} values under '{key}' are not carried, '{first}' the first"),
    }));
    let optimizer = optimizer(states, groups, &mut notes);
    let mut contents = Contents {
        path: path.to_owned(),
        format: Format::Dcp,
        version: None,
        ranks: Some(ranks as u64),
        tag: None,
        tensors: common::sorted(path, tensors)?,
        aliases: Vec::new(),
        optimizer,
        values: Vec::new(),
        compute: None,
        notes,
        files,
    };
    for state in contents.optimizer.iter().flat_map(|o| &o.states) {
        let shape = contents.tensor(&state.param).map(|t| &t.data.shape);
        let odd = |(_, data): &&(String, Data)| !data.dtype.is_float() || shape.is_some_and(|shape| *shape != data.shape);
        if let Some((name, data)) = state.tensors.iter().find(odd) {
            let what =
                format!("the optimizer's state '{name}' is not a float for each element; quantised and factored states are not read");
            let error = EngineError::new(ErrorKind::Checkpoint, what).file(path).tensor(&state.param);
            return Err(error.found(format_args!("{} {:?}", data.dtype, data.shape)));
        }
    }
    common::classify(&mut contents)?;
    Ok(contents)
}

fn metadata(dir: &Path) -> Result<Metadata> {
    let path = dir.join(".metadata");
    Metadata::read(&Bytes::open(&path)?).map_err(malformed(&path))
}

/// Where the items of a directory lie, each a file of `torch.save`.
pub(super) fn items(dir: &Path) -> Result<Vec<(PathBuf, (u64, u64))>> {
    let metadata = metadata(dir)?;
    let chunks = metadata.tensors().flat_map(|tensor| tensor.chunks).map(|chunk| chunk.place);
    let values = metadata.values.iter().map(|(_, place)| place.clone());
    Ok(chunks.chain(values).map(|place| (dir.join(&*place.file), (place.offset, place.length))).collect())
}

fn read(dir: &Path, second: bool, found: &mut Found) -> Result<()> {
    let metadata = metadata(dir)?;
    let mut items = Items { dir, open: BTreeMap::new() };
    for tensor in metadata.tensors() {
        let data = items.tensor(&tensor, &mut found.files).map_err(|e| e.tensor(&tensor.name))?;
        match place(&tensor.name, metadata.paths.get(&tensor.name), second) {
            Place::Model(name) => found.tensors.push(Tensor { name, kind: Kind::Trained, data }),
            Place::State(param, state) => {
                let entry = found.states.entry(param.clone()).or_insert_with(|| State { param, step: 0.0, tensors: Vec::new() });
                match state.as_str() {
                    "step" => entry.step = common::scalar(&found.files, &data)?,
                    _ => entry.tensors.push((state, data)),
                }
            }
            Place::Group(_, key) => found.notes.push(format!("the optimizer's '{key}' is a tensor, which is not carried")),
            Place::Trainer(key) => found.leave(&key, &tensor.name),
        }
    }
    for (name, item) in &metadata.values {
        let place = place(name, metadata.paths.get(name), second);
        match (items.value(item), place) {
            (Ok(value), Place::Group(group, key)) => found.groups.add(group, key, value),
            (Ok(value), Place::State(param, key)) if key == "step" => {
                let entry = found.states.entry(param.clone()).or_insert_with(|| State { param, step: 0.0, tensors: Vec::new() });
                entry.step = value.number().unwrap_or(0.0);
            }
            (_, Place::Model(_) | Place::State(..)) => found.leave(name.split('.').next().unwrap_or(name), name),
            (_, Place::Trainer(key)) => found.leave(&key, name),
            (Err(e), Place::Group(..)) => return Err(e),
        }
    }
    let ranks = items.open.keys().filter_map(|f| f.strip_prefix("__")?.split('_').next()?.parse::<usize>().ok()).max();
    found.ranks = found.ranks.max(ranks.map_or(0, |r| r + 1));
    Ok(())
}

/// Bytes of an item that is read at once, of which less than a half are elements: there may be millions, and each read takes its time.
const SMALL: usize = 2 << 10;

/// The `.distcp` files of one directory.
struct Items<'a> {
    dir: &'a Path,
    open: BTreeMap<String, (Bytes, Option<usize>)>,
}

impl Items<'_> {
    fn file(&mut self, name: &str) -> Result<&mut (Bytes, Option<usize>)> {
        if !self.open.contains_key(name) {
            let bytes = Bytes::open(&self.dir.join(name))?;
            self.open.insert(name.to_owned(), (bytes, None));
        }
        self.open.get_mut(name).ok_or_else(|| EngineError::new(ErrorKind::Checkpoint, "not opened"))
    }

    /// The file of `torch.save` that an item is, and where it starts.
    fn item<T>(
        &mut self,
        place: &shardwright_formats::dcp::Place,
        read: impl FnOnce(&TorchFile, &dyn ReadAt) -> shardwright_formats::Result<T>,
    ) -> Result<T> {
        let path = self.dir.join(&*place.file);
        let (bytes, _) = self.file(&place.file)?;
        let Some(window) = Window::new(bytes, place.offset, place.length) else {
            let error = EngineError::new(ErrorKind::Checkpoint, "the file is cut off").file(&path);
            return Err(error.expected(format_args!("{} bytes from byte {}", place.length, place.offset)).found(bytes.size()));
        };
        let mut small = Vec::new();
        let source: &dyn ReadAt = match usize::try_from(place.length) {
            Ok(length @ 0..=SMALL) => {
                small.resize(length, 0);
                let error = |e| EngineError::io("cannot read the file", &path, e).offset(place.offset);
                window.read_exact_at(&mut small, 0).map_err(error)?;
                &small
            }
            _ => &window,
        };
        TorchFile::open(source).and_then(|file| read(&file, source)).map_err(|e| malformed(&path)(e).offset(place.offset))
    }

    fn value(&mut self, place: &shardwright_formats::dcp::Place) -> Result<Plain> {
        self.item(place, |file, _| file.pickle.plain(file.pickle.root()))
    }

    fn tensor(&mut self, tensor: &shardwright_formats::dcp::Tensor, files: &mut Files) -> Result<Data> {
        let mut extents = Vec::with_capacity(tensor.chunks.len());
        for chunk in &tensor.chunks {
            let found = self.item(&chunk.place, |file, window| file.tensor(window, file.pickle.root()))?;
            let path = self.dir.join(&*chunk.place.file);
            let error = |what: &str| EngineError::new(ErrorKind::Checkpoint, what).file(&path).offset(chunk.place.offset);
            let mut found = found.ok_or_else(|| error("the item is not a tensor"))?;
            if found.dtype != tensor.dtype || found.shape != chunk.sizes {
                let expected = format!("{} {:?}", tensor.dtype, chunk.sizes);
                return Err(error("the item is another tensor")
                    .expected(expected)
                    .found(format_args!("{} {:?}", found.dtype, found.shape)));
            }
            found.offset += chunk.place.offset;
            let dir = self.dir;
            let (_, number) = self.file(&chunk.place.file)?;
            let number = *number.get_or_insert_with(|| files.add(dir.join(&*chunk.place.file)));
            files.expect(number, chunk.place.offset, &found);
            extents.push(common::extent(number, &found, &tensor.shape, &chunk.offsets));
        }
        disjoint(&tensor.chunks)?;
        whole_bytes(tensor.dtype)?;
        Data::new(tensor.dtype, tensor.shape.clone(), extents)
    }
}

fn whole_bytes(dtype: DType) -> Result<()> {
    match dtype.bits() {
        0..8 => Err(EngineError::new(ErrorKind::Checkpoint, format!("elements of {dtype} are not read"))),
        _ => Ok(()),
    }
}

/// Refuses chunks that overlap: with their sizes summing up to the tensor's, they tile it.
fn disjoint(chunks: &[shardwright_formats::dcp::Chunk]) -> Result<()> {
    let mut order: Vec<&shardwright_formats::dcp::Chunk> = chunks.iter().collect();
    order.sort_by(|a, b| a.offsets.cmp(&b.offsets));
    for (number, a) in order.iter().enumerate() {
        // Chunks are sorted by their first dim: none behind this one's end can meet it.
        let near = order[number + 1..].iter().take_while(|b| a.offsets.first().is_none_or(|at| b.offsets[0] < at + a.sizes[0]));
        for b in near {
            let meet = (0..a.offsets.len()).all(|d| a.offsets[d] < b.offsets[d] + b.sizes[d] && b.offsets[d] < a.offsets[d] + a.sizes[d]);
            if meet {
                let what = format!("its chunks at {:?} and {:?} overlap", a.offsets, b.offsets);
                return Err(EngineError::new(ErrorKind::Checkpoint, what));
            }
        }
    }
    Ok(())
}

/// Groups come as `param_groups.0.lr` with `params` as a list, or as `param_groups.<parameter>.lr`.
fn optimizer(states: BTreeMap<String, State>, groups: Groups, notes: &mut Vec<String>) -> Option<Optimizer> {
    if states.is_empty() {
        return None;
    }
    let groups = groups.groups;
    let numbered = groups.iter().all(|(key, _)| key.parse::<usize>().is_ok());
    let mut made: Vec<(usize, Group)> = Vec::new();
    for (key, mut values) in groups {
        values.sort_by(|a, b| a.0.cmp(&b.0));
        let params = values.iter().position(|(k, _)| k == "params").map(|i| values.remove(i).1);
        let name = |plain: &Plain| match plain {
            Plain::Str(text) => Some(text.clone()),
            _ => None,
        };
        match (numbered, params) {
            (true, Some(Plain::List(list))) => {
                made.push((key.parse().unwrap_or(0), Group { params: list.iter().filter_map(name).collect(), values }));
            }
            (true, _) => made.push((key.parse().unwrap_or(0), Group { params: Vec::new(), values })),
            // One group for each set of equal hyperparameters, in the optimizer's order, which the file keeps.
            (false, _) => match made.iter_mut().find(|(_, g)| g.values == values) {
                Some((_, group)) => group.params.push(key),
                None => made.push((made.len(), Group { params: vec![key], values })),
            },
        }
    }
    made.sort_by_key(|(number, _)| *number);
    let mut groups: Vec<Group> = made.into_iter().map(|(_, group)| group).collect();
    if groups.iter().all(|g| g.params.is_empty()) {
        notes.push("the optimizer's groups are not recorded: its parameters are taken as one group, in the order of their names".into());
        groups = vec![Group { params: states.keys().cloned().collect(), values: groups.into_iter().next().unwrap_or_default().values }];
    }
    let mut states: Vec<State> = states.into_values().collect();
    states.iter_mut().for_each(|s| s.tensors.sort_by(|a, b| a.0.cmp(&b.0)));
    Some(Optimizer { groups, states })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_say_what_is_the_models_the_optimizers_and_the_trainers() {
        let at = |keys: &[&str]| {
            let path: Vec<Plain> = keys.iter().map(|key| Plain::Str((*key).to_owned())).collect();
            match place(&keys.join("."), Some(&path), false) {
                Place::Model(name) => format!("model {name}"),
                Place::State(param, state) => format!("state {state} of {param}"),
                Place::Group(group, key) => format!("{key} of group {group}"),
                Place::Trainer(key) => format!("trainer {key}"),
            }
        };
        assert_eq!(at(&["layer.weight"]), "model layer.weight");
        assert_eq!(at(&["app", "model", "layer.weight"]), "model layer.weight");
        assert_eq!(at(&["optimizer", "state", "layer.weight", "exp_avg"]), "state exp_avg of layer.weight");
        assert_eq!(at(&["optimizer", "state.layer.weight.exp_avg"]), "state exp_avg of layer.weight");
        assert_eq!(at(&["optimizer", "param_groups.layer.weight.lr"]), "lr of group layer.weight");
        // A model's own tensors may be called so.
        assert_eq!(at(&["state.layer.weight"]), "model state.layer.weight");
        assert_eq!(at(&["train_state.weight"]), "model train_state.weight");
        assert_eq!(at(&["train_state", "step"]), "trainer train_state");
    }

    /// transformers flattens the optimizer by parameter; ZeRO-3's partitions need the optimizer's own order back.
    #[test]
    fn a_flattened_optimizer_keeps_the_order_of_its_parameters() {
        let mut groups = Groups::default();
        for (param, lr) in [("w", 0.1), ("b", 0.5), ("a", 0.1)] {
            for (key, value) in [("lr", Plain::Float(lr)), ("amsgrad", Plain::Bool(false))] {
                groups.add(param.into(), key.into(), value);
            }
        }
        let state = |param: &str| (param.to_owned(), State { param: param.to_owned(), step: 1.0, tensors: Vec::new() });
        let found = optimizer(["a", "b", "w"].map(state).into_iter().collect(), groups, &mut Vec::new()).unwrap();
        assert_eq!(found.groups.iter().map(|g| g.params.clone()).collect::<Vec<_>>(), [vec!["w", "a"], vec!["b"]]);
        assert_eq!(found.groups[1].values[1], ("lr".to_owned(), Plain::Float(0.5)));
    }
}
