//! transformers' renames: from a checkpoint's name to the model's, and to the converter that takes part.

use serde_json::Value;

use crate::{
    ops::Op,
    regex::{Captures, Regex, RegexError},
};

/// One transform of the tables, in the scope of the sub-model that it is registered for.
#[derive(Clone, Debug)]
pub struct Transform {
    kind: Kind,
    regex: Regex,
    /// The groups `gN` of the regex: number of the group, index of the source pattern.
    branches: Vec<(usize, usize)>,
    /// Patterns of what is taken.
    pub sources: Vec<String>,
    /// Patterns of what is made.
    pub targets: Vec<String>,
    /// Prefixes of which one has to be there and is left alone.
    scope: Option<[String; 2]>,
    /// A group of renames: its first has matched.
    active: bool,
    /// What it does to numbers does not depend on them.
    plain: bool,
}

#[derive(Clone, Debug)]
enum Kind {
    Rename,
    /// A prefix that some files have and others do not.
    Prefix,
    /// Paired renames, which start once the first of them has matched.
    Group,
    /// Moves the captured number.
    Offset(i64),
    /// Two blocks of a checkpoint are one layer.
    Pairs,
    /// As `re.sub` of one match, with every group; where it is exclusive, no other such follows one that matched.
    Substitute {
        exclusive: bool,
    },
    Convert(Vec<Op>),
}

impl Transform {
    /// From a row of the data: `[kind, regex, sources, targets, more]`.
    ///
    /// # Errors
    /// A regular expression that is not supported.
    pub fn new(row: &Value) -> Result<Self, RegexError> {
        let texts = |v: &Value| v.as_array().map(|a| a.iter().filter_map(Value::as_str).map(str::to_owned).collect()).unwrap_or_default();
        let regex = Regex::new(row[1].as_str().unwrap_or_default())?;
        let kind = match row[0].as_str().unwrap_or_default() {
            "WeightConverter" => Kind::Convert(row[4]["ops"].as_array().map(|ops| ops.iter().map(Op::new).collect()).unwrap_or_default()),
            "GroupWeightRename" => Kind::Group,
            "PrefixChange" => Kind::Prefix,
            "LayerPairCollapse" => Kind::Pairs,
            "First" => Kind::Substitute { exclusive: true },
            "Substitute" => Kind::Substitute { exclusive: false },
            _ => row[4]["offset"].as_i64().map_or(Kind::Rename, Kind::Offset),
        };
        let branches = regex.names.iter().filter_map(|(name, group)| Some((*group, name.strip_prefix('g')?.parse().ok()?))).collect();
        let sources: Vec<String> = texts(&row[2]);
        let digits = |p: &String| p.replace("\\d", "").bytes().any(|b| b.is_ascii_digit());
        let plain = matches!(kind, Kind::Rename | Kind::Prefix | Kind::Convert(_) | Kind::Substitute { .. }) && !sources.iter().any(digits);
        Ok(Self { kind, regex, branches, sources, targets: texts(&row[3]), scope: None, active: false, plain })
    }

    /// Limits it to names under a sub-model, whose path has the base model's prefix or not.
    pub fn scoped(mut self, base: &str, scope: &str) -> Self {
        let dot = |s: &str| if s.is_empty() { String::new() } else { format!("{s}.") };
        self.scope = Some([dot(base) + &dot(scope), dot(scope)]);
        self
    }

    /// Whether it puts one text in another's place, and no more.
    pub fn is_rename(&self) -> bool {
        matches!(self.kind, Kind::Rename)
    }

    /// Whether it takes away a prefix that some files have and others do not.
    pub fn is_prefix(&self) -> bool {
        matches!(self.kind, Kind::Prefix)
    }

    /// Whether it puts several texts, each in another's place.
    pub fn is_group(&self) -> bool {
        matches!(self.kind, Kind::Group)
    }

    /// The operations of a converter.
    pub fn operations(&self) -> Option<&[Op]> {
        match &self.kind {
            Kind::Convert(ops) => Some(ops),
            _ => None,
        }
    }

