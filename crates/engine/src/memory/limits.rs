//! How much memory this process may still take: the machine's, and every control group's above it.

use std::path::{Path, PathBuf};

/// Memory that can still be had, and who sets the bound.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Available {
    /// Bytes.
    pub bytes: u64,
    /// Such as `MemAvailable` or the path of a control group.
    pub bound: String,
    /// Bytes that there would be if nobody used any: what all processes under this bound can have together.
    pub total: u64,
}

#[cfg(test)]
impl Available {
    pub(crate) fn for_test(bytes: u64, bound: &str) -> Self {
        Self { bytes, bound: bound.into(), total: bytes }
    }
}

/// The bound with the least left that the system states; `None` where it states none.
pub fn available() -> Option<Available> {
    bounds().into_iter().min_by_key(|a| a.bytes)
}

/// Every bound that the system states: the machine's, and those of this process's control groups.
pub(crate) fn bounds() -> Vec<Available> {
    bounds_under(Path::new("/"))
}

/// As [`bounds`], of the file tree under `root`.
fn bounds_under(root: &Path) -> Vec<Available> {
    let machine = read(&root.join("proc/meminfo")).and_then(|text| {
        let bytes = |name: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(name))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        let available = bytes("MemAvailable:")?;
        Some(Available { bytes: available, bound: "MemAvailable".into(), total: bytes("MemTotal:").unwrap_or(u64::MAX) })
    });
    machine.into_iter().chain(groups(root).iter().filter_map(Group::left)).collect()
}

/// A control group: where its files are, and their names by version.
struct Group {
    dir: PathBuf,
    limit: &'static str,
    usage: &'static str,
    cache: &'static str,
}

impl Group {
    /// What is left below the limit; page cache can be reclaimed and does not count as used.
    fn left(&self) -> Option<Available> {
        let number = |name: &str| read(&self.dir.join(name))?.trim().parse::<u64>().ok();
        let limit = number(self.limit)?; // "max" is not a number: no limit
        let used = number(self.usage)?;
        let stat = read(&self.dir.join("memory.stat")).unwrap_or_default();
        let cache = stat.lines().find_map(|l| l.strip_prefix(self.cache)?.trim().parse::<u64>().ok()).unwrap_or(0);
        let bytes = limit.saturating_sub(used.saturating_sub(cache));
        Some(Available { bytes, bound: format!("{} of {}", self.limit, self.dir.display()), total: limit })
    }
}

/// This process's group and all above it, in version 2 and in version 1.
fn groups(root: &Path) -> Vec<Group> {
    let mut groups = Vec::new();
    for line in read(&root.join("proc/self/cgroup")).unwrap_or_default().lines() {
        let mut parts = line.splitn(3, ':');
        let (_, Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (base, limit, usage, cache) = if controllers.is_empty() {
            ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file ")
        } else if controllers.split(',').any(|c| c == "memory") {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
        } else {
            continue;
        };
        let top = root.join(base);
        let own = top.join(path.trim_start_matches('/'));
        groups.extend(own.ancestors().take_while(|a| a.starts_with(&top)).map(|a| Group { dir: a.to_owned(), limit, usage, cache }));
    }
    groups
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::TempDir::new().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    fn available_under(root: &Path) -> Option<Available> {
        bounds_under(root).into_iter().min_by_key(|a| a.bytes)
    }

    #[test]
    fn the_tightest_bound_wins() {
        let meminfo = ("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    4000 kB\n");
        let machine = tree(&[meminfo]);
        let found = Available { bytes: 4000 * 1024, bound: "MemAvailable".into(), total: 9000 * 1024 };
        assert_eq!(bounds_under(machine.path()), [found]);

        let v2 = tree(&[
            meminfo,
            ("proc/self/cgroup", "0::/job/step\n"),
            ("sys/fs/cgroup/job/memory.max", "2000000\n"),
            ("sys/fs/cgroup/job/memory.current", "1500000\n"),
            ("sys/fs/cgroup/job/memory.stat", "anon 1\ninactive_file 400000\n"),
            ("sys/fs/cgroup/job/step/memory.max", "max\n"),
            ("sys/fs/cgroup/job/step/memory.current", "1\n"),
        ]);
        let found = available_under(v2.path()).unwrap();
        assert_eq!((found.bytes, found.total), (900_000, 2_000_000));
        assert!(found.bound.contains("memory.max") && found.bound.ends_with("job"), "{}", found.bound);

        let v1 = tree(&[
            meminfo,
            ("proc/self/cgroup", "5:cpu:/x\n4:hugetlb,memory:/job\n"),
            ("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "1000000"),
            ("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "900000"),
        ]);
        assert_eq!(available_under(v1.path()).unwrap().bytes, 100_000);
        assert_eq!(bounds_under(tree(&[]).path()), []);
    }
}
