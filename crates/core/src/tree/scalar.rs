//! What a plain YAML scalar is to PyYAML (YAML 1.1), and where that is likely not what its writer meant.

use super::node::Value;

/// A typed plain scalar.
pub(crate) struct Scalar {
    pub(crate) value: Value,
    /// What a reader of the text would take it for, where PyYAML takes it for something else.
    pub(crate) trap: Option<Trap>,
}

/// A text that PyYAML reads otherwise than people do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Trap {
    /// `5e8`, `1e-4`, `1.0e5`: a string there, a number to all others.
    Exponent(f64),
    /// `0o17`: a string there, octal in YAML 1.2.
    NewOctal(i128),
    /// `010`: octal there, ten to most people.
    OldOctal { there: i128, meant: i128 },
    /// `1:30`: base 60 there, a time or a ratio to most people.
    Sexagesimal,
}

/// Types a plain scalar as PyYAML's SafeLoader does.
pub(crate) fn plain(text: &str) -> Scalar {
    let plain = |value| Scalar { value, trap: None };
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return plain(Value::Null),
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => return plain(Value::Bool(true)),
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => return plain(Value::Bool(false)),
        _ => {}
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.')) {
        return plain(string(text, None));
    }
    if let Some((value, trap)) = integer(text) {
        return Scalar { value: Value::Int(value), trap };
    }
    if let Some((value, trap)) = float(text) {
        return Scalar { value: Value::Float(value), trap };
    }
    like_a_number(text)
}

fn string(text: &str, number: Option<f64>) -> Value {
    Value::Text { text: text.to_owned(), number }
}

fn signed(text: &str) -> (bool, &str) {
    match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    }
}

fn all(text: &str, ok: impl Fn(u8) -> bool) -> bool {
    !text.is_empty() && text.bytes().all(|b| b == b'_' || ok(b))
}

fn integer(text: &str) -> Option<(i128, Option<Trap>)> {
    let (negative, body) = signed(text);
    let sign = |v: i128| if negative { -v } else { v };
    let parse = |digits: &str, radix| i128::from_str_radix(&digits.replace('_', ""), radix).ok().map(sign);
    if let Some(digits) = body.strip_prefix("0b").filter(|d| all(d, |b| matches!(b, b'0' | b'1'))) {
        return Some((parse(digits, 2)?, None));
    }
    if let Some(digits) = body.strip_prefix("0x").filter(|d| all(d, |b| b.is_ascii_hexdigit())) {
        return Some((parse(digits, 16)?, None));
    }
    if body.contains(':') {
        return sexagesimal_int(body).map(|v| (sign(v), Some(Trap::Sexagesimal)));
    }
    if body.len() > 1 && body.starts_with('0') && all(&body[1..], |b| (b'0'..=b'7').contains(&b)) {
        let there = parse(body, 8)?;
        let meant = parse(body, 10)?;
        return Some((there, (there != meant).then_some(Trap::OldOctal { there, meant })));
    }
    let decimal = body == "0" || (body.starts_with(|c: char| ('1'..='9').contains(&c)) && all(body, |b| b.is_ascii_digit()));
    if decimal { Some((parse(body, 10)?, None)) } else { None }
}

fn sexagesimal_int(body: &str) -> Option<i128> {
    let mut parts = body.split(':');
    let first = parts.next().filter(|p| p.starts_with(|c: char| ('1'..='9').contains(&c)) && all(p, |b| b.is_ascii_digit()))?;
    let mut value: i128 = first.replace('_', "").parse().ok()?;
    for part in parts {
        value = value.checked_mul(60)?.checked_add(minutes(part)?)?;
    }
    Some(value)
}

fn minutes(part: &str) -> Option<i128> {
    let ok = matches!(part.len(), 1 | 2) && part.bytes().all(|b| b.is_ascii_digit());
    part.parse().ok().filter(|v| ok && (0..60).contains(v))
}

