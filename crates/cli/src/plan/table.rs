//! The prediction as a table of at most 100 columns.

use shardwright_memory::{
    ledger::{Category, Phase, Place},
    output::{Advice, Prediction, RankGroup, World},
};

use crate::table::{self, Align, bytes, count};

/// More kinds of ranks than this are summed up; the JSON has them all.
const MOST_GROUPS: usize = 12;
/// No line is longer.
const WIDTH: usize = 100;

/// The whole text.
pub fn render(config: &str, prediction: &Prediction, several: bool) -> String {
    let mut text = String::new();
    if several {
        text += &format!("# {config}\n");
    }
    let Some(world) = prediction.worlds.first() else { return text };
    text += &headline(prediction, world);
    let fullest = world.ranks.iter().find(|g| g.ranks.iter().any(|[a, b]| (*a..=*b).contains(&world.peak.rank))).or(world.ranks.first());
    if let Some(group) = fullest {
        let ranks = ranges(group);
        let word = if ranks.bytes().all(|b| b.is_ascii_digit()) { "rank" } else { "ranks" };
        text += &format!("\n{word} {ranks}, the fullest:\n");
        text += &breakdown(group);
    }
    if world.ranks.len() > 1 {
        text.push('\n');
        text += &groups(world);
    }
    if let Some(why) = &world.uneven {
        text += &wrapped(&format!("uneven: {why}"));
    }
    text += &verdict(prediction, world);
    if !world.advice.is_empty() {
        text += &advice(&world.advice);
    }
    if prediction.worlds.len() > 1 {
        text += "\ncompared:\n";
        text += &compared(&prediction.worlds);
    }
    if !prediction.assumptions.is_empty() {
        text += "\nassumed:\n";
        for assumption in &prediction.assumptions {
            text += &wrapped(&format!("- {assumption}"));
        }
    }
    text
}

fn headline(prediction: &Prediction, world: &World) -> String {
    let run = &prediction.run;
    let axes: Vec<String> = world.mesh.iter().map(|a| format!("{} {}", a.name, a.size)).collect();
    let model = &prediction.model;
    let mut text = wrapped(&format!(
        "{} on {} ({}): {} parameters, {} trained",
        world.strategy,
        count(u64::from(world.world_size), "rank"),
        axes.join(" × "),
        elements(model.parameters),
        if model.trainable == model.parameters { "all".to_owned() } else { elements(model.trainable) },
    ));
    text += &wrapped(&format!(
        "{}, {} of {} tokens, {} to a step, activations {}",
        run.optimizer.replace('_', " "),
        count(run.micro_batch, "sample"),
        run.seq_len,
        count(run.accumulation, "forward pass").replace("passs", "passes"),
        if run.activation_checkpointing { "recomputed" } else { "kept" },
    ));
    text
}

/// Elements with three digits: `1.72 B`.
fn elements(n: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")];
    UNITS.iter().find(|(size, _)| n >= *size).map_or_else(|| n.to_string(), |(size, unit)| format!("{:.2} {unit}", n as f64 / *size as f64))
}

/// Categories by phase, one place after the other.
fn breakdown(group: &RankGroup) -> String {
    let header: Vec<(&str, Align)> = [("", Align::Left)].into_iter().chain(Phase::ALL.map(|p| (p.name(), Align::Right))).collect();
    let mut rows = Vec::new();
    let cell = |n: u64| if n == 0 { "-".to_owned() } else { bytes(n) };
    for place in Place::ALL {
        let total: Vec<u64> = group
            .phases
            .iter()
            .map(|p| match place {
                Place::Device => p.device,
                Place::Host => p.host,
                Place::Nvme => p.nvme,
            })
            .collect();
        if total.iter().all(|&n| n == 0) {
            continue;
        }
        for category in Category::ALL {
            let of =
                group.phases.iter().map(|p| p.items.iter().filter(|i| i.place == place && i.category == category).map(|i| i.bytes).sum());
            let of: Vec<u64> = of.collect();
            if of.iter().any(|&n| n > 0) {
                let label = format!("{} {}", place.name(), category.name().replace('_', " "));
                rows.push([label].into_iter().chain(of.into_iter().map(cell)).collect());
            }
        }
        rows.push([format!("{} at most", place.name())].into_iter().chain(total.into_iter().map(cell)).collect());
    }
    table::render(&header, &rows)
}

fn groups(world: &World) -> String {
    let header = [
        ("ranks", Align::Left),
        ("held", Align::Right),
        ("device at most", Align::Right),
        ("in", Align::Left),
        ("host at most", Align::Right),
    ];
    let mut rows: Vec<Vec<String>> = world.ranks.iter().take(MOST_GROUPS).map(row).collect();
    if world.ranks.len() > MOST_GROUPS {
        let rest: u32 = world.ranks[MOST_GROUPS..].iter().map(|g| g.count).sum();
        rows.push(vec![format!("{rest} more"), String::new(), String::new(), String::new(), String::new()]);
    }
    table::render(&header, &rows)
}

