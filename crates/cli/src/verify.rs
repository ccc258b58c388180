//! `shardwright verify`: files against the manifest, elements against the source, and what to say of both.

use std::{ffi::OsStr, fmt::Write as _};

use serde_json::json;
use shardwright_core::text::shown;
use shardwright_engine::{
    Checkpoint, HubEnv,
    verify::{Verified, Verifier},
};

use crate::{
    args::{Format, VerifyArgs},
    counted::Counted,
    exit::{Exit, Failure},
    load::cancel_on_signal,
    output::{print, print_next, print_note},
    table::{bytes, count},
};

/// Runs the command.
pub fn run(args: &VerifyArgs) -> Result<Exit, Failure> {
    let cancel = cancel_on_signal()?;
    let mut verifier = Verifier::open(&args.dir)?;
    let source = args.against.as_deref().map(|model| find("--against", model)).transpose()?;
    let source = source.map(|model| model.with_recorded_model(verifier.manifest().model.as_ref())).transpose()?;
    if let Some(checkpoint) = &source {
        verifier = verifier.against(checkpoint);
    }
    let counted = Counted::new("verify", verifier.bytes());
    let add = |n| counted.add(n);
    let verifier = verifier.progress(&add).cancel(&cancel);
    let found = verifier.run();
    let reported = tell(args, &verifier, found?)?;
    counted.finish();
    Ok(reported)
}

/// A directory, a file, or a hub id, as a config's `model`; what is not UTF-8 can only be a path.
pub fn find(argument: &str, model: &OsStr) -> Result<Checkpoint, Failure> {
    match model.to_str() {
        Some("") => Err(Failure::new(Exit::Usage, format_args!("{argument} is empty, expected a directory, a file, or a hub id"))),
        Some(model) => Ok(Checkpoint::find(model, &[] as &[&str], &HubEnv::from_process())?),
        None => Ok(Checkpoint::open(model.as_ref())?),
    }
}

fn tell(args: &VerifyArgs, verifier: &Verifier<'_>, found: Verified) -> Result<Exit, Failure> {
    let good = found.problems.is_empty();
    for problem in &found.problems {
        print_note(&format!("error: {problem}"));
    }
    if found.more_problems > 0 {
        print_note(&format!("error: and {} more", found.more_problems));
    }
    if !found.unexpected.is_empty() {
        let names = found.unexpected.join(", ");
        let names = shown(&names);
        print_note(&format!("note: {} also holds other files: {names}", args.dir.display()));
    }
    match args.format {
        Format::Json => print(&as_json(&found))?,
        Format::Table if good => {
            print(&summary(args, verifier, &found))?;
            print_next("torch.distributed.checkpoint reads shards of torch's format on any number of ranks: docs/save-format.md");
        }
        Format::Table => {}
    }
    Ok(if good { Exit::Done } else { Exit::Mismatch })
}

fn summary(args: &VerifyArgs, verifier: &Verifier<'_>, found: &Verified) -> String {
    let manifest = verifier.manifest();
    let mut text = format!(
        "{}: {} on {}, {}\n{}, {} in all: sizes and digests match the manifest\n",
        args.dir.display(),
        shown(&manifest.strategy),
        count(u64::from(manifest.world_size), "rank"),
        count(manifest.plan.tensors.len() as u64, "tensor"),
        count(found.files, "file"),
        bytes(found.bytes),
    );
    // Writing to a string cannot fail.
    let _ = match &args.against {
        Some(model) => writeln!(text, "{} elements are those of {}, after the cast", found.elements, model.display()),
        None => writeln!(text, "their elements were not compared with the source: --against MODEL does"),
    };
    text
}

fn as_json(found: &Verified) -> String {
    let problems: Vec<String> = found.problems.iter().map(ToString::to_string).collect();
    let reported = json!({
        "verified": found.problems.is_empty(),
        "files": found.files,
        "bytes": found.bytes,
        "elements_compared": found.elements,
        "problems": problems,
        "more_problems": found.more_problems,
        "unexpected": found.unexpected,
    });
    format!("{reported:#}\n")
}
