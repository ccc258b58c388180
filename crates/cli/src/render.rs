//! Diagnostics for people: message, place, source line and caret.

use std::io::Write;

use shardwright_core::diagnostic::{Diagnostic, Location, Severity, Source};

use crate::exit::{Exit, Failure};

/// The failure that these findings are.
pub fn failure(diagnostics: &[Diagnostic], sources: &[Source]) -> Failure {
    Failure { exit: Exit::Config, text: all(diagnostics, sources) }
}

/// Says findings that stop nothing.
pub fn warn(diagnostics: &[Diagnostic], sources: &[Source]) {
    if !diagnostics.is_empty() {
        // A closed standard error must not stop the work.
        drop(writeln!(std::io::stderr(), "{}", all(diagnostics, sources)));
    }
}

fn all(diagnostics: &[Diagnostic], sources: &[Source]) -> String {
    diagnostics.iter().map(|d| one(d, sources)).collect::<Vec<_>>().join("\n")
}

fn one(diagnostic: &Diagnostic, sources: &[Source]) -> String {
    let severity = match diagnostic.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let mut text = format!("{severity}[{}]: {}", diagnostic.code, diagnostic.message);
    let places = diagnostic.at.iter().map(|at| (at, "")).chain(diagnostic.also.iter().map(|(at, what)| (at, what.as_str())));
    for (at, what) in places {
        text += &excerpt(at, what, sources);
    }
    if let Some(help) = &diagnostic.help {
        text += &format!("\n  = help: {help}");
    }
    text
}

fn excerpt(at: &Location, what: &str, sources: &[Source]) -> String {
    let place = format!("\n  --> {}:{}:{}", at.file, at.line, at.column);
    let source = sources.iter().find(|s| s.name == at.file);
    let Some(line) = source.and_then(|s| s.text.lines().nth(at.line as usize - 1)) else { return place };
    let number = at.line.to_string();
    let blank = " ".repeat(number.len());
    let before = " ".repeat(at.column as usize - 1);
    let rest = line.chars().count().saturating_sub(at.column as usize - 1).max(1);
    let marked = source.map_or(1, |s| s.text.get(at.span.clone()).map_or(1, |t| t.chars().count())).clamp(1, rest);
    let label = if what.is_empty() { String::new() } else { format!(" {what}") };
    format!("{place}\n{blank} |\n{number} | {line}\n{blank} | {before}{}{label}", "^".repeat(marked))
}
