//! A document against its JSON Schema: every error, in words.

use std::net::SocketAddr;

use jsonschema::Validator;
use serde_json::Value;

use super::complaint::Complaints;
use super::report::MAX_DIAGNOSTICS;
use super::{Document, Report};

/// A JSON Schema, ready to check documents.
pub struct DocumentSchema {
    schema: Value,
    validator: Validator,
}

impl DocumentSchema {
    /// Prepares a schema of draft 2020-12; an error is a defect of the schema.
    pub fn new(schema: Value) -> Result<Self, String> {
        let validator = jsonschema::options()
            .should_validate_formats(true)
            .with_format("socket-address", |text: &str| text.parse::<SocketAddr>().is_ok())
            .build(&schema)
            .map_err(|error| error.to_string())?;
        Ok(Self { schema, validator })
    }

    /// The schema itself.
    #[must_use]
    pub fn as_value(&self) -> &Value {
        &self.schema
    }

    /// Everything that is wrong with `value`, the content of `document` or a part of its members.
    #[must_use]
    pub fn check(&self, document: &Document, value: &Value) -> Report {
        let mut complaints = Complaints::new(Root(&self.schema));
        for error in self.validator.iter_errors(value).take(MAX_DIAGNOSTICS) {
            complaints.explain(&error);
        }
        let mut report = Report::default();
        for complaint in complaints.into_found().into_iter().take(MAX_DIAGNOSTICS) {
            report.push(document.diagnostic(
                complaint.aim,
                &complaint.pointer,
                &complaint.message,
                &complaint.expected,
            ));
        }
        report.in_order()
    }
}

/// The whole schema, for following references.
#[derive(Clone, Copy)]
pub(super) struct Root<'a>(pub(super) &'a Value);

impl<'a> Root<'a> {
    /// Follows `$ref`; at most a few times, so that a circle ends.
    pub(super) fn resolve(self, schema: &'a Value) -> &'a Value {
        let mut schema = schema;
        for _ in 0..16 {
            let target = schema.get("$ref").and_then(Value::as_str).and_then(|text| text.strip_prefix('#'));
            match target.and_then(|pointer| self.0.pointer(pointer)) {
                Some(next) => schema = next,
                None => break,
            }
        }
        schema
    }

    /// The schema that the keyword at `path` belongs to.
    pub(super) fn owner(self, path: &str) -> &'a Value {
        let steps: Vec<_> = path.split('/').skip(1).collect();
        let mut node = self.0;
        for step in steps.iter().take(steps.len().saturating_sub(1)) {
            let step = step.replace("~1", "/").replace("~0", "~");
            if step == "$ref" {
                node = self.resolve(node);
                continue;
            }
            let child = |node: &'a Value| match node {
                Value::Array(items) => step.parse::<usize>().ok().and_then(|index| items.get(index)),
                other => other.get(&step),
            };
            match child(node).or_else(|| child(self.resolve(node))) {
                Some(next) => node = next,
                None => break,
            }
        }
        self.resolve(node)
    }

    /// The alternatives of `anyOf` or `oneOf` without `null`.
    pub(super) fn branches(self, schema: &'a Value) -> Option<Vec<&'a Value>> {
        let all = schema.get("anyOf").or_else(|| schema.get("oneOf"))?.as_array()?;
        let is_null = |branch: &&Value| branch.get("type").and_then(Value::as_str) == Some("null");
        Some(all.iter().filter(|branch| !is_null(branch)).map(|branch| self.resolve(branch)).collect())
    }

    /// The allowed values where a schema is a closed list of them.
    pub(super) fn constants(self, schema: &'a Value) -> Option<Vec<String>> {
        if let Some(constant) = schema.get("const") {
            return Some(vec![super::words::plain(constant)]);
        }
        if let Some(options) = schema.get("enum").and_then(Value::as_array) {
            let given = options.iter().filter(|option| !option.is_null());
            return Some(given.map(super::words::plain).collect());
        }
        let branches = self.branches(schema)?;
        let lists: Option<Vec<_>> = branches.into_iter().map(|branch| self.constants(branch)).collect();
        lists.map(|lists| lists.concat())
    }
}
