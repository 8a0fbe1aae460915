//! What of a source line may be shown: a secret that was written where only its name belongs is masked.

use std::ops::Range;

/// Last words of keys whose values are secrets.
const SECRET_WORDS: &[&str] = &[
    "password",
    "passwd",
    "passphrase",
    "secret",
    "secrets",
    "token",
    "tokens",
    "credential",
    "credentials",
    "authorization",
    "apikey",
    "bearer",
];

/// Whether the value of `key` is likely a secret. A misspelt key counts too: its value is as secret.
pub(super) fn is_secret_key(key: &str) -> bool {
    let lower = key.to_ascii_lowercase();
    let last = lower.rsplit(['_', '-', '.', ' ']).next().unwrap_or(&lower);
    lower.ends_with("api_key")
        || lower.ends_with("private_key")
        || SECRET_WORDS
            .iter()
            .any(|word| strsim::damerau_levenshtein(last, word) <= if word.len() > 6 { 2 } else { 1 })
}

/// Whether `value` is itself a key or a certificate in PEM, wherever it is written.
pub(super) fn is_pem(value: &str) -> bool {
    value.contains("-----BEGIN")
}

/// Whether `value` names a secret and is none.
pub(super) fn is_reference(value: &str) -> bool {
    value.starts_with("${")
}

/// `line` with `hidden` (byte ranges of it) masked, and with whatever follows the key of a secret or stands before
/// an `@` in an address. Every character is replaced by one of the same length in bytes, so that places stay.
pub(super) fn mask(line: &str, hidden: &[Range<usize>]) -> String {
    let mut ranges = hidden.to_vec();
    ranges.extend(after_secret_keys(line));
    ranges.extend(before_at_signs(line));
    if is_pem(line) {
        ranges.push(0..line.len());
    }
    line.char_indices()
        .map(|(at, character)| {
            let hide = !character.is_whitespace() && ranges.iter().any(|range| range.contains(&at));
            if hide { mask_of(character) } else { character }
        })
        .collect()
}

fn mask_of(character: char) -> char {
    match character.len_utf8() {
        1 => '*',
        2 => '·',
        3 => '•',
        _ => '🔒',
    }
}

/// From the value of a secret's key to the end of the line: also where the text is too broken to be parsed.
fn after_secret_keys(line: &str) -> impl Iterator<Item = Range<usize>> {
    line.match_indices(':').filter_map(|(colon, _)| {
        let before = line[..colon].trim_end().trim_end_matches(['"', '\'']);
        let start = before
            .rfind(|c: char| !c.is_alphanumeric() && c != '_' && c != '-')
            .map_or(0, |at| at + before[at..].chars().next().map_or(1, char::len_utf8));
        let rest = &line[colon + 1..];
        let value = rest.trim_start().trim_start_matches(['"', '\'']);
        let is_value = !value.is_empty() && !is_reference(value);
        (is_value && is_secret_key(&before[start..])).then_some(colon + 1..line.len())
    })
}

/// `user:password` in `redis://user:password@host` and in `user:password@host`.
fn before_at_signs(line: &str) -> impl Iterator<Item = Range<usize>> {
    line.match_indices('@').filter_map(|(at, _)| {
        let before = &line[..at];
        let start = before
            .rfind(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '[' | '{' | ',' | '/'))
            .map_or(0, |place| place + before[place..].chars().next().map_or(1, char::len_utf8));
        before[start..].contains(':').then_some(start..at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_written_out_is_masked_and_a_reference_is_not() {
        for (line, shown) in [
            ("    password: hunter2", "    password: *******"),
            ("pasword: \"two words\"", "pasword: **** ******"),
            ("{username: u, password: x}", "{username: u, password: **"),
            ("password: ${env:REDIS_PASSWORD}", "password: ${env:REDIS_PASSWORD}"),
            ("token_cache_entries: 5", "token_cache_entries: 5"),
            ("nodes: [redis://me:pw@host:1]", "nodes: [redis://*****@host:1]"),
            ("signing_secret: pässwört", "signing_secret: *·***·**"),
            ("key: -----BEGIN PRIVATE KEY-----", "**** ********** ******* ********"),
            ("policies: policies", "policies: policies"),
        ] {
            assert_eq!(mask(line, &[]), shown);
            assert_eq!(mask(line, &[]).len(), line.len());
        }
    }
}
