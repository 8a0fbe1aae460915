//! What a client keeps with a record, as one text for all ways to write it. Numbers stay as they were written: they are evidence.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::fields::Fields;

/// The longest, in bytes, as it comes and as it is kept.
const MAX_BYTES: usize = 4096;
/// How deep it may be nested.
const MAX_DEPTH: usize = 32;

/// The object without spaces and with sorted names, and with a field of ours; else what would be right.
pub(super) fn canonical(text: &str, own: Option<(&str, &str)>) -> Result<String, String> {
    let wanted = || format!("an object of at most {MAX_BYTES} bytes");
    if text.len() > MAX_BYTES || !text.starts_with('{') {
        return Err(wanted());
    }
    let mut fields = fields(text)?;
    if let Some((name, value)) = own {
        if fields.iter().any(|(field, _)| field == name) {
            return Err(format!("no field `{name}`: that of the record is kept by this name"));
        }
        fields.push((name.to_owned(), quoted(value)?));
    }
    let mut out = String::with_capacity(text.len());
    write_object(&mut out, fields, 1)?;
    if out.len() > MAX_BYTES { Err(wanted()) } else { Ok(out) }
}

/// The fields of an object, each once.
fn fields(text: &str) -> Result<Vec<(String, String)>, String> {
    // A field has three bytes at the least: the bound of bytes comes first.
    let Fields::<'_, &RawValue, MAX_BYTES>(fields) =
        serde_json::from_str(text).map_err(|error| error.to_string())?;
    Ok(fields.into_iter().map(|(name, value)| (name.into_owned(), value.get().to_owned())).collect())
}

fn write_object(out: &mut String, mut fields: Vec<(String, String)>, depth: usize) -> Result<(), String> {
    fields.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    if let Some([(name, _), _]) =
        fields.windows(2).find(|pair| matches!(pair, [one, other] if one.0 == other.0))
    {
        return Err(format!("each name once, and `{name}` is there twice"));
    }
    out.push('{');
    for (place, (name, value)) in fields.iter().enumerate() {
        if place > 0 {
            out.push(',');
        }
        out.push_str(&quoted(name)?);
        out.push(':');
        write_value(out, value, depth)?;
    }
    out.push('}');
    Ok(())
}

fn write_value(out: &mut String, text: &str, depth: usize) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!("nested {MAX_DEPTH} deep at the most"));
    }
    match text.as_bytes().first() {
        Some(b'{') => write_object(out, fields(text)?, depth + 1),
        Some(b'[') => {
            let values: Vec<&RawValue> = serde_json::from_str(text).map_err(|error| error.to_string())?;
            out.push('[');
            for (place, value) in values.iter().enumerate() {
                if place > 0 {
                    out.push(',');
                }
                write_value(out, value.get(), depth + 1)?;
            }
            out.push(']');
            Ok(())
        }
        Some(b'"') => {
            let value: Cow<'_, str> = serde_json::from_str(text).map_err(|error| error.to_string())?;
            out.push_str(&quoted(&value)?);
            Ok(())
        }
        _ => {
            out.push_str(text);
            Ok(())
        }
    }
}

/// As a JSON string. PostgreSQL keeps no NUL.
fn quoted(text: &str) -> Result<String, String> {
    if text.contains('\0') {
        return Err("no NUL (\\u0000) in metadata".to_owned());
    }
    serde_json::to_string(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_object_is_one_text_and_numbers_stay_as_they_were_written() {
        for (text, expected) in [
            ("{}", "{}"),
            (
                r#"{ "b" : [1, {"z":null,"a":"\u0041"}] ,"a":true}"#,
                r#"{"a":true,"b":[1,{"a":"A","z":null}]}"#,
            ),
            (r#"{"n":12345678901234567890123}"#, r#"{"n":12345678901234567890123}"#),
            (r#"{"n":1.50e3}"#, r#"{"n":1.50e3}"#),
        ] {
            assert_eq!(canonical(text, None).as_deref(), Ok(expected), "{text}");
        }
        let own = Some(("corrects", "k\"1"));
        assert_eq!(canonical(r#"{"x":1}"#, own).unwrap(), r#"{"corrects":"k\"1","x":1}"#);
    }

    #[test]
    fn what_is_wrong_is_said_with_what_would_be_right() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(2000), "]".repeat(2000));
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(4096));
        for (text, own, detail) in [
            ("5", None, "an object of at most 4096 bytes"),
            (long.as_str(), None, "an object of at most 4096 bytes"),
            (r#"{"a":{"b":1,"b":2}}"#, None, "`b` is there twice"),
            (r#"{"a":"\u0000"}"#, None, "no NUL"),
            (deep.as_str(), None, "32 deep"),
            (r#"{"corrects":1}"#, Some(("corrects", "k")), "no field `corrects`"),
        ] {
            let told = canonical(text, own).unwrap_err();
            assert!(told.contains(detail), "{told}");
        }
    }
}
