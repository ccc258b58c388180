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
use shardwright_core::{diagnostic::Diagnostic, registry::Registry};
use shardwright_engine::{EngineError, ErrorKind, World, WorldFlags, setup};

use crate::{
    args::{ResolveArgs, ResolveFormat},
    exit::{Exit, Failure},
    output::{Written, print, write_whole},
    render,
    table::{self, Align},
    yaml,
};

/// Runs the command.
pub fn run(args: &ResolveArgs) -> Result<Exit, Failure> {
    let (configs, overrides) = arguments(args)?;
    let world = World::from_process(WorldFlags { rank: None, world_size: args.world_size })?;
    let registry = Registry::linked().map_err(|d| render::failure(&[d], &[]))?;
    for path in args.lock.iter().chain(&args.check) {
        distinct_locks(path, &configs)?;
    }
    let mut worst = Exit::Done;
    let mut documents = Vec::new();
    for config in &configs {
        let exit = match setup::resolve(config, &overrides, &world, &registry) {
            Ok(setup) => one(args, config, configs.len() > 1, &setup.outcome, &mut documents)?,
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
    Ok(worst)
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

fn one(args: &ResolveArgs, config: &Path, several: bool, outcome: &Outcome, documents: &mut Vec<(String, Json)>) -> Result<Exit, Failure> {
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
        return check(&lock_file(lock, config, several, false)?, config, resolved);
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
    let parts: Vec<_> = config
        .with_extension("")
        .components()
        .filter_map(|c| match c {
            std::path::Component::Normal(part) => Some(part.to_string_lossy().into_owned()),
            _ => None,
        })
        .collect();
    let name = if config.is_absolute() { parts.last().cloned().unwrap_or_default() } else { parts.join(".") };
    Ok(path.join(format!("{name}.lock")))
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

/// A lock is some ten KiB. What is cut off here is no JSON any more, and told as such.
const MOST_LOCK: u64 = 16 << 20;

fn check(lock: &Path, config: &Path, resolved: &Resolved) -> Result<Exit, Failure> {
    let mut text = String::new();
    let read = fs::File::open(lock).and_then(|file| file.take(MOST_LOCK).read_to_string(&mut text));
    read.map_err(|e| Failure::new(Exit::Io, format_args!("cannot read {}: {e}", lock.display())))?;
    let differences = resolved.differences(&text).map_err(|why| Failure::new(Exit::Config, format_args!("{}: {why}", lock.display())))?;
    if differences.is_empty() {
        return Ok(Exit::Done);
    }
    let mut out = format!("{} is not as {} says:\n", config.display(), lock.display());
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
        let shared = distinct_locks(Path::new("locks"), &["/a/train.yaml".into(), "/b/train.yaml".into()]).unwrap_err();
        assert_eq!(shared.exit, Exit::Usage);
        assert!(["/a/train.yaml", "/b/train.yaml", "locks/train.lock"].iter().all(|n| shared.text.contains(n)), "{}", shared.text);
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
    }
}
