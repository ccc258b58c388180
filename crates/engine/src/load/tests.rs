//! The check of a load does not use the loader: whole tensors are read, cast and cut with the plan's own regions, and bits are compared.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use shardwright_core::{
    Assembly, Cut, DType, GroupAxis, Layout, Loop, Mesh, Model, ModelFacts, ModelMeta, Padding, Piece, Placement, PlanInput, Precision,
    PrecisionPolicy, Reshard, ShardPlan, TensorMeta, TensorPlan, model::numel, strategy::groups_by, testkit::elements,
};
use tempfile::TempDir;

use super::*;
use crate::source::{
    ReadMethod,
    faulty::{Faults, Misbehaviour},
};

/// A small generator of numbers, the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) ^ (self.0 >> 15) & 0xffff
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}

/// A file of those tensors with random bytes; answers with the bytes of each.
fn write_file(path: &Path, tensors: &[&TensorPlan], pad: usize, random: &mut Random) -> Vec<Vec<u8>> {
    let (mut header, mut data, mut at) = (Vec::new(), Vec::new(), 0);
    for t in tensors {
        let bytes = usize::try_from(t.source.bytes(t.numel()).unwrap()).unwrap();
        let (name, dtype, shape) = (&t.name, t.source.safetensors_name(), &t.shape);
        header.push(format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{at},{}]}}"#, at + bytes));
        at += bytes;
        data.push((0..bytes).map(|_| u8::try_from(random.below(256)).unwrap()).collect::<Vec<u8>>());
    }
    let header = format!("{{{}}}{}", header.join(","), " ".repeat(pad));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend(data.iter().flatten());
    fs::write(path, file).unwrap();
    data
}

/// A tensor to plan: name, source and storage dtype, shape, placement.
type Spec = (String, DType, DType, Vec<u64>, Placement);

/// Answers with what each tensor's spec says.
#[derive(Debug)]
struct AsSpecified(BTreeMap<String, DType>);

impl PrecisionPolicy for AsSpecified {
    fn decide(&self, param: &TensorMeta, _trainable: bool) -> Precision {
        Precision::uniform(self.0[param.name.as_str()])
    }
}

fn plan(mesh: &Mesh, specs: &[Spec]) -> ShardPlan {
    let metas = specs.iter().map(|s| TensorMeta::new(&s.0, s.1, s.3.clone())).collect();
    let model = ModelMeta::new(metas, ModelFacts::default()).unwrap();
    let policy = AsSpecified(specs.iter().map(|s| (s.0.clone(), s.2)).collect());
    let placement = |t: &TensorMeta| specs.iter().find(|s| s.0 == t.name).unwrap().4.clone();
    let mut plan = PlanInput::new(&model, mesh, &policy).plan_tensors("test", |t| Ok(placement(t))).unwrap();
    plan.groups = groups_by(&plan.tensors, Reshard::Never, |_| "");
    plan
}

fn random_layout(shape: &[u64], ranks: u32, random: &mut Random) -> Layout {
    let n = u64::from(ranks);
    let dim = if shape.is_empty() { 0 } else { usize::try_from(random.below(shape.len() as u64)).unwrap() };
    match random.below(if shape.is_empty() { 3 } else { 6 }) {
        0 => Layout::Partition,
        1 => Layout::Flat { partition: numel(shape).unwrap().div_ceil(n) },
        2 => Layout::Owner { coordinate: u32::try_from(random.below(n)).unwrap() },
        3 => Layout::Dim { dim, chunk: shape[dim].div_ceil(n) },
        4 => Layout::Chunk { dim },
        _ => {
            let mut bounds: Vec<u64> = (1..n).map(|_| random.below(shape[dim] + 1)).chain([0, shape[dim]]).collect();
            bounds.sort_unstable();
            Layout::Bounds { dim, bounds }
        }
    }
}

/// No cut, one cut, or several over different axes of `replicate` × `outer` × `inner` ranks, each on what the one before left.
fn random_placement(shape: &[u64], (replicate, outer, inner): (u32, u32, u32), random: &mut Random) -> Placement {
    let axis = |stride, size| GroupAxis { stride, size };
    let shard = outer * inner;
    let mut placement = Placement::replicated();
    match random.below(8) {
        0 => return placement,
        1..4 => {
            let axis = random.pick(&[axis(1, shard), axis(1, shard * replicate), axis(shard, replicate)]);
            placement = placement.then(Cut { axis, layout: random_layout(shape, axis.size, random) });
        }
        _ => {
            let mut axes = vec![axis(1, inner), axis(inner, outer), axis(shard, replicate)];
            for _ in 0..2 + random.below(2) {
                let axis = axes.swap_remove(usize::try_from(random.below(axes.len() as u64)).unwrap());
                let flat = placement.is_flat() || random.below(9) == 0;
                let layout = match random.below(8) {
                    _ if flat => Layout::Partition,
                    0 => Layout::Owner { coordinate: u32::try_from(random.below(u64::from(axis.size))).unwrap() },
                    _ if shape.is_empty() => Layout::Partition,
                    _ => Layout::Chunk { dim: usize::try_from(random.below(shape.len() as u64)).unwrap() },
                };
                placement = placement.then(Cut { axis, layout });
            }
        }
    }
    let last = placement.cuts.last().map(|cut| &cut.layout);
    let first = !matches!(last, Some(Layout::Owner { .. } | Layout::Bounds { .. }));
    if first && random.below(2) == 0 { placement.padded() } else { placement }
}

