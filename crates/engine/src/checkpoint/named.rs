//! Tensors that lie in parts, by their names.

use shardwright_core::{Assembly, Piece, TensorMeta, piece::Loop};

/// The tensors that a checkpoint in parts has, and how each is made of what the files hold.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) tensors: Vec<TensorMeta>,
    pub(super) assemblies: Vec<Assembly>,
}

impl Named {
    /// The assembly over parts that an assembly over named tensors is.
    pub(super) fn compose(&self, assembly: &Assembly) -> Result<Assembly, &'static str> {
        let of = |source: u32| self.assemblies.get(source as usize).ok_or("a source is not there");
        let pieces = match assembly {
            Assembly::Whole(source) => return of(*source).cloned(),
            Assembly::Pieces(pieces) => pieces,
        };
        let mut out = Vec::with_capacity(pieces.len());
        for piece in pieces {
            match of(piece.source)? {
                Assembly::Whole(part) => out.push(Piece { source: *part, ..piece.clone() }),
                Assembly::Pieces(parts) => within(piece, parts, &mut out)?,
            }
        }
        Ok(Assembly::Pieces(out))
    }
}

/// A run of a tensor that lies in runs: the part of it in each.
fn within(piece: &Piece, parts: &[Piece], out: &mut Vec<Piece>) -> Result<(), &'static str> {
    const WHAT: &str = "it is put together from a tensor that lies in parts itself, which a load does not do";
    let (length, outer) = piece.contiguous();
    if !outer.is_empty() {
        return Err(WHAT);
    }
    for part in parts {
        let (size, outer) = part.contiguous();
        if !outer.is_empty() {
            return Err(WHAT);
        }
        // Elements of the tensor between the two.
        let start = piece.source_offset.max(part.target_offset);
        let end = (piece.source_offset + length).min(part.target_offset + size);
        if start < end {
            out.push(Piece {
                source: part.source,
                source_offset: part.source_offset + start - part.target_offset,
                target_offset: piece.target_offset + start - piece.source_offset,
                loops: vec![Loop { size: end - start, source_stride: 1, target_stride: 1 }],
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(source: u32, source_offset: u64, target_offset: u64, size: u64) -> Piece {
        Piece { source, source_offset, target_offset, loops: vec![Loop { size, source_stride: 1, target_stride: 1 }] }
    }

    #[test]
    fn runs_of_a_tensor_in_runs_are_split_at_its_parts() {
        let named =
            Named { tensors: Vec::new(), assemblies: vec![Assembly::Pieces(vec![run(0, 0, 0, 4), run(1, 0, 4, 4)]), Assembly::Whole(7)] };
        let both = Assembly::Pieces(vec![run(0, 2, 10, 4), run(1, 0, 0, 10)]);
        let expected = vec![run(0, 2, 10, 2), run(1, 0, 12, 2), run(7, 0, 0, 10)];
        assert_eq!(named.compose(&both).unwrap(), Assembly::Pieces(expected));
        let columns = Piece { loops: vec![Loop { size: 2, source_stride: 4, target_stride: 1 }], ..run(0, 0, 0, 0) };
        assert!(named.compose(&Assembly::Pieces(vec![columns])).is_err());
    }
}
