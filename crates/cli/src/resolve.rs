//! `shardwright resolve`: shows, explains, locks and checks what configs mean. What they mean is decided in `shardwright_config`.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
};

use serde_json::{Value as Json, json};
use shardwright_config::{
    Outcome, Resolved,
    output::{Difference, flat, origin_in_short},
};
use shardwright_core::diagnostic::Diagnostic;
use shardwright_engine::{
    EngineError, ErrorKind, World, WorldFlags,
    setup::{self, Setup},
};

use crate::{
    args::{ResolveArgs, ResolveFormat},
    exit::{Exit, Failure},
    output::{Written, print, print_next, print_note, write_whole},
    plugins::Plugins,
    render,
    table::{self, Align},
    yaml,
};

/// Runs the command.
pub fn run(args: &ResolveArgs, plugins: Plugins) -> Result<Exit, Failure> {
    let (configs, overrides) = arguments(args)?;
    let world = World::from_process(WorldFlags { rank: None, world_size: args.world_size })?;
    let registry = plugins().map_err(|d| render::failure(&[d], &[]))?;
    for path in args.lock.iter().chain(&args.check) {
        distinct_locks(path, &configs)?;
    }
    let mut worst = Exit::Done;
    let mut documents = Vec::new();
    for config in &configs {
        let exit = match setup::resolve(config, &overrides, &world, &registry) {
            Ok(mut setup) => {
                setup.describe_model();
                setup.check_start(config, is_quiet(args));
                one(args, config, configs.len() > 1, &setup, &mut documents)?
            }
            // One that cannot be read does not hide what the others say.
            Err(error) => unreadable(args, config, &error, &mut documents)?,
        };
        if exit != Exit::Done && worst != Exit::Config {
            worst = exit;
        }
    }
    if args.format == ResolveFormat::Json && !documents.is_empty() {
        let document = if configs.len() == 1 { documents.remove(0).1 } else { documents.into_iter().collect() };
        print(&pretty(&document)?)?;
    }
    if let (Exit::Done, Some(step)) = (worst, next_step(args, &configs)) {
        print_next(&step);
    }
    Ok(worst)
}

/// What to do after a resolution that went well, and was shown to people or locked.
fn next_step(args: &ResolveArgs, configs: &[PathBuf]) -> Option<String> {
    let config = configs.first()?.display();
    if let Some(lock) = &args.lock {
        return Some(format!("in CI, shardwright resolve {config} --check {} fails if a value changes", lock.display()));
    }
    let is_shown = args.format == ResolveFormat::Table && args.check.is_none() && args.explain.is_none();
    is_shown.then(|| format!("shardwright load {config} loads it as it will run; resolve --lock FILE keeps these values for CI"))
}

/// What has an equals sign and is no file is an override.
fn arguments(args: &ResolveArgs) -> Result<(Vec<PathBuf>, Vec<String>), Failure> {
    let (overrides, configs): (Vec<String>, Vec<String>) =
        args.configs.iter().cloned().partition(|a| a.contains('=') && !Path::new(a).exists());
    if configs.is_empty() {
        return Err(Failure::new(Exit::Usage, "no CONFIG is given, only overrides"));
    }
    Ok((configs.into_iter().map(PathBuf::from).collect(), overrides))
}

fn one(args: &ResolveArgs, config: &Path, several: bool, setup: &Setup, documents: &mut Vec<(String, Json)>) -> Result<Exit, Failure> {
    let outcome = &setup.outcome;
    if args.format == ResolveFormat::Json && !is_quiet(args) {
        documents.push((config.display().to_string(), outcome.to_json()));
    } else {
        render::warn(&outcome.diagnostics, &outcome.sources);
    }
    let Some(resolved) = &outcome.resolved else { return Ok(Exit::Config) };
    if let Some(key) = &args.explain {
        let text = resolved.explain(key).map_err(|d| Failure { exit: Exit::Usage, ..render::failure(&[d], &[]) })?;
        print(&text)?;
    } else if let Some(lock) = &args.lock {
        write_whole(&lock_file(lock, config, several, true)?, &pretty(&resolved.lock())?, Written::Lock)?;
    } else if let Some(lock) = &args.check {
        return check(&lock_file(lock, config, several, false)?, config, setup, resolved);
    } else if args.format != ResolveFormat::Json {
        if several {
            print(&format!("# {}\n", config.display()))?;
        }
        print(&shown(args.format, outcome, resolved)?)?;
    }
    Ok(Exit::Done)
}