fn is_sound(mesh: &Mesh, spec: &Spec) -> bool {
    let model = ModelMeta::new(vec![TensorMeta::new(&spec.0, spec.1, spec.3.clone())], ModelFacts::default()).unwrap();
    plan(mesh, std::slice::from_ref(spec)).check(&model).is_ok()
}

/// A plan of tensors of all sorts on a mesh of `replicate` times `shard` ranks.
fn random_plan(random: &mut Random) -> ShardPlan {
    let (replicate, outer, inner) = (random.pick(&[1, 1, 2, 3]), random.pick(&[1, 1, 2, 3]), random.pick(&[1, 2, 3, 5]));
    let mesh = Mesh::replicate_shard(replicate, outer * inner).unwrap();
    let floats = [DType::F32, DType::BF16, DType::F16, DType::F64, DType::F8E4M3];
    let mut specs = Vec::new();
    for i in 0..=random.below(14) {
        let shape: Vec<u64> = (0..random.below(4)).map(|_| random.pick(&[0, 1, 2, 3, 7, 16, 33])).collect();
        let shape = if random.below(12) == 0 { vec![97, 301] } else { shape };
        let name = format!("t{i:02}");
        if random.below(5) == 0 {
            let dtype = random.pick(&[DType::I64, DType::Bool]);
            specs.push((name, dtype, dtype, shape, Placement::replicated()));
            continue;
        }
        let (source, storage) = (random.pick(&floats), random.pick(&floats));
        // Flat elements of strided columns have no layout: such a placement is refused, and another one taken.
        let placement = (0..)
            .map(|_| random_placement(&shape, (replicate, outer, inner), random))
            .find(|placement| is_sound(&mesh, &(name.clone(), source, storage, shape.clone(), placement.clone())))
            .unwrap();
        specs.push((name, source, storage, shape, placement));
    }
    plan(&mesh, &specs)
}

/// A checkpoint for a plan: its directory, and the bytes of each tensor.
fn random_checkpoint(plan: &ShardPlan, random: &mut Random) -> (TempDir, Vec<Vec<u8>>) {
    let dir = TempDir::new().unwrap();
    let files = 1 + random.below(3);
    let mut data = vec![Vec::new(); plan.tensors.len()];
    for f in 0..files {
        let mut mine: Vec<usize> = (0..plan.tensors.len()).filter(|i| *i as u64 % files == f).collect();
        if random.below(2) == 0 {
            mine.reverse();
        }
        let tensors: Vec<&TensorPlan> = mine.iter().map(|&i| &plan.tensors[i]).collect();
        let pad = usize::try_from(random.below(9)).unwrap();
        let bytes = write_file(&dir.path().join(format!("f{f}.safetensors")), &tensors, pad, random);
        for (i, b) in mine.into_iter().zip(bytes) {
            data[i] = b;
        }
    }
    (dir, data)
}

/// What a rank must hold of a tensor, by the plan's regions.
fn expected(tensor: &TensorPlan, data: &[u8], rank: u32) -> Vec<u8> {
    let to = tensor.precision.storage;
    let mut whole = vec![0; usize::try_from(to.bytes(tensor.numel()).unwrap()).unwrap()];
    shardwright_cast::cast(tensor.source, to, data, &mut whole).unwrap();
    let size = to.bits() / 8;
    let bytes = |flat: &u64| whole[usize::try_from(flat * size).unwrap()..][..usize::try_from(size).unwrap()].to_vec();
    elements(&tensor.region(rank), &tensor.shape).iter().flat_map(bytes).collect()
}

fn check(plan: &ShardPlan, data: &[Vec<u8>], loaded: &Loaded<'_>) {
    for rank in &loaded.ranks {
        let mut needed = 0;
        let arenas = rank.arenas();
        let mut filled: Vec<usize> = vec![0; arenas.len()];
        for (i, tensor) in plan.tensors.iter().enumerate() {
            let (view, r) = (rank.tensor(i), rank.rank());
            let (dtype, memory) = arenas[view.arena.0];
            assert_eq!((dtype, view.padded.as_ptr_range()), (view.dtype, memory[view.arena.1..][..view.padded.len()].as_ptr_range()));
            filled[view.arena.0] += view.bytes.iter().filter(|&&b| b != 0).count();
            assert!(view.bytes == expected(tensor, &data[i], r), "rank {r} of {tensor:?}");
            assert_eq!(view.padded.len() as u64, tensor.precision.storage.bytes(tensor.padded_numel(r)).unwrap());
            assert!(view.padded[view.bytes.len()..].iter().all(|&b| b == 0), "padding of rank {r} of {tensor:?}");
            assert_eq!(view.local_shape, tensor.region(r).local_shape(&tensor.shape));
            needed += tensor.source.bytes(tensor.valid_numel(r)).unwrap();
        }
        assert_eq!(rank.stats().bytes_needed, needed);
        // Nothing but the tensors lies in the arenas.
        let all = arenas.iter().map(|a| a.1.iter().filter(|&&b| b != 0).count());
        assert!(all.eq(filled), "rank {}", rank.rank());
    }
}

