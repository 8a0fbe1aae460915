//! What each fuzz target does with any bytes; an assertion that fails is a finding.

#![allow(dead_code, reason = "each target uses one of them")]

use outrigger::http::path;

/// The path parser: what it takes has no way out of its segments.
pub fn path(bytes: &[u8]) {
    let Ok(raw) = std::str::from_utf8(bytes) else { return };
    for custom_verbs in [false, true] {
        let Ok(parsed) = path::parse(raw, custom_verbs) else { continue };
        assert!(!parsed.segments.is_empty());
        for segment in &parsed.segments {
            assert!(!segment.is_empty());
            assert!(segment.split('/').all(|part| part != "." && part != ".."), "{segment:?}");
            assert!(!segment.chars().any(char::is_control), "{segment:?}");
        }
        assert!(custom_verbs || parsed.verb.is_none());
    }
}