    /// The new name, and which source pattern matched.
    fn rename(&mut self, name: &str) -> Option<(String, usize)> {
        let prefix = match &self.scope {
            None => "",
            Some(prefixes) => prefixes.iter().find(|p| name.starts_with(p.as_str()))?,
        };
        let rest = &name[prefix.len()..];
        let found = self.regex.search(rest)?;
        let (start, end) = found.first().copied().flatten()?;
        let whole = &rest[start..end];
        if let Kind::Pairs = self.kind {
            let index: u64 = group(rest, &found, 1)?.parse().ok()?;
            let part = match group(rest, &found, 2)? {
                "attn_alpha" => "lambda_1",
                "mlp_alpha" => "lambda_2",
                _ if index.is_multiple_of(2) => "self_attn",
                _ => "mlp",
            };
            return Some((format!("{prefix}{}layers.{}.{part}{}", &rest[..start], index / 2, &rest[end..]), 0));
        }
        if let Kind::Substitute { .. } = self.kind {
            let mut text = self.targets.first()?.clone();
            for n in 1..=9 {
                let mark = format!("\\{n}");
                if text.contains(&mark) {
                    text = text.replace(&mark, group(rest, &found, n + 1).unwrap_or_default());
                }
            }
            return Some((format!("{prefix}{}{text}{}", &rest[..start], &rest[end..]), 0));
        }
        let &(number, source) = self.branches.iter().find(|(number, _)| found.get(*number).is_some_and(Option::is_some))?;
        let replacement = match &self.kind {
            Kind::Group => {
                if source == 0 {
                    self.active = true;
                } else if !self.active {
                    return None;
                }
                let mut text = self.targets.get(source)?.clone();
                for n in 1..=9 {
                    if let Some(value) = group(rest, &found, number + n) {
                        text = text.replace(&format!("\\{n}"), value);
                    }
                }
                text
            }
            Kind::Offset(by) => {
                let index: i64 = group(rest, &found, number + 1)?.parse().ok()?;
                self.targets.first()?.replace("\\1", &index.checked_add(*by)?.to_string())
            }
            _ => {
                let target = self.targets.first()?;
                if target.contains("\\1") { target.replace("\\1", group(rest, &found, number + 1)?) } else { target.clone() }
            }
        };
        // As `str.replace(…, 1)`: the first place that has the text, which need not be where it matched.
        let renamed = if whole.is_empty() { format!("{replacement}{rest}") } else { rest.replacen(whole, &replacement, 1) };
        Some((format!("{prefix}{renamed}"), source))
    }
}

fn group<'t>(text: &'t str, captures: &Captures, number: usize) -> Option<&'t str> {
    captures.get(number).copied().flatten().map(|(a, b)| &text[a..b])
}

/// All transforms of a model, in order.
#[derive(Clone, Debug, Default)]
pub struct Renamer {
    renames: Vec<Transform>,
    /// Converters.
    pub converters: Vec<Transform>,
}

/// A converter that takes part: its index, and that of its source pattern.
pub type Taken = Option<(usize, usize)>;

impl Renamer {
    /// Sorts transforms into renames and converters.
    pub fn new(all: Vec<Transform>) -> Self {
        let (converters, renames) = all.into_iter().partition(|t| matches!(t.kind, Kind::Convert(_)));
        Self { renames, converters }
    }

    /// Whether what happens to a name does not depend on the numbers in it, nor on the names before it.
    pub fn is_plain(&self) -> bool {
        self.renames.iter().chain(&self.converters).all(|t| t.plain)
    }

    /// All renames in turn, then at most one converter.
    pub fn rename(&mut self, name: &str) -> (String, Taken) {
        let mut name = name.to_owned();
        let mut mapped = false;
        for transform in &mut self.renames {
            let exclusive = matches!(transform.kind, Kind::Substitute { exclusive: true });
            if exclusive && mapped {
                continue;
            }
            if let Some((renamed, _)) = transform.rename(&name) {
                name = renamed;
                mapped |= exclusive;
            }
        }
        let found = self.converters.iter_mut().enumerate().find_map(|(i, c)| c.rename(&name).map(|(renamed, source)| (i, renamed, source)));
        if let Some((index, renamed, source)) = found {
            // Of converters that share a pattern, transformers keeps the last.
            let pattern = &self.converters[index].sources[source];
            let with = |c: &Transform| c.sources.iter().position(|s| s == pattern);
            let last = self.converters.iter().enumerate().rev().find_map(|(i, c)| Some((i, with(c)?)));
            return (renamed, last.or(Some((index, source))));
        }
        (name, None)
    }
}

/// The base model's prefix put on or taken off, where that makes a name of the model's.
pub fn with_prefix(name: String, base: &str, known: impl Fn(&str) -> bool) -> String {
    // As `re.sub(f"^{prefix}.", "")`: the prefix and any one character.
    if let Some(rest) = name.strip_prefix(base)
        && let Some((at, _)) = rest.char_indices().nth(1).or((rest.chars().count() == 1).then_some((rest.len(), ' ')))
        && known(&rest[at..])
    {
        return rest[at..].to_owned();
    }
    let longer = format!("{base}.{name}");
    if known(&longer) { longer } else { name }
}

/// The order in which transformers takes names: parts that are numbers by value, numbers at the end of a part too.
pub fn natural_order(a: &str, b: &str) -> std::cmp::Ordering {
    fn key(part: &str) -> (bool, &str, Option<u128>) {
        if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) {
            return (false, "", part.parse().ok());
        }
        let text = part.trim_end_matches(|c: char| c.is_ascii_digit());
        (true, text, part[text.len()..].parse().ok())
    }
    a.split('.').map(key).cmp(b.split('.').map(key))
}