#[test]
fn every_rank_gets_its_bytes_whatever_the_plan_and_the_options() {
    for seed in 0..400 {
        let random = &mut Random(seed);
        let plan = random_plan(random);
        let (dir, data) = random_checkpoint(&plan, random);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let world = plan.mesh.world_size();
        let ranks: Vec<u32> = (0..world).filter(|_| seed % 3 == 0 || random.below(2) == 0).collect();
        let method = random.pick(&[ReadMethod::Pread, ReadMethod::Direct, ReadMethod::Mmap]);
        let io = IoOptions {
            threads: Some(usize::try_from(1 + random.below(4)).unwrap()),
            block_size: Some(random.pick(&[4096, 8192, 1 << 20])),
            method: Some(method),
            drop_cache: random.below(2) == 0,
            ..IoOptions::default()
        };
        let loaded = Loader::new(&plan, &checkpoint).ranks(&ranks).io(io).load().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        check(&plan, &data, &loaded);
        if method != ReadMethod::Direct {
            assert_eq!(loaded.stats.bytes_read, distinct_bytes(&plan, &ranks), "seed {seed}");
        }
    }
}

/// Pieces that tile a parameter of this shape, and the number of elements of each of their sources; sources are numbered from `first` on.
fn random_assembly(shape: &[u64], first: u32, random: &mut Random) -> (Assembly, Vec<u64>) {
    let size = numel(shape).unwrap();
    let inner = |d: usize| shape[d + 1..].iter().product::<u64>();
    let lp = |size, source_stride, target_stride| Loop { size, source_stride, target_stride };
    let piece = |source, target_offset, loops| Piece { source, source_offset: 0, target_offset, loops };
    let dims = shape.len();
    let dim = if dims == 0 { 0 } else { usize::try_from(random.below(dims as u64)).unwrap() };
    match random.below(if size == 0 || dims == 0 { 1 } else { 6 }) {
        0 => (Assembly::Whole(first), vec![size]),
        // The dims in another order.
        1 => {
            let mut order: Vec<usize> = (0..dims).collect();
            order.rotate_left(dim);
            let (mut loops, mut stride) = (Vec::new(), 1);
            for &d in order.iter().rev() {
                loops.push(lp(shape[d], stride, inner(d)));
                stride *= shape[d];
            }
            (Assembly::Pieces(vec![piece(first, 0, loops)]), vec![size])
        }
        // Sources side by side along a dim, or one that is cut there.
        kind @ 2..=3 => {
            let (mut pieces, mut sizes, mut at, mut taken) = (Vec::new(), Vec::new(), 0, 0);
            let outer: u64 = shape[..dim].iter().product();
            while at < shape[dim] {
                let width = 1 + random.below(shape[dim] - at);
                let row = width * inner(dim);
                let source = if kind == 2 { first + u32::try_from(sizes.len()).unwrap() } else { first };
                let loops = vec![lp(outer, row, shape[dim] * inner(dim)), lp(row, 1, 1)];
                pieces.push(Piece { source_offset: if kind == 2 { 0 } else { taken }, ..piece(source, at * inner(dim), loops) });
                (at, taken) = (at + width, taken + outer * row);
                sizes.push(outer * row);
            }
            (Assembly::Pieces(pieces), if kind == 2 { sizes } else { vec![size] })
        }
        // Flat partitions.
        4 => {
            let part = 1 + random.below(size);
            let sizes: Vec<u64> = (0..size.div_ceil(part)).map(|r| part.min(size - r * part)).collect();
            let pieces = sizes.iter().zip(0u32..).map(|(&n, r)| piece(first + r, u64::from(r) * part, vec![lp(n, 1, 1)])).collect();
            (Assembly::Pieces(pieces), sizes)
        }
        // Every second index of a dim, then the others.
        _ => {
            let (even, odd) = (shape[dim].div_ceil(2), shape[dim] / 2);
            let outer: u64 = shape[..dim].iter().product();
            let half = |count: u64, source_offset, target: u64| Piece {
                source_offset,
                ..piece(
                    first,
                    target * inner(dim),
                    vec![
                        lp(outer, count * inner(dim), shape[dim] * inner(dim)),
                        lp(count, inner(dim), 2 * inner(dim)),
                        lp(inner(dim), 1, 1),
                    ],
                )
            };
            let mut pieces = vec![half(even, 0, 0)];
            if odd > 0 {
                pieces.push(half(odd, even * outer * inner(dim), 1));
            }
            (Assembly::Pieces(pieces), vec![size])
        }
    }
}

/// The parameter's bytes: its pieces, one element at a time.
fn assembled(assembly: &Assembly, sources: &[Vec<u8>], bytes: usize, element: u64) -> Vec<u8> {
    let pieces = match assembly {
        Assembly::Whole(source) => return sources[*source as usize].clone(),
        Assembly::Pieces(pieces) => pieces,
    };
    let mut data = vec![0; bytes];
    for piece in pieces {
        for mut n in 0..piece.numel().unwrap() {
            let (mut from, mut to) = (piece.source_offset, piece.target_offset);
            for l in piece.loops.iter().rev() {
                from += n % l.size * l.source_stride;
                to += n % l.size * l.target_stride;
                n /= l.size;
            }
            let at = |i: u64| usize::try_from(i * element).unwrap()..usize::try_from((i + 1) * element).unwrap();
            data[at(to)].copy_from_slice(&sources[piece.source as usize][at(from)]);
        }
    }
    data
}

