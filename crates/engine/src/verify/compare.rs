//! Every element of every tensor: the source's bytes, cast by the scalar reference, against the shards' bytes, in blocks.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use shardwright_cast::{SimdLevel, cast_at};
use shardwright_core::{Assembly, DType, Piece};

use super::{
    Verified, Verifier,
    assembled::Assembled,
    element,
    gather::{Chunk, Gathered, Runs, gather},
    mismatch,
    shard::{Reader, Safetensors, StoredTensor},
};
use crate::{
    checkpoint::Checkpoint,
    error::{EngineError, ErrorKind, Result},
    parallel,
};

/// Bytes of the source in memory at once, a thread.
const WINDOW: u64 = 1 << 20;
/// Tensors whose results are held before they are added up.
const COMPARED_AT_ONCE: usize = 4096;

/// A whole tensor that shards are of, under its name or a second one.
#[derive(Clone, Copy)]
struct Original<'a> {
    name: &'a str,
    shape: &'a [u64],
    /// Where it lies, or the first of the tensors that it is made of.
    path: &'a Path,
    stored: &'a StoredTensor,
    /// What it is made of, where it is not that tensor.
    pieces: Option<&'a [Piece]>,
    /// The dtype that its values are rounded through before they are cast.
    rounded: Option<DType>,
    /// Under a second name its elements are not counted again.
    second: bool,
}

/// One tensor's comparison: what it is of, and how.
struct Comparison<'a> {
    verifier: &'a Verifier<'a>,
    name: &'a str,
    shape: &'a [u64],
    stored: &'a StoredTensor,
    source: Source<'a>,
    rounded: Option<DType>,
    dtype: DType,
}

