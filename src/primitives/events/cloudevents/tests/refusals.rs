//! What is refused, with its kind and its pointers.

use super::*;
use crate::error::ErrorKind;

/// The kind and the pointers of an error; its words say something.
fn refused(result: Result<Vec<Event>, EventError>) -> (ErrorKind, Vec<String>) {
    let error = result.expect_err("it was taken");
    assert!(error.to_string().len() > 20, "{error}");
    assert!(error.fields().iter().all(|field| field.detail.len() > 4), "{error:?}");
    (error.kind(), error.fields().iter().map(|field| field.pointer.clone()).collect())
}

fn invalid(pointers: &[&str]) -> (ErrorKind, Vec<String>) {
    (ErrorKind::Invalid, pointers.iter().map(|pointer| (*pointer).to_owned()).collect())
}

#[test]
fn a_member_of_a_structured_event_is_refused_at_its_pointer() {
    let long = "k".repeat(513);
    let right = r#""specversion":"1.0","id":"1","source":"s","type":"t""#;
    let cases: Vec<(String, &[&str])> = vec![
        ("{}".into(), &["/specversion", "/id", "/source", "/type"]),
        (r#"{"specversion":"1.0","id":null,"source":"s","type":"t"}"#.into(), &["/id"]),
        (
            r#"{"specversion":"0.3","id":"","source":"a b","type":7}"#.into(),
            &["/specversion", "/id", "/source", "/type"],
        ),
        (
            r#"{"specversion":1.0,"id":1.5,"source":[],"type":{}}"#.into(),
            &["/specversion", "/id", "/source", "/type"],
        ),
        (format!(r#"{{{right},"time":"2026-01-31"}}"#), &["/time"]),
        (format!(r#"{{{right},"time":"2026-02-30T00:00:00Z"}}"#), &["/time"]),
        (format!(r#"{{{right},"time":1767225600}}"#), &["/time"]),
        (format!(r#"{{{right},"subject":""}}"#), &["/subject"]),
        (format!(r#"{{{right},"subject":"a\u0000"}}"#), &["/subject"]),
        (format!(r#"{{{right},"subject":"\ud800"}}"#), &["/subject"]),
        (format!(r#"{{{right},"ext":"a\u0085"}}"#), &["/ext"]),
        (format!(r#"{{{right},"ext":"\ufffe"}}"#), &["/ext"]),
        (format!(r#"{{{right},"dataschema":"/s"}}"#), &["/dataschema"]),
        (format!(r#"{{{right},"datacontenttype":"json","data":1}}"#), &["/datacontenttype"]),
        (format!(r#"{{{right},"datacontenttype":""}}"#), &["/datacontenttype"]),
        (format!(r#"{{{right},"dataContentType":"a/b"}}"#), &["/dataContentType"]),
        (format!(r#"{{{right},"my-ext":"1","a/b":"1","":"1","é":"1"}}"#), &["/my-ext", "/a~1b", "/", "/é"]),
        (format!(r#"{{{right},"n":2147483648,"m":-2147483649,"o":1.0,"p":1e3}}"#), &["/n", "/m", "/o", "/p"]),
        (format!(r#"{{{right},"a":[1],"b":{{}}}}"#), &["/a", "/b"]),
        (
            format!(r#"{{{right},"cursor":"1","dlqgroup":"g","dlqreason":"r"}}"#),
            &["/cursor", "/dlqgroup", "/dlqreason"],
        ),
        (format!(r#"{{{right},"partitionkey":""}}"#), &["/partitionkey"]),
        (format!(r#"{{{right},"partitionkey":7}}"#), &["/partitionkey"]),
        (format!(r#"{{{right},"partitionkey":"{long}"}}"#), &["/partitionkey"]),
        (format!(r#"{{{right},"subject":"{long}"}}"#), &["/subject"]),
        (format!(r#"{{"specversion":"1.0","id":"{long}","source":"s","type":"t"}}"#), &["/id"]),
        (format!(r#"{{{right},"id":"2"}}"#), &["/id"]),
        (format!(r#"{{"id":null,{right}}}"#), &["/id"]),
        (format!(r#"{{{right},"\u0069d":"2"}}"#), &["/id"]),
        (format!(r#"{{{right},"data":1,"data":2}}"#), &["/data"]),
        (format!(r#"{{{right},"data":1,"data_base64":""}}"#), &["/data_base64"]),
        (format!(r#"{{{right},"data_base64":"%"}}"#), &["/data_base64"]),
        (format!(r#"{{{right},"data_base64":"-_8="}}"#), &["/data_base64"]),
        (format!(r#"{{{right},"data_base64":1}}"#), &["/data_base64"]),
        (format!(r#"{{{right},"datacontenttype":"text/plain","data":{{}}}}"#), &["/data"]),
        (format!(r#"{{{right},"datacontenttype":"text/plain","data":"\udc00"}}"#), &["/data"]),
        (format!(r#"{{{right},"data":{}1{}}}"#, "[".repeat(101), "]".repeat(101)), &["/data"]),
        ("[]".into(), &[""]),
        ("null".into(), &[""]),
        ("\"a\"".into(), &[""]),
        ("1.5".into(), &[""]),
    ];
    for (body, pointers) in cases {
        assert_eq!(refused(given(STRUCTURED, body.clone())), invalid(pointers), "{body}");
    }
}

#[test]
fn too_many_attributes_are_refused_at_the_event() {
    let with = |count: usize| {
        let more: String = (0..count).map(|index| format!(r#","e{index}":1"#)).collect();
        let required = r#""specversion":"1.0","id":"1","source":"s","type":"t","data":1"#;
        given(STRUCTURED, format!("{{{required}{more}}}"))
    };
    // What is given has `tenantid` beside them, and can be sent again.
    let event = with(60).unwrap().pop().unwrap();
    assert_eq!(given(STRUCTURED, written(&event, &[])), Ok(vec![event]));
    assert_eq!(refused(with(61)), invalid(&[""]));
    assert_eq!(refused(with(400)), invalid(&[""]));
}

#[test]
fn every_wrong_event_of_a_batch_is_named() {
    let right = r#"{"specversion":"1.0","id":"1","source":"s","type":"t"}"#;
    let large = right.replace("\"t\"", &format!("\"t\",\"data\":\"{}\"", "x".repeat(4096)));
    for (body, expected) in [
        ("[]".to_owned(), invalid(&[""])),
        (format!("[{right},{right},{right},{right}]"), invalid(&[""])),
        ("{}".to_owned(), invalid(&[""])),
        ("1".to_owned(), invalid(&[""])),
        (format!("[{right},7,null]"), invalid(&["/1", "/2"])),
        (
            format!(r#"[{right},{{}},{}]"#, right.replace("\"t\"", "\"\"")),
            invalid(&["/1/specversion", "/1/id", "/1/source", "/1/type", "/2/type"]),
        ),
        (format!("[{right},{large}]"), (ErrorKind::TooLarge, vec!["/1".to_owned()])),
        (format!("[{large},{}]", right.replace("\"s\"", "\"\"")), invalid(&["/1/source", "/0"])),
        (format!("[{right}"), (ErrorKind::Malformed, vec![])),
        (format!("[{right}] 1"), (ErrorKind::Malformed, vec![])),
    ] {
        assert_eq!(refused(given(BATCH, body.clone())), expected, "{body}");
    }
}

#[test]
fn an_error_names_a_hundred_fields_at_the_most() {
    let context = Context { max_batch: 1000, ..context() };
    let body = Bytes::from(format!("[{}]", vec!["{}"; 1000].join(",")));
    let error = read(&headers(BATCH), None, None, &body, &context).unwrap_err();
    assert_eq!(error.fields().len(), 100);
}

#[test]
fn another_tenant_s_event_is_forbidden_whatever_else_is_wrong() {
    let foreign = r#"{"tenantid":"0190c7a8-3c5e-7f00-8000-0000000000a2"}"#;
    let expected = |pointer: &str| (ErrorKind::Forbidden, vec![pointer.to_owned()]);
    assert_eq!(refused(given(STRUCTURED, foreign)), expected("/tenantid"));
    assert_eq!(refused(given(BATCH, format!("[{{}},{foreign}]"))), expected("/1/tenantid"));
    assert_eq!(refused(given(STRUCTURED, r#"{"tenantid":7}"#)), expected("/tenantid"));
    assert_eq!(refused(given(&[("ce-tenantid", "acme")], "")), expected("ce-tenantid"));
}

/// Headers beside the required ones, the body, and the pointers.
type Case = (&'static [(&'static str, &'static str)], &'static str, &'static [&'static str]);

#[test]
fn a_header_of_a_binary_event_is_refused_by_its_name() {
    let required = [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "s"), ("ce-type", "t")];
    let cases: [Case; 14] = [
        (&[("ce-type", "u")], "", &["ce-type"]),
        (&[("ce-time", "now")], "", &["ce-time"]),
        (&[("ce-subject", "")], "", &["ce-subject"]),
        (&[("ce-subject", "a%00")], "", &["ce-subject"]),
        (&[("ce-subject", "%FF")], "", &["ce-subject"]),
        (&[("ce-subject", "5\"")], "", &["ce-subject"]),
        (&[("ce-my-ext", "1")], "", &["ce-my-ext"]),
        (&[("ce-data", "1"), ("ce-data_base64", "1")], "", &["ce-data", "ce-data_base64"]),
        (&[("ce-datacontenttype", "a/b")], "", &["ce-datacontenttype"]),
        (&[("ce-cursor", "1")], "", &["ce-cursor"]),
        (&[("content-type", "json")], "", &["content-type"]),
        (&[("content-type", "application/json")], "{", &[""]),
        (&[("content-type", "application/json")], "", &[]),
        (&[("ce-", "1")], "", &["ce-"]),
    ];
    for (more, body, pointers) in cases {
        let result = given(&[&required, more].concat(), body);
        if pointers.is_empty() {
            assert!(result.is_ok(), "{more:?}");
        } else {
            assert_eq!(refused(result), invalid(pointers), "{more:?}");
        }
    }
    let missing = ["ce-specversion", "ce-source", "ce-type"];
    assert_eq!(
        refused(given(&[("ce-id", "1"), ("content-type", "application/json")], "{}")),
        invalid(&missing)
    );
    let names: Vec<_> = (0..61).map(|index| format!("ce-e{index}")).collect();
    let many: Vec<_> = required.into_iter().chain(names.iter().map(|name| (name.as_str(), "1"))).collect();
    assert!(given(&many[..64], "").is_ok());
    assert_eq!(refused(given(&many, "")), invalid(&[""]));
    let large = "x".repeat(4096);
    assert_eq!(refused(given(&required, large)), (ErrorKind::TooLarge, vec![String::new()]));
}

#[test]
fn a_plain_event_is_refused_at_the_query_or_the_header() {
    let send = |kind, key, body: &str| {
        refused(read(&headers(PLAIN), kind, key, &Bytes::copy_from_slice(body.as_bytes()), &context()))
    };
    let long = "k".repeat(513);
    assert_eq!(send(Some(""), None, "1"), invalid(&["?type"]));
    assert_eq!(send(Some("a\n"), None, "1"), invalid(&["?type"]));
    assert_eq!(send(None, Some(""), "1"), invalid(&["idempotency-key"]));
    assert_eq!(send(None, Some("a\u{7f}"), "1"), invalid(&["idempotency-key"]));
    assert_eq!(send(None, Some(&long), "1"), invalid(&["idempotency-key"]));
    assert_eq!(send(None, None, &format!("{}{}", "[".repeat(101), "]".repeat(101))), invalid(&[""]));
    for body in ["", "{", "{} {}", "nope", "\u{feff}{}"] {
        assert_eq!(send(None, None, body), (ErrorKind::Malformed, vec![]), "{body}");
    }
    let large = format!("\"{}\"", "x".repeat(4096));
    assert_eq!(send(None, None, &large), (ErrorKind::TooLarge, vec![String::new()]));
}

#[test]
fn what_belongs_to_plain_json_is_refused_elsewhere() {
    let body = Bytes::from_static(br#"{"specversion":"1.0","id":"1","source":"s","type":"t"}"#);
    for pairs in [STRUCTURED, BATCH, &[("ce-id", "1"), ("content-type", "application/json")]] {
        let send = |kind, key| refused(read(&headers(pairs), kind, key, &body, &context()));
        assert_eq!(send(None, Some("k")), (ErrorKind::IdempotencyNotSupported, vec![]));
        assert_eq!(send(Some("t"), None), invalid(&["?type"]));
    }
}

#[test]
fn another_media_type_is_refused_before_the_body_is_read() {
    let other = (ErrorKind::UnsupportedMediaType, vec![]);
    let cases: [&[(&str, &str)]; 11] = [
        &[],
        &[("content-type", "")],
        &[("content-type", "text/plain")],
        &[("content-type", "application/vnd.lead+json")],
        &[("content-type", "application/cloudevents")],
        &[("content-type", "application/cloudevents+avro")],
        &[("content-type", "application/cloudevents+avro"), ("ce-id", "1")],
        &[("content-type", "application/cloudevents+json; charset=utf-16")],
        &[("content-type", "application/json; charset=latin1")],
        &[("content-type", "application/json; charset")],
        &[("content-type", "application/json"), ("content-encoding", "gzip")],
    ];
    for pairs in cases {
        assert_eq!(refused(given(pairs, "{")), other, "{pairs:?}");
    }
    let twice = [("content-type", "application/json"), ("content-type", "text/plain")];
    assert_eq!(refused(given(&twice, "{}")), (ErrorKind::Malformed, vec![]));
}

#[test]
fn a_body_that_is_no_json_or_no_utf_8_is_malformed() {
    for body in [
        b"".as_slice(),
        b"{",
        b"{}}",
        b"\xff",
        b"{\"a\":\"\xff\"}",
        b"{\"a\":01}",
        b"{'a':1}",
        b"{\"a\":\"\n\"}",
    ] {
        assert_eq!(refused(given(STRUCTURED, body.to_vec())), (ErrorKind::Malformed, vec![]), "{body:?}");
    }
}

#[test]
fn an_event_as_large_as_its_topic_takes_is_taken_and_one_byte_more_is_not() {
    let body = |length: usize| {
        let fill = "x".repeat(length);
        format!(r#"{{"specversion":"1.0","id":"1","source":"s","type":"t","data":"{fill}"}}"#)
    };
    let rest = structured(body(0)).bytes();
    assert_eq!(structured(body(4096 - rest)).bytes(), 4096);
    let expected = (ErrorKind::TooLarge, vec![String::new()]);
    assert_eq!(refused(given(STRUCTURED, body(4097 - rest))), expected);
}
