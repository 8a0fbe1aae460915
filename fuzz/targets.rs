//! What each fuzz target does with any bytes; an assertion that fails is a finding.

#![allow(dead_code, unreachable_pub, reason = "each target uses one of them")]

use std::path::Path;
use std::sync::LazyLock;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use outrigger::config::Identity;
use outrigger::http::path;
use outrigger::identity::Inspector;
use outrigger::policy::{Vocabulary, check_documents};
use outrigger::primitives::events::cloudevents::{Context, kafka_headers, read, write_structured};
use outrigger::primitives::{self, cache::envelope};
use uuid::Uuid;

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

/// A key set whose private key was thrown away (RFC 7515, A.3 has the public half).
const KEY_SET: &[u8] = br#"{"keys":[{"kty":"EC","crv":"P-256","kid":"fuzz","alg":"ES256",
    "x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;

static INSPECTOR: LazyLock<Inspector> =
    LazyLock::new(|| Inspector::with_key_sets(&Identity::development(Path::new("unused")), &[KEY_SET]));

/// The token checks: nobody has the key, so nothing is let in.
pub fn token(bytes: &[u8]) {
    let Ok(token) = std::str::from_utf8(bytes) else { return };
    let explanation = INSPECTOR.explain(token);
    assert!(explanation.principal().is_none(), "a token without a signature was let in");
    assert!(explanation.checks().iter().any(|check| !check.passed));
}

static VOCABULARY: LazyLock<Vocabulary> = LazyLock::new(|| Vocabulary {
    kinds: primitives::ALL.iter().map(|row| &row.policy).collect(),
    ignored: Vec::new(),
    actions: primitives::ALL.iter().flat_map(|row| row.actions).copied().collect(),
    issuers: Some(vec!["dev".to_owned()]),
    data_dir: Some(true),
});

/// The policy parser: any text is taken, or refused with a report that can be printed.
pub fn policy(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err(report) = check_documents(&VOCABULARY, 1, &[("fuzz.yaml".to_owned(), text.to_owned())]) {
        assert!(!report.to_string().is_empty());
    }
}

/// The cache envelope: what is read lies within the bytes that were given.
pub fn envelope(bytes: &[u8]) {
    let Ok(found) = envelope::decode(bytes) else { return };
    assert!(found.content_type.len() <= envelope::MAX_CONTENT_TYPE_BYTES);
    assert_eq!(envelope::HEADER_BYTES + found.content_type.len() + found.body.len(), bytes.len());
}

/// The reader of events, given lines `name: value`, an empty line and a body: what it takes is within the topic's bounds,
/// can be written in both ways that events are given, and is read again from what was written.
pub fn events(bytes: &[u8]) {
    let at = bytes.windows(2).position(|pair| pair == b"\n\n").unwrap_or(bytes.len());
    let (head, body) = bytes.split_at(at);
    let mut headers = HeaderMap::new();
    for line in head.split(|byte| *byte == b'\n') {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(colon);
        let value = HeaderValue::from_bytes(value.get(2..).unwrap_or_default());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), value) {
            headers.append(name, value);
        }
    }
    let body = Bytes::copy_from_slice(body.get(2..).unwrap_or_default());
    let context = Context {
        tenant: Uuid::nil(),
        topic: "leads",
        max_event_bytes: 1024,
        max_batch: 4,
        broker: None,
        broker_of_letters: None,
    };
    let events = match read(&headers, None, None, &body, &context) {
        Ok(events) => events,
        Err(error) => {
            assert!(error.to_string().len() > 20 && error.fields().len() <= 100, "{error}");
            return;
        }
    };
    assert!((1..=4).contains(&events.len()));
    headers.clear();
    headers.insert("content-type", HeaderValue::from_static("application/cloudevents+json"));
    for event in events {
        assert!(event.bytes() <= 1024 && (1..=512).contains(&event.key.len()));
        assert!(kafka_headers(&event.attributes, &event.data).is_ok());
        let mut text = Vec::new();
        write_structured(&mut text, &event.attributes, &event.data, &[]);
        assert!(!text.contains(&b'\n') && !text.contains(&b'\r'));
        // Base64 and escapes are longer than what they stand for.
        let context = Context { max_event_bytes: 1 << 20, ..context };
        let again =
            read(&headers, None, None, &text.into(), &context).expect("what is given can be sent again");
        assert_eq!((&again[0].attributes, &again[0].key), (&event.attributes, &event.key));
    }
}
