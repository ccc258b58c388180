//! Standard output and the files that commands write for people and programs. Shards are the engine's.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufReader, Read as _, Write},
    path::{Path, PathBuf},
};

use serde::de::IgnoredAny;
use shardwright_core::text::harmless;

use crate::exit::{Exit, Failure};

/// How every page begins.
pub const PAGE_MARK: &str = "<!doctype html><!-- shardwright -->";

/// A file that a command may write anew. Anything else that lies there is somebody's.
#[derive(Clone, Copy, Debug)]
pub enum Written {
    /// `load --report`.
    Report,
    /// `resolve --lock`.
    Lock,
    /// `plan --format json --out`.
    Plan,
    /// A page, or a table.
    Page,
}

impl Written {
    /// Keys that an earlier one has, however somebody has formatted it since, and no other file.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Report => &["strategy", "totals"],
            Self::Lock => &["lock", "values"],
            Self::Plan => &["schema", "worlds"],
            Self::Page => &[],
        }
    }

    /// Refuses to replace what is not an earlier one of its kind.
    fn may_replace(self, file: &Path) -> Result<(), Failure> {
        let open = match File::open(file) {
            Ok(open) => open,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Failure::output(file.display(), &e)),
        };
        let is_empty = open.metadata().is_ok_and(|m| m.len() == 0);
        if let Self::Page = self {
            let mut start = Vec::new();
            let read = open.take(PAGE_MARK.len() as u64).read_to_end(&mut start);
            if is_empty || (read.is_ok() && start == PAGE_MARK.as_bytes()) {
                return Ok(());
            }
            let why = "exists already and is not a page of shardwright's: it is not overwritten";
            return Err(Failure::new(Exit::Io, format_args!("{} {why}", file.display())));
        }
        let found: Result<BTreeMap<String, IgnoredAny>, _> = serde_json::from_reader(BufReader::new(open));
        if is_empty || found.is_ok_and(|found| self.keys().iter().all(|key| found.contains_key(*key))) {
            return Ok(());
        }
        let kind = format!("{self:?}").to_lowercase();
        Err(Failure::new(Exit::Io, format_args!("{} exists already and is not a {kind}: it is not overwritten", file.display())))
    }
}

/// Prints to standard output, JSON or a table, made harmless to a terminal. A reader that went away is no failure: it has seen enough.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(harmless(text).as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::output("to standard output", &e)),
        _ => Ok(()),
    }
}

/// Prints a value as JSON.
pub fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(value).map_err(|e| Failure::new(Exit::Io, format_args!("cannot render: {e}")))?;
    print(&format!("{json}\n"))
}

/// Says something beside the result, on standard error, which may be closed.
pub fn print_note(text: &str) {
    drop(writeln!(io::stderr(), "{}", harmless(text.trim_end())));
}

/// The last line for people: what to do next. On standard error, so that results stay as they are for programs.
pub fn print_next(step: &str) {
    print_note(&format!("next: {step}"));
}

/// Refuses early what [`write_whole`] would refuse: a directory, a pipe, a place where no file can be made, another's file.
pub fn check_writable(file: &Path, what: Written) -> Result<(), Failure> {
    check_regular(file)?;
    what.may_replace(file)?;
    let made = File::create(temporary(file)).and_then(|_| fs::remove_file(temporary(file)));
    made.map_err(|e| Failure::output(file.display(), &e))
}

/// Refuses what is there and is not a regular file: opening a pipe would wait for a reader, and a device keeps nothing.
fn check_regular(file: &Path) -> Result<(), Failure> {
    match fs::metadata(file) {
        Ok(meta) if meta.is_dir() => Err(Failure::output(file.display(), &io::ErrorKind::IsADirectory.into())),
        Ok(meta) if !meta.is_file() => {
            let what = "not a regular file; --format json prints to standard output";
            Err(Failure::new(Exit::Io, format_args!("cannot write {}: {what}", file.display())))
        }
        _ => Ok(()),
    }
}

fn temporary(file: &Path) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    file.with_file_name(name)
}

/// Writes a file whole or not at all: under a temporary name beside it, then renamed. Only a regular file is replaced.
pub fn write_whole(file: &Path, text: &str, what: Written) -> Result<(), Failure> {
    let failed = |e: io::Error| Failure::output(file.display(), &e);
    check_regular(file)?;
    what.may_replace(file)?;
    let temporary = temporary(file);
    let written = File::create(&temporary)
        .and_then(|mut f| f.write_all(text.as_bytes()).and_then(|()| f.sync_all()))
        .and_then(|()| fs::rename(&temporary, file));
    written.map_err(|e| {
        drop(fs::remove_file(&temporary));
        failed(e)
    })
}
