//! The nearest known word to a mistyped one.

/// The candidate nearest to `word`, if one is near enough to be meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(&word, &c.to_lowercase()), c))
        .filter(|(distance, c)| {
            let shorter = word.chars().count().min(c.chars().count());
            // Of one letter, another letter is no misspelling.
            *distance <= 1 + shorter / 4 && (*distance < shorter || *distance == 0)
        })
        .min()
        .map(|(_, c)| c)
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
}
