//! Plain scalars by the core schema of YAML 1.2.2 (10.3.2).

use serde_json::{Number, Value};

/// The value of a plain scalar; an error says why it has none in JSON.
pub(super) fn resolve(text: &str) -> Result<Value, &'static str> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "true" | "True" | "TRUE" => return Ok(Value::Bool(true)),
        "false" | "False" | "FALSE" => return Ok(Value::Bool(false)),
        _ => {}
    }
    if is_special_float(text) {
        return Err("not a finite number");
    }
    if let Some(digits) = text.strip_prefix("0o").filter(|digits| all(digits, |b| matches!(b, b'0'..=b'7'))) {
        return integer(u64::from_str_radix(digits, 8));
    }
    if let Some(digits) = text.strip_prefix("0x").filter(|digits| all(digits, |b| b.is_ascii_hexdigit())) {
        return integer(u64::from_str_radix(digits, 16));
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if all(unsigned, |b| b.is_ascii_digit()) {
        return if text.starts_with('-') {
            integer(text.parse::<i64>())
        } else {
            integer(unsigned.parse::<u64>())
        };
    }
    if is_float(unsigned) {
        let parsed = text.parse::<f64>().ok().and_then(Number::from_f64);
        return parsed.map(Value::Number).ok_or("not a finite number");
    }
    Ok(Value::String(text.to_owned()))
}

fn integer<T: Into<Number>, E>(parsed: Result<T, E>) -> Result<Value, &'static str> {
    parsed.map(|number| Value::Number(number.into())).map_err(|_| "a number beyond 64 bits")
}

fn all(text: &str, allowed: impl Fn(u8) -> bool) -> bool {
    !text.is_empty() && text.bytes().all(allowed)
}

fn is_special_float(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN")
}

/// `(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_float(text: &str) -> bool {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let mantissa = match mantissa.split_once('.') {
        Some((whole, part)) => (!whole.is_empty() || !part.is_empty()) && digits(whole) && digits(part),
        None => all(mantissa, |b| b.is_ascii_digit()),
    };
    let exponent = exponent.map(|text| text.strip_prefix(['+', '-']).unwrap_or(text));
    mantissa && exponent.is_none_or(|text| all(text, |b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plain_scalars_follow_the_core_schema() {
        for (text, value) in [
            ("", json!(null)),
            ("~", json!(null)),
            ("True", json!(true)),
            ("yes", json!("yes")),
            ("on", json!("on")),
            ("NO", json!("NO")),
            ("0", json!(0)),
            ("007", json!(7)),
            ("-12", json!(-12)),
            ("+12", json!(12)),
            ("0o17", json!(15)),
            ("0x1F", json!(31)),
            ("18446744073709551615", json!(u64::MAX)),
            ("1.5", json!(1.5)),
            (".5", json!(0.5)),
            ("1.", json!(1.0)),
            ("1e3", json!(1000.0)),
            ("1e", json!("1e")),
            (".", json!(".")),
            ("-", json!("-")),
            ("1_000", json!("1_000")),
            ("127.0.0.1:7780", json!("127.0.0.1:7780")),
            ("2024-01-01", json!("2024-01-01")),
            ("0b1", json!("0b1")),
        ] {
            assert_eq!(resolve(text), Ok(value), "{text}");
        }
        for text in [".inf", "-.INF", ".nan", "1e999", "18446744073709551616", "0xfffffffffffffffff"] {
            assert!(resolve(text).is_err(), "{text}");
        }
    }
}
