//! Diagnostics for people: message, place, source line and caret. Plain text but for a terminal that wants colour.

use std::io::{IsTerminal, Write};

use shardwright_core::{
    diagnostic::{Diagnostic, Location, Severity, Source},
    text::{harmless, shown, steers},
};
use unicode_width::UnicodeWidthChar;

use crate::exit::{Exit, Failure};

/// The failure that these findings are.
pub fn failure(diagnostics: &[Diagnostic], sources: &[Source]) -> Failure {
    Failure { exit: Exit::Config, text: all(diagnostics, sources, Paint::for_stderr()) }
}

/// The findings as plain text.
pub fn plain(diagnostics: &[Diagnostic], sources: &[Source]) -> String {
    all(diagnostics, sources, Paint::Plain)
}

/// Says findings that stop nothing.
pub fn warn(diagnostics: &[Diagnostic], sources: &[Source]) {
    if !diagnostics.is_empty() {
        // A closed standard error must not stop the work.
        drop(writeln!(std::io::stderr(), "{}", all(diagnostics, sources, Paint::for_stderr())));
    }
}

/// Whether to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Paint {
    Plain,
    Colour,
}

/// What is coloured.
#[derive(Clone, Copy)]
enum Role {
    Error,
    Warning,
    Bold,
    Frame,
    Help,
}

impl Paint {
    /// Colour on a terminal, unless NO_COLOR is set or the terminal is dumb.
    fn for_stderr() -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        if std::io::stderr().is_terminal() && !set("NO_COLOR") && !dumb { Self::Colour } else { Self::Plain }
    }

    fn paint(self, role: Role, text: &str) -> String {
        let code = match (self, role) {
            (Self::Plain, _) => return text.to_owned(),
            (_, Role::Error) => "1;31",
            (_, Role::Warning) => "1;33",
            (_, Role::Bold) => "1",
            (_, Role::Frame) => "34",
            (_, Role::Help) => "36",
        };
        if text.is_empty() { String::new() } else { format!("\x1b[{code}m{text}\x1b[0m") }
    }
}

/// Findings that are shown at most; JSON has them all.
const MOST_FINDINGS: usize = 100;

fn all(diagnostics: &[Diagnostic], sources: &[Source], paint: Paint) -> String {
    let mut text: Vec<String> = diagnostics.iter().take(MOST_FINDINGS).map(|d| one(d, sources, paint)).collect();
    if let Some(more) = diagnostics.len().checked_sub(MOST_FINDINGS).filter(|more| *more > 0) {
        text.push(format!("and {more} more, which --format json of `shardwright resolve` lists"));
    }
    let errors = diagnostics.iter().filter(|d| d.severity == Severity::Error).count();
    if errors > 1 {
        text.push(format!("{}: {errors} errors", paint.paint(Role::Error, "error")));
    }
    text.join("\n")
}

fn one(diagnostic: &Diagnostic, sources: &[Source], paint: Paint) -> String {
    let (severity, role) = match diagnostic.severity {
        Severity::Error => ("error", Role::Error),
        Severity::Warning => ("warning", Role::Warning),
    };
    let head = paint.paint(role, &format!("{severity}[{}]", diagnostic.code));
    let mut text = format!("{head}{} {}", paint.paint(Role::Bold, ":"), paint.paint(Role::Bold, &harmless(&diagnostic.message)));
    let places = diagnostic.at.iter().map(|at| (at, "", role));
    let others = diagnostic.also.iter().map(|(at, what)| (at, what.as_str(), Role::Frame));
    for (at, what, role) in places.chain(others) {
        text += &excerpt(at, what, role, sources, paint);
    }
    if let Some(help) = &diagnostic.help {
        text += &format!("\n  {} {}", paint.paint(Role::Frame, "="), paint.paint(Role::Help, &format!("help: {}", harmless(help))));
    }
    text
}

