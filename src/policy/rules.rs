//! What the schema cannot say about the `access` document. It works on the plain value, so that it has its say also
//! where the schema found errors elsewhere.

use std::collections::BTreeMap;

use serde_json::Value;

use super::check::Vocabulary;
use crate::config::{Findings, one_of, with_nearest};
use crate::names::Name;
use crate::policy::Action;

/// Adds everything that is wrong with the meaning of an access document.
pub(super) fn check(document: &Value, vocabulary: &Vocabulary, findings: &mut Findings) {
    let mut names = BTreeMap::new();
    for (index, rule) in items(document, "rules") {
        let at = format!("/rules/{index}");
        let name = rule.get("name").and_then(Value::as_str);
        if let Some(first) = name.and_then(|name| names.insert(name, index)) {
            let message = format!("the same name as rule {}", first + 1);
            findings.add(format!("{at}/name"), message, "a name of its own for each rule");
        }
        if rule.get("match").is_some_and(matches_everyone) {
            let expected = "at least one of `scopes`, `roles`, `subjects`, `issuers`, not empty";
            findings.add(format!("{at}/match"), "this rule would be about everyone", expected);
        }
        for (grant_index, grant) in items(rule, "allow") {
            self::grant(grant, &format!("{at}/allow/{grant_index}"), &vocabulary.actions, findings);
        }
        for (issuer_index, issuer) in rule.get("match").into_iter().flat_map(|m| items(m, "issuers")) {
            self::issuer(issuer, format!("{at}/match/issuers/{issuer_index}"), vocabulary, findings);
        }
    }
    let mut subjects = BTreeMap::new();
    for (index, service) in items(document, "services") {
        let key =
            (service.get("issuer").and_then(Value::as_str), service.get("subject").and_then(Value::as_str));
        if let (Some(first), (Some(_), Some(_))) = (subjects.insert(key, index), key) {
            let message = format!("the same subject and issuer as service {}", first + 1);
            findings.add(format!("/services/{index}/subject"), message, "each service once");
        }
        if let Some(issuer) = service.get("issuer") {
            self::issuer(issuer, format!("/services/{index}/issuer"), vocabulary, findings);
        }
    }
}

fn items<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = (usize, &'a Value)> {
    value.get(name).and_then(Value::as_array).into_iter().flatten().enumerate()
}

fn matches_everyone(matches: &Value) -> bool {
    let empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    matches.as_object().is_some_and(|members| members.values().all(empty))
}

/// A rule about an issuer that is not configured would match nobody, and whoever wrote it would not know.
fn issuer(issuer: &Value, at: String, vocabulary: &Vocabulary, findings: &mut Findings) {
    let (Some(given), Some(issuers)) = (issuer.as_str(), &vocabulary.issuers) else { return };
    let names = || issuers.iter().map(String::as_str);
    if !names().any(|name| name == given) {
        let message = with_nearest(format!("no issuer is called `{given}`"), given, names());
        findings.add(
            at,
            message,
            format!("the name of an issuer in `identity.issuers`: {}", one_of(names())),
        );
    }
}

fn grant(grant: &Value, at: &str, actions: &[Action], findings: &mut Findings) {
    for (index, action) in items(grant, "actions") {
        let Some(text) = action.as_str() else { continue };
        if !is_known(text, actions) {
            let known: Vec<String> = std::iter::once("*".to_owned())
                .chain(
                    actions.iter().flat_map(|action| [format!("{}:*", action.primitive), action.to_string()]),
                )
                .collect();
            let mut distinct: Vec<&str> = Vec::new();
            for action in &known {
                if !distinct.contains(&action.as_str()) {
                    distinct.push(action);
                }
            }
            let message = with_nearest(format!("unknown action `{text}`"), text, distinct.iter().copied());
            findings.add(format!("{at}/actions/{index}"), message, one_of(distinct));
        }
    }
    for (index, name) in items(grant, "names") {
        let Some(text) = name.as_str() else { continue };
        let fits = match text.strip_suffix('*') {
            Some(prefix) => prefix.is_empty() || Name::is_valid(prefix),
            None => Name::is_valid(text),
        };
        if !fits {
            findings.add(
                format!("{at}/names/{index}"),
                "not a name that can exist",
                "a name (`[a-z][a-z0-9_.-]{0,63}`), the beginning of names followed by `*`, or `*`",
            );
        }
    }
}

fn is_known(pattern: &str, actions: &[Action]) -> bool {
    pattern == "*"
        || pattern.split_once(':').is_some_and(|(primitive, verb)| {
            actions.iter().any(|known| known.primitive == primitive && (verb == "*" || verb == known.verb))
        })
}
