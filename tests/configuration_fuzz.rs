//! Whatever stands in `proxy.yaml`, reading it ends soon and without a panic.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::time::Duration;

use outrigger::config::Document;
use proptest::prelude::*;
use serde_json::Value;
use support::configuration::{GOOD, load_in};

#[test]
fn nesting_is_bounded() {
    for (open, close) in [("[", "]"), ("{a: ", "}"), ("- ", "")] {
        let nested = |depth: usize| format!("{}x{}", open.repeat(depth), close.repeat(depth));
        assert!(Document::parse("f", nested(64)).is_ok(), "{open}");
        for depth in [65, 100_000] {
            let report = Document::parse("f", nested(depth)).unwrap_err();
            assert_eq!(report.diagnostics()[0].message, "nested too deeply", "{open}");
        }
    }
}

/// A document at the bound of size is parsed in about the time that its size asks for, whatever is in it.
#[test]
fn no_document_takes_long() {
    let size = 1024 * 1024 - 64;
    let repeat = |piece: &str| piece.repeat(size / piece.len());
    for text in [
        repeat("["),
        repeat("[]"),
        repeat("{}"),
        repeat("? "),
        repeat("- "),
        repeat("\""),
        repeat("a"),
        repeat("a: 1\n"),
        repeat("&a "),
        repeat("&a a\n"),
        repeat("- &a x\n"),
        repeat("- !!str x\n"),
        repeat("- x\n"),
        repeat("a "),
        repeat("a\n"),
        repeat("#\n"),
        repeat("\n"),
        repeat("é"),
        format!("[{}]", repeat("a,")),
        format!("{{{}}}", repeat("a,")),
        format!("a: |\n{}", repeat("  x\n")),
        format!("a: {}", repeat("x ")),
        format!("listeners: {{{}}}", (0..80_000).map(|n| format!("k{n}: 1, ")).collect::<String>()),
    ] {
        let began = std::time::Instant::now();
        let shown = match Document::parse("f.yaml", text.as_str()) {
            Ok(_) => String::new(),
            Err(report) => report.to_string(),
        };
        let took = began.elapsed();
        assert!(
            took < Duration::from_secs(10),
            "{took:?} for {:?}…",
            text.chars().take(20).collect::<String>()
        );
        assert!(shown.len() < 1_000_000, "{} bytes of report", shown.len());
    }
}

proptest! {
    /// Whatever the text, parsing and rendering end without a panic, and every place is in the text.
    #[test]
    fn no_text_makes_the_parser_panic(text in text()) {
        match Document::parse("f.yaml", text.as_str()) {
            Ok(document) => {
                let mut findings = outrigger::config::Findings::default();
                for pointer in ["", "/a", "/a/b/0", "/0", "/é/~1/~0"] {
                    findings.add(pointer, "m", "e");
                }
                prop_assert!(!document.report(&findings).to_string().is_empty());
            }
            Err(report) => {
                for diagnostic in report.diagnostics() {
                    if let Some(place) = &diagnostic.place {
                        prop_assert!(place.text.get(place.span.clone()).is_some() || place.text.is_empty());
                    }
                }
                prop_assert!(!report.to_string().is_empty());
            }
        }
    }

    /// A document of JSON means in YAML what it means in JSON.
    #[test]
    fn json_is_read_as_json(value in json_value()) {
        let document = Document::parse("f.yaml", value.to_string()).map_err(|report| report.to_string()).unwrap();
        prop_assert_eq!(document.value(), &value);
    }

    /// No configuration near a good one makes the checks panic.
    #[test]
    fn no_change_of_a_good_configuration_makes_the_checks_panic(
        at in 0..GOOD.len(), length in 0_usize..20, insert in text(),
    ) {
        let end = (at + length).min(GOOD.len());
        let directory = tempfile::tempdir().unwrap();
        if let Err(report) = load_in(directory.path(), &format!("{}{insert}{}", &GOOD[..at], &GOOD[end..])) {
            prop_assert!(!report.to_string().is_empty());
        }
    }
}

/// Texts with much of YAML's own punctuation in them.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec![
            "\n", "\n  ", ": ", "- ", "[", "]", "{", "}", ", ", "'", "\"", "|", ">", "#", "&a", "*a", "!!str ", "---",
            "...", "? ", "a", "b", "é", "\u{1F512}", "\r\n", "\r", "\t", "%YAML 1.2\n", "\\x", "<<", "0x1", "~", "\u{FEFF}",
            "password: ", "\u{85}", "\u{2028}",
        ]).prop_map(str::to_owned),
        1 => ".{0,6}",
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        "[a-zA-Z0-9 :#é-]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map("[a-z~/]{1,6}", inner, 0..6)
                .prop_map(|members| members.into_iter().collect::<Value>()),
        ]
    })
}
