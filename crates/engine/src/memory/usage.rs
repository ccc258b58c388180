//! What the operating system says this process uses.

/// Memory of this process in bytes, as `/proc/self/status` counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProcessMemory {
    /// The largest resident size so far (`VmHWM`).
    pub peak: u64,
    /// The resident size (`VmRSS`).
    pub resident: u64,
    /// The anonymous part of it (`RssAnon`): page cache left out.
    pub anonymous: u64,
}

/// Asks the operating system; `None` where it does not say.
pub fn process_memory() -> Option<ProcessMemory> {
    parse(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn parse(status: &str) -> Option<ProcessMemory> {
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(ProcessMemory { peak: field("VmHWM:")?, resident: field("VmRSS:")?, anonymous: field("RssAnon:")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_found() {
        let text = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\nRssAnon:\t     512 kB\n";
        assert_eq!(parse(text), Some(ProcessMemory { peak: 2 << 20, resident: 1 << 20, anonymous: 1 << 19 }));
        assert_eq!(parse("VmHWM: lots"), None);
    }
}