/// Says, in the format that is asked for, that there is no such config.
fn unreadable(args: &ResolveArgs, config: &Path, error: &EngineError, documents: &mut Vec<(String, Json)>) -> Result<Exit, Failure> {
    if error.kind() != ErrorKind::Config {
        return Err(Failure::new(error.kind().into(), error));
    }
    if args.format == ResolveFormat::Json && !is_quiet(args) {
        let found = Diagnostic::error("file-unreadable", error.to_string());
        documents.push((config.display().to_string(), json!({"errors": [flat(&found)], "warnings": []})));
    } else {
        // A closed standard error leaves the exit code.
        drop(writeln!(std::io::stderr(), "{}", Failure::new(Exit::Config, error).text));
    }
    Ok(Exit::Config)
}

/// True where no resolution is printed.
fn is_quiet(args: &ResolveArgs) -> bool {
    args.lock.is_some() || args.check.is_some() || args.explain.is_some()
}

fn shown(format: ResolveFormat, outcome: &Outcome, resolved: &Resolved) -> Result<String, Failure> {
    match format {
        ResolveFormat::Table => Ok(people(resolved)),
        _ => {
            let mut document = outcome.to_json();
            if let Json::Object(map) = &mut document {
                // Provenance and warnings speak of the source; what can be resolved again is the rest.
                map.remove("provenance");
                map.remove("warnings");
            }
            Ok(yaml::render(&document))
        }
    }
}

fn pretty(document: &Json) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(document);
    text.map(|t| t + "\n").map_err(|e| Failure::new(Exit::Io, format_args!("cannot render JSON: {e}")))
}

/// Every value that is set or decided, and how many are left at their defaults.
fn people(resolved: &Resolved) -> String {
    const SECTIONS_WITH_MANY_DEFAULTS: [&str; 3] = ["training", "deepspeed", "shardwright"];
    let mut rows = Vec::new();
    let mut defaults = 0;
    for (pointer, value, origin) in resolved.document.leaves() {
        let section = pointer[1..].split('/').next().unwrap_or_default();
        let from = origin_in_short(origin);
        if from == "default" && SECTIONS_WITH_MANY_DEFAULTS.contains(&section) {
            defaults += 1;
            continue;
        }
        if section == "model" && value.is_null() {
            continue;
        }
        rows.push(vec![pointer[1..].replace('/', "."), plain(value), from]);
    }
    let mut text = table::render(&[("key", Align::Left), ("value", Align::Left), ("from", Align::Left)], &rows);
    if defaults > 0 {
        text += &format!("and {defaults} keys at their defaults, which --format yaml lists\n");
    }
    for open in &resolved.unresolved {
        text += &format!("unresolved: {} needs {}\n", open.pointer[1..].replace('/', "."), open.needs);
    }
    text
}

fn plain(value: &Json) -> String {
    match value {
        Json::String(text) => text.replace('\n', " "),
        Json::Object(map) if map.is_empty() => "{}".into(),
        other => other.to_string(),
    }
}

/// Where the lock of a config lies: the path itself, or for several configs `NAME.lock` in that directory.
fn lock_file(path: &Path, config: &Path, several: bool, write: bool) -> Result<PathBuf, Failure> {
    if !several && !path.is_dir() {
        return Ok(path.to_owned());
    }
    if write {
        fs::create_dir_all(path).map_err(|e| Failure::output(path.display(), &e))?;
    }
    Ok(path.join(format!("{}.lock", lock_name(path, config))))
}

/// A config's path from the folder that the locks' directory is in, with dots: the same wherever the command is run.
fn lock_name(locks: &Path, config: &Path) -> String {
    let (locks, config) = (real(locks), real(config));
    let folder = locks.parent().unwrap_or(Path::new("/"));
    let shared = folder.components().zip(config.components()).take_while(|(a, b)| a == b).count();
    let own = config.with_extension("");
    let parts: Vec<_> = own.components().skip(shared).map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
    parts.join(".")
}

/// A path without links and `..`, as far as it is there.
fn real(path: &Path) -> PathBuf {
    if let Ok(path) = fs::canonicalize(path) {
        return path;
    }
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (whole.parent(), whole.file_name()) {
        (Some(folder), Some(name)) => real(folder).join(name),
        _ => whole,
    }
}

