//! Over arbitrary events and arbitrary bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{Map, json};

use super::*;

/// Text that a String may be: no control characters, no noncharacters.
const STRING: &str = "[ -~¡-ÿĀ-\u{d7ff}\u{e000}-\u{fdcf}\u{10000}-\u{1fffd}]{1,12}";

fn wide() -> Context<'static> {
    Context { max_event_bytes: 1_000_000, max_batch: 100, ..context() }
}

fn extension() -> impl Strategy<Value = Value> {
    prop_oneof![
        STRING.prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from)
    ]
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,8}|[\n\r\t\"\\\\]{0,4}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            btree_map("\\PC{0,6}", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// The payload's members of the JSON format, with the `datacontenttype` that they go by.
fn payload() -> impl Strategy<Value = Map<String, Value>> {
    let members = |value: Value| value.as_object().cloned().unwrap_or_default();
    prop_oneof![
        Just(json!({})),
        json_value().prop_map(|data| json!({"data": data})),
        json_value().prop_map(|data| json!({"data": data, "datacontenttype": "application/lead+json"})),
        any::<String>()
            .prop_map(|data| json!({"data": data, "datacontenttype": "text/plain; charset=utf-8"})),
        vec(any::<u8>(), 0..40)
            .prop_map(|data| json!({"data_base64": STANDARD.encode(data), "datacontenttype": "image/png"})),
    ]
    .prop_map(members)
}

/// A right event in the JSON format.
fn event() -> impl Strategy<Value = Value> {
    let required = (STRING, "[a-z/]{1,3}(%20|[a-z0-9]){0,8}", STRING);
    let optional = proptest::option::of((
        STRING,
        "20[0-9]{2}-(0[1-9]|1[0-2])-[0-2][1-8]T[01][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,12})?(Z|[+-]0[0-9]:30)",
    ));
    let extensions = btree_map("x[a-z0-9]{0,18}", extension(), 0..5);
    (required, optional, extensions, payload()).prop_map(
        |((id, source, kind), optional, extensions, payload)| {
            let mut event = Map::new();
            event.extend(extensions);
            event.extend(payload);
            event.insert("specversion".to_owned(), json!("1.0"));
            event.insert("id".to_owned(), json!(id));
            event.insert("source".to_owned(), json!(source));
            event.insert("type".to_owned(), json!(kind));
            if let Some((subject, time)) = optional {
                event.insert("subject".to_owned(), json!(subject));
                event.insert("time".to_owned(), json!(time));
            }
            Value::Object(event)
        },
    )
}

fn with_tenant(event: &Value) -> Value {
    let mut event = event.clone();
    event["tenantid"] = json!(TENANT);
    event
}

fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'!'..=b'~' if !matches!(byte, b'"' | b'%') => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

/// The same event in binary mode: headers, and a body.
fn in_binary_mode(event: &Value) -> (HeaderMap, Vec<u8>) {
    let members = event.as_object().unwrap();
    let mut headers = HeaderMap::new();
    let is_json = |kind: &Value| kind.as_str().is_some_and(|kind| kind.ends_with("json"));
    for (name, value) in members.iter().filter(|(name, _)| !name.starts_with("data")) {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let value = HeaderValue::from_str(&percent_encoded(&text)).unwrap();
        headers.append(HeaderName::try_from(format!("ce-{name}")).unwrap(), value);
    }
    let body = match (members.get("data"), members.get("data_base64"), members.get("datacontenttype")) {
        (Some(data), _, kind) if kind.is_none_or(is_json) => data.to_string().into_bytes(),
        (Some(data), _, _) => data.as_str().unwrap().as_bytes().to_vec(),
        (None, Some(data), _) => STANDARD.decode(data.as_str().unwrap()).unwrap(),
        (None, None, _) => Vec::new(),
    };
    let kind = members.get("datacontenttype").and_then(Value::as_str);
    if let Some(kind) = kind.or_else(|| (!body.is_empty()).then_some("application/json")) {
        headers.insert("content-type", HeaderValue::from_str(kind).unwrap());
    }
    (headers, body)
}

/// What a binary event comes back as: extensions are strings, an empty body is no data, and JSON says that it is.
fn as_binary_mode_has_it(event: &Value, body: &[u8]) -> Value {
    let mut event = with_tenant(event);
    let members = event.as_object_mut().unwrap();
    for (_, value) in members.iter_mut().filter(|(name, _)| *name != "data") {
        if !value.is_string() {
            *value = json!(value.to_string());
        }
    }
    if body.is_empty() {
        members.retain(|name, _| name != "data" && name != "data_base64");
    } else if !members.contains_key("datacontenttype") {
        members.insert("datacontenttype".to_owned(), json!("application/json"));
    }
    event
}

proptest! {
    #[test]
    fn a_structured_event_comes_back(event in event(), pretty: bool) {
        let body = if pretty { serde_json::to_string_pretty(&event) } else { serde_json::to_string(&event) };
        let read = read(&headers(STRUCTURED), None, None, &Bytes::from(body.unwrap()), &wide());
        let read = read.map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
        prop_assert_eq!(read.len(), 1);
        let text = written(&read[0], &[]);
        prop_assert!(!text.contains(['\n', '\r']));
        prop_assert_eq!(value(&text), with_tenant(&event));
        // What is given may be sent again, and is the same event.
        let again = super::super::read(&headers(STRUCTURED), None, None, &Bytes::from(text), &wide());
        let again = again.map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
        prop_assert_eq!(&again[0].attributes, &read[0].attributes);
        prop_assert_eq!(&again[0].key, &read[0].key);
    }

    #[test]
    fn a_batch_comes_back(events in vec(event(), 1..6)) {
        let body = Bytes::from(serde_json::to_string(&events).unwrap());
        let read = read(&headers(BATCH), None, None, &body, &wide());
        let read = read.map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
        let back: Vec<_> = read.iter().map(|event| value(written(event, &[]))).collect();
        prop_assert_eq!(back, events.iter().map(with_tenant).collect::<Vec<_>>());
    }

    #[test]
    fn a_binary_event_comes_back(event in event()) {
        let (headers, body) = in_binary_mode(&event);
        let expected = as_binary_mode_has_it(&event, &body);
        let read = read(&headers, None, None, &Bytes::from(body), &wide());
        let read = read.map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
        prop_assert_eq!(value(written(&read[0], &[])), expected);
    }

    #[test]
    fn plain_json_comes_back(data in json_value(), kind in STRING, id in STRING) {
        let body = Bytes::from(data.to_string());
        let read = read(&headers(PLAIN), Some(&kind), Some(&id), &body, &wide());
        let read = read.map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
        let back = value(written(&read[0], &[]));
        prop_assert_eq!(&back["data"], &data);
        prop_assert_eq!((back["type"].as_str(), back["id"].as_str()), (Some(kind.as_str()), Some(id.as_str())));
    }

    #[test]
    fn kafka_s_headers_are_an_event_s_attributes(event in event()) {
        let body = Bytes::from(event.to_string());
        let read = read(&headers(STRUCTURED), None, None, &body, &wide()).unwrap();
        let kafka = super::super::kafka_headers(&read[0].attributes, &read[0].data).unwrap();
        let attributes = value(&read[0].attributes);
        for (name, attribute) in attributes.as_object().unwrap() {
            let header = if name == "datacontenttype" { "content-type".to_owned() } else { format!("ce_{name}") };
            let text = attribute.as_str().map_or_else(|| attribute.to_string(), str::to_owned);
            prop_assert!(kafka.contains(&(header, text)), "{}", name);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused_in_words(
        body in prop_oneof![vec(any::<u8>(), 0..80), "[\\[\\]{}:,\"a-z0-9\\\\. \n]{0,60}".prop_map(String::into_bytes)],
        form in 0..4_usize,
        ce in proptest::option::of(vec(any::<u8>().prop_filter("a header", |b| *b >= 32 && *b != 127), 0..20)),
    ) {
        let mut headers = headers([STRUCTURED, BATCH, PLAIN, &[]][form]);
        if let Some(ce) = ce {
            headers.insert("ce-subject", HeaderValue::from_bytes(&ce).unwrap());
        }
        if let Err(error) = read(&headers, None, None, &Bytes::from(body), &wide()) {
            prop_assert!(error.to_string().len() > 20);
            prop_assert!(error.fields().iter().all(|field| field.detail.len() > 4));
        }
    }

    /// Right events with bytes changed: nearer to what is right than any bytes.
    #[test]
    fn a_spoilt_event_is_read_or_refused_in_words(event in event(), at: prop::sample::Index, byte: u8) {
        let mut body = event.to_string().into_bytes();
        let at = at.index(body.len());
        body[at] = byte;
        match read(&headers(STRUCTURED), None, None, &Bytes::from(body), &wide()) {
            Ok(events) => prop_assert!(value(written(&events[0], &[])).is_object()),
            Err(error) => prop_assert!(error.to_string().len() > 20),
        }
    }
}