/// Assemblies of the plan's tensors, a checkpoint of their sources, and the parameters' bytes.
fn random_sources(plan: &ShardPlan, random: &mut Random) -> (TempDir, Vec<Assembly>, Vec<Vec<u8>>) {
    let (mut assemblies, mut sources) = (Vec::new(), Vec::new());
    for tensor in &plan.tensors {
        let (assembly, sizes) = random_assembly(&tensor.shape, u32::try_from(sources.len()).unwrap(), random);
        for size in sizes {
            let mut source = tensor.clone();
            (source.name, source.shape) = (format!("s{:05}", sources.len()).into(), vec![size]);
            sources.push(source);
        }
        assemblies.push(assembly);
    }
    let dir = TempDir::new().unwrap();
    let mut data = vec![Vec::new(); sources.len()];
    let files = 1 + random.below(3);
    for f in 0..files {
        let mut mine: Vec<usize> = (0..sources.len()).filter(|i| *i as u64 % files == f).collect();
        if random.below(2) == 0 {
            mine.reverse();
        }
        let tensors: Vec<&TensorPlan> = mine.iter().map(|&i| &sources[i]).collect();
        let bytes = write_file(&dir.path().join(format!("f{f}.safetensors")), &tensors, 0, random);
        mine.into_iter().zip(bytes).for_each(|(i, b)| data[i] = b);
    }
    let element = |t: &TensorPlan| t.source.bits() / 8;
    let parameters = plan
        .tensors
        .iter()
        .zip(&assemblies)
        .map(|(t, a)| assembled(a, &data, usize::try_from(t.numel() * element(t)).unwrap(), element(t)))
        .collect();
    (dir, assemblies, parameters)
}

#[test]
fn every_rank_gets_its_bytes_of_assembled_parameters() {
    for seed in 0..150 {
        let random = &mut Random(seed);
        let plan = random_plan(random);
        let (dir, assemblies, parameters) = random_sources(&plan, random);
        let metas = plan.tensors.iter().map(|t| TensorMeta::new(t.name.clone(), t.source, t.shape.clone())).collect();
        let mut model = Model::identity(ModelMeta::new(metas, ModelFacts::default()).unwrap());
        model.assemblies = assemblies;
        let checkpoint = Checkpoint::open(dir.path()).unwrap().assemble(model).unwrap();
        let ranks: Vec<u32> = (0..plan.mesh.world_size()).filter(|_| seed % 3 == 0 || random.below(2) == 0).collect();
        let io = IoOptions {
            threads: Some(usize::try_from(1 + random.below(4)).unwrap()),
            block_size: Some(random.pick(&[4096, 8192, 1 << 20])),
            method: Some(random.pick(&[ReadMethod::Pread, ReadMethod::Direct, ReadMethod::Mmap])),
            ..IoOptions::default()
        };
        let loaded = Loader::new(&plan, &checkpoint).ranks(&ranks).io(io).load().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        check(&plan, &parameters, &loaded);
    }
}

#[test]
fn a_parameter_whose_pieces_do_not_tile_it_is_refused() {
    let (_, dir, _) = simple();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let mut model = Model::identity(checkpoint.model().clone());
    let size = model.meta.tensors[0].numel().unwrap();
    let run =
        |at, size| Piece { source: 0, source_offset: 0, target_offset: at, loops: vec![Loop { size, source_stride: 1, target_stride: 1 }] };
    model.assemblies[0] = Assembly::Pieces(vec![run(0, size - 1), run(size - 2, 1)]);
    let error = checkpoint.assemble(model).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Checkpoint);
    assert!(error.to_string().contains("overlap"), "{error}");
}

/// Values that lie between two bfloat16 are those of bfloat16 afterwards.
#[test]
fn a_rounded_tensor_passes_through_its_dtype() {
    let (mut plan, dir, data) = simple_to(DType::F32);
    let float = plan.tensors.iter().position(|t| t.source == DType::BF16 && t.precision.storage == DType::F32).unwrap();
    plan.tensors[float].rounded = Some(DType::F8E4M3);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let loaded = Loader::new(&plan, &checkpoint).load().unwrap();
    let tensor = &plan.tensors[float];
    let mut rounded = vec![0; data[float].len() / 2];
    shardwright_cast::cast(tensor.source, DType::F8E4M3, &data[float], &mut rounded).unwrap();
    let mut as_read = plan.tensors[float].clone();
    as_read.source = DType::F8E4M3;
    for rank in &loaded.ranks {
        assert_eq!(rank.tensor(float).bytes, expected(&as_read, &rounded, rank.rank()));
    }
}