/// Refuses configs that would share a lock: the last one's would be all that is left.
fn distinct_locks(path: &Path, configs: &[PathBuf]) -> Result<(), Failure> {
    let mut seen: BTreeMap<PathBuf, &Path> = BTreeMap::new();
    for config in configs.iter().filter(|_| configs.len() > 1) {
        let lock = lock_file(path, config, true, false)?;
        if let Some(other) = seen.insert(lock.clone(), config) {
            let (one, two, lock) = (other.display(), config.display(), lock.display());
            return Err(Failure::new(
                Exit::Usage,
                format_args!("{one} and {two} would share the lock {lock}; give their paths relative to a common directory"),
            ));
        }
    }
    Ok(())
}

/// A lock is some ten KiB. What is cut off here is not valid JSON any more, and reported as such.
const MOST_LOCK: u64 = 16 << 20;

fn check(lock: &Path, config: &Path, setup: &Setup, resolved: &Resolved) -> Result<Exit, Failure> {
    let unreadable = |why: &dyn std::fmt::Display| Failure::new(Exit::Io, format_args!("cannot read {}: {why}", lock.display()));
    // Opening a pipe would wait for who writes to it.
    if fs::metadata(lock).is_ok_and(|meta| !meta.is_file()) {
        return Err(unreadable(&"not a regular file"));
    }
    let mut text = String::new();
    let read = fs::File::open(lock).and_then(|file| file.take(MOST_LOCK).read_to_string(&mut text));
    read.map_err(|e| unreadable(&e))?;
    let comparison = resolved.compare(&text).map_err(|why| Failure::new(Exit::Config, format_args!("{}: {why}", lock.display())))?;
    let mut differences = comparison.differences;
    if let Err(why) = &setup.model {
        // What follows from the model's config.json cannot be compared without it.
        let before = differences.len();
        let open = |pointer: &str| resolved.unresolved.iter().any(|u| u.pointer == pointer);
        differences.retain(|d| !d.pointer.starts_with("/model/") && !open(&d.pointer));
        let left = before - differences.len();
        if left > 0 {
            print_note(&format!(
                "warning: {}: the model is not at hand, so that {left} of the values in {} are not checked: {why}",
                config.display(),
                lock.display()
            ));
        }
    }
    if differences.is_empty() {
        return Ok(Exit::Done);
    }
    let mut out = match &comparison.other_version {
        None => format!("{} is not as {} says:\n", config.display(), lock.display()),
        Some(version) => format!(
            "{} was made by another version of shardwright ({version}; this is {}), and these values differ; if they are right, make it \
             again with --lock:\n",
            lock.display(),
            shardwright_core::VERSION
        ),
    };
    differences.iter().for_each(|d| out += &difference(d));
    print(&out)?;
    Ok(Exit::Drift)
}

fn difference(d: &Difference) -> String {
    let line = |sign: char, side: &Option<(Json, String)>| match side {
        Some((value, from)) => format!("    {sign} {}  ({from})\n", plain(value)),
        None => format!("    {sign} (not there)\n"),
    };
    format!("  {}\n{}{}", d.pointer[1..].replace('/', "."), line('-', &d.then), line('+', &d.now))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn configs_that_would_share_a_lock_are_refused() {
        let shared = distinct_locks(Path::new("locks"), &["a/train.yaml".into(), "a.train.yaml".into()]).unwrap_err();
        assert_eq!(shared.exit, Exit::Usage);
        assert!(["a/train.yaml", "a.train.yaml", "locks/a.train.lock"].iter().all(|n| shared.text.contains(n)), "{}", shared.text);
        assert!(distinct_locks(Path::new("locks"), &["a/train.yaml".into(), "b/train.yaml".into()]).is_ok());
        assert!(distinct_locks(Path::new("lock"), &["/a/train.yaml".into()]).is_ok());
    }

    #[test]
    fn locks_of_several_configs_have_names_of_their_own() {
        let names: BTreeSet<PathBuf> = ["a/train.yaml", "b/train.yaml", "train.yaml", "./c.yml"]
            .iter()
            .map(|c| lock_file(Path::new("locks"), Path::new(c), true, false).unwrap())
            .collect();
        let names: Vec<String> = names.iter().map(|p| p.display().to_string()).collect();
        assert_eq!(names, ["locks/a.train.lock", "locks/b.train.lock", "locks/c.lock", "locks/train.lock"]);
        // However it is written.
        let here = std::env::current_dir().unwrap();
        let name = |config: PathBuf| lock_file(&here.join("locks"), &config, true, false).unwrap();
        assert_eq!(name(here.join("a/train.yaml")), here.join("locks/a.train.lock"));
        assert_eq!(name("a/train.yaml".into()), here.join("locks/a.train.lock"));
    }
}
