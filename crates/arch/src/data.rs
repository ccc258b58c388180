//! The embedded data, inflated once: one line a module class, found by name.

use std::sync::OnceLock;

use serde_json::Value;

/// A text of lines, each a name and JSON apart by a tab, sorted by name.
#[derive(Debug)]
pub struct Data {
    text: String,
    /// Start, end of the name, end of each line.
    lines: Vec<(usize, usize, usize)>,
}

impl Data {
    /// What was made from the newest transformers.
    pub fn embedded() -> &'static Self {
        static DATA: OnceLock<Data> = OnceLock::new();
        DATA.get_or_init(|| {
            Self::inflate(include_bytes!(concat!(env!("OUT_DIR"), "/transformers.z")), env!("SHARDWRIGHT_ARCH_BYTES_TRANSFORMERS"))
        })
    }

    /// What was made from the last transformers before 5, whose classes differ.
    fn before_5() -> &'static Self {
        static DATA: OnceLock<Data> = OnceLock::new();
        DATA.get_or_init(|| {
            Self::inflate(include_bytes!(concat!(env!("OUT_DIR"), "/transformers-4.z")), env!("SHARDWRIGHT_ARCH_BYTES_TRANSFORMERS_4"))
        })
    }

    /// The data for a version of transformers, by its first part.
    pub fn of(major: u32) -> &'static Self {
        if major < 5 { Self::before_5() } else { Self::embedded() }
    }

    fn inflate(packed: &[u8], bytes: &str) -> Self {
        let text = miniz_oxide::inflate::decompress_to_vec_with_limit(packed, bytes.parse().unwrap_or(usize::MAX)).unwrap_or_default();
        Self::new(String::from_utf8(text).unwrap_or_default())
    }

    fn new(text: String) -> Self {
        let mut lines = Vec::new();
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            let end = at + line.trim_end_matches('\n').len();
            lines.push((at, at + line.find('\t').unwrap_or(end - at), end));
            at += line.len();
        }
        Self { text, lines }
    }

    fn find(&self, mark: &str, name: &str) -> Option<usize> {
        let want = mark.bytes().chain(name.bytes());
        let found = self.lines.binary_search_by(|&(start, end, _)| self.text.as_bytes()[start..end].iter().copied().cmp(want.clone()));
        found.ok()
    }

    /// The line of that mark and name.
    pub fn get(&self, mark: &str, name: &str) -> Option<Value> {
        let (_, end, stop) = self.lines[self.find(mark, name)?];
        serde_json::from_str(self.text.get(end + 1..stop)?).ok()
    }

    /// Whether there is such a line.
    pub fn has(&self, mark: &str, name: &str) -> bool {
        self.find(mark, name).is_some()
    }

    /// The names of all lines with that mark.
    pub fn names<'d>(&'d self, mark: &'d str) -> impl Iterator<Item = &'d str> {
        self.lines.iter().filter_map(move |&(start, end, _)| self.text[start..end].strip_prefix(mark))
    }

    /// The version of transformers that it was made from.
    pub fn version(&self) -> String {
        self.get("%", "version").and_then(|v| v["transformers"].as_str().map(str::to_owned)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_lines_are_sorted_and_found() {
        for (major, version) in [(5, "5."), (4, "4.")] {
            let data = Data::of(major);
            assert!(data.lines.len() > 1000);
            assert!(data.lines.windows(2).all(|w| data.text[w[0].0..w[0].1] < data.text[w[1].0..w[1].1]));
            assert_eq!(data.get(":", "llama").unwrap()["llm"], "LlamaForCausalLM");
            assert!(data.version().starts_with(version), "{}", data.version());
        }
    }
}