/// Parts of all sorts into memory of the caller's, whose rest is zeroed and whose surroundings stay as they are.
#[test]
fn the_callers_memory_gets_its_parts() {
    for seed in 0..150 {
        let random = &mut Random(seed + 1000);
        let plan = random_plan(random);
        let (dir, assemblies, parameters) = random_sources(&plan, random);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let (mut items, mut expected, mut memory) = (Vec::new(), Vec::new(), Vec::new());
        for ((tensor, assembly), data) in plan.tensors.iter().zip(assemblies).zip(&parameters) {
            let (shape, to) = (&tensor.shape, tensor.precision.storage);
            let range = |n: u64, random: &mut Random| {
                let (a, b) = (random.below(n + 1), random.below(n + 1));
                a.min(b)..a.max(b)
            };
            let part = match random.below(2) {
                0 => Part::Flat(range(tensor.numel(), random)),
                _ => Part::Box(shape.iter().map(|&d| range(d, random)).collect()),
            };
            let mut elements: Vec<u64> = match &part {
                Part::Flat(range) => range.clone().collect(),
                Part::Box(_) => vec![0],
            };
            if let Part::Box(ranges) = &part {
                for (dim, range) in ranges.iter().enumerate() {
                    elements = elements.iter().flat_map(|at| range.clone().map(move |i| at * shape[dim] + i)).collect();
                }
            }
            let mut whole = vec![0; usize::try_from(to.bytes(tensor.numel()).unwrap()).unwrap()];
            shardwright_cast::cast(tensor.source, to, data, &mut whole).unwrap();
            let size = usize::try_from(to.bits() / 8).unwrap();
            let mut bytes: Vec<u8> = elements.iter().flat_map(|&e| whole[usize::try_from(e).unwrap() * size..][..size].to_vec()).collect();
            bytes.extend(vec![0; size * usize::try_from(random.below(4)).unwrap()]);
            let at = memory.len() + 7;
            memory.extend(vec![0xaa; bytes.len() + 14]);
            items.push((tensor, assembly, part, at, bytes.len()));
            expected.push(bytes);
        }
        let base = memory.as_mut_ptr().expose_provenance();
        let items: Vec<Item> = items
            .into_iter()
            .map(|(tensor, assembly, part, at, bytes)| Item {
                name: tensor.name.clone(),
                shape: tensor.shape.clone(),
                assembly,
                rounded: None,
                part,
                to: Destination { address: base + at, bytes: bytes as u64, dtype: tensor.precision.storage },
            })
            .collect();
        let io = IoOptions {
            threads: Some(usize::try_from(1 + random.below(4)).unwrap()),
            block_size: Some(random.pick(&[4096, 8192, 1 << 20])),
            ..IoOptions::default()
        };
        // SAFETY: the destinations are disjoint parts of `memory`, which nothing else uses meanwhile.
        unsafe { fill(&checkpoint, &items, &io, None, &CancelToken::new()) }.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let mut at = 0;
        for (item, bytes) in items.iter().zip(&expected) {
            assert_eq!(memory[at..at + 7], [0xaa; 7], "before {item:?}");
            assert_eq!(&memory[at + 7..][..bytes.len()], bytes, "seed {seed}: {item:?}");
            at += bytes.len() + 14;
            assert_eq!(memory[at - 7..at], [0xaa; 7], "behind {item:?}");
        }
    }
}

#[test]
fn what_does_not_fit_the_callers_memory_is_refused_before_a_byte_is_written() {
    let (_, dir, _) = simple();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let source = &checkpoint.sources()[0];
    let size = source.numel().unwrap();
    let mut memory = vec![0xaau8; usize::try_from(source.dtype.bytes(size).unwrap()).unwrap()];
    let address = memory.as_mut_ptr().expose_provenance();
    let good = Item {
        name: "p".into(),
        shape: source.shape.clone(),
        assembly: Assembly::Whole(0),
        rounded: None,
        part: Part::Flat(0..size),
        to: Destination { address, bytes: memory.len() as u64, dtype: source.dtype },
    };
    let run =
        |n| Piece { source: 0, source_offset: 0, target_offset: 0, loops: vec![Loop { size: n, source_stride: 1, target_stride: 1 }] };
    let bad = [
        (Item { part: Part::Flat(0..size + 1), ..good.clone() }, "are asked for"),
        (Item { part: Part::Box(Vec::new()), ..good.clone() }, "does not lie inside"),
        (Item { to: Destination { bytes: 1, ..good.to }, ..good.clone() }, "too small"),
        (Item { to: Destination { address: 0, ..good.to }, ..good.clone() }, "no address"),
        (Item { to: Destination { dtype: DType::I8, ..good.to }, ..good.clone() }, "no cast"),
        (Item { assembly: Assembly::Whole(999), ..good.clone() }, "source 999"),
        (Item { assembly: Assembly::Pieces(vec![run(size - 1)]), ..good.clone() }, "elements, expected"),
        (Item { shape: vec![size + 1], ..good.clone() }, "expected"),
    ];
    for (item, why) in bad {
        // SAFETY: the destination is `memory`, or refused.
        let error = unsafe { fill(&checkpoint, &[item], &IoOptions::default(), None, &CancelToken::new()) }.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Plan, "{error}");
        assert!(error.to_string().contains(why) && error.to_string().contains("'p'"), "{why}: {error}");
    }
    // SAFETY: refused before anything is written, for both go to the same memory.
    let error = unsafe { fill(&checkpoint, &[good.clone(), good], &IoOptions::default(), None, &CancelToken::new()) }.unwrap_err();
    assert!(error.to_string().contains("twice"), "{error}");
    assert!(memory.iter().all(|&b| b == 0xaa));
}

/// Source bytes that at least one of the ranks needs.
fn distinct_bytes(plan: &ShardPlan, ranks: &[u32]) -> u64 {
    let of = |t: &TensorPlan| {
        let mut parts: Vec<_> = ranks.iter().map(|&r| (t.placement.coordinate(r), t.valid_numel(r))).filter(|p| p.1 > 0).collect();
        parts.sort_unstable();
        parts.dedup();
        t.source.bytes(parts.iter().map(|p| p.1).sum()).unwrap()
    };
    plan.tensors.iter().map(of).sum()
}

/// One bf16 tensor of 64 rows, 256 KiB, on two ranks, and small ones; cast on the way.
fn simple() -> (ShardPlan, TempDir, Vec<Vec<u8>>) {
    simple_to(DType::F32)
}

