//! `shardwright verify`: files against the manifest, or against their own checksums, elements against the source, and what to say of both.

use std::fmt::Write as _;

use serde_json::json;
use shardwright_core::text::shown;
use shardwright_engine::{
    CancelToken,
    convert::{Contents, bytes_to_verify, verify},
    verify::{Verified, Verifier, is_save},
};

use crate::{
    args::{Format, VerifyArgs},
    convert::{open, report},
    counted::Counted,
    exit::{Exit, Failure},
    model::find,
    output::{print, print_next, print_note},
    signals::cancel_on_signal,
    table::{bytes, count},
};

/// Runs the command.
pub fn run(args: &VerifyArgs) -> Result<Exit, Failure> {
    let cancel = cancel_on_signal()?;
    if args.dir.is_dir() && !is_save(&args.dir) {
        return converted(args, Contents::open(&args.dir)?, &cancel);
    }
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

/// What the files themselves say of being whole, and every element where there is a source.
fn converted(args: &VerifyArgs, contents: Contents, cancel: &CancelToken) -> Result<Exit, Failure> {
    let source = args.against.as_deref().map(|source| open("--against", source, &args.tie)).transpose()?;
    let counted = Counted::new("verify", bytes_to_verify(&contents, source.as_ref()));
    let checked = verify(contents, source, &|n| counted.add(n), cancel);
    counted.finish();
    let checked = checked?;
    let (contents, sums, found, good) = (&checked.contents, checked.sums, &checked.found, checked.is_right());
    if let Some(found) = found {
        report(found, "the source", "the target");
    }
    if args.format == Format::Json {
        let problems: Vec<String> =
            found.iter().flat_map(|f| f.different.iter().map(|(name, _)| name.clone()).chain(f.notes.clone())).collect();
        let elements = found.as_ref().map_or(0, |f| f.elements);
        let reported = json!({ "verified": good, "files": sums.files, "bytes": sums.bytes, "bytes_with_checksums": sums.summed,
            "elements_compared": elements, "problems": problems });
        print(&format!("{reported:#}\n"))?;
    } else if good {
        let tensors = count(contents.tensors.len() as u64, "tensor");
        let states = if contents.optimizer.is_some() { ", optimizer states" } else { "" };
        let whole = match sums.summed {
            0 => "headers, sizes and places fit; such files have no checksums".to_owned(),
            summed => format!("headers, sizes and places fit, and so do the checksums of {}", bytes(summed)),
        };
        let files = count(sums.files, "file");
        let mut text =
            format!("{}: {}, {tensors}{states}\n{files}, {} in all: {whole}\n", args.dir.display(), contents.format, bytes(sums.bytes));
        // Writing to a string cannot fail.
        let _ = match found {
            Some(found) => writeln!(text, "{} elements of {} are the source's", found.elements, count(found.equal, "tensor")),
            None => writeln!(text, "their elements were not compared with a source: --against SOURCE does"),
        };
        print(&text)?;
        print_next(&format!("shardwright inspect {} shows its tensors and optimizer", args.dir.display()));
    }
    Ok(if good { Exit::Done } else { Exit::Mismatch })
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
