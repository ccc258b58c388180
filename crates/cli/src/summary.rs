//! The table after a load: what each rank needed, read and holds. Rendering only.

use std::collections::BTreeSet;

use shardwright_core::{DType, ShardPlan, TensorKind};
use shardwright_engine::{load::RankStats, report::Totals};

use crate::table::{Align, bytes, count, render};

/// More ranks than this are summed up after the first few; the report has them all.
const MOST_ROWS: usize = 64;
const FIRST_ROWS: usize = 16;

/// The whole text: a headline, a row a rank, the totals.
pub fn table(plan: &ShardPlan, ranks: &[&RankStats], totals: &Totals) -> String {
    let shown = if ranks.len() > MOST_ROWS { FIRST_ROWS } else { ranks.len() };
    let mut rows: Vec<Vec<String>> = ranks[..shown].iter().map(|r| row(&r.rank.to_string(), figures(r))).collect();
    if shown < ranks.len() {
        rows.push(row(&format!("+{}", ranks.len() - shown), Default::default()));
    }
    let sums = [totals.bytes_needed, totals.bytes_read, totals.shard_bytes, totals.padding_bytes].map(bytes);
    let [needed, read, shard, padding] = sums;
    rows.push(row("all", [needed, read, shard, padding, seconds(totals.seconds)]));
    let header = ["rank", "needed", "read", "shard", "padding", "seconds"].map(|title| (title, Align::Right));
    format!("{}\n\n{}\n{}\n", headline(plan), render(&header, &rows), speed(totals))
}

fn row(label: &str, figures: [String; 5]) -> Vec<String> {
    [label.to_owned()].into_iter().chain(figures).collect()
}

fn figures(r: &RankStats) -> [String; 5] {
    [bytes(r.bytes_needed), bytes(r.bytes_read), bytes(r.shard_bytes), bytes(r.padding_bytes), seconds(r.seconds)]
}

fn seconds(s: f64) -> String {
    format!("{s:.3}")
}

fn headline(plan: &ShardPlan) -> String {
    let axes: Vec<String> = plan.mesh.axes().iter().map(|a| format!("{} {}", a.name, a.size)).collect();
    let parameters = plan.tensors.iter().filter(|t| t.kind == TensorKind::Parameter);
    let dtypes = |of: fn(&shardwright_core::Precision) -> DType| {
        let names: BTreeSet<&str> = parameters.clone().map(|t| of(&t.precision).torch_name()).collect();
        if names.is_empty() { "none".to_owned() } else { names.into_iter().collect::<Vec<_>>().join(" and ") }
    };
    format!(
        "{} on {} ({}): {} in {}\nstorage {}, compute {}, reduce {}",
        plan.strategy,
        count(u64::from(plan.mesh.world_size()), "rank"),
        axes.join(" × "),
        count(plan.tensors.len() as u64, "tensor"),
        count(plan.groups.len() as u64, "parameter group"),
        dtypes(|p| p.storage),
        dtypes(|p| p.compute),
        dtypes(|p| p.reduce),
    )
}

fn speed(totals: &Totals) -> String {
    let peak = totals.peak_memory_bytes.map(|peak| format!(", peak memory {}", bytes(peak))).unwrap_or_default();
    format!("{:.2} GB/s of source bytes{peak}", totals.gigabytes_per_second)
}