/// As [`simple`], kept in this dtype; bf16 is read straight into place.
fn simple_to(storage: DType) -> (ShardPlan, TempDir, Vec<Vec<u8>>) {
    let mesh = Mesh::replicate_shard(1, 2).unwrap();
    let axis = mesh.axis("mp_shard").unwrap();
    let rows = |name: &str, rows: u64, columns: u64| {
        let placement = Placement::one(axis, Layout::Dim { dim: 0, chunk: rows.div_ceil(2) }, Padding::ToFirst);
        (name.into(), DType::BF16, storage, vec![rows, columns], placement)
    };
    let plan = plan(&mesh, &[rows("big", 64, 2048), rows("small", 3, 5)]);
    let dir = TempDir::new().unwrap();
    let all: Vec<&TensorPlan> = plan.tensors.iter().collect();
    let data = write_file(&dir.path().join("model.safetensors"), &all, 0, &mut Random(7));
    (plan, dir, data)
}

fn with_faults(what: Misbehaviour, io: IoOptions) -> Result<(ShardPlan, Vec<Vec<u8>>, u64), EngineError> {
    with_faults_to(DType::F32, what, io)
}

fn with_faults_to(storage: DType, what: Misbehaviour, io: IoOptions) -> Result<(ShardPlan, Vec<Vec<u8>>, u64), EngineError> {
    let (plan, dir, data) = simple_to(storage);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let faults = Arc::new(Faults::new(2, what));
    let mut loader = Loader::new(&plan, &checkpoint).io(io);
    loader.faults = Some(Arc::clone(&faults));
    let loaded = loader.load()?;
    check(&plan, &data, &loaded);
    drop(loaded);
    Ok((plan, data, faults.reads.load(std::sync::atomic::Ordering::Relaxed)))
}

fn small_blocks() -> IoOptions {
    IoOptions { block_size: Some(4096), threads: Some(2), ..IoOptions::default() }
}

#[test]
fn short_reads_and_interruptions_are_carried_on() {
    let (_, _, reads) = with_faults(Misbehaviour::Short(1000), small_blocks()).unwrap();
    assert!(reads > 200, "{reads} reads of at most 1000 bytes");
    for storage in [DType::F32, DType::BF16] {
        // At most 20 in a row, from the first read on, which may be the only one.
        let faults = |errno| Faults::new(0, Misbehaviour::FailsFor(errno, 20));
        for faults in [faults(libc::EINTR), faults(libc::EAGAIN), Faults::new(0, Misbehaviour::Short(777))] {
            let (plan, dir, data) = simple_to(storage);
            let checkpoint = Checkpoint::open(dir.path()).unwrap();
            let mut loader = Loader::new(&plan, &checkpoint).io(small_blocks());
            loader.faults = Some(Arc::new(faults));
            check(&plan, &data, &loader.load().unwrap());
        }
    }
}

/// The tensor and the byte of the failure, not those at which the block began that holds it.
#[test]
fn a_failure_is_reported_where_it_is_and_not_where_its_block_begins() {
    let mesh = Mesh::replicate_shard(1, 1).unwrap();
    let axis = mesh.axis("mp_shard").unwrap();
    let placement = Placement::one(axis, Layout::Dim { dim: 0, chunk: 1000 }, Padding::ToFirst);
    let spec = |i: u32| (format!("t{i}"), DType::BF16, DType::F32, vec![1000], placement.clone());
    let plan = plan(&mesh, &(0..9).map(spec).collect::<Vec<_>>());
    let dir = TempDir::new().unwrap();
    write_file(&dir.path().join("model.safetensors"), &plan.tensors.iter().collect::<Vec<_>>(), 0, &mut Random(3));
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    // Reads of at most 2000 bytes, the sixth of which fails: byte 0 of tensor 5, in the one block that holds them all.
    let start = checkpoint.location(5).offset;
    for (what, needles) in [
        (Misbehaviour::ShortThen(2000, 5, Some(libc::EIO)), ["cannot read", "Input/output error"]),
        (Misbehaviour::ShortThen(2000, 5, None), ["ended too early", "8000 bytes more"]),
    ] {
        let mut loader = Loader::new(&plan, &checkpoint).io(IoOptions { threads: Some(1), ..IoOptions::default() });
        loader.faults = Some(Arc::new(Faults::new(0, what)));
        let message = loader.load().unwrap_err().to_string();
        let place = format!("at byte {start}");
        for needle in ["tensor 't5'", "rank 0", &place].iter().chain(&needles) {
            assert!(message.contains(needle), "'{needle}' is not in: {message}");
        }
    }
}

/// The read after the failed one would go well: nobody makes it. Another worker that hangs is left behind.
#[test]
fn one_failure_stops_the_others_at_once() {
    for storage in [DType::F32, DType::BF16] {
        let (plan, dir, _) = simple_to(storage);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let load = |what| {
            let faults = Arc::new(Faults::new(0, what));
            // Reads of 64 bytes make many of them.
            let mut loader = Loader::new(&plan, &checkpoint).io(small_blocks());
            loader.faults = Some(Arc::clone(&faults));
            let error = loader.load().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io);
            let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
            (error.to_string(), count(&faults.reads), count(&faults.came_back))
        };
        let (message, reads, _) = load(Misbehaviour::ShortThen(64, 10, Some(libc::EIO)));
        assert!(message.contains("Input/output error"), "{message}");
        // Of some 4,000; the other worker may be deep in its block before it looks.
        assert!(reads < 2000, "{reads} reads");
        let (message, _, came_back) = load(Misbehaviour::StallsThenFails(Duration::from_secs(120)));
        assert!(message.contains("Input/output error") && !message.contains("has not come back"), "{message}");
        assert_eq!(came_back, 0, "the load waited for the read");
    }
}