/// Where the expected elements come from.
enum Source<'a> {
    One(Reader<'a>),
    Assembled(Assembled<'a>),
}

/// The elements of a chunk that differ.
#[derive(Default)]
struct Differences {
    count: u64,
    /// The first one: flat index, expected, found.
    first: Option<(u64, Vec<u8>, Vec<u8>)>,
}

impl Verifier<'_> {
    pub(super) fn compare_all(&self, checkpoint: &Checkpoint, found: &mut Verified) -> Result<()> {
        let sources = match checkpoint.is_safetensors() {
            true => checkpoint.files().iter().map(|f| Safetensors::open(&f.path, ErrorKind::Checkpoint)).collect::<Result<Vec<_>>>()?,
            false => parts(checkpoint),
        };
        let mut stored: Vec<(&Path, &StoredTensor)> =
            sources.iter().flat_map(|file| file.tensors.iter().map(move |stored| (file.path.as_path(), stored))).collect();
        stored.sort_by_key(|(_, stored)| &stored.name);
        let named = |name: &str| stored.binary_search_by_key(&name, |(_, stored)| &stored.name).ok().map(|index| stored[index]);
        let source = |index: u32| {
            let name = checkpoint.source_name(index as usize);
            let lacking = || EngineError::new(ErrorKind::Checkpoint, "the source lacks a tensor").file(checkpoint.dir());
            named(&name).ok_or_else(|| lacking().tensor(&name))
        };
        let planned = &self.manifest.plan.tensors;
        let rounded = |name: &str| planned.binary_search_by_key(&name, |t| &t.name).ok().and_then(|index| planned[index].rounded);
        let model = checkpoint.assembled();
        let mut originals = Vec::with_capacity(model.assemblies.len());
        for (meta, assembly) in model.meta.tensors.iter().zip(&model.assemblies) {
            let (pieces, first) = match assembly {
                Assembly::Whole(index) => (None, *index),
                // A parameter without elements has no pieces, and nothing to compare.
                Assembly::Pieces(pieces) => match pieces.first() {
                    Some(piece) => (Some(pieces.as_slice()), piece.source),
                    None => (Some(pieces.as_slice()), 0),
                },
            };
            let (path, stored) = source(first)?;
            originals.push(Original {
                name: &meta.name,
                shape: &meta.shape,
                path,
                stored,
                pieces,
                rounded: rounded(&meta.name),
                second: false,
            });
        }
        let find = |originals: &[Original<'_>], name: &str| originals.binary_search_by_key(&name, |original| original.name).ok();
        let tied = self.manifest.aliases.iter().filter_map(|(alias, name)| {
            let original = originals[find(&originals, name)?];
            find(&originals, alias).is_none().then_some(Original { name: alias, second: true, ..original })
        });
        let tied: Vec<Original<'_>> = tied.collect();
        originals.extend(tied);
        originals.sort_by_key(|original| original.name);
        let shards: Vec<PathBuf> = self.manifest.ranks.iter().map(|rank| self.dir.join(&rank.shard.name)).collect();
        let shape = |name: &str| find(&originals, name).map(|index| (index, originals[index].shape));
        let files = shards.iter().map(|path| Safetensors::open(path, ErrorKind::Mismatch));
        let Some(gathered) = gather(originals.len(), files, shape, |what| found.problem(mismatch(&self.dir, what)))? else {
            return Ok(());
        };
        for (originals, gathered) in originals.chunks(COMPARED_AT_ONCE).zip(gathered.chunks(COMPARED_AT_ONCE)) {
            let pairs: Vec<_> = originals.iter().zip(gathered).collect();
            let compared = parallel::map(&pairs, |(original, tensor)| self.compare_tensor(original, &shards, tensor, source))?;
            compared.into_iter().for_each(|tensor| found.add(tensor));
        }
        (0..checkpoint.files().len()).try_for_each(|file| checkpoint.check_unchanged(file))
    }

    fn compare_tensor<'s>(
        &self,
        original: &Original<'s>,
        shards: &[PathBuf],
        tensor: &Gathered,
        source: impl Fn(u32) -> Result<(&'s Path, &'s StoredTensor)>,
    ) -> Result<Verified> {
        let mut found = Verified::default();
        let stored = original.stored;
        let wrong = |what: String| mismatch(&self.dir, what).tensor(original.name);
        let Some(dtype) = tensor.dtype else {
            found.problem(wrong("it is in no shard, but in the model".into()));
            return Ok(found);
        };
        let numel = shardwright_core::model::numel(original.shape).unwrap_or(u64::MAX);
        if let Err(what) = tensor.tiles(original.shape) {
            found.problem(wrong(what));
            return Ok(found);
        }
        if !stored.dtype.casts_to(dtype) {
            found.problem(wrong(format!("there is no cast from {} to {dtype}", stored.dtype)));
            return Ok(found);
        }
        let from = match original.pieces {
            None => Source::One(Reader::open(original.path)?),
            Some(pieces) => {
                pieces.iter().try_for_each(|p| source(p.source).map(drop))?;
                Source::Assembled(Assembled::new(pieces, |index| source(index).unwrap_or((original.path, stored))))
            }
        };
        let comparison = Comparison {
            verifier: self,
            name: original.name,
            shape: original.shape,
            stored,
            source: from,
            rounded: original.rounded,
            dtype,
        };
        for chunk in &tensor.chunks {
            comparison.compare_chunk(&Reader::open(&shards[chunk.file])?, chunk, &mut found)?;
        }
        found.elements = if original.second { 0 } else { numel };
        Ok(found)
    }
}