/// Sorts by [`natural_order`] of the names.
pub fn sort_naturally<'n, T>(items: &mut [T], name: impl Fn(&T) -> &'n str) {
    let Some(first) = items.first() else { return };
    // Parts that all names begin with are equal: of a stack's experts, all before their number.
    let first = name(first).as_bytes();
    let same = |other: &[u8]| first.iter().zip(other).take_while(|(a, b)| a == b).count();
    let same = items.iter().map(|item| same(name(item).as_bytes())).min().unwrap_or(0);
    let start = first[..same].iter().rposition(|&b| b == b'.').map_or(0, |dot| dot + 1);
    items.sort_by(|a, b| natural_order(&name(a)[start..], &name(b)[start..]));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn transform(row: &Value) -> Transform {
        Transform::new(row).unwrap()
    }

    #[test]
    fn names_change_as_in_transformers() {
        let prefix =
            json!(["PrefixChange", r"(?P<g0>^model\.(?:(?!language_model\.))(.+))", [r"^model\.x"], [r"model.language_model.\1"], {}]);
        let mut t = transform(&prefix);
        assert_eq!(t.rename("model.layers.3.w").unwrap().0, "model.language_model.layers.3.w");
        assert_eq!(t.rename("model.language_model.w"), None);
        let mut t =
            transform(&json!(["Inkling2IndexOffsetWeightRename", r"(?P<g0>q\.(\d+))", [r"q\.(\d+)"], [r"layers.\1.q"], {"offset": 1}]));
        assert_eq!(t.rename("a.q.9.w").unwrap().0, "a.layers.10.q.w");
        let mut t = transform(&json!(["WeightRenaming", r"(?P<g0>norm(?!\w))", ["norm"], ["ln"], {}])).scoped("model", "vision");
        assert_eq!(t.rename("model.vision.norm.w").unwrap().0, "model.vision.ln.w");
        assert_eq!(t.rename("vision.norm.w").unwrap().0, "vision.ln.w");
        assert_eq!(t.rename("model.text.norm.w"), None);
    }

    #[test]
    fn a_group_waits_for_its_first() {
        let row = json!(["GroupWeightRename", r"(?P<g0>norm0(?!\w))|(?P<g1>norm1(?!\w))", ["norm0", "norm1"], ["norm1", "norm2"], {}]);
        let mut t = transform(&row);
        assert_eq!(t.rename("a.norm1.w"), None);
        assert_eq!(t.rename("a.norm0.w").unwrap().0, "a.norm1.w");
        assert_eq!(t.rename("a.norm1.w").unwrap().0, "a.norm2.w");
    }

    #[test]
    fn pairs_of_blocks_become_layers() {
        let row =
            json!(["LayerPairCollapse", r"layers\.(\d+)\.(mixer|attn_alpha|mlp_alpha)(?=\.|$)", [r"layers\.(\d+)"], [r"layers.\1"], {}]);
        let mut t = transform(&row);
        assert_eq!(t.rename("model.layers.3.mixer.up.w").unwrap().0, "model.layers.1.mlp.up.w");
        assert_eq!(t.rename("layers.2.attn_alpha").unwrap().0, "layers.1.lambda_1");
    }

    #[test]
    fn the_base_models_prefix_comes_and_goes() {
        let model = |n: &str| ["model.norm.weight", "lm_head.weight"].contains(&n);
        assert_eq!(with_prefix("norm.weight".into(), "model", model), "model.norm.weight");
        assert_eq!(with_prefix("lm_head.weight".into(), "model", model), "lm_head.weight");
        assert_eq!(with_prefix("model.norm.weight".into(), "model", |n| n == "norm.weight"), "norm.weight");
    }

    #[test]
    fn experts_are_taken_by_number() {
        let mut names = ["e.10.w1", "e.9.w1", "e.a.w", "e.9.w0", "shard_11", "shard_2"];
        names.sort_by(|a, b| natural_order(a, b));
        assert_eq!(names, ["e.9.w0", "e.9.w1", "e.10.w1", "e.a.w", "shard_2", "shard_11"]);
        names.reverse();
        sort_naturally(&mut names, |&name| name);
        assert_eq!(names, ["e.9.w0", "e.9.w1", "e.10.w1", "e.a.w", "shard_2", "shard_11"]);
        let mut names = ["m.e10.w", "m.e1.w", "m.e10", "m.e2.w", "m.e1"];
        sort_naturally(&mut names, |&name| name);
        assert_eq!(names, ["m.e1", "m.e1.w", "m.e2.w", "m.e10", "m.e10.w"]);
    }
}