#[test]
fn retries_are_bounded() {
    let error = with_faults(Misbehaviour::Fails(libc::EINTR), small_blocks()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("Interrupted"), "{error}");
}

#[test]
fn a_failed_read_names_tensor_rank_file_offset_and_cause() {
    let error = with_faults(Misbehaviour::Fails(libc::EIO), small_blocks()).unwrap_err();
    let message = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Io);
    for needle in ["model.safetensors", "tensor 'big'", "rank ", "at byte ", "Input/output error"] {
        assert!(message.contains(needle), "'{needle}' is not in: {message}");
    }
}

#[test]
fn a_file_that_ends_early_is_reported() {
    let error = with_faults(Misbehaviour::Ends, small_blocks()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Checkpoint);
    assert!(error.to_string().contains("ended too early") && error.to_string().contains("bytes more"), "{error}");
}

#[test]
fn permission_lost_between_two_reads_is_reported_and_not_retried() {
    let error = with_faults(Misbehaviour::Fails(libc::EACCES), small_blocks()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("Permission denied") && error.to_string().contains("tensor 'big'"), "{error}");
}

#[test]
fn too_little_memory_is_refused_unless_forced() {
    let load = |force| {
        let (plan, dir, data) = simple();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let mut loader = Loader::new(&plan, &checkpoint).io(IoOptions { force, ..small_blocks() });
        loader.available = Some(crate::memory::Available::for_test(1000, "MemAvailable"));
        loader.load().map(|loaded| check(&plan, &data, &loaded))
    };
    let error = load(false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Memory);
    assert!(error.to_string().contains("1 MiB by MemAvailable"), "{error}");
    load(true).unwrap();
}

/// A load whose third read stalls, for far longer than any test takes; what it ends with, while the read still does.
fn stalled(io: IoOptions, cancel: &CancelToken, faults: Arc<Faults>) -> EngineError {
    let (plan, dir, _) = simple();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let mut loader = Loader::new(&plan, &checkpoint).io(io).cancel(cancel);
    loader.faults = Some(Arc::clone(&faults));
    let error = loader.load().unwrap_err();
    let reads = [&faults.stalled, &faults.came_back].map(|n| n.load(Ordering::Relaxed));
    assert!(reads[0] > 0 && reads[1] == 0, "{reads:?} reads stalled and came back: the load waited for them");
    error
}

fn stalls() -> Arc<Faults> {
    Arc::new(Faults::new(2, Misbehaviour::Stalls(Duration::from_secs(120))))
}

#[test]
fn a_read_that_does_not_come_back_fails_the_load_and_is_left_behind() {
    let io = IoOptions { stall_timeout: Some(Duration::from_millis(200)), ..small_blocks() };
    let error = stalled(io, &CancelToken::new(), stalls());
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("has not come back") && error.to_string().contains("tensor 'big'"), "{error}");
}

/// What is read, at most once, but for what workers take at once; nothing where it is not wanted, nor of what is cached.
#[test]
fn what_comes_next_is_announced_unless_it_is_cached() {
    let (plan, dir, _) = simple();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    for (readahead, cached, announced) in [(None, false, true), (Some(true), false, true), (Some(false), false, false), (None, true, false)]
    {
        for queue_depth in [1, 8] {
            let faults = Arc::new(Faults { cached, ..Faults::new(u64::MAX, Misbehaviour::Ends) });
            let mut loader = Loader::new(&plan, &checkpoint).io(IoOptions { readahead, queue_depth: Some(queue_depth), ..small_blocks() });
            loader.faults = Some(Arc::clone(&faults));
            let read = loader.load().unwrap().stats.bytes_read;
            let reported = faults.announced.load(std::sync::atomic::Ordering::Relaxed);
            let expected = if announced { read * 3 / 4..read } else { 0..1 };
            assert!(expected.contains(&reported), "{readahead:?}, cached {cached}, depth {queue_depth}: {reported} of {read}");
        }
    }
}

/// Exported tensors have the view's shape and bytes, and outlive the load.
#[test]
fn host_shards_are_exported_without_a_copy() {
    let (plan, dir, _) = simple_to(DType::BF16);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let loaded = Loader::new(&plan, &checkpoint).ranks(&[1]).load().unwrap();
    let view = loaded.ranks[0].by_name("big").unwrap();
    let (index, bytes) = (plan.tensors.iter().position(|t| t.name == "big").unwrap(), view.bytes.to_vec());
    let exported = loaded.ranks[0].dlpack(index).unwrap();
    assert_eq!(exported.raw().tensor.data.cast_const().cast(), view.bytes.as_ptr());
    drop(loaded);
    let tensor = &exported.raw().tensor;
    assert_eq!((tensor.ndim, tensor.dtype.code, tensor.dtype.bits), (2, 4, 16));
    // SAFETY: the shape has `ndim` sizes, and the data their product in elements of two bytes; both live as long as the export.
    let (shape, data) = unsafe {
        (std::slice::from_raw_parts(tensor.shape, 2), std::slice::from_raw_parts(tensor.data.cast::<u8>().cast_const(), bytes.len()))
    };
    assert_eq!((shape, data), (&[32, 2048][..], &bytes[..]));
}

