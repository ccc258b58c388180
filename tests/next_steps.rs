//! Where a user goes next: the last line of each command for people, on standard error, and the end of each page of the docs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn said(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_shardwright")).current_dir(ROOT).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn every_command_ends_with_the_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (shards, lock, dcp) = (path("shards"), path("lock.json"), path("dcp"));
    let model = "examples/tiny-qwen3";
    let commands: &[&[&str]] = &[
        &["resolve", "examples/fsdp2.yaml", "--world-size", "2"],
        &["resolve", "examples/fsdp2.yaml", "--world-size", "2", "--lock", &lock],
        &["load", "examples/fsdp2.yaml", "--world-size", "2"],
        &["load", "examples/fsdp2.yaml", "--world-size", "2", "--save", &shards],
        &["verify", &shards],
        &["plan", "examples/fsdp2.yaml", "--world-size", "2"],
        &["inspect", model],
        &["inspect", model, "--as-model"],
        &["convert", model, &dcp, "--to", "dcp"],
        &["inspect", &dcp],
        &["diff", model, &dcp],
        &["strategies"],
        &["strategies", "fsdp2"],
        &["schema"],
        &["schema", "--architecture"],
    ];
    for args in commands {
        let text = said(args);
        assert!(text.lines().last().is_some_and(|line| line.starts_with("next: ")), "{args:?}: {text}");
    }
    // JSON is for programs, which get nothing.
    for args in
        [&["inspect", model, "--format", "json"][..], &["strategies", "--format", "json"], &["diff", model, &dcp, "--format", "json"]]
    {
        assert!(!said(args).contains("next: "), "{args:?}");
    }
}

fn pages(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.extension() {
            None if path.is_dir() => pages(&path, out),
            Some(end) if end == "md" => out.push(path),
            _ => {}
        }
    }
}

#[test]
fn every_page_of_the_docs_ends_with_the_next_one() {
    let mut found = Vec::new();
    pages(&Path::new(ROOT).join("docs"), &mut found);
    assert!(found.len() > 10, "{found:?}");
    for page in found {
        let text = fs::read_to_string(&page).unwrap();
        let last = text.trim_end().rsplit("\n\n").next().unwrap();
        assert!(
            last.starts_with("Next: ") && (last.contains("](") || last.contains("`shardwright ") || last.contains(".sh`")),
            "{}: {last}",
            page.display()
        );
    }
}
