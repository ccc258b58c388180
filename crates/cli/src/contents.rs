//! `shardwright inspect` of checkpoints other than whole safetensors: tensors, optimizer, ranks, step, versions.

use std::path::Path;

use shardwright_core::text::shown;
use shardwright_engine::{
    contents::{Contents, is_other_format},
    inspect::{inspect_contents, kind_name},
};

use crate::{
    args::{Format, InspectArgs},
    exit::{Exit, Failure},
    output::{print, print_json, print_next, print_note},
    table::{Align, bytes, render},
};

/// Runs the command, where the checkpoint is of such a format.
pub fn inspect(args: &InspectArgs, path: &Path) -> Result<Option<Exit>, Failure> {
    if !is_other_format(path) {
        return Ok(None);
    }
    let contents = Contents::open(path)?;
    match args.format {
        Format::Json => print_json(&inspect_contents(&contents))?,
        Format::Table => {
            for note in &contents.notes {
                print_note(&format!("note: {}", shown(note)));
            }
            print(&table(&contents))?;
            print_next(&format!(
                "shardwright convert {} TARGET writes it in another format, or for other ranks",
                shown(&args.model.to_string_lossy())
            ));
        }
    }
    Ok(Some(Exit::Done))
}

fn table(contents: &Contents) -> String {
    let mut head = format!("{}", contents.format);
    let facts = [
        contents.version.as_ref().map(|v| format!("version {v}")),
        contents.ranks.map(|n| if n == 1 { "1 rank".to_owned() } else { format!("{n} ranks") }),
        contents.step().map(|n| format!("step {n}")),
        contents.compute.map(|d| format!("trained in {d}")),
    ];
    for fact in facts.into_iter().flatten() {
        head.push_str(&format!(", {}", shown(&fact)));
    }
    let rows: Vec<Vec<String>> = contents
        .tensors
        .iter()
        .map(|t| {
            let data = &t.data;
            vec![t.name.clone(), kind_name(t.kind).into(), data.dtype().to_string(), format!("{:?}", data.shape()), bytes(data.bytes())]
        })
        .collect();
    let header = [("TENSOR", Align::Left), ("KIND", Align::Left), ("DTYPE", Align::Left), ("SHAPE", Align::Left), ("SIZE", Align::Right)];
    let mut text = format!("{head}\n\n{}", render(&header, &rows));
    for (alias, name) in &contents.aliases {
        text.push_str(&format!("{} is tied to {}\n", shown(alias), shown(name)));
    }
    if let Some(optimizer) = &contents.optimizer {
        let states: Vec<&str> = optimizer.state_names().into_iter().collect();
        text.push_str(&format!("\noptimizer: step {}, {} of {} parameters\n", optimizer.step(), states.join(", "), optimizer.states.len()));
        for (number, group) in optimizer.groups.iter().enumerate() {
            let values: Vec<String> = group.values.iter().filter_map(|(key, value)| Some(format!("{key} {}", value.number()?))).collect();
            text.push_str(&format!("  group {number}: {} parameters, {}\n", group.params.len(), shown(&values.join(", "))));
        }
    }
    text
}
