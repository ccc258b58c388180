//! `shardwright inspect`: a checkpoint's headers as tables or JSON.

use std::path::Path;

use shardwright_config::TransformersVersion;
use shardwright_core::{diagnostic::Source, text::shown};
use shardwright_engine::{
    Checkpoint,
    architecture::{AsModel, MissingTensor, ModelOptions, ModelTensor, parse_architecture},
    inspect::{Inspection, Sum, inspect},
    setup,
};

use crate::{
    args::{Format, InspectArgs},
    exit::{Exit, Failure},
    model::find,
    output::{print, print_json, print_next, print_note},
    table::{Align, bytes, count, render},
};

/// Runs the command.
pub fn run(args: &InspectArgs) -> Result<Exit, Failure> {
    let path = Path::new(&args.model);
    if !args.as_model
        && let Some(exit) = crate::contents::inspect(args, path)?
    {
        return Ok(exit);
    }
    let checkpoint = find("MODEL", &args.model)?;
    // A hub id, whose files need not be safetensors.
    if !args.as_model
        && !path.exists()
        && let Some(exit) = crate::contents::inspect(args, checkpoint.dir())?
    {
        return Ok(exit);
    }
    for warning in checkpoint.warnings() {
        print_note(&format!("warning: {warning}"));
    }
    if args.as_model {
        return as_model(args, &checkpoint);
    }
    let found = inspect(&checkpoint);
    match args.format {
        Format::Table => {
            print(&table(&found))?;
            print_next("name it as `model` of a config; shardwright resolve CONFIG shows what a run does with it");
        }
        Format::Json => print_json(&found)?,
    }
    Ok(Exit::Done)
}

/// The parameters of the model's class, and what each is made from.
fn as_model(args: &InspectArgs, checkpoint: &Checkpoint) -> Result<Exit, Failure> {
    let version = args.transformers.as_deref().map(|text| {
        TransformersVersion::parse(text).ok_or_else(|| {
            Failure::new(Exit::Usage, format_args!("--transformers: expected a version such as 4.57 or 5.24, found '{}'", shown(text)))
        })
    });
    let own = args.architecture.as_deref().map(|path| {
        let text = setup::read_text(path).map_err(|why| Failure::new(Exit::Config, format_args!("{}: {why}", path.display())))?;
        let text = Source::new(path.display().to_string(), text);
        parse_architecture(&text).map_err(|found| crate::render::failure(&found, std::slice::from_ref(&text)))
    });
    let (version, own) = (version.transpose()?, own.transpose()?);
    let mut options = ModelOptions::new(&args.model_class);
    (options.transformers, options.architecture) = (version, own.as_ref());
    let found = checkpoint.as_model(&options)?;
    match args.format {
        Format::Json => print_json(&found)?,
        Format::Table => {
            for warning in &found.warnings {
                print_note(&format!("warning: {}", shown(warning)));
            }
            print(&model_table(&found))?;
            print_next("shardwright plan CONFIG shows what each rank holds of these parameters while it trains");
        }
    }
    Ok(Exit::Done)
}

fn model_table(found: &AsModel) -> String {
    let class = found.class.as_deref().unwrap_or("of an unknown class");
    let c = &found.counts;
    let mut text = format!(
        "{}, by {} ({})\n{}, {}, {} assembled, {} renamed, {} unused, {} missing, {} tied\n\n",
        shown(class),
        shown(&found.source),
        shown(&found.why),
        count(c.parameters, "parameter"),
        count(c.buffers, "buffer"),
        c.assembled,
        c.renamed,
        c.unused,
        c.missing,
        c.tied
    );
    let row =
        |t: &ModelTensor| vec![t.name.clone(), t.kind.to_owned(), t.dtype.torch_name().to_owned(), format!("{:?}", t.shape), t.made_from()];
    let rows: Vec<Vec<String>> = found.tensors.iter().map(row).collect();
    text += &render(&[("parameter", LEFT), ("kind", LEFT), ("dtype", LEFT), ("shape", LEFT), ("made from", LEFT)], &rows);
    let mut more = |title: &str, rows: Vec<Vec<String>>, what: &str| {
        if !rows.is_empty() {
            text += &format!("\n{}", render(&[(title, LEFT), (what, LEFT)], &rows));
        }
    };
    let pair = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
    more("second name", found.aliases.iter().map(|(alias, name)| pair(alias, name)).collect(), "tied to");
    more("unused tensor", found.unused.iter().map(|u| pair(&u.tensor, &u.reason)).collect(), "why");
    let shape = |m: &MissingTensor| m.shape.as_ref().map_or_else(|| "unknown".to_owned(), |s| format!("{s:?}"));
    more("missing parameter", found.missing.iter().map(|m| pair(&m.name, &shape(m))).collect(), "shape");
    text
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
