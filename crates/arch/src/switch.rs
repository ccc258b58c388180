//! Parts of a class that one key of its config switches on.

use serde_json::Value;

/// When a class has a part: `key`, unless the key is false, zero, null or empty; `key?`, unless it is null; with `!` before it the other way round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Switch {
    pub(crate) key: String,
    negated: bool,
    unless_null: bool,
}

impl Switch {
    pub(crate) fn parse(text: &str) -> Self {
        let (negated, rest) = text.strip_prefix('!').map_or((false, text), |rest| (true, rest));
        let (unless_null, key) = rest.strip_suffix('?').map_or((false, rest), |key| (true, key));
        Self { key: key.to_owned(), negated, unless_null }
    }

    /// Whether the class has the part: by the value in config.json, else by the default. A null decides only where it is the default, or where the
    /// condition is on null: some classes replace a null by a value of their own.
    pub(crate) fn decides(&self, said: Option<&Value>, default: Option<&Value>) -> Option<bool> {
        let value = said.or(default)?;
        let on = match value {
            Value::Null if self.unless_null || default.is_some_and(Value::is_null) => false,
            Value::Null | Value::Object(_) => return None,
            _ if self.unless_null => true,
            Value::Bool(on) => *on,
            Value::Number(number) => number.as_f64()? != 0.0,
            Value::String(text) => !text.is_empty(),
            Value::Array(listed) => !listed.is_empty(),
        };
        Some(on != self.negated)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_decides_as_python_takes_it_and_else_the_default() {
        let no = json!(false);
        let decides = |switch: &str, said: Value| Switch::parse(switch).decides(Some(&said), Some(&no));
        for on in [json!(true), json!(1), json!(0.5), json!("x"), json!([0])] {
            let all = ["a", "!a", "a?", "!a?"].map(|switch| decides(switch, on.clone()));
            assert_eq!(all, [true, false, true, false].map(Some), "{on}");
        }
        for off in [json!(false), json!(0), json!(0.0), json!(""), json!([])] {
            let all = ["a", "!a", "a?", "!a?"].map(|switch| decides(switch, off.clone()));
            assert_eq!(all, [false, true, true, false].map(Some), "{off}");
        }
        assert_eq!(["a", "!a", "a?", "!a?"].map(|switch| decides(switch, Value::Null)), [None, None, Some(false), Some(true)]);
        assert_eq!(decides("a", json!({})), None);
        let a = Switch::parse("a");
        assert_eq!(a.decides(Some(&Value::Null), Some(&Value::Null)), Some(false));
        assert_eq!([None, Some(&no), Some(&json!(4))].map(|default| a.decides(None, default)), [None, Some(false), Some(true)]);
    }
}
