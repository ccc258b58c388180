//! `docs/diagnostics.md` lists every code that the program can say, and is generated: `UPDATE_DOCS=1 cargo test --test diagnostics`.

use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

use shardwright_core::diagnostic::{Code, Severity};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/diagnostics.md");

fn codes() -> BTreeMap<&'static str, Code> {
    let all = [
        shardwright_core::codes::CODES,
        shardwright_config::codes::CODES,
        shardwright_precision::codes::CODES,
        shardwright_fsdp2::codes::CODES,
        shardwright_zero3::codes::CODES,
    ];
    let mut codes = BTreeMap::new();
    for code in all.into_iter().flatten() {
        assert!(codes.insert(code.name, *code).is_none(), "{} is listed twice", code.name);
    }
    codes
}

fn page() -> String {
    let mut page = String::from(
        "<!-- Generated from the `codes` modules: UPDATE_DOCS=1 cargo test --test diagnostics -->\n\n# Diagnostics\n\n\
         Every finding about a config has a code, which does not change from version to version. With errors the program exits with 3\n\
         (`explain-unknown-key`, a fault of the command line, with 2);\n\
         warnings stop nothing. Each is printed with the line that it is about, in YAML and in JSON alike.\n",
    );
    for (severity, title) in [(Severity::Error, "Errors"), (Severity::Warning, "Warnings")] {
        write!(page, "\n## {title}\n\n| code | meaning |\n|---|---|\n").unwrap();
        for code in codes().values().filter(|c| c.severity == severity) {
            writeln!(page, "| `{}` | {} |", code.name, code.meaning).unwrap();
        }
    }
    page.push_str("\nNext: [every key of the YAML](reference/index.md), and `shardwright resolve CONFIG --explain KEY` for where a value comes from.\n");
    page
}

#[test]
fn the_page_is_what_the_code_says() {
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(PAGE, page()).unwrap();
    }
    let written = fs::read_to_string(PAGE).unwrap();
    assert!(written == page(), "docs/diagnostics.md is out of date: UPDATE_DOCS=1 cargo test --test diagnostics");
}

/// Sources under a crate's `src`.
fn sources(dir: &Path, out: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn no_code_is_said_without_being_listed_nor_listed_without_being_said() {
    let codes = codes();
    let mut texts = Vec::new();
    for krate in ["core", "config", "precision", "fsdp2", "zero3"] {
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("crates").join(krate).join("src"), &mut texts);
    }
    let outside: Vec<&String> = texts.iter().filter(|t| !t.contains("pub const CODES")).collect();
    for name in codes.keys() {
        assert!(outside.iter().any(|t| t.contains(&format!("\"{name}\""))), "'{name}' is listed and never said");
    }
    for text in outside {
        for call in ["Diagnostic::error(", "Diagnostic::warning("] {
            for (at, _) in text.match_indices(call) {
                let Some(rest) = text[at + call.len()..].trim_start().strip_prefix('"') else { continue };
                let name = rest.split('"').next().unwrap();
                let is_test_only = !name.contains('-');
                assert!(is_test_only || codes.contains_key(name), "'{name}' is said and not listed");
            }
        }
    }
}