fn row(group: &RankGroup) -> Vec<String> {
    let most = group.phases.iter().max_by_key(|p| p.device);
    vec![
        shortened(&ranges(group), 40),
        bytes(group.units.iter().fold(0, |sum: u64, &n| sum.saturating_add(n))),
        bytes(most.map_or(0, |p| p.device)),
        most.map_or(String::new(), |p| p.phase.name().to_owned()),
        bytes(group.phases.iter().map(|p| p.host).max().unwrap_or(0)),
    ]
}

/// `0-6, 8`.
fn ranges(group: &RankGroup) -> String {
    let one = |[first, last]: &[u32; 2]| if first == last { first.to_string() } else { format!("{first}-{last}") };
    group.ranks.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn verdict(prediction: &Prediction, world: &World) -> String {
    let peak = &world.peak;
    let mut text = format!("\npeak: {} on the device of rank {}, in the {} phase", bytes(peak.device), peak.rank, peak.phase.name());
    if peak.host > 0 {
        text += &format!("; {} of host memory", bytes(peak.host));
    }
    if peak.nvme > 0 {
        text += &format!("; {} of NVMe", bytes(peak.nvme));
    }
    text.push('\n');
    let against = |name: &str, have: Option<u64>, needed: u64| match have {
        Some(have) if needed <= have => format!("fits: {name} has {}, {} is left\n", bytes(have), bytes(have - needed)),
        Some(have) => format!("does not fit: {name} has {}, {} is missing\n", bytes(have), bytes(needed - have)),
        None => String::new(),
    };
    text += &against("the device", prediction.budget.device, peak.device);
    text += &against("the host", prediction.budget.host, peak.host);
    let traffic = &world.traffic;
    text += &format!("traffic of a rank in a step: {} to gather, {} to reduce", bytes(traffic.gather), bytes(traffic.reduce));
    if traffic.host_bus > 0 {
        text += &format!(", {} over the host bus", bytes(traffic.host_bus));
    }
    if traffic.nvme > 0 {
        text += &format!(", {} of NVMe", bytes(traffic.nvme));
    }
    text + "\n"
}

fn advice(advice: &[Advice]) -> String {
    let mut text = "\nwhat would save memory, the cheapest first:\n".to_owned();
    for (n, a) in advice.iter().enumerate() {
        let fits = match a.fits {
            Some(true) => ", fits",
            Some(false) => ", does not fit",
            None => "",
        };
        let traffic = match a.traffic {
            0 => "no more traffic".to_owned(),
            more if more > 0 => format!("{} more traffic a step", bytes(more.unsigned_abs())),
            fewer => format!("{} less traffic a step", bytes(fewer.unsigned_abs())),
        };
        let computation = if a.computation > 0.0 { format!(", {:.0} % more computation", a.computation * 100.0) } else { String::new() };
        text += &wrapped(&format!("{}. {}: {}", n + 1, a.change, a.effect));
        text +=
            &wrapped(&format!("   peak {} on the device, {} on the host{fits}; {traffic}{computation}", bytes(a.device), bytes(a.host)));
    }
    text
}

fn compared(worlds: &[World]) -> String {
    let header = [
        ("strategy", Align::Left),
        ("ranks", Align::Right),
        ("device", Align::Right),
        ("in", Align::Left),
        ("host", Align::Right),
        ("fits", Align::Left),
        ("gather", Align::Right),
        ("reduce", Align::Right),
    ];
    let rows: Vec<Vec<String>> = worlds
        .iter()
        .map(|w| {
            vec![
                shortened(&w.strategy, 24),
                w.world_size.to_string(),
                bytes(w.peak.device),
                w.peak.phase.name().to_owned(),
                bytes(w.peak.host),
                w.fits.map_or("", |fits| if fits { "yes" } else { "no" }).to_owned(),
                bytes(w.traffic.gather),
                bytes(w.traffic.reduce),
            ]
        })
        .collect();
    table::render(&header, &rows)
}

fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most { text.to_owned() } else { text.chars().take(most - 1).chain(['…']).collect() }
}

/// Breaks lines between words, and indents what follows.
fn wrapped(text: &str) -> String {
    let indent = text.len() - text.trim_start().len() + 2;
    let mut out = String::new();
    let mut line = String::new();
    for word in text.split(' ') {
        if line.chars().count() + word.chars().count() + 1 > WIDTH && !line.trim().is_empty() {
            out += line.trim_end();
            out.push('\n');
            line = " ".repeat(indent);
        }
        line += word;
        line.push(' ');
    }
    out += line.trim_end();
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words() {
        let text = wrapped(&"word ".repeat(50));
        assert!(text.lines().all(|l| l.chars().count() <= WIDTH), "{text}");
        assert_eq!(text.split_whitespace().count(), 50);
        assert_eq!(wrapped("short"), "short\n");
    }

    #[test]
    fn elements_keep_their_scale() {
        assert_eq!([elements(999), elements(1_720_000_000), elements(36_000)], ["999", "1.72 B", "36.00 k"]);
    }
}
