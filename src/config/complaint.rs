//! A validator's errors, one by one, in words.

use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{JsonType, ValidationError};
use serde_json::Value;

use super::document::Aim;
use super::schema::Root;
use super::words::{
    describe, format_words, kind_of, nearest, one_of, pattern_words, plain, range, with_nearest,
};
use super::{alternatives, pointer_step};

const UNKNOWN: &str = "unknown field ";
const MISSING: &str = " is missing";
const WRONG_TYPE: &str = "wrong type: ";

/// One error in words.
pub(super) struct Complaint {
    pub(super) aim: Aim,
    pub(super) pointer: String,
    pub(super) message: String,
    pub(super) expected: String,
    /// The field whose absence this is about, or which was likely meant.
    field: Option<String>,
}

/// Errors in words, with the schema they refer to.
pub(super) struct Complaints<'a> {
    pub(super) root: Root<'a>,
    pub(super) found: Vec<Complaint>,
}

impl<'a> Complaints<'a> {
    pub(super) fn new(root: Root<'a>) -> Self {
        Self { root, found: Vec::new() }
    }

    pub(super) fn add(
        &mut self,
        aim: Aim,
        pointer: &str,
        message: impl Into<String>,
        expected: impl Into<String>,
    ) {
        let (pointer, message, expected) = (pointer.to_owned(), message.into(), expected.into());
        self.found.push(Complaint { aim, pointer, message, expected, field: None });
    }

    /// The complaints, without those that another explains: a field is missing since it is misspelt, or a value is
    /// out of bounds since it is of another type.
    pub(super) fn into_found(self) -> Vec<Complaint> {
        let parent = |pointer: &str| pointer.rsplit_once('/').map(|(parent, _)| parent.to_owned());
        let misspelt: Vec<_> = self.found.iter().filter(|one| one.message.starts_with(UNKNOWN)).collect();
        let meant: Vec<_> =
            misspelt.iter().filter_map(|one| Some((parent(&one.pointer)?, one.field.clone()?))).collect();
        let of_wrong_type: Vec<_> = self
            .found
            .iter()
            .filter(|one| one.message.starts_with(WRONG_TYPE))
            .map(|one| &one.pointer)
            .collect();
        let is_there = |one: &Complaint| {
            one.message.ends_with(MISSING)
                && one
                    .field
                    .as_ref()
                    .is_some_and(|field| meant.iter().any(|(at, meant)| *at == one.pointer && meant == field))
        };
        let follows =
            |one: &Complaint| !one.message.starts_with(WRONG_TYPE) && of_wrong_type.contains(&&one.pointer);
        let keep: Vec<bool> = self.found.iter().map(|one| !is_there(one) && !follows(one)).collect();
        self.found.into_iter().zip(keep).filter_map(|(one, keep)| keep.then_some(one)).collect()
    }

    fn about(&mut self, field: Option<&str>) {
        if let Some(last) = self.found.last_mut() {
            last.field = field.map(str::to_owned);
        }
    }

