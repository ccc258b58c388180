//! Globs over tensor and module names: `*` crosses dots, `?` is one character, `{a,b}` and `[0-9]` as in a shell.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A set of globs. Empty matches nothing.
#[derive(Clone, Debug, Default)]
pub struct Globs {
    patterns: Vec<String>,
    set: Option<GlobSet>,
}

impl Globs {
    /// The empty set.
    pub const fn none() -> Self {
        Self { patterns: Vec::new(), set: None }
    }

    /// Compiles patterns.
    ///
    /// # Errors
    /// The pattern that is none, and why.
    pub fn new<S: Into<String>>(patterns: impl IntoIterator<Item = S>) -> Result<Self, String> {
        let patterns: Vec<String> = patterns.into_iter().map(Into::into).collect();
        let mut builder = GlobSetBuilder::new();
        for pattern in &patterns {
            builder.add(
                GlobBuilder::new(pattern)
                    .literal_separator(false)
                    .build()
                    .map_err(|e| format!("'{pattern}' is not a valid glob: {}", e.kind()))?,
            );
        }
        let set = builder.build().map_err(|e| e.to_string())?;
        Ok(Self { set: (!patterns.is_empty()).then_some(set), patterns })
    }

    /// True where there is no pattern.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// The patterns, as written.
    pub fn patterns(&self) -> &[String] {
        &self.patterns
    }

    /// The patterns that match none of the names, in order: one pass over the names for all patterns.
    #[doc(hidden)]
    pub fn unmatched<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Vec<&str> {
        let Some(set) = &self.set else { return Vec::new() };
        let mut matched = vec![false; self.patterns.len()];
        let mut left = matched.len();
        let mut indices = Vec::new();
        for name in names {
            if left == 0 {
                break;
            }
            set.matches_into(name, &mut indices);
            for at in indices.iter().copied() {
                if !std::mem::replace(&mut matched[at], true) {
                    left -= 1;
                }
            }
        }
        self.patterns.iter().zip(matched).filter(|(_, matched)| !matched).map(|(pattern, _)| pattern.as_str()).collect()
    }

    /// The first pattern that matches the whole name, by its index.
    #[doc(hidden)]
    pub fn first_match(&self, name: &str) -> Option<usize> {
        crate::steps::count(1);
        self.set.as_ref()?.matches(name).into_iter().min()
    }

    /// True where a pattern matches the whole name.
    pub fn matches(&self, name: &str) -> bool {
        crate::steps::count(1);
        self.set.as_ref().is_some_and(|set| set.is_match(name))
    }
}

impl PartialEq for Globs {
    fn eq(&self, other: &Self) -> bool {
        self.patterns == other.patterns
    }
}
impl Eq for Globs {}

impl Serialize for Globs {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.patterns.serialize(s)
    }
}

impl<'de> Deserialize<'de> for Globs {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::new(Vec::<String>::deserialize(d)?).map_err(D::Error::custom)
    }
}

impl schemars::JsonSchema for Globs {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Globs".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        generator.subschema_for::<Vec<String>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_crosses_dots_and_the_whole_name_counts() {
        let globs = Globs::new(["*.inv_freq", "model.layers.[0-9]"]).unwrap();
        assert!(globs.matches("model.rotary_emb.inv_freq"));
        assert!(globs.matches("model.layers.7"));
        assert!(!globs.matches("model.layers.7.mlp"));
        assert!(!Globs::none().matches(""));
        assert!(Globs::new(["a[b"]).unwrap_err().contains("'a[b'"));
    }
}