fn float(text: &str) -> Option<(f64, Option<Trap>)> {
    let (negative, body) = signed(text);
    match body {
        ".inf" | ".Inf" | ".INF" => return Some((if negative { f64::NEG_INFINITY } else { f64::INFINITY }, None)),
        ".nan" | ".NaN" | ".NAN" if text.starts_with('.') => return Some((f64::NAN, None)),
        _ => {}
    }
    if body.contains(':') {
        let value = sexagesimal_float(body)?;
        return Some((if negative { -value } else { value }, Some(Trap::Sexagesimal)));
    }
    let (mantissa, exponent) = split_exponent(body);
    let (whole, fraction) = mantissa.split_once('.')?;
    let whole_ok = if whole.is_empty() {
        // A leading dot takes no sign and wants a digit next.
        !text.starts_with(['-', '+']) && fraction.starts_with(|c: char| c.is_ascii_digit())
    } else {
        whole.starts_with(|c: char| c.is_ascii_digit()) && all(whole, |b| b.is_ascii_digit())
    };
    let fraction_ok = fraction.is_empty() || all(fraction, |b| b.is_ascii_digit());
    let exponent_ok = exponent.is_none_or(|e| e.starts_with(['-', '+']) && e.len() > 1 && e[1..].bytes().all(|b| b.is_ascii_digit()));
    (whole_ok && fraction_ok && exponent_ok).then(|| text.replace('_', "").parse().ok().map(|v| (v, None)))?
}

fn sexagesimal_float(body: &str) -> Option<f64> {
    let (whole, fraction) = body.split_once('.')?;
    let (head, last) = whole.rsplit_once(':')?;
    if !fraction.bytes().all(|b| b.is_ascii_digit() || b == b'_') {
        return None;
    }
    let minutes = sexagesimal_int(&format!("{head}:{last}"))?;
    let fraction: f64 = format!("0.{}", fraction.replace('_', "")).parse().ok()?;
    #[expect(clippy::cast_precision_loss, reason = "PyYAML computes it in floats too")]
    Some(minutes as f64 + fraction)
}

fn split_exponent(body: &str) -> (&str, Option<&str>) {
    match body.find(['e', 'E']) {
        Some(at) => (&body[..at], Some(&body[at + 1..])),
        None => (body, None),
    }
}

/// A string to PyYAML that others take for a number.
fn like_a_number(text: &str) -> Scalar {
    let (negative, body) = signed(text);
    if let Some(digits) = body.strip_prefix("0o").filter(|d| !d.is_empty())
        && let Ok(value) = i128::from_str_radix(digits, 8)
    {
        let value = if negative { -value } else { value };
        return Scalar { value: string(text, None), trap: Some(Trap::NewOctal(value)) };
    }
    let (mantissa, exponent) = split_exponent(body);
    let digits = mantissa.bytes().any(|b| b.is_ascii_digit()) && mantissa.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'_'));
    let number: Option<f64> = (digits && exponent.is_some()).then(|| text.replace('_', "").parse().ok()).flatten();
    Scalar { value: string(text, number), trap: number.map(Trap::Exponent) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_are_what_pyyaml_makes_of_them() {
        let int = |text: &str| match plain(text).value {
            Value::Int(i) => Some(i),
            _ => None,
        };
        for (text, want) in [
            ("0", 0),
            ("-17", -17),
            ("+1_000", 1000),
            ("0b101", 5),
            ("0x_ff", 255),
            ("017", 15),
            ("1:30", 90),
            ("0o17", -1),
            ("08", -1),
            ("1_", 1),
        ] {
            assert_eq!(int(text), (want != -1).then_some(want), "{text}");
        }
        let float = |text: &str| match plain(text).value {
            Value::Float(f) => Some(f),
            _ => None,
        };
        for (text, want) in [
            ("1.5", Some(1.5)),
            ("5.0e+8", Some(5e8)),
            ("1.", Some(1.0)),
            (".5", Some(0.5)),
            ("1:30.5", Some(90.5)),
            ("-.inf", Some(f64::NEG_INFINITY)),
        ] {
            assert_eq!(float(text), want, "{text}");
        }
        for text in ["5e8", "1e-4", "1.0e5", "5.0e8", "-2E3"] {
            let scalar = plain(text);
            assert!(matches!(scalar.value, Value::Text { number: Some(_), .. }), "{text}");
            assert_eq!(scalar.trap, Some(Trap::Exponent(text.parse().unwrap())), "{text}");
        }
        for text in ["-.5", "1.2.3", "e5", "1e", "1-2", "2001-12-14", "-", "+", ".", "10.0.0.1"] {
            assert!(matches!(plain(text).value, Value::Text { number: None, .. }), "{text}");
        }
        for (text, want) in [("yes", true), ("On", true), ("OFF", false), ("No", false), ("TRUE", true)] {
            assert_eq!(plain(text).value, Value::Bool(want));
        }
        assert!(matches!(plain("y").value, Value::Text { .. }));
        assert_eq!(plain("~").value, Value::Null);
    }
}
