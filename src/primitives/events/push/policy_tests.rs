//! Subscriptions as policy documents have them.

use serde_json::json;

use super::super::super::{EventsPolicy, KIND};
use super::*;
use crate::policy::{Kind, Policies, Vocabulary, check_documents};

static EVENTS: Kind = KIND;

fn checked(push: &str) -> Result<Policies, String> {
    let text = format!("kind: events\ntopics: {{leads: {{}}}}\npush:\n{push}");
    let vocabulary = Vocabulary { kinds: vec![&EVENTS], ..Vocabulary::default() };
    check_documents(&vocabulary, 1, &[("events.yaml".to_owned(), text)])
        .map(|checked| checked.policies)
        .map_err(|report| report.to_string())
}

fn first(policies: &Policies) -> Subscription {
    Subscription::clone(&policies.get::<EventsPolicy>().unwrap().subscriptions()[0])
}

#[test]
fn a_subscription_that_says_only_what_it_must_has_the_defaults() {
    let policies = checked(
        "  crm: {topic: leads, target: {url: 'https://example.com/hook?x=1'}, tenants: any, secrets: ['${file:/run/s}']}\n",
    );
    let expected = Subscription {
        name: Name::parse("crm").unwrap(),
        group: Name::parse("push.crm").unwrap(),
        topic: Name::parse("leads").unwrap(),
        types: Vec::new(),
        url: "https://example.com/hook?x=1".parse().unwrap(),
        reach: Reach::Public,
        ca_file: None,
        tenants: Tenants::Any,
        secrets: vec![SecretSource::File("/run/s".into())],
        timeout_ms: 15_000,
        concurrency: 4,
        max_attempts: 16,
        backoff: Backoff { first_ms: 5_000, max_ms: 21_600_000 },
    };
    assert_eq!(first(&policies.unwrap()), expected);
}

#[test]
fn the_application_s_own_port_is_plain_http_on_this_machine() {
    let tenant = Uuid::from_u128(7);
    let policies = checked(&format!(
        "  own: {{topic: leads.dlq, target: {{app: {{port: 8080, path: /events}}}}, tenants: [{tenant}], secrets: ['${{env:S}}']}}\n"
    ));
    let own = first(&policies.unwrap());
    assert_eq!((own.url.to_string().as_str(), own.reach), ("http://127.0.0.1:8080/events", Reach::Loopback));
    assert!(own.tenants.includes(tenant) && !own.tenants.includes(Uuid::nil()));
}

#[test]
fn a_number_out_of_its_bounds_and_a_literal_secret_are_refused_with_their_place() {
    let with = |more: &str| {
        checked(&format!(
            "  crm: {{topic: leads, target: {{url: 'https://example.com/'}}, tenants: any, {more}}}\n"
        ))
    };
    let secrets = "secrets: ['${file:/run/s}']";
    for (field, least, most) in [
        ("timeout_ms", 100, 60_000),
        ("concurrency", 1, 64),
        ("max_attempts", 1, 1000),
        ("backoff: {max_ms: 43200000, first_ms", 100, 3_600_000),
        ("backoff: {first_ms: 100, max_ms", 1000, 43_200_000),
    ] {
        let close = if field.contains('{') { "}" } else { "" };
        let with = |value: u64| with(&format!("{secrets}, {field}: {value}{close}"));
        assert!(with(least).is_ok() && with(most).is_ok(), "{field}");
        for value in [least - 1, most + 1] {
            assert!(with(value).err().unwrap().contains("events.yaml:4"), "{field}: {value}");
        }
    }
    for wrong in [
        "secrets: []",
        "secrets: ['${env:A}', '${env:B}', '${env:C}', '${env:D}']",
        "secrets: [whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw]",
        &format!("{secrets}, batch: 10"),
    ] {
        assert!(with(wrong).is_err(), "{wrong}");
    }
    let target =
        |target: &str| checked(&format!("  crm: {{topic: leads, {target} tenants: any, {secrets}}}\n"));
    assert!(target("target: {app: {port: 65535, path: /}},").is_ok());
    for wrong in [
        "",
        "target: {app: {port: 0, path: /}},",
        "target: {app: {port: 65536, path: /}},",
        "target: {url: 'https://example.com/', app: {port: 1, path: /}},",
        "target: 'https://example.com/',",
    ] {
        assert!(target(wrong).is_err(), "{wrong}");
    }
}

