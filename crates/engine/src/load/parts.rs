//! A shard of a parameter in consecutive parts of bounded size: what is loaded, saved or copied window by window.

use std::ops::Range;

use super::Part;

/// Consecutive parts of a box or a flat range, each of a bounded number of elements.
pub(crate) struct Parts {
    /// The place in the whole tensor.
    of: Whole,
    /// Elements given, and left.
    given: u64,
    left: u64,
    most: u64,
    begun: bool,
}

enum Whole {
    Box(Vec<Range<u64>>),
    Flat(u64),
}

impl Parts {
    /// Of a box, in parts of at most `most` elements.
    pub(crate) fn of_box(ranges: Vec<Range<u64>>, most: u64) -> Self {
        let left = ranges.iter().try_fold(1, |n: u64, r| n.checked_mul(r.end.saturating_sub(r.start))).unwrap_or(u64::MAX);
        Self { of: Whole::Box(ranges), given: 0, left, most, begun: false }
    }

    /// Of flat elements, in parts of at most `most` of them.
    pub(crate) fn of_flat(range: Range<u64>, most: u64) -> Self {
        Self { of: Whole::Flat(range.start), given: 0, left: range.end.saturating_sub(range.start), most, begun: false }
    }

    /// Elements that are still to come.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }
}

impl Iterator for Parts {
    /// The part and the number of its elements.
    type Item = (Part, u64);

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 && self.begun {
            return None;
        }
        self.begun = true;
        let (part, numel) = match &self.of {
            Whole::Flat(start) => {
                let numel = self.left.min(self.most);
                (Part::Flat(start + self.given..start + self.given + numel), numel)
            }
            Whole::Box(ranges) => {
                let (ranges, numel) = next_box(ranges, self.given, self.left, self.most);
                (Part::Box(ranges), numel)
            }
        };
        (self.given, self.left) = (self.given + numel, self.left - numel);
        Some((part, numel))
    }
}

/// The largest box of at most `most` elements that is row-major consecutive in `ranges` from its element `given` on.
fn next_box(ranges: &[Range<u64>], given: u64, left: u64, most: u64) -> (Vec<Range<u64>>, u64) {
    if left == 0 {
        return (ranges.to_vec(), 0);
    }
    let sizes: Vec<u64> = ranges.iter().map(|r| r.end - r.start).collect();
    // Elements under one index of each dim. None is 0, for there are elements left.
    let inner: Vec<u64> = (0..sizes.len()).map(|dim| sizes[dim + 1..].iter().product()).collect();
    // The outermost dim whose slices, one index each, hold at most `most` elements, and at which `given` is the start of a slice.
    let dim = (0..sizes.len()).find(|&dim| inner[dim] <= most && given.is_multiple_of(inner[dim])).unwrap_or(sizes.len());
    let mut numel = 1;
    let part = ranges.iter().enumerate().map(|(d, range)| {
        let index = given / inner[d] % sizes[d];
        let (from, size) = match d.cmp(&dim) {
            std::cmp::Ordering::Less => (range.start + index, 1),
            std::cmp::Ordering::Equal => (range.start + index, (most / inner[d]).max(1).min(sizes[d] - index)),
            std::cmp::Ordering::Greater => (range.start, sizes[d]),
        };
        numel *= size;
        from..from + size
    });
    (part.collect(), numel)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every box in parts: each is at most as large as it may be, and one after the other they are the box's elements in order.
    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "boxes of one dim")]
    fn the_parts_of_a_box_are_consecutive() {
        let boxes: [&[Range<u64>]; 7] = [&[], &[3..4], &[0..5], &[2..5, 0..4], &[1..4, 2..5, 0..7], &[0..2, 0..1, 3..9], &[0..2, 5..5]];
        for ranges in boxes {
            let shape: Vec<u64> = ranges.iter().map(|r| r.end + 1).collect();
            let strides: Vec<u64> = (0..shape.len()).map(|d| shape[d + 1..].iter().product()).collect();
            let elements = |ranges: &[Range<u64>]| {
                ranges.iter().zip(&strides).fold(vec![0], |flat: Vec<u64>, (range, stride)| {
                    flat.iter().flat_map(|at| range.clone().map(move |i| at + i * stride)).collect()
                })
            };
            let whole = elements(ranges);
            for most in 1..=whole.len() as u64 + 2 {
                let mut parts = Parts::of_box(ranges.to_vec(), most);
                let mut found = Vec::new();
                for (part, numel) in &mut parts {
                    let Part::Box(part) = part else { panic!("not a box") };
                    let part = elements(&part);
                    assert!(part.len() as u64 == numel && numel <= most, "{ranges:?}, at most {most}: {numel}");
                    found.extend(part);
                }
                assert_eq!(found, whole, "{ranges:?}, at most {most}");
            }
        }
    }
}
