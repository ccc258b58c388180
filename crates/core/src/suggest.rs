//! The nearest known word to a mistyped one.

/// Characters of a word at most: what is longer was not typed, and comparing takes the product of both lengths.
const LONGEST: usize = 256;

/// The candidate nearest to `word`, if one is near enough to be meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let length = word.chars().count();
    if length > LONGEST {
        return None;
    }
    let near = |c: &'a str| {
        let other = c.chars().count();
        let shorter = length.min(other);
        let most = 1 + shorter / 4;
        if length.abs_diff(other) > most {
            return None; // it takes so many insertions alone
        }
        let distance = strsim::damerau_levenshtein(&word, &c.to_lowercase());
        // Of one letter, another letter is no misspelling.
        // Of equally near ones, what the word is the beginning of was meant.
        (distance <= most && (distance < shorter || distance == 0)).then(|| (distance, !c.to_lowercase().starts_with(&word), c))
    };
    candidates.into_iter().filter_map(near).min().map(|(_, _, c)| c)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn only_near_words_are_suggested() {
        assert_eq!(nearest("reshard_after_foward", ["offload_params", "reshard_after_forward"]), Some("reshard_after_forward"));
        assert_eq!(nearest("fspd2", ["fsdp2", "zero3"]), Some("fsdp2"));
        assert_eq!(nearest("a", ["r"]), None);
        assert_eq!(nearest("R", ["r"]), Some("r"));
        assert_eq!(nearest("banana", ["fsdp2", "zero3"]), None);
    }

    /// Compared letter by letter, these would take days and terabytes.
    #[test]
    fn what_nobody_typed_is_not_compared() {
        let (long, longer) = ("z".repeat(1 << 20), "z".repeat((1 << 20) + 1));
        assert_eq!(nearest(&long, [longer.as_str(), "z"]), None);
        assert_eq!(nearest("zero3", [long.as_str(), "zero2"]), Some("zero2"));
    }
}
