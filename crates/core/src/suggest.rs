//! The nearest known word to a mistyped one.

/// Characters of a word at most: what is longer was not typed, and comparing takes the product of both lengths.
const LONGEST: usize = 256;

/// The candidate nearest to `word`, if one is near enough to be meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let length = characters(word);
    if length > LONGEST {
        return None;
    }
    let word = word.to_lowercase();
    let letters = Letters::of(&word);
    let near = |c: &'a str| {
        let other = characters(c);
        let shorter = length.min(other);
        let most = 1 + shorter / 4;
        // So many insertions, or so many other letters, are too many already: most candidates end here, without being compared.
        if length.abs_diff(other) > most || letters.least_distance(Letters::of(c)) > most {
            return None;
        }
        let candidate = c.to_lowercase();
        let distance = strsim::damerau_levenshtein(&word, &candidate);
        // Of one letter, another letter is no misspelling.
        // Of equally near ones, what the word is the beginning of was meant.
        (distance <= most && (distance < shorter || distance == 0)).then(|| (distance, !candidate.starts_with(&word), c))
    };
    candidates.into_iter().filter_map(near).min().map(|(_, _, c)| c)
}

fn characters(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.chars().count() }
}

/// Which letters a word has, in lower case, as a set of 64.
#[derive(Clone, Copy)]
struct Letters(u64);

impl Letters {
    fn of(word: &str) -> Self {
        let bit = |c: char| 1u64 << (u32::from(c) % 64);
        if word.is_ascii() {
            return Self(word.bytes().fold(0, |set, b| set | bit(char::from(b.to_ascii_lowercase()))));
        }
        Self(word.to_lowercase().chars().fold(0, |set, c| set | bit(c)))
    }

    /// One edit takes at most one letter away and adds at most one.
    fn least_distance(self, other: Self) -> usize {
        (self.0 ^ other.0).count_ones().div_ceil(2) as usize
    }
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

    /// What is left out uncompared is never what comparing would have found.
    #[test]
    fn the_sets_of_letters_never_lose_a_near_word() {
        let words = [
            "fsdp2",
            "FSDP",
            "zero3",
            "offload_params",
            "ofload_parms",
            "İstanbul",
            "istanbul",
            "naïve",
            "naive",
            "stage",
            "satge",
            "ǅ",
            "σς",
            "ΣΣ",
        ];
        for (a, b) in words.iter().flat_map(|a| words.iter().map(move |b| (a, b))) {
            let distance = strsim::damerau_levenshtein(&a.to_lowercase(), &b.to_lowercase());
            assert!(super::Letters::of(&a.to_lowercase()).least_distance(super::Letters::of(b)) <= distance, "{a} {b}");
        }
    }

    /// Compared letter by letter, these would take days and terabytes.
    #[test]
    fn what_nobody_typed_is_not_compared() {
        let (long, longer) = ("z".repeat(1 << 20), "z".repeat((1 << 20) + 1));
        assert_eq!(nearest(&long, [longer.as_str(), "z"]), None);
        assert_eq!(nearest("zero3", [long.as_str(), "zero2"]), Some("zero2"));
    }
}