    /// Puts one error into words. Values are never repeated, only what the schema says: a value may be a secret.
    pub(super) fn explain(&mut self, error: &ValidationError<'_>) {
        let pointer = error.instance_path().as_str();
        let owner = self.root.owner(error.schema_path().as_str());
        let bounds = || range(owner);
        let (message, expected) = match error.kind() {
            ValidationErrorKind::AdditionalProperties { unexpected }
            | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
                for name in unexpected {
                    self.unknown_field(owner, pointer, name);
                }
                return;
            }
            ValidationErrorKind::Required { property } => {
                self.missing_field(owner, pointer, &plain(property));
                return;
            }
            ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => {
                alternatives::explain(self, owner, error, context);
                return;
            }
            ValidationErrorKind::Type { kind } => {
                (wrong_type(kind, error.instance()), describe(self.root, owner))
            }
            ValidationErrorKind::Enum { .. } | ValidationErrorKind::Constant { .. } => {
                let options = self.root.constants(owner).unwrap_or_default();
                self.not_an_option(pointer, error.instance(), &options);
                return;
            }
            ValidationErrorKind::Minimum { limit } | ValidationErrorKind::ExclusiveMinimum { limit } => {
                (format!("too small; the least is {limit}"), describe(self.root, owner))
            }
            ValidationErrorKind::Maximum { limit } | ValidationErrorKind::ExclusiveMaximum { limit } => {
                (format!("too large; the most is {limit}"), describe(self.root, owner))
            }
            ValidationErrorKind::MinLength { .. } if error.instance().as_str() == Some("") => {
                ("empty".to_owned(), describe(self.root, owner))
            }
            ValidationErrorKind::MinLength { .. } => ("too short".to_owned(), format!("text {}", bounds())),
            ValidationErrorKind::MaxLength { .. } => ("too long".to_owned(), format!("text {}", bounds())),
            ValidationErrorKind::MinItems { .. } => {
                ("too few entries".to_owned(), format!("a list {}", bounds()))
            }
            ValidationErrorKind::MaxItems { .. } => {
                ("too many entries".to_owned(), format!("a list {}", bounds()))
            }
            ValidationErrorKind::MinProperties { limit } => {
                ("too few fields".to_owned(), format!("at least {limit}"))
            }
            ValidationErrorKind::MaxProperties { limit } => {
                ("too many fields".to_owned(), format!("at most {limit}"))
            }
            ValidationErrorKind::UniqueItems => ("an entry twice".to_owned(), "each entry once".to_owned()),
            ValidationErrorKind::Pattern { pattern } => {
                ("not of the right form".to_owned(), pattern_words(pattern))
            }
            ValidationErrorKind::Format { format } => {
                let words =
                    format_words(format).map_or_else(|| format!("a text of format {format}"), str::to_owned);
                ("not of the right form".to_owned(), words)
            }
            ValidationErrorKind::PropertyNames { error } => {
                let names = owner.get("propertyNames").map(|schema| self.root.resolve(schema));
                let pattern = names.and_then(|schema| schema.get("pattern")?.as_str());
                self.bad_name(pointer, &plain(error.instance()), pattern);
                return;
            }
            other => (format!("not valid here ({})", other.keyword()), describe(self.root, owner)),
        };
        self.add(Aim::Value, pointer, message, expected);
    }

    /// A field that the schema does not have.
    pub(super) fn unknown_field(&mut self, owner: &Value, pointer: &str, name: &str) {
        if let Some(patterns) = owner.get("patternProperties").and_then(Value::as_object) {
            self.bad_name(pointer, name, patterns.keys().next().map(String::as_str));
            return;
        }
        let known = owner.get("properties").and_then(Value::as_object);
        let known: Vec<_> = known.into_iter().flat_map(|known| known.keys()).map(String::as_str).collect();
        self.unknown_of(pointer, name, &known);
    }

    /// A field that is none of `known`.
    pub(super) fn unknown_of(&mut self, pointer: &str, name: &str, known: &[&str]) {
        let message = with_nearest(format!("{UNKNOWN}`{name}`"), name, known.iter().copied());
        let at = format!("{pointer}{}", pointer_step(name));
        self.add(Aim::Key, &at, message, one_of(known.iter().copied()));
        self.about(nearest(name, known.iter().copied()));
    }

    fn bad_name(&mut self, pointer: &str, name: &str, pattern: Option<&str>) {
        let expected = pattern.map(pattern_words).unwrap_or_default();
        let at = format!("{pointer}{}", pointer_step(name));
        self.add(Aim::Key, &at, format!("`{name}` is not a valid name here"), expected);
    }

    fn missing_field(&mut self, owner: &'a Value, pointer: &str, name: &str) {
        let schema = owner.get("properties").and_then(|known| known.get(name));
        let expected = schema.map(|schema| describe(self.root, schema)).unwrap_or_default();
        self.missing(pointer, name, &expected);
    }

    /// A field that has to be there; `expected` says with what.
    pub(super) fn missing(&mut self, pointer: &str, name: &str, expected: &str) {
        let expected = match expected {
            "" => format!("`{name}:`"),
            words => format!("`{name}:` with {words}"),
        };
        self.add(Aim::Key, pointer, format!("the field `{name}`{MISSING}"), expected);
        self.about(Some(name));
    }

    /// A value that is none of a closed list.
    pub(super) fn not_an_option(&mut self, pointer: &str, instance: &Value, options: &[String]) {
        let message = match instance.as_str() {
            Some(text) => with_nearest(
                "not one of the allowed values".to_owned(),
                text,
                options.iter().map(String::as_str),
            ),
            None => wrong_kind(instance),
        };
        self.add(Aim::Value, pointer, message, one_of(options.iter().map(String::as_str)));
    }
}

fn wrong_type(kind: &TypeKind, found: &Value) -> String {
    let wants_text = match kind {
        TypeKind::Single(one) => *one == JsonType::String,
        TypeKind::Multiple(several) => several.contains(JsonType::String),
    };
    let scalar = matches!(found, Value::Bool(_) | Value::Number(_));
    let hint = if wants_text && scalar { "; put it in quotes" } else { "" };
    format!("{}{hint}", wrong_kind(found))
}

/// A value that is not of a type that fits.
pub(super) fn wrong_kind(found: &Value) -> String {
    format!("{WRONG_TYPE}this is {}", kind_of(found))
}
