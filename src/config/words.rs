//! What a schema asks for, in words; and the nearest of what was meant.

use serde_json::Value;

use super::schema::Root;

/// The candidate that `word` is most likely a misspelling of.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    let scored = candidates.into_iter().filter_map(|candidate| {
        let distance = strsim::damerau_levenshtein(&lower, &candidate.to_lowercase());
        let allowed = (lower.chars().count().max(candidate.chars().count()) + 1) / 3;
        let part = lower.len() >= 4 && candidate.contains(lower.as_str());
        (distance <= allowed || part).then_some((distance, candidate))
    });
    scored.min_by_key(|(distance, _)| *distance).map(|(_, candidate)| candidate)
}

/// `message`, with `; did you mean …?` where something is near.
#[must_use]
pub fn with_nearest<'a>(
    message: String,
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> String {
    match nearest(word, candidates) {
        Some(candidate) => format!("{message}; did you mean `{candidate}`?"),
        None => message,
    }
}

/// `one of `a`, `b`, `c``.
#[must_use]
pub fn one_of<'a>(options: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<_> = options.into_iter().map(|option| format!("`{option}`")).collect();
    match quoted.len() {
        0 => "nothing".to_owned(),
        1 => quoted[0].clone(),
        _ => format!("one of {}", quoted.join(", ")),
    }
}

/// A value as a document would write it, for constants of a schema.
pub(super) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// What kind of thing a value is.
pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(number) if number.is_f64() => "a number",
        Value::Number(_) => "a whole number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

fn type_words(name: &str) -> &'static str {
    match name {
        "object" => "a mapping",
        "array" => "a list",
        "string" => "text",
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "`true` or `false`",
        _ => "nothing",
    }
}

/// What a schema asks for: its type and bounds, and its description's first sentence.
pub(super) fn describe<'a>(root: Root<'a>, schema: &'a Value) -> String {
    let resolved = root.resolve(schema);
    let shape = shape(root, resolved);
    let text = [schema, resolved].into_iter().find_map(|node| node.get("description")?.as_str());
    let sentence = text.map(|text| text.split("\n\n").next().unwrap_or(text).replace('\n', " "));
    match (shape.is_empty(), sentence) {
        (_, None) => shape,
        (true, Some(text)) => text,
        (false, Some(text)) => format!("{shape}: {}", lower_first(text.trim_end_matches('.'))),
    }
}

/// The type and bounds alone.
pub(super) fn shape<'a>(root: Root<'a>, schema: &'a Value) -> String {
    let schema = root.resolve(schema);
    if let Some(options) = root.constants(schema) {
        return one_of(options.iter().map(String::as_str));
    }
    if let Some(pattern) = schema.get("pattern").and_then(Value::as_str) {
        return pattern_words(pattern);
    }
    if let Some(words) = schema.get("format").and_then(Value::as_str).and_then(format_words) {
        return words.to_owned();
    }
    if let Some(branches) = root.branches(schema) {
        let shapes: Vec<_> = branches.into_iter().map(|branch| shape(root, branch)).collect();
        let mut distinct: Vec<_> = shapes.into_iter().filter(|shape| !shape.is_empty()).collect();
        distinct.dedup();
        return distinct.join(", or ");
    }
    let words: Vec<_> = types(schema).into_iter().filter(|name| *name != "null").map(type_words).collect();
    let mut words = words.join(" or ");
    if let Some(required) = schema.get("required").and_then(Value::as_array) {
        let names: Vec<_> =
            required.iter().filter_map(Value::as_str).map(|name| format!("`{name}`")).collect();
        if (1..=3).contains(&names.len()) {
            words.push_str(&format!(" with {}", names.join(" and ")));
        }
    }
    let bound = range(schema);
    if bound.is_empty() { words } else { format!("{words} {bound}") }
}

/// The names in `type`, which may be one or a list.
fn types(schema: &Value) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// The bounds of a number, a text or a list.
pub(super) fn range(schema: &Value) -> String {
    let bound = |name: &str| schema.get(name).filter(|value| value.is_number()).map(Value::to_string);
    let between = |low: Option<String>, high: Option<String>, unit: &str| match (low, high) {
        (Some(low), Some(high)) if low == high => format!("of exactly {low}{unit}"),
        (Some(low), Some(high)) => format!("from {low} to {high}{unit}"),
        (Some(low), None) => format!("of at least {low}{unit}"),
        (None, Some(high)) => format!("of at most {high}{unit}"),
        (None, None) => String::new(),
    };
    let number = between(bound("minimum"), bound("maximum"), "");
    let text = between(bound("minLength"), bound("maxLength"), " characters");
    let items = between(bound("minItems"), bound("maxItems"), " entries");
    [number, text, items].into_iter().find(|words| !words.is_empty()).unwrap_or_default()
}

/// A pattern in words where it is known.
pub(super) fn pattern_words(pattern: &str) -> String {
    match pattern {
        "^[a-z][a-z0-9_.-]{0,63}$" => {
            "a name: 1 to 64 characters of a-z, 0-9, `_`, `.` and `-`, starting with a letter".to_owned()
        }
        r"^\$\{(file|env):[^}]+\}$" => {
            "a secret is named, not written: `${file:PATH}` or `${env:NAME}`".to_owned()
        }
        other => format!("text that matches `{other}`"),
    }
}

/// A format in words; none for formats that only annotate.
pub(super) fn format_words(format: &str) -> Option<&'static str> {
    Some(match format {
        "socket-address" => "an IP address and a port, such as `127.0.0.1:7780`",
        "uuid" => "a UUID, such as `0190c7a8-3c5e-7f00-8000-0000000000a1`",
        "uri" => "a URI, such as `https://example.com/keys`",
        "date-time" => "a time in RFC 3339, such as `2026-01-31T12:00:00Z`",
        _ => return None,
    })
}

fn lower_first(text: &str) -> String {
    let mut characters = text.chars();
    match (characters.next(), characters.clone().next()) {
        (Some(first), Some(second)) if !second.is_uppercase() => {
            first.to_lowercase().collect::<String>() + characters.as_str()
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_is_near() {
        let fields = ["listeners", "identity", "policies", "request_timeout_ms", "log"];
        for (word, expected) in [
            ("lisetners", Some("listeners")),
            ("Identity", Some("identity")),
            ("policy", Some("policies")),
            ("timeout_ms", Some("request_timeout_ms")),
            ("logs", Some("log")),
            ("cache", None),
            ("x", None),
        ] {
            assert_eq!(nearest(word, fields), expected, "{word}");
        }
    }
}
