//! `shardwright convert` and `shardwright diff`: any checkpoint to any other, and how two of them differ.

use std::{ffi::OsStr, path::Path, time::Instant};

use serde_json::json;
use shardwright_core::{DType, text::shown};
use shardwright_engine::{
    CancelToken, HubEnv,
    convert::{Contents, Conversion, ConvertOptions, Difference, Differences, Names, Target, check_free, diff, read_back},
};

use crate::{
    args::{ConvertArgs, DiffArgs, Format, NamesOf, TargetFormat},
    counted::Counted,
    exit::{Exit, Failure},
    output::{print, print_next, print_note},
    signals::cancel_on_signal,
    table::{bytes, count},
};

/// Runs `convert`.
pub fn convert(args: &ConvertArgs) -> Result<Exit, Failure> {
    let cancel = cancel_on_signal()?;
    check_free(&args.target)?;
    let mut contents = open("SOURCE", &args.source, &args.tie)?;
    if args.names == Some(NamesOf::Model) {
        contents = contents.with_model_names()?;
    }
    let options = options(args)?;
    let plan = Conversion::plan(&contents, &options)?;
    for note in &contents.notes {
        print_note(&format!("note: {}", shown(note)));
    }
    for lost in plan.lost() {
        print_note(&format!("not carried: {}", shown(lost)));
    }
    let (files, size, source_bytes) = (plan.files().count(), plan.bytes(), plan.source_bytes());
    if args.dry_run {
        let mut text: String = plan.files().map(|(name, size)| format!("{:>9}  {}\n", bytes(size), shown(name))).collect();
        text.push_str(&format!("{} in {}; nothing is written\n", bytes(size), count(files as u64, "file")));
        print(&text)?;
        return Ok(Exit::Done);
    }
    let started = Instant::now();
    let counted = Counted::new("convert", source_bytes);
    let done = plan.run(&args.target, &|n| counted.add(n), &cancel);
    counted.finish();
    let done = done?;
    let seconds = started.elapsed().as_secs_f64();
    if done.resumed > 0 {
        print_note(&format!("note: {} were there already, complete, from a conversion that was killed", bytes(done.resumed)));
    }
    print(&format!(
        "{} to {}: {} in {}, {:.2} s\n",
        contents.format,
        args.target.display(),
        bytes(done.bytes),
        count(done.files, "file"),
        seconds
    ))?;
    if args.verify {
        return verify(args, &contents, &options, &cancel);
    }
    let (source, target) = (args.source.to_string_lossy(), args.target.display());
    print_next(&format!("shardwright diff {source} {target} compares every element; convert --verify does so at once"));
    Ok(Exit::Done)
}

/// Reads the target back, and compares every element with the source's.
fn verify(args: &ConvertArgs, contents: &Contents, options: &ConvertOptions, cancel: &CancelToken) -> Result<Exit, Failure> {
    let counted = Counted::new("verify", contents.bytes().saturating_mul(2));
    let found = read_back(contents, options, &args.target, &ties(&args.tie)?, &|n| counted.add(n), cancel);
    counted.finish();
    let found = found?;
    report(&found, "the source", "the target");
    match found.is_right() {
        true => {
            print(&format!("verified: {} elements of {} tensors are the source's\n", found.elements, found.equal))?;
            Ok(Exit::Done)
        }
        false => Ok(Exit::Mismatch),
    }
}

/// Opens a checkpoint: a path, or a hub id in the local cache.
pub fn open(argument: &str, name: &OsStr, tie: &[String]) -> Result<Contents, Failure> {
    if name.is_empty() {
        return Err(Failure::new(Exit::Usage, format_args!("{argument} is empty, expected a directory, a file, or a hub id")));
    }
    Ok(Contents::find(Path::new(name), &HubEnv::from_process())?.tied(&ties(tie)?)?)
}

/// What `--tie` says: alias and name.
fn ties(tie: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let pair = |tie: &String| {
        let wrong = || Failure::new(Exit::Usage, format_args!("--tie {tie}: expected ALIAS=NAME"));
        tie.split_once('=').map(|(alias, name)| (alias.to_owned(), name.to_owned())).ok_or_else(wrong)
    };
    tie.iter().map(pair).collect()
}

