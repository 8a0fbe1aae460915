//! What each of the four forms is read to, and how it is written.

use super::*;
use crate::primitives::events::Data;
use crate::primitives::events::cloudevents::{AttributesError, kafka_headers};

#[test]
fn a_structured_event_is_kept_as_it_came() {
    let event = structured(
        r#"{"id":"1","source":"/crm","specversion":"1.0","type":"lead.scored","subject":null,"sequence":7,"ok":true,
            "partitionkey":"lead-1","tenantid":"0190C7A8-3C5E-7F00-8000-0000000000A1","data": {"b": 1.50, "a": [ ]} }"#,
    );
    let text = concat!(
        r#"{"specversion":"1.0","id":"1","source":"/crm","type":"lead.scored","sequence":7,"ok":true,"#,
        r#""partitionkey":"lead-1","tenantid":"0190c7a8-3c5e-7f00-8000-0000000000a1"}"#
    );
    assert_eq!(event.attributes, text);
    assert_eq!(event.data, Data::Json(Bytes::from_static(br#"{"b": 1.50, "a": [ ]}"#)));
    assert_eq!(
        (&*event.id, &*event.source, &*event.kind, &*event.key),
        ("1", "/crm", "lead.scored", "lead-1")
    );
    assert!(!event.id_is_ours);
    assert_eq!(event.bytes(), text.len() + 21 + 37 + 6);
}

#[test]
fn an_event_is_ordered_by_its_partition_key_else_its_subject_else_its_id() {
    for (more, key) in [
        (r#","partitionkey":"p","subject":"s""#, "p"),
        (r#","subject":"s""#, "s"),
        (r#","subject":"s","partitionkey":null"#, "s"),
        ("", "1"),
    ] {
        let event = structured(format!(r#"{{"specversion":"1.0","id":"1","source":"s","type":"t"{more}}}"#));
        assert_eq!(&*event.key, key, "{more}");
    }
}

#[test]
fn data_is_what_its_content_type_says() {
    let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
    for (more, data) in [
        ("", Data::None),
        (r#","data":null"#, Data::Json(bytes("null"))),
        (r#","data":"a\u0020b""#, Data::Json(bytes(r#""a\u0020b""#))),
        (r#","datacontenttype":"application/vnd.lead+json","data":[1]"#, Data::Json(bytes("[1]"))),
        (r#","datacontenttype":"application/xml","data":"<a/>""#, Data::Text(bytes("<a/>"))),
        (r#","datacontenttype":"text/plain","data":"a\u0020b""#, Data::Text(bytes("a b"))),
        (r#","datacontenttype":"text/plain","data":null"#, Data::None),
        (r#","data_base64":"AP8=""#, Data::Binary(Bytes::from_static(&[0, 255]))),
        (r#","data_base64":"AP8""#, Data::Binary(Bytes::from_static(&[0, 255]))),
        (
            r#","data_base64":"\/\/8=","datacontenttype":"application/json""#,
            Data::Binary(Bytes::from_static(&[255, 255])),
        ),
        (r#","data_base64":null"#, Data::None),
    ] {
        let event = structured(format!(r#"{{"specversion":"1.0","id":"1","source":"s","type":"t"{more}}}"#));
        assert_eq!(event.data, data, "{more}");
    }
}

#[test]
fn a_batch_is_read_in_order() {
    let event =
        |id: usize| format!(r#"{{"specversion":"1.0","id":"{id}","source":"s","type":"t","data":{id}}}"#);
    let events = given(BATCH, format!(" [{},\n{},{}] ", event(1), event(2), event(3))).unwrap();
    let ids: Vec<_> = events.iter().map(|event| (&*event.id, event.data.bytes())).collect();
    assert_eq!(ids, [("1", b"1".as_slice()), ("2", b"2"), ("3", b"3")]);
}

#[test]
fn a_binary_event_has_its_attributes_in_headers() {
    let pairs = [
        ("CE-SpecVersion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "/crm"),
        ("ce-type", "lead.scored"),
        ("ce-subject", "Euro%20%E2%82%AC"),
        ("ce-sequence", "7"),
        ("content-type", "application/json; charset=utf-8"),
        ("user-agent", "curl"),
    ];
    let event = given(&pairs, " {\"a\": 1}\n").unwrap().pop().unwrap();
    let expected = serde_json::json!({
        "specversion": "1.0", "id": "1", "source": "/crm", "type": "lead.scored", "subject": "Euro €",
        "sequence": "7", "datacontenttype": "application/json; charset=utf-8", "tenantid": TENANT,
    });
    assert_eq!(value(&event.attributes), expected);
    assert_eq!(event.data, Data::Json(Bytes::from_static(b" {\"a\": 1}\n")));
    assert_eq!(&*event.key, "Euro €");
}

#[test]
fn plain_json_is_the_data_of_an_event_that_is_made_here() {
    let send = |kind, key| {
        let body = Bytes::from_static(b" {\"score\": 1} ");
        read(&headers(PLAIN), kind, key, &body, &context()).unwrap().pop().unwrap()
    };
    let event = send(None, None);
    assert!(event.id_is_ours);
    assert_eq!(Uuid::parse_str(&event.id).unwrap().get_version_num(), 7);
    assert_eq!((&*event.source, &*event.kind, &event.key), ("/v1/events/leads", "leads", &event.id));
    assert_eq!(event.data, Data::Json(Bytes::from_static(b"{\"score\": 1}")));
    let attributes = value(&event.attributes);
    assert_eq!(attributes["datacontenttype"], "application/json");
    let time: jiff::Timestamp = attributes["time"].as_str().unwrap().parse().unwrap();
    assert!(time.duration_until(jiff::Timestamp::now()).as_secs() < 60);

    let event = send(Some("lead.scored"), Some("key-1"));
    assert!(!event.id_is_ours);
    assert_eq!((&*event.id, &*event.kind), ("key-1", "lead.scored"));
    assert_eq!(event.fingerprint(), send(Some("lead.scored"), Some("key-1")).fingerprint());
}

#[test]
fn an_event_is_written_on_one_line_with_more_extensions() {
    let event = structured(
        "{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"s\",\"type\":\"t\",\"data\":{\n\r\t\"a\":\"\\n\"\n}}",
    );
    let text = written(&event, &[("cursor", "AQ"), ("dlqreason", "a \"b\"\n")]);
    assert!(!text.contains(['\n', '\r']), "{text}");
    let expected = serde_json::json!({
        "specversion": "1.0", "id": "1", "source": "s", "type": "t", "tenantid": TENANT,
        "cursor": "AQ", "dlqreason": "a \"b\"\n", "data": {"a": "\n"},
    });
    assert_eq!(value(text), expected);
}

#[test]
fn text_that_was_spoilt_is_still_given() {
    let event = Event {
        data: Data::Text(Bytes::from_static(b"\xff")),
        ..structured(r#"{"specversion":"1.0","id":"1","source":"s","type":"t"}"#)
    };
    assert_eq!(value(written(&event, &[]))["data_base64"], "/w==");
}

#[test]
fn kafka_s_headers_are_the_attributes() {
    let event = structured(
        r#"{"specversion":"1.0","id":"1","source":"s","type":"t","subject":"é","n":-7,"b":false,"data":1}"#,
    );
    let headers = kafka_headers(&event.attributes, &event.data).unwrap();
    let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let expected = [
        ("ce_specversion", "1.0"),
        ("ce_id", "1"),
        ("ce_source", "s"),
        ("ce_type", "t"),
        ("ce_subject", "é"),
        ("ce_n", "-7"),
        ("ce_b", "false"),
        ("ce_tenantid", TENANT),
        ("content-type", "application/json"),
    ];
    assert_eq!(headers, expected);

    let xml = br#"{"id":"1","datacontenttype":"application/xml"}"#;
    let headers = kafka_headers(xml, &Data::Text(Bytes::new())).unwrap();
    assert_eq!(headers[1], ("content-type".to_owned(), "application/xml".to_owned()));
    for spoilt in [b"[]".as_slice(), b"{", b"\xff", br#"{"id":1.5}"#] {
        assert_eq!(kafka_headers(spoilt, &Data::None), Err(AttributesError));
    }
}