impl Comparison<'_> {
    fn compare_chunk(&self, shard: &Reader<'_>, chunk: &Chunk, found: &mut Verified) -> Result<()> {
        let bytes = self.chunk_runs(chunk);
        let mut differences = Differences::default();
        let mut offset = chunk.start;
        for block in blocks(bytes, element::size(self.stored.dtype) as u64) {
            let size = block.numel() * element::size(self.dtype) as u64;
            self.compare_block(shard, offset, block, &mut differences)?;
            offset += size;
            self.verifier.watch(size)?;
        }
        if let Some((flat, expected, is)) = differences.first {
            found.problem(self.describe(shard.path, chunk.file, differences.count, bytes.numel(), flat, &expected, &is));
        }
        if !self.is_zero(shard, offset, chunk.padding)? {
            let problem = mismatch(shard.path, "its padding is not all zeros").tensor(self.name);
            found.problem(problem.rank(u32::try_from(chunk.file).unwrap_or(u32::MAX)));
        }
        Ok(())
    }

    /// Where nothing is cast, the bits must be equal.
    fn is_cast(&self) -> bool {
        self.dtype != self.stored.dtype || self.rounded.is_some_and(|through| through != self.dtype)
    }

    /// The chunk's runs; of sub-byte dtypes in bytes, see [`element::size`].
    fn chunk_runs(&self, chunk: &Chunk) -> Runs {
        if self.dtype.bits() >= 8 {
            return chunk.runs;
        }
        Runs { first: 0, step: 0, length: self.stored.bytes, count: 1 }
    }

    fn compare_block(&self, shard: &Reader<'_>, offset: u64, block: Runs, differences: &mut Differences) -> Result<()> {
        let stored = self.stored;
        let (from, to) = (element::size(stored.dtype), element::size(self.dtype));
        let numel = usize::try_from(block.numel()).unwrap_or(0);
        let source = self.read_source(block, from)?;
        let cast = |from: DType, to: DType, source: Vec<u8>| {
            if from == to {
                return Ok(source);
            }
            let mut cast = vec![0; numel * element::size(to)];
            let cannot = |e| mismatch(shard.path, format!("{e}")).tensor(self.name);
            cast_at(SimdLevel::Scalar, from, to, &source, &mut cast).map(|()| cast).map_err(cannot)
        };
        let through = self.rounded.unwrap_or(stored.dtype);
        let expected = cast(through, self.dtype, cast(stored.dtype, through, source)?)?;
        let mut is = vec![0; numel * to];
        shard.read(&mut is, offset)?;
        if is == expected {
            return Ok(());
        }
        for (i, (a, b)) in expected.chunks_exact(to).zip(is.chunks_exact(to)).enumerate() {
            if a != b && !(self.is_cast() && element::both_nan(self.dtype, a, b)) {
                let i = i as u64;
                let flat = block.first + i / block.length * block.step + i % block.length;
                differences.count += 1;
                differences.first.get_or_insert_with(|| (flat, a.to_vec(), b.to_vec()));
            }
        }
        Ok(())
    }

    /// The source's bytes of these runs, back to back: read in one piece, from the first to the last.
    fn read_source(&self, block: Runs, size: usize) -> Result<Vec<u8>> {
        let bytes = |elements: u64| usize::try_from(elements).unwrap_or(usize::MAX).saturating_mul(size);
        let span = (block.count - 1) * block.step + block.length;
        let one = match &self.source {
            Source::One(reader) => reader,
            Source::Assembled(assembled) => {
                let (mut source, length) = (vec![0; bytes(block.numel())], bytes(block.length));
                for (run, out) in (0..block.count).zip(source.chunks_mut(length.max(1))) {
                    let first = block.first + run * block.step;
                    assembled.read(out, &(first..first + block.length), size)?;
                }
                return Ok(source);
            }
        };
        let mut source = vec![0; bytes(span)];
        one.read(&mut source, self.stored.start + block.first * size as u64)?;
        if block.count > 1 && block.step != block.length {
            let (step, length) = (bytes(block.step), bytes(block.length));
            (1..bytes(block.count) / size).for_each(|run| source.copy_within(run * step..run * step + length, run * length));
            source.truncate(bytes(block.numel()));
        }
        Ok(source)
    }

    fn is_zero(&self, shard: &Reader<'_>, mut offset: u64, padding: u64) -> Result<bool> {
        let mut left = padding * element::size(self.dtype) as u64;
        let mut block = vec![0; usize::try_from(left.min(WINDOW)).unwrap_or(0)];
        while left > 0 {
            let n = left.min(block.len() as u64);
            let part = &mut block[..usize::try_from(n).unwrap_or(0)];
            shard.read(part, offset)?;
            if part.iter().any(|&b| b != 0) {
                return Ok(false);
            }
            (offset, left) = (offset + n, left - n);
            self.verifier.watch(n)?;
        }
        Ok(true)
    }

    #[expect(clippy::too_many_arguments, reason = "all that a message names")]
    fn describe(&self, path: &Path, rank: usize, count: u64, of: u64, flat: u64, expected: &[u8], is: &[u8]) -> EngineError {
        let stored = self.stored;
        let at = element::indices(self.shape, flat);
        let cast = match self.rounded.filter(|&through| through != stored.dtype && through != self.dtype) {
            Some(through) => format!(" after the cast from {} through {through} to {}", stored.dtype, self.dtype),
            None if self.is_cast() => format!(" after the cast from {} to {}", stored.dtype, self.dtype),
            None => String::new(),
        };
        mismatch(path, format!("{count} of its {of} elements are not the source's{cast}, the first at {at:?}"))
            .tensor(self.name)
            .rank(u32::try_from(rank).unwrap_or(u32::MAX))
            .expected(element::show(self.dtype, expected))
            .found(element::show(self.dtype, is))
    }
}