/// What is wrong with one subscription, by pointer.
fn wrong(document: serde_json::Value) -> Vec<String> {
    let documents = BTreeMap::from([("crm".to_owned(), serde_json::from_value(document).unwrap())]);
    let mut findings = Findings::default();
    subscriptions(&documents, |name| name.as_str() == "leads", &mut findings);
    findings.iter().map(|finding| finding.pointer.clone()).collect()
}

#[test]
fn everything_wrong_beyond_the_schema_is_found_with_its_place() {
    let tenant = Uuid::from_u128(7);
    let document: SubscriptionDocument = serde_json::from_value(json!({
        "topic": "nothing",
        "types": ["made", "", "made"],
        "target": {"url": "http://example.com/"},
        "tenants": [tenant, tenant],
        "secrets": ["${file:relative}", "${env:A}", "${env:A}"],
        "backoff": {"first_ms": 2000, "max_ms": 1000},
        "ca_file": "relative",
    }))
    .unwrap();
    let mut findings = Findings::default();
    let documents = BTreeMap::from([("9a".to_owned(), document)]);
    assert!(subscriptions(&documents, |name| name.as_str() == "leads", &mut findings).is_empty());
    let mut places: Vec<_> = findings.iter().map(|finding| finding.pointer.as_str()).collect();
    places.sort_unstable();
    let expected = [
        "/push/9a",
        "/push/9a/backoff/max_ms",
        "/push/9a/ca_file",
        "/push/9a/secrets/0",
        "/push/9a/secrets/2",
        "/push/9a/target/url",
        "/push/9a/tenants/1",
        "/push/9a/topic",
        "/push/9a/types/1",
        "/push/9a/types/2",
    ];
    assert_eq!(places, expected);
}

#[test]
fn a_url_is_https_to_a_public_address_unless_private_ones_are_allowed() {
    let with = |url: &str, allow_private: bool| {
        wrong(json!({
            "topic": "leads", "target": {"url": url}, "tenants": "any", "secrets": ["${env:A}"],
            "allow_private": allow_private,
        }))
    };
    for (url, public, private) in [
        ("https://example.com/hook", true, true),
        ("https://example.com:8443/", true, true),
        ("https://8.8.8.8/", true, true),
        ("http://example.com/", false, true),
        ("https://10.0.0.1/", false, true),
        ("https://[::1]:8443/", false, true),
        ("http://127.0.0.1:8080/", false, true),
        ("https://169.254.169.254/", false, false),
        ("https://[::ffff:169.254.169.254]/", false, false),
        ("https://0.0.0.0/", false, false),
        ("https://user:pass@example.com/", false, false),
        ("https://example.com/#part", false, false),
        ("ftp://example.com/", false, false),
        ("//example.com/", false, false),
        ("/hook", false, false),
        ("", false, false),
        ("https://", false, false),
    ] {
        for (allow_private, expected) in [(false, public), (true, private)] {
            let found = with(url, allow_private);
            assert_eq!(found.is_empty(), expected, "{url}, allow_private: {allow_private}: {found:?}");
            assert!(found.iter().all(|pointer| pointer == "/push/crm/target/url"), "{url}: {found:?}");
        }
    }
}

#[test]
fn the_application_s_path_is_a_path_and_needs_no_permission() {
    let with = |path: &str, allow_private: bool| {
        wrong(json!({
            "topic": "leads", "target": {"app": {"port": 8080, "path": path}}, "tenants": "any",
            "secrets": ["${env:A}"], "allow_private": allow_private,
        }))
    };
    assert!(with("/events?from=outrigger", false).is_empty());
    for path in ["events", "", "@example.com/", ".example.com/", "/a#b", "/a b"] {
        assert_eq!(with(path, false), ["/push/crm/target/app/path"], "{path}");
    }
    assert_eq!(with("/events", true), ["/push/crm/target/app"]);
}