/// From the progress callback, of a load that would take minutes: a read of 16 bytes, a pause, the next.
#[test]
fn a_load_is_cancelled_from_its_progress() {
    let (plan, dir, _) = simple();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let token = CancelToken::new();
    let reported = Mutex::new(Vec::new());
    let progress = |p: &Progress<'_>| {
        reported.lock().unwrap().push((p.read, p.total));
        token.cancel();
    };
    let mut loader = Loader::new(&plan, &checkpoint).io(small_blocks()).progress(&progress).cancel(&token);
    loader.faults = Some(Arc::new(Faults::new(0, Misbehaviour::Slow(16, Duration::from_millis(10)))));
    let error = loader.load().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    let total: u64 = plan.tensors.iter().map(|t| t.source.bytes(t.numel()).unwrap()).sum();
    let said = error.to_string();
    assert!(said.contains(&format!(" of {total} bytes")) && !said.contains("expected"), "{said}");
    let reported = reported.into_inner().unwrap();
    assert!(reported.iter().all(|t| t.1 == total && t.0 < total) && reported.is_sorted(), "{reported:?}");
}

#[test]
fn cancelling_stops_a_load_that_hangs() {
    let (faults, flag) = (stalls(), Arc::new(AtomicBool::new(false)));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while faults.stalled.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            flag.store(true, Ordering::Relaxed);
        });
        let error = stalled(small_blocks(), &CancelToken::from_flag(Arc::clone(&flag)), Arc::clone(&faults));
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    });
}

#[test]
fn a_file_that_changes_between_header_and_data_is_refused() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 4] = [
        ("size changed", |p| fs::OpenOptions::new().write(true).open(p).unwrap().set_len(1000).unwrap()),
        ("was replaced", |p| {
            fs::copy(p, p.with_extension("new")).unwrap();
            fs::rename(p.with_extension("new"), p).unwrap();
        }),
        ("was written to", |p| {
            let file = fs::OpenOptions::new().write(true).open(p).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        }),
        ("No such file", |p| fs::remove_file(p).unwrap()),
    ];
    for (needle, change) in changes {
        let (plan, dir, _) = simple();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        change(&dir.path().join("model.safetensors"));
        let message = Loader::new(&plan, &checkpoint).load().unwrap_err().to_string();
        assert!(message.contains(needle) && message.contains("model.safetensors"), "{message}");
    }
}

/// The change happens while bytes are on their way: seen at the end at the latest.
#[test]
fn a_file_that_changes_during_the_load_is_refused() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 4] = [
        ("was written to", |p| {
            let file = fs::OpenOptions::new().write(true).open(p).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        }),
        ("ended too early (", |p| fs::OpenOptions::new().write(true).open(p).unwrap().set_len(9000).unwrap()),
        ("was replaced", |p| {
            fs::copy(p, p.with_extension("new")).unwrap();
            fs::rename(p.with_extension("new"), p).unwrap();
        }),
        ("No such file", |p| fs::remove_file(p).unwrap()),
    ];
    for storage in [DType::F32, DType::BF16] {
        for (needle, change) in changes {
            let (plan, dir, _) = simple_to(storage);
            let path = dir.path().join("model.safetensors");
            let checkpoint = Checkpoint::open(dir.path()).unwrap();
            let mut loader = Loader::new(&plan, &checkpoint).io(small_blocks());
            loader.faults = Some(Arc::new(Faults::new(1, Misbehaviour::Does(Box::new(move || change(&path))))));
            let message = loader.load().unwrap_err().to_string();
            assert!(message.contains(needle) && message.contains("model.safetensors"), "{message}");
        }
    }
}

#[test]
fn a_plan_for_another_checkpoint_is_refused() {
    let (mut plan, dir, _) = simple();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let message = |plan: &ShardPlan, ranks: &[u32]| {
        let error = Loader::new(plan, &checkpoint).ranks(ranks).load().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Plan);
        error.to_string()
    };
    assert!(message(&plan, &[2]).contains("rank 2: there is no such rank: expected a rank below 2"));
    assert!(message(&plan, &[1, 1]).contains("asked for twice"));
    plan.tensors[0].shape[0] = 65;
    assert!(message(&plan, &[0]).contains("'big'"));
}

#[test]
fn progress_ends_with_everything() {
    let (plan, dir, _) = simple();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let last = Mutex::new(None);
    let note = |p: &Progress<'_>| *last.lock().unwrap() = Some((p.read, p.total, p.ranks.to_vec()));
    let loaded = Loader::new(&plan, &checkpoint).progress(&note).load().unwrap();
    let (read, total, ranks) = last.lock().unwrap().clone().unwrap();
    assert_eq!((read, total), (loaded.stats.bytes_read, loaded.stats.bytes_needed));
    assert!(ranks.iter().all(|r| r.done == r.total && r.total > 0) && ranks.len() == 2);
}

#[test]
fn elements_are_seen_as_what_they_are() {
    let (plan, dir, data) = simple();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let loaded = Loader::new(&plan, &checkpoint).ranks(&[1]).load().unwrap();
    let view = loaded.ranks[0].by_name("small").unwrap();
    let values = view.elements::<f32>().unwrap();
    let last = half::bf16::from_le_bytes(data[1][28..30].try_into().unwrap()).to_f32();
    assert_eq!((values.len(), values[4].to_bits()), (5, last.to_bits()));
    assert!(view.elements::<half::bf16>().is_none());
}
