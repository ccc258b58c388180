//! `shardwright inspect`: a checkpoint's headers as tables or JSON.

use shardwright_core::text::shown;
use shardwright_engine::inspect::{Inspection, Sum, inspect};

use crate::{
    args::{Format, InspectArgs},
    exit::{Exit, Failure},
    output::{print, print_next, print_note},
    table::{Align, bytes, render},
    verify::find,
};

/// Runs the command.
pub fn run(args: &InspectArgs) -> Result<Exit, Failure> {
    if let Some(exit) = crate::contents::inspect(args)? {
        return Ok(exit);
    }
    let checkpoint = find("MODEL", &args.model)?;
    for warning in checkpoint.warnings() {
        print_note(&format!("warning: {warning}"));
    }
    let found = inspect(&checkpoint);
    match args.format {
        Format::Table => {
            print(&table(&found))?;
            print_next("name it as `model` of a config; shardwright resolve CONFIG shows what a run does with it");
        }
        Format::Json => {
            let json = serde_json::to_string_pretty(&found).map_err(|e| Failure::new(Exit::Io, format_args!("cannot render: {e}")))?;
            print(&format!("{json}\n"))?;
        }
    }
    Ok(Exit::Done)
}

const LEFT: Align = Align::Left;
const RIGHT: Align = Align::Right;

/// Sums by dtype, then the files, then every tensor.
fn table(found: &Inspection) -> String {
    let mut dtypes: Vec<Vec<String>> = found.dtypes.iter().map(|(dtype, sum)| sum_row(dtype.torch_name(), sum)).collect();
    dtypes.push(sum_row("all", &found.totals));
    let files: Vec<Vec<String>> = found.files.iter().map(|f| vec![f.name.clone(), f.tensors.to_string(), bytes(f.bytes)]).collect();
    let tensors: Vec<Vec<String>> = found
        .tensors
        .iter()
        .map(|t| vec![t.name.clone(), t.dtype.torch_name().to_owned(), format!("{:?}", t.shape), bytes(t.bytes), t.file.clone()])
        .collect();
    let headline = found.architecture.as_ref().map(|a| format!("{}\n\n", shown(a))).unwrap_or_default();
    format!(
        "{headline}{}\n{}\n{}",
        render(&[("dtype", LEFT), ("tensors", RIGHT), ("elements", RIGHT), ("bytes", RIGHT)], &dtypes),
        render(&[("file", LEFT), ("tensors", RIGHT), ("bytes", RIGHT)], &files),
        render(&[("tensor", LEFT), ("dtype", LEFT), ("shape", LEFT), ("bytes", RIGHT), ("file", LEFT)], &tensors),
    )
}

fn sum_row(label: &str, sum: &Sum) -> Vec<String> {
    vec![label.to_owned(), sum.tensors.to_string(), sum.numel.to_string(), bytes(sum.bytes)]
}
