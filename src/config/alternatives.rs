//! `anyOf` and `oneOf`: which of the alternatives was meant, and what is wrong with it.

use jsonschema::ValidationError;
use jsonschema::error::ValidationErrorKind as Kind;
use serde_json::Value;

use super::complaint::{Complaints, wrong_kind};
use super::document::Aim;
use super::words::{one_of, plain, shape};

/// How far a value is from one alternative; the least is the one that was meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Distance {
    /// Of its shape, with errors further in.
    Inside,
    /// Its fields are not those of this alternative.
    Fields,
    /// The field that tells the alternatives apart says another one.
    Tag,
    /// Not of its type at all.
    Type,
}

/// Puts the failure of every alternative into words as one.
pub(super) fn explain<'a>(
    complaints: &mut Complaints<'a>,
    owner: &'a Value,
    error: &ValidationError<'_>,
    context: &[Vec<ValidationError<'static>>],
) {
    let pointer = error.instance_path().as_str();
    let instance = error.instance();
    if let Some(options) = complaints.root.constants(owner) {
        complaints.not_an_option(pointer, instance, &options);
        return;
    }
    let ranked: Vec<_> = context.iter().map(|errors| (distance(pointer, errors), errors)).collect();
    let Some(least) = ranked.iter().map(|(distance, _)| *distance).min() else { return };
    let mut best = ranked.iter().filter(|(distance, _)| *distance == least).map(|(_, errors)| *errors);
    match (least, best.next(), best.next()) {
        (Distance::Inside, Some(errors), _) | (Distance::Fields, Some(errors), None) => {
            for error in errors {
                complaints.explain(error);
            }
        }
        (Distance::Tag, ..) => wrong_tag(complaints, pointer, context),
        (Distance::Fields, ..) => wrong_fields(complaints, owner, pointer, instance),
        (Distance::Type, ..) | (_, None, _) => {
            let expected = shape(complaints.root, owner);
            complaints.add(Aim::Value, pointer, wrong_kind(instance), expected);
        }
    }
}

fn distance(pointer: &str, errors: &[ValidationError<'static>]) -> Distance {
    let of = |error: &ValidationError<'static>| {
        let at = error.instance_path().as_str();
        let child = at.strip_prefix(pointer).is_some_and(|rest| rest.matches('/').count() == 1);
        match error.kind() {
            Kind::Type { .. } | Kind::Enum { .. } | Kind::Constant { .. } if at == pointer => Distance::Type,
            Kind::Constant { .. } if child => Distance::Tag,
            Kind::Required { .. } | Kind::AdditionalProperties { .. } if at == pointer => Distance::Fields,
            _ => Distance::Inside,
        }
    };
    errors.iter().map(of).max().unwrap_or(Distance::Inside)
}

/// Every alternative has another constant in the same field.
fn wrong_tag(complaints: &mut Complaints<'_>, pointer: &str, context: &[Vec<ValidationError<'static>>]) {
    let mut options = Vec::new();
    let mut at = None;
    for error in context.iter().flatten() {
        if let Kind::Constant { expected_value } = error.kind() {
            options.push(plain(expected_value));
            at.get_or_insert((
                error.instance_path().as_str().to_owned(),
                error.instance().clone().into_owned(),
            ));
        }
    }
    let (at, instance) = at.unwrap_or((pointer.to_owned(), Value::Null));
    complaints.not_an_option(&at, &instance, &options);
}

/// The fields fit no alternative: names the unknown ones, or what can be given.
fn wrong_fields<'a>(complaints: &mut Complaints<'a>, owner: &'a Value, pointer: &str, instance: &Value) {
    let branches = complaints.root.branches(owner).unwrap_or_default();
    let needed = branches.iter().filter_map(|branch| branch.get("required")?.as_array()).flatten();
    let needed: Vec<&str> = needed.filter_map(Value::as_str).collect();
    let fields: Vec<_> = branches.iter().filter_map(|branch| branch.get("properties")?.as_object()).collect();
    let mut known: Vec<&str> = Vec::new();
    for name in fields.iter().flat_map(|fields| fields.keys()) {
        if !known.contains(&name.as_str()) {
            known.push(name);
        }
    }
    let given = instance.as_object().into_iter().flat_map(|members| members.keys());
    let unknown: Vec<&String> = given.filter(|name| !known.contains(&name.as_str())).collect();
    for name in &unknown {
        complaints.unknown_of(pointer, name, &known);
    }
    let tag = known.iter().find(|name| {
        fields.iter().all(|fields| fields.get(**name).is_some_and(|field| field.get("const").is_some()))
    });
    match tag.filter(|tag| instance.get(**tag).is_none()) {
        Some(tag) => {
            let constants = fields.iter().filter_map(|fields| fields.get(*tag)?.get("const"));
            complaints.missing(
                pointer,
                tag,
                &one_of(constants.map(plain).collect::<Vec<_>>().iter().map(String::as_str)),
            );
        }
        None if unknown.is_empty() => {
            let message = "these fields do not go together, or one is missing";
            complaints.add(
                Aim::Value,
                pointer,
                message,
                one_of(if needed.is_empty() { known } else { needed }),
            );
        }
        None => {}
    }
}