/// The parts of a checkpoint of another format, each as a tensor of the file that it lies in. Where a part lies is what the format's own
/// pickles say; which of its elements belongs where, and the cast, are worked out here again.
fn parts(checkpoint: &Checkpoint) -> Vec<Safetensors> {
    let file = |path: &PathBuf| Safetensors { path: path.clone(), metadata: HashMap::new(), tensors: Vec::new() };
    let mut files: Vec<Safetensors> = checkpoint.files().iter().map(|f| file(&f.path)).collect();
    for (number, part) in checkpoint.sources().iter().enumerate() {
        let at = checkpoint.location(number);
        let (name, shape) = (checkpoint.source_name(number), part.shape.clone());
        files[at.file].tensors.push(StoredTensor { name, dtype: part.dtype, shape, start: at.offset, bytes: at.bytes });
    }
    files
}

/// Cuts runs into blocks whose span in the source, elements of `size` bytes, is at most [`WINDOW`].
fn blocks(runs: Runs, size: u64) -> impl Iterator<Item = Runs> {
    let most = WINDOW / size;
    let row = if runs.count == 1 { runs.length } else { runs.step };
    let together = if runs.length == 0 { 0 } else { (most / row.max(1)).max(1) };
    let of_runs = (0..if together > 1 { runs.count.div_ceil(together) } else { 0 }).map(move |i| Runs {
        first: runs.first + i * together * runs.step,
        count: together.min(runs.count - i * together),
        ..runs
    });
    let pieces = if together == 1 { runs.length.div_ceil(most) } else { 0 };
    let of_pieces = (0..if pieces > 0 { runs.count } else { 0 }).flat_map(move |run| {
        (0..pieces).map(move |i| Runs {
            first: runs.first + run * runs.step + i * most,
            step: 0,
            length: most.min(runs.length - i * most),
            count: 1,
        })
    });
    of_runs.chain(of_pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks hold each element of their runs once, in order, and span no more than a window.
    #[test]
    fn blocks_are_the_runs_in_order() {
        let elements = |runs: Runs| (0..runs.count).flat_map(move |r| (0..runs.length).map(move |i| runs.first + r * runs.step + i));
        let most = WINDOW / 4;
        let cases = [
            Runs { first: 5, step: 0, length: 3 * most + 7, count: 1 },
            Runs { first: 5, step: 10, length: 3, count: 100_000 },
            Runs { first: 0, step: most - 1, length: 2, count: 5 },
            Runs { first: 1, step: 2 * most, length: most + 1, count: 3 },
            Runs { first: 0, step: 8, length: 0, count: 4 },
            Runs { first: 0, step: 8, length: 4, count: 0 },
            Runs { first: 3, step: 0, length: 0, count: 1 },
        ];
        for runs in cases {
            let cut: Vec<Runs> = blocks(runs, 4).collect();
            assert!(cut.iter().flat_map(|b| elements(*b)).eq(elements(runs)), "{runs:?}");
            assert!(cut.iter().all(|b| (b.count - 1) * b.step + b.length <= most && b.numel() > 0), "{runs:?}");
        }
    }
}
