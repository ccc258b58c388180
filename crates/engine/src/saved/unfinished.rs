//! What a directory without a manifest lacks.

use std::{collections::BTreeSet, fs, path::Path};

use super::manifest::RankHead;
use crate::filenames::{MANIFEST, RANK_MANIFEST_SUFFIX, is_rank_file};

/// What to say of a directory without a manifest.
pub(crate) fn unfinished(dir: &Path) -> String {
    let names: Vec<String> = fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    let manifests = names.iter().filter(|n| is_rank_file(n) && n.ends_with(RANK_MANIFEST_SUFFIX));
    let reported: Vec<RankHead> = manifests.filter_map(|name| RankHead::peek(&dir.join(name))).collect();
    let Some(first) = reported.iter().min_by_key(|m| m.rank) else {
        return match names.iter().any(|n| is_rank_file(n)) {
            true => format!("its save is not complete: {MANIFEST} is missing, and no rank's manifest is there either: save again"),
            false => format!("it holds no save: {MANIFEST} is missing; shardwright load CONFIG --save DIR writes one"),
        };
    };
    let present: BTreeSet<u32> = reported.iter().filter(|m| m.save == first.save).map(|m| m.rank).collect();
    let missing: Vec<u32> = (0..first.world_size).filter(|r| !present.contains(r)).take(9).collect();
    let what = match missing.as_slice() {
        [] => "every rank is there, but the save was stopped before its end: save again".to_owned(),
        some => {
            let list = some.iter().take(8).map(u32::to_string).collect::<Vec<_>>().join(", ");
            let more = if some.len() > 8 { ", …" } else { "" };
            format!("of {} ranks, these are not saved: {list}{more}", first.world_size)
        }
    };
    format!("its save is not complete: {MANIFEST} is missing; {what}")
}
