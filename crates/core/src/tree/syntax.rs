//! What PyYAML refuses in a text and saphyr-parser takes, and the other way round: tabs and directives.

use std::ops::Range;

use crate::diagnostic::{Diagnostic, Location, Source};

/// The code of the finding on a tab that PyYAML's own scanner refuses and libyaml's does not: whose the file is decides.
#[doc(hidden)]
pub const TAB: &str = "yaml-tab";

/// Checks the directives at the start of a text. `skip` is where the text starts in its source.
pub(super) fn directives(source: &Source, text: &str, skip: usize) -> Result<(), Diagnostic> {
    let mut start = skip;
    for line in text.split_inclusive('\n') {
        let span = start..start + line.trim_end().len();
        start += line.len();
        let Some(directive) = line.strip_prefix('%') else {
            // A comment or an empty line; anything else is the document.
            if line.trim_start().is_empty() || line.starts_with('#') {
                continue;
            }
            return Ok(());
        };
        let mut words = directive.split_whitespace();
        let fits = match words.next() {
            Some("YAML") => words.next().is_some_and(|version| version.starts_with("1.")),
            Some("TAG") => true,
            _ => false,
        };
        if !fits {
            let message = "PyYAML refuses this directive, expected %YAML 1.1 or %TAG";
            return Err(Diagnostic::error("yaml-syntax", message).at(source.at(span)).help("leave it out"));
        }
    }
    Ok(())
}

/// The tab that an error is about, where it stands after a colon: there PyYAML takes it for a space.
pub(super) fn tab_after_colon(error: &Diagnostic, text: &str, skip: usize) -> Option<usize> {
    let at = error.at.as_ref().filter(|_| error.code == "yaml-syntax")?.span.start.checked_sub(skip)?;
    let before = text.get(..at)?.trim_end_matches([' ', '\t']);
    (before.ends_with(':') && text[before.len()..].starts_with('\t')).then_some(before.len())
}

/// Ranges that no other one holds, in order.
fn outermost(ranges: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut sorted = ranges.to_vec();
    sorted.sort_by_key(|range| (range.start, std::cmp::Reverse(range.end)));
    let mut end = 0;
    sorted.retain(|range| {
        let is_outer = range.start >= end;
        end = end.max(range.end);
        is_outer
    });
    sorted
}

/// Finds tabs between values: an error at the start of a line outside of brackets, which every loader refuses, and else a finding of the code [`TAB`].
pub(super) fn tabs(
    source: &Source,
    scalars: &[Range<usize>],
    flows: &[Range<usize>],
    findings: &mut Vec<Diagnostic>,
) -> Result<(), Diagnostic> {
    if !source.text.contains('\t') {
        return Ok(());
    }
    let is_in = |ranges: &[Range<usize>], at: usize| {
        let next = ranges.partition_point(|range| range.start <= at);
        next.checked_sub(1).is_some_and(|i| ranges[i].contains(&at))
    };
    let flows = &outermost(flows);
    let mut start = 0;
    let mut other: Option<Location> = None;
    for line in source.text.split_inclusive('\n') {
        let begin = start;
        start += line.len();
        let Some(tab) = line.find('\t') else { continue };
        let at = begin + tab;
        let comment = line.char_indices().any(|(i, c)| c == '#' && i < tab && !is_in(scalars, begin + i));
        if comment || is_in(scalars, at) {
            continue;
        }
        if line[..tab].trim().is_empty() && !is_in(flows, at) {
            let message = "a tab where only spaces are allowed: YAML indents by spaces, and PyYAML refuses tabs there even on empty lines";
            return Err(Diagnostic::error("yaml-syntax", message).at(source.at(at..at + 1)).help("replace it by spaces, or remove it"));
        }
        other.get_or_insert_with(|| source.at(at..at + 1));
    }
    if let Some(at) = other {
        let message = "a tab between values, which accelerate's YAML reader refuses";
        findings.push(Diagnostic::error(TAB, message).at(at).help("replace it by a space"));
    }
    Ok(())
}
