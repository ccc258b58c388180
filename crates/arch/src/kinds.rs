//! Of which kind a layer is, as config.json says: rules of the data, in which each key is one that config.json has itself.

use serde_json::Value;

/// Whether the first of two classes stands at a layer. `rules` are the alternatives that make it the first one, and those that make it the second: of
/// words for each layer, else of numbers, the first whose keys `value` gives, with the keys. `None` where none of them is decided.
pub(crate) fn first_stands<'r, 'v>(
    rules: [Option<&'r Vec<Value>>; 2],
    layer: u64,
    value: impl Fn(&str) -> Option<&'v Value>,
) -> Option<(bool, Vec<&'r str>)> {
    let all =
        |predicates: &[Value]| predicates.iter().try_fold(true, |all, predicate| Some(all & holds(predicate.as_str()?, layer, &value)?));
    let of_words = |predicates: &[Value]| predicates.iter().any(|p| p.as_str().is_some_and(|p| words_of(p).is_some()));
    [true, false].into_iter().find_map(|words| {
        rules.iter().zip([true, false]).find_map(|(alternatives, first)| {
            let mut alternatives = alternatives.iter().copied().flatten().filter_map(Value::as_array);
            let decides = |of: &'r Vec<Value>| Some((of, (of_words(of) == words).then(|| all(of))??));
            alternatives
                .find_map(decides)
                .map(|(of, stands)| (stands == first, of.iter().filter_map(Value::as_str).flat_map(keys).collect()))
        })
    })
}

/// The key, whether its list is repeated, and the words of a predicate that looks at a word for each layer.
fn words_of(predicate: &str) -> Option<(&str, bool, &str)> {
    let of = |place: &str, repeated| predicate.split_once(place).map(|(key, words)| (key, repeated, words));
    of("[i]=", false).or_else(|| of("[i%]=", true))
}

/// The word for a layer: of a list, or a letter of a text.
fn word(value: &Value, layer: usize, repeated: bool) -> Option<&str> {
    let layer = match repeated {
        true => layer.checked_rem(value.as_array().map(Vec::len).or_else(|| value.as_str().map(|text| text.chars().count()))?)?,
        false => layer,
    };
    match value {
        Value::String(text) => text.char_indices().nth(layer).map(|(at, letter)| &text[at..at + letter.len_utf8()]),
        listed => listed.get(layer)?.as_str(),
    }
}

/// The keys that a predicate looks at.
fn keys(predicate: &str) -> impl Iterator<Item = &str> {
    let key = words_of(predicate).map_or(predicate, |(key, ..)| key);
    ["i>=", "i<=", "(i+1)%", "i%", "i!", "i@"].iter().find_map(|form| key.strip_prefix(form)).unwrap_or(key).split('=')
}

/// `i>=KEY`, `i<=KEY` (-1 is no bound), `i%KEY` and `(i+1)%KEY` (divisible), `i%KEY=REST`, `i!KEY` (not in the list, if there is one), `i@KEY`
/// (in the list), `KEY[i]=WORD|WORD`, and `KEY[i%]=WORD` of a list that is repeated.
fn holds<'v>(predicate: &str, layer: u64, value: impl Fn(&str) -> Option<&'v Value>) -> Option<bool> {
    if let Some((key, repeated, words)) = words_of(predicate) {
        let found = word(value(key)?, usize::try_from(layer).ok()?, repeated)?;
        return Some(words.split('|').any(|word| word == found));
    }
    if let Some(key) = predicate.strip_prefix("i!") {
        let Some(listed) = value(key) else { return Some(true) };
        return Some(!listed.as_array()?.iter().any(|n| n.as_u64() == Some(layer)));
    }
    if let Some(key) = predicate.strip_prefix("i@") {
        return Some(value(key)?.as_array()?.iter().any(|n| n.as_u64() == Some(layer)));
    }
    let number = |key: &str| value(key)?.as_i64();
    let layer = i64::try_from(layer).ok()?;
    if let Some(key) = predicate.strip_prefix("i>=") {
        return Some(layer >= number(key)?);
    }
    if let Some(key) = predicate.strip_prefix("i<=") {
        let last = number(key)?;
        return Some(layer <= last || last == -1);
    }
    let (at, key) = match predicate.strip_prefix("(i+1)%") {
        Some(key) => (layer + 1, key),
        None => (layer, predicate.strip_prefix("i%")?),
    };
    let (key, rest) = key.split_once('=').map_or((key, None), |(key, rest)| (key, Some(rest)));
    let every = number(key).filter(|n| *n > 0)?;
    Some(at % every == rest.map_or(Some(0), number)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_decide_before_numbers_and_what_is_missing_decides_nothing() {
        let rules = json!({ "moe": [["i>=first", "i<=last", "(i+1)%step", "i!dense"]], "mlp": [["kinds[i]=mlp"]] });
        let of = |name: &str| rules[name].as_array();
        let stands = |config: &Value, i| Some(first_stands([of("moe"), of("mlp")], i, |key| config.get(key))?.0);
        let at = |config: &Value| (0..6).map(|i| stands(config, i)).collect::<Vec<_>>();
        let each = |layers: [bool; 6]| layers.map(Some).to_vec();
        assert_eq!(at(&json!({ "first": 1, "last": -1, "step": 2, "dense": [3] })), each([false, true, false, false, false, true]));
        let words = json!({ "first": 1, "last": -1, "step": 2, "kinds": ["moe", "mlp", "mlp", "moe", "moe", "mlp"] });
        assert_eq!(at(&words), each([true, false, false, true, true, false]));
        // Words that end before a layer leave it to the numbers.
        let short = json!({ "kinds": ["moe"], "first": 3, "last": 4, "step": 1 });
        assert_eq!(at(&short), each([true, false, false, true, true, false]));
        for undecided in
            [json!({}), json!({ "first": 1 }), json!({ "first": "1", "last": 2, "step": 1 }), json!({ "first": 1, "last": 2, "step": 0 })]
        {
            assert_eq!(at(&undecided), [None; 6], "{undecided}");
        }
        let one = |rule: &str, layer| first_stands([Some(&vec![json!([rule])]), None], layer, |_| Some(&rules["step"])).is_some();
        assert_eq!((one("i*2", 0), one("i%step", 4)), (false, false));
        let jamba = json!({ "period": 3, "offset": 1, "types": ["mamba", "conv"] });
        let (rest, meant) = (vec![json!(["i%period=offset"])], vec![json!(["types[i]=linear|mamba"])]);
        let of_rest = |layer| first_stands([Some(&rest), None], layer, |key| jamba.get(key));
        assert_eq!([0, 1, 4, 5].map(|layer| of_rest(layer).map(|(stands, _)| stands)), [false, true, true, false].map(Some));
        assert_eq!(of_rest(0).map(|(_, keys)| keys), Some(vec!["period", "offset"]));
        let words = |layer| first_stands([Some(&meant), None], layer, |key| jamba.get(key));
        assert_eq!([words(0), words(1), words(2)], [Some((true, vec!["types"])), Some((false, vec!["types"])), None]);
        let repeated = vec![json!(["types[i%]=conv"])];
        let of_repeated = |layer| first_stands([Some(&repeated), None], layer, |key| jamba.get(key));
        assert_eq!([4, 5].map(of_repeated), [false, true].map(|stands| Some((stands, vec!["types"]))));
        let (letters, meant) = (json!("M-*é"), vec![json!(["types[i]=mamba|M|é"])]);
        let of_letters = |layer| first_stands([Some(&meant), None], layer, |_| Some(&letters)).map(|(stands, _)| stands);
        assert_eq!([0, 1, 3, 4].map(of_letters), [Some(true), Some(false), Some(true), None]);
        let empty = json!("");
        assert_eq!(first_stands([Some(&repeated), None], 0, |_| Some(&empty)), None);
        let listed = |layer| first_stands([Some(&vec![json!(["i@dense"])]), None], layer, |_| Some(&rules["dense"])).is_some();
        assert!(!listed(0), "no list decides nothing");
        let (dense, within) = (json!([0, 2]), vec![json!(["i@dense"])]);
        let of_list = |layer| first_stands([Some(&within), None], layer, |_| Some(&dense)).map(|(stands, _)| stands);
        assert_eq!([0, 1, 2].map(of_list), [Some(true), Some(false), Some(true)]);
        let two = json!(2);
        assert_eq!(first_stands([None, Some(&vec![json!(["i%step"])])], 4, |_| Some(&two)), Some((false, vec!["step"])));
        let numbers = json!({ "first": 1, "last": -1, "step": 2 });
        let all = first_stands([of("moe"), of("mlp")], 0, |key| numbers.get(key)).map(|(_, keys)| keys);
        assert_eq!(all, Some(vec!["first", "last", "step", "dense"]));
    }
}