/// Characters of a source line that are shown at most, around the place.
const MOST_SHOWN: usize = 160;

fn excerpt(at: &Location, what: &str, role: Role, sources: &[Source], paint: Paint) -> String {
    let frame = |text: &str| paint.paint(Role::Frame, text);
    let place = format!("\n  {} {}:{}:{}", frame("-->"), shown(&at.file), at.line, at.column);
    let source = sources.iter().find(|s| s.name == at.file && !s.text.is_empty());
    let Some(line) = source.and_then(|s| s.text.split('\n').nth(at.line as usize - 1)) else { return place };
    let (number, column) = (at.line.to_string(), at.column as usize - 1);
    let blank = " ".repeat(number.len());
    let chars: Vec<char> = line.trim_end().chars().collect();
    let from = if chars.len() <= MOST_SHOWN { 0 } else { column.saturating_sub(MOST_SHOWN / 2).min(chars.len()) };
    let shown: String = chars[from..].iter().take(MOST_SHOWN).map(|c| if steers(*c) { ' ' } else { *c }).collect();
    let indent: usize = chars[from..column.clamp(from, chars.len().max(from))].iter().map(|c| width(*c)).sum();
    let rest = chars.len().saturating_sub(column).clamp(1, MOST_SHOWN);
    let marked =
        source.and_then(|s| s.text.get(at.span.clone())).map_or(1, |t| t.split('\n').next().unwrap_or_default().trim_end().chars().count());
    let carets: usize = chars.iter().skip(column).take(marked.clamp(1, rest)).map(|c| width(*c)).sum::<usize>().max(1);
    let label = if what.is_empty() { String::new() } else { format!(" {what}") };
    let pointer = paint.paint(role, &format!("{}{label}", "^".repeat(carets)));
    let (bar, gutter) = (frame("|"), frame(&number));
    format!("{place}\n{blank} {bar}\n{gutter} {bar} {shown}\n{blank} {bar} {}{pointer}", " ".repeat(indent))
}

/// Columns that a character takes in a terminal; one that steers it is shown as a space.
fn width(c: char) -> usize {
    if steers(c) { 1 } else { c.width().unwrap_or(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(text: &str, span: std::ops::Range<usize>, paint: Paint) -> String {
        let source = Source::new("a.yaml", text);
        let diagnostic = Diagnostic::error("x-y", "no").at(source.at(span)).help("do");
        one(&diagnostic, &[source], paint)
    }

    #[test]
    fn the_caret_stands_under_the_place() {
        let want = "error[x-y]: no\n  --> a.yaml:2:4\n  |\n2 | b: cc\n  |    ^^\n  = help: do";
        assert_eq!(rendered("a: 1\nb: cc\n", 8..10, Paint::Plain), want);
        assert!(rendered("名: x", 5..6, Paint::Plain).ends_with("1 | 名: x\n  |     ^\n  = help: do"), "wide characters take two columns");
        assert!(rendered("a:\t\x1b[31mx", 3..4, Paint::Plain).contains("1 | a:  [31mx"), "control characters are not printed");
    }

    #[test]
    fn long_lines_are_cut_around_the_place_and_ends_of_files_have_one() {
        let long = format!("{}X{}", "a".repeat(5000), "b".repeat(5000));
        let text = rendered(&long, 5000..5001, Paint::Plain);
        assert!(text.lines().all(|l| l.chars().count() < 200) && text.contains("aXb"), "{text}");
        assert!(rendered("", 0..0, Paint::Plain).contains("a.yaml:1:1"));
        assert!(rendered("a: 1\n", 5..5, Paint::Plain).contains("a.yaml:2:1"));
    }

    #[test]
    fn colour_is_only_for_those_who_want_it() {
        assert!(!rendered("a", 0..1, Paint::Plain).contains('\x1b'));
        assert!(rendered("a", 0..1, Paint::Colour).contains("\x1b[1;31merror[x-y]\x1b[0m"));
    }
}
