//! What a plugin sees, as a snapshot: a change of core's public surface shows in review. Read off the source, so that it needs no nightly:
//! public items, fields, variants and the items of public traits, each in one line, in the order of the files.

use std::{fmt::Write, fs, path::Path};

/// The public lines of a source file, its tests left out, and what rustdoc hides: other crates of this repository use that, and nobody is
/// promised it.
fn surface(source: &str) -> Vec<String> {
    let source = source.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    if source.lines().any(|line| line == "#![doc(hidden)]") {
        return Vec::new();
    }
    // The indentation of the hidden item that the line is in.
    let mut hidden: Option<usize> = None;
    let mut lines = Vec::new();
    let mut item = String::new();
    // The indentation of the public trait or enum that the line is in: all of its items are public.
    let mut inside: Option<usize> = None;
    for line in source.lines() {
        let (indent, text) = (line.len() - line.trim_start().len(), line.trim());
        if text == "#[doc(hidden)]" {
            hidden = Some(indent);
        }
        if let Some(at) = hidden {
            if indent == at && !text.starts_with(['#', '/']) && text.ends_with([';', '}']) {
                hidden = None;
            }
            continue;
        }
        if inside.is_some_and(|at| indent <= at && text.starts_with('}')) {
            inside = None;
        }
        let member = inside.is_some_and(|at| indent == at + 4) && !text.starts_with(['#', '/', '}', ')', ']']);
        let starts = text.starts_with("pub ")
            || member
            || text == "#[macro_export]"
            || (text.starts_with("macro_rules!") && lines.last().is_some_and(|l| l == "#[macro_export]"))
            || text == "#[non_exhaustive]";
        if !starts && item.is_empty() {
            continue;
        }
        write!(item, "{}{text}", if item.is_empty() { " ".repeat(indent) } else { " ".to_owned() }).unwrap();
        if let Some(value) = item.find(" = ").filter(|_| item.trim_start().starts_with("pub const")) {
            item.truncate(value);
            item.push(';');
        }
        let balanced = item.matches('(').count() == item.matches(')').count();
        let whole = item.ends_with([';', '{', '}', ']']) || (item.ends_with(',') && balanced);
        if !whole && !item.trim_start().starts_with("pub mod") {
            continue;
        }
        if (item.contains("pub trait ") || item.contains("pub enum ")) && item.ends_with('{') {
            inside = Some(indent);
        }
        if !item.trim_start().starts_with("pub use") || item.contains(';') {
            lines.push(item.trim_end_matches([' ', '{', ';', ',']).to_owned());
            item.clear();
        }
    }
    lines
}

fn files(dir: &Path, all: &mut Vec<std::path::PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        match path.is_dir() {
            true => files(&path, all),
            false => all.push(path),
        }
    }
}

#[test]
fn what_a_plugin_sees() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/crates/core/src"));
    let mut all = Vec::new();
    files(root, &mut all);
    let mut text = String::new();
    for file in all.iter().filter(|f| f.extension().is_some_and(|e| e == "rs") && !f.ends_with("tests.rs")) {
        let lines = surface(&fs::read_to_string(file).unwrap());
        if !lines.is_empty() {
            writeln!(text, "{}\n{}\n", file.strip_prefix(root).unwrap().display(), lines.join("\n")).unwrap();
        }
    }
    insta::assert_snapshot!("core", text);
}

#[test]
fn the_reader_sees_items_fields_variants_and_trait_items() {
    let source = "
pub fn open(
    path: &str,
) -> u32 {
    inner();
}
fn private() {}
#[non_exhaustive]
pub enum Kind {
    /// One.
    One,
    Two { a: u32 },
}
pub trait Reads: Sized {
    /// Doc.
    fn read(&self) -> u32;
    const NAME: &'static str;
}
pub(crate) struct Hidden;
#[doc(hidden)]
#[derive(Debug)]
pub struct Internal {
    pub field: u32,
}
impl Shown {
    #[doc(hidden)]
    pub fn internal(
        &self,
    ) {
    }
    pub fn open(&self) {
    }
}
pub struct Shown {
    pub field: u32,
    hidden: u32,
}
";
    assert_eq!(
        surface(source),
        [
            "pub fn open( path: &str, ) -> u32",
            "#[non_exhaustive]",
            "pub enum Kind",
            "    One",
            "    Two { a: u32 }",
            "pub trait Reads: Sized",
            "    fn read(&self) -> u32",
            "    const NAME: &'static str",
            "    pub fn open(&self)",
            "pub struct Shown",
            "    pub field: u32",
        ]
    );
}
