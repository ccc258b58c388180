//! What can be known of memory that a caller names by its address: that it is mapped and writable, and that no two parts share any of it.

use pyo3::prelude::*;
use shardwright::engine::load::Item;

use crate::errors;

/// A stretch of addresses that may be written.
type Stretch = std::ops::Range<usize>;

/// The process's writable mappings, neighbours joined; `None` where the kernel does not list them.
fn writable() -> Option<Vec<Stretch>> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let mut found: Vec<Stretch> = Vec::new();
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        if rest.as_bytes().get(1) != Some(&b'w') {
            continue;
        }
        match found.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => found.push(start..end),
        }
    }
    Some(found)
}

/// Bytes of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// Between one item's memory and the next there is an allocator's header, or the rest of a page.
const NEIGHBOURS: usize = 32 << 10;

/// Asks for huge pages where memory of items covers whole ones, one item's or that of neighbours: torch gives each tensor a mapping of its own, the
/// kernel joins these, and a huge page may lie across two of them. Fresh memory is touched a page at a time, and small pages make that several times
/// slower than the read.
fn advise(items: &[Item], order: &[usize], maps: &[Stretch]) {
    let mut run: Option<Stretch> = None;
    for &i in order {
        let to = &items[i].to;
        let (start, end) = (to.address, to.address.saturating_add(usize::try_from(to.bytes).unwrap_or(usize::MAX)));
        match &mut run {
            Some(run) if start <= run.end.saturating_add(NEIGHBOURS) && within(maps, run.start, end) => run.end = run.end.max(end),
            _ => {
                huge(run.replace(start..end));
            }
        }
    }
    huge(run);
}

fn huge(run: Option<Stretch>) {
    #[cfg(target_os = "linux")]
    if let Some(run) = run {
        let (start, end) = (run.start.div_ceil(HUGE_PAGE).saturating_mul(HUGE_PAGE), run.end / HUGE_PAGE * HUGE_PAGE);
        if start < end {
            // SAFETY: advice on memory that is mapped; no value of it changes. Where the kernel has no huge pages the call fails and nothing happens.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    drop(run);
}

/// Whether one writable mapping holds all of it.
fn within(maps: &[Stretch], start: usize, end: usize) -> bool {
    maps.get(maps.partition_point(|m| m.end <= start)).is_some_and(|m| m.start <= start && end <= m.end)
}

/// Refuses memory that a fill would not survive, and asks for huge pages for the rest. Parts that are the same in every respect are kept once.
pub fn check(items: Vec<Item>) -> PyResult<Vec<Item>> {
    let (maps, order) = (writable(), by_address(&items));
    for &i in &order {
        let item = &items[i];
        let (start, end) = (item.to.address, item.to.address.saturating_add(size(item)));
        let inside = maps.as_ref().is_none_or(|maps| within(maps, start, end));
        if start != 0 && !inside {
            let what = "its memory cannot be written: it is read-only, or was freed";
            return Err(errors::raise("ConfigError", &format!("tensor '{}': {what}", item.name)));
        }
    }
    if let Some(maps) = &maps {
        advise(&items, &order, maps);
    }
    distinct(items)
}

fn size(item: &Item) -> usize {
    usize::try_from(item.to.bytes).unwrap_or(usize::MAX)
}

/// The items that have memory.
fn by_address(items: &[Item]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..items.len()).filter(|&i| items[i].to.bytes > 0).collect();
    order.sort_by_key(|&i| (items[i].to.address, items[i].to.bytes));
    order
}

/// Refuses parts that share memory, but for those that are the same in every respect, which are kept once.
pub fn distinct(items: Vec<Item>) -> PyResult<Vec<Item>> {
    let mut dropped = vec![false; items.len()];
    let mut last: Option<usize> = None;
    for i in by_address(&items) {
        if let Some(before) = last {
            let (a, b) = (&items[before], &items[i]);
            if b.to.address < a.to.address.saturating_add(size(a)) && b.to.address != 0 {
                let to = |item: &Item| (item.to.address, item.to.bytes, item.to.dtype);
                if to(a) != to(b) || a.assembly != b.assembly || a.part != b.part || a.shape != b.shape || a.rounded != b.rounded {
                    let what = format!("tensors '{}' and '{}' share memory, and are not the same values", a.name, b.name);
                    return Err(errors::raise("ConfigError", &what));
                }
                dropped[i] = true;
                continue;
            }
        }
        last = Some(i);
    }
    let mut dropped = dropped.into_iter();
    Ok(items.into_iter().filter(|_| !dropped.next().unwrap_or(false)).collect())
}
