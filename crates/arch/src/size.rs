//! Sizes as the data has them: formulas over a config's keys.

use serde_json::Value;

/// The largest factor or summand that is taken for a constant: a larger number is probably the default value of some key.
const LARGEST_CONSTANT: u64 = 4;

/// A derived key may follow from keys that are derived themselves; chains longer than this are not followed.
pub(crate) const DEEPEST: u32 = 4;

/// The size of one dim.
#[derive(Clone, Debug)]
pub(crate) enum Size {
    /// Not known: what no key was seen to change may follow from a list, a word or a sub-config all the same.
    Unknown,
    Formula(Formula),
}

impl Size {
    pub(crate) fn of(value: &Value) -> Self {
        value.as_str().and_then(Formula::parse).map_or(Self::Unknown, Self::Formula)
    }
}

/// A sum of products, `2*a/b*c+d+1`. A quotient is of two keys and has to be whole; only a number may be taken away.
#[derive(Clone, Debug)]
pub(crate) struct Formula {
    terms: Vec<Vec<(Operand, Option<Operand>)>>,
    plus: i64,
}

#[derive(Clone, Debug)]
enum Operand {
    Number(u64),
    Key(String),
}

impl Operand {
    fn parse(text: &str) -> Option<Self> {
        match text.parse() {
            Ok(n) if n > LARGEST_CONSTANT => None,
            Ok(n) => Some(Self::Number(n)),
            Err(_) if text.is_empty() => None,
            Err(_) => Some(Self::Key(text.to_owned())),
        }
    }

    fn value(&self, number: &impl Fn(&str) -> Option<(u64, String)>) -> Option<(u64, String)> {
        match self {
            Self::Number(n) => Some((*n, n.to_string())),
            Self::Key(key) => number(key),
        }
    }
}

impl Formula {
    /// Reads a formula; `None` where it holds a constant that cannot be one.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (mut terms, mut plus) = (Vec::new(), 0i64);
        for term in text.split('+') {
            let (product, less) = term.split_once('-').map_or((term, 0), |(product, n)| (product, n.parse().unwrap_or(i64::MAX)));
            plus = plus.checked_sub(less)?;
            if let Ok(n) = product.parse::<i64>() {
                plus = plus.checked_add(n)?;
                continue;
            }
            let factor = |text: &str| match text.split_once('/') {
                Some((over, under)) => Some((Operand::parse(over)?, Some(Operand::parse(under)?))),
                None => Some((Operand::parse(text)?, None)),
            };
            terms.push(product.split('*').map(factor).collect::<Option<_>>()?);
        }
        (plus.unsigned_abs() <= LARGEST_CONSTANT && !terms.is_empty()).then_some(Self { terms, plus })
    }

    /// The size, and the formula with the keys as `number` calls them; `None` where a key has no number or a quotient is not whole.
    pub(crate) fn value(&self, number: impl Fn(&str) -> Option<(u64, String)>) -> Option<(u64, String)> {
        let (mut sum, mut text) = (0u64, String::new());
        for term in &self.terms {
            let mut product = 1u64;
            for (i, (over, under)) in term.iter().enumerate() {
                let (mut value, name) = over.value(&number)?;
                let separator = if i > 0 {
                    "*"
                } else if text.is_empty() {
                    ""
                } else {
                    "+"
                };
                text.push_str(separator);
                text.push_str(&name);
                if let Some(under) = under {
                    let (divisor, name) = under.value(&number)?;
                    value = (divisor > 0 && value % divisor == 0).then(|| value / divisor)?;
                    text.push('/');
                    text.push_str(&name);
                }
                product = product.checked_mul(value)?;
            }
            sum = sum.checked_add(product)?;
        }
        if self.plus != 0 {
            text.push_str(&format!("{:+}", self.plus));
        }
        Some((sum.checked_add_signed(self.plus)?, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(formula: &str) -> Option<(u64, String)> {
        let number = |key: &str| {
            Some((
                match key {
                    "width" => 12,
                    "heads" => 4,
                    "image" => 32,
                    "patch" => 16,
                    "none" => return None,
                    _ => 0,
                },
                key.to_owned(),
            ))
        };
        Formula::parse(formula)?.value(number)
    }

    #[test]
    fn formulas_are_sums_of_products_and_whole_quotients() {
        for (formula, expected) in [
            ("width", 12),
            ("2*width", 24),
            ("width+2", 14),
            ("width-1", 11),
            ("width/heads*heads", 12),
            ("2*heads*width/heads+width", 36),
            ("image/patch*image/patch+1", 5),
        ] {
            assert_eq!(value(formula), Some((expected, formula.to_owned())));
        }
        // No number, not whole, by zero, a constant that must be another key's value, nothing at all.
        for formula in
            ["none", "width*none", "heads/width", "width/zero", "5*width", "width+7", "width-7", "heads-99999999999999999999", "", "3", "*"]
        {
            assert_eq!(value(formula), None, "{formula}");
        }
    }
}