fn options(args: &ConvertArgs) -> Result<ConvertOptions, Failure> {
    let to = match args.to {
        TargetFormat::Hf => Target::Hf,
        TargetFormat::HfSharded => Target::HfSharded,
        TargetFormat::Dcp => Target::Dcp,
        TargetFormat::Zero3 => Target::Zero3,
        TargetFormat::Zero3Universal => Target::Universal,
    };
    let mut options = ConvertOptions::new(to);
    options.ranks = args.ranks;
    options.replicas = args.replicas;
    options.params_only = args.params_only;
    options.names = args.names.map(|names| match names {
        NamesOf::Model => Names::Model,
        NamesOf::Hub => Names::Hub,
    });
    options.config.clone_from(&args.config);
    options.tag.clone_from(&args.tag);
    let dtype = |text: &String| {
        DType::from_spelling(text)
            .ok_or_else(|| Failure::new(Exit::Usage, format_args!("--dtype {text}: expected a dtype such as bfloat16")))
    };
    options.dtype = args.dtype.as_ref().map(dtype).transpose()?;
    options.max_file_size = size(&args.max_file_size).ok_or_else(|| {
        Failure::new(Exit::Usage, format_args!("--max-file-size {}: expected a size such as 5GB or 500MiB", args.max_file_size))
    })?;
    options.sub_group_size = args.sub_group_size;
    Ok(options)
}

/// Bytes, in the units that transformers takes: `5GB` is decimal, `5GiB` is not.
fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KIB" => 1 << 10,
        "MIB" => 1 << 20,
        "GIB" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit).filter(|n| *n > 0)
}

/// Runs `diff`.
pub fn compare(args: &DiffArgs) -> Result<Exit, Failure> {
    let cancel = cancel_on_signal()?;
    let (a, b) = (open("FIRST", &args.first, &args.tie)?, open("SECOND", &args.second, &args.tie)?);
    let counted = Counted::new("diff", a.bytes().saturating_add(b.bytes()));
    let found = diff(&a, &b, args.common, &|n| counted.add(n), &cancel);
    counted.finish();
    let found = found?;
    match args.format {
        Format::Json => print(&as_json(&found))?,
        Format::Table => {
            report(&found, &args.first.to_string_lossy(), &args.second.to_string_lossy());
            let cast = if found.cast > 0 { format!(", {} of them after a cast", found.cast) } else { String::new() };
            print(&format!("{} tensors are equal{cast}; {} differ\n", found.equal, found.different.len()))?;
            if let Some(step) = after(&found, args) {
                print_next(&step);
            }
        }
    }
    Ok(if found.is_empty() { Exit::Done } else { Exit::Mismatch })
}

/// What to do after a comparison that people see.
fn after(found: &Differences, args: &DiffArgs) -> Option<String> {
    let only_one_has = found.different.iter().any(|(_, d)| matches!(d, Difference::OnlyFirst | Difference::OnlySecond));
    match found.is_empty() {
        true => Some(format!(
            "name {} as `model` of a config; shardwright resolve CONFIG shows what a run does with it",
            shown(&args.second.to_string_lossy())
        )),
        false if only_one_has && !args.common => {
            Some("with --common only tensors of both are compared; --tie A=B names tied ones".to_owned())
        }
        false => Some("shardwright inspect of either shows names, dtypes and shapes; --format json lists every difference".to_owned()),
    }
}

const MOST: usize = 100;

pub fn report(found: &Differences, first: &str, second: &str) {
    for (name, difference) in found.different.iter().take(MOST) {
        print_note(&format!("{}: {}", shown(name), difference.text(first, second)));
    }
    if found.different.len() > MOST {
        print_note(&format!("and {} more", found.different.len() - MOST));
    }
    found.notes.iter().for_each(|note| print_note(&shown(note)));
}

fn as_json(found: &Differences) -> String {
    let different: Vec<_> = found
        .different
        .iter()
        .map(|(name, difference)| match difference {
            Difference::OnlyFirst => json!({ "name": name, "only_in": "first" }),
            Difference::OnlySecond => json!({ "name": name, "only_in": "second" }),
            Difference::Shape(a, b) => json!({ "name": name, "shapes": [a, b] }),
            Difference::Elements { count, first, most } => json!({ "name": name, "elements": count, "first": first, "most": most }),
            _ => json!({ "name": name }),
        })
        .collect();
    let reported =
        json!({ "equal": found.equal, "cast": found.cast, "elements": found.elements, "different": different, "notes": found.notes });
    format!("{reported:#}\n")
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_are_those_of_transformers() {
        assert_eq!(
            [size("5GB"), size("500 MiB"), size("100"), size("0"), size("5G"), size("-1")],
            [Some(5_000_000_000), Some(500 << 20), Some(100), None, None, None]
        );
    }
}
