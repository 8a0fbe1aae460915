//! Policy documents against what exists: kinds, schemas, actions. Pure: no clock, no I/O.

use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema as _, Schema, SchemaGenerator};
use serde_json::{Value, json};

use super::{Access, AccessDocument, Action, Kind, Policies, rules};
use crate::config::{Document, DocumentSchema, Findings, Report, one_of, with_nearest};

/// The kind of the access policy's document.
const ACCESS: &str = "access";

/// What policy documents may speak of.
#[derive(Default, Clone)]
pub struct Vocabulary {
    /// The kinds of the primitives that are configured.
    pub kinds: Vec<&'static Kind>,
    /// Kinds of primitives that are not configured: their documents are left alone.
    pub ignored: Vec<&'static str>,
    /// Every action that access rules can allow.
    pub actions: Vec<Action>,
    /// The names of the issuers that are configured; `None` where that is not known.
    pub issuers: Option<Vec<String>>,
    /// Whether there is a data directory; `None` where that is not known.
    pub data_dir: Option<bool>,
}

/// Policies, and which kinds of document they come from.
pub struct Checked {
    /// The policies.
    pub policies: Policies,
    /// The kinds that were there, `access` among them; not those that are left alone.
    pub kinds: Vec<&'static str>,
}

impl Checked {
    /// Whether there is an access policy; without one everything is denied.
    #[must_use]
    pub fn has_access(&self) -> bool {
        self.kinds.contains(&ACCESS)
    }
}

/// Reads the documents of one generation, `(file name, text)` each, or says everything that is wrong with them.
pub fn check_documents(
    vocabulary: &Vocabulary,
    generation: u64,
    files: &[(String, String)],
) -> Result<Checked, Report> {
    let mut report = Report::default();
    let mut policies = Policies::new(generation, Access::default());
    let mut seen: BTreeMap<&'static str, String> = BTreeMap::new();
    for (name, text) in files {
        let document = match Document::parse(name.as_str(), text.as_str()) {
            Ok(document) => document,
            Err(problems) => {
                report.append(problems);
                continue;
            }
        };
        let mut findings = Findings::default();
        let Some(kind) = vocabulary.kind_of(&document, &mut findings) else {
            report.append(document.report(&findings));
            continue;
        };
        if let Some(first) = seen.insert(kind, document.name().to_owned()) {
            let message = format!("a second document of kind `{kind}`; the first is {first}");
            findings.add("/kind", message, "one document of each kind");
        }
        let problems = vocabulary.read(kind, &document, findings, &mut policies);
        report.append(problems);
    }
    report.into_result(Checked { policies, kinds: seen.into_keys().collect() })
}

impl Vocabulary {
    /// The kind of a document, where it is one to read.
    fn kind_of(&self, document: &Document, findings: &mut Findings) -> Option<&'static str> {
        let read = || std::iter::once(ACCESS).chain(self.kinds.iter().map(|kind| kind.name));
        let all = || read().chain(self.ignored.iter().copied());
        match document.value().get("kind") {
            Some(Value::String(given)) => {
                if !all().any(|kind| kind == given) {
                    let message = with_nearest(format!("unknown kind `{given}`"), given, all());
                    findings.add("/kind", message, one_of(all()));
                }
                read().find(|kind| kind == given)
            }
            Some(_) => {
                findings.add("/kind", "wrong type: a kind is text", one_of(all()));
                None
            }
            None if document.value().is_null() => {
                findings.add("", "the file is empty", format!("`kind:` with {}", one_of(all())));
                None
            }
            None => {
                findings.add("", "the field `kind` is missing", format!("`kind:` with {}", one_of(all())));
                None
            }
        }
    }

    /// Puts a document of a known kind into `policies`, or says what is wrong with it.
    fn read(
        &self,
        name: &'static str,
        document: &Document,
        mut findings: Findings,
        policies: &mut Policies,
    ) -> Report {
        let mut value = document.value().clone();
        if let Some(members) = value.as_object_mut() {
            members.shift_remove("kind");
        }
        let kind = self.kinds.iter().find(|kind| kind.name == name);
        let schema: fn(&mut SchemaGenerator) -> Schema =
            kind.map_or(AccessDocument::json_schema, |kind| kind.schema);
        let mut report = match DocumentSchema::new(standalone(schema)) {
            Ok(schema) => schema.check(document, &value),
            Err(defect) => Report::of_file(document.name(), format!("its schema is defective: {defect}"), ""),
        };
        match kind {
            None => rules::check(&value, self, &mut findings),
            Some(kind) if report.is_empty() => (kind.load)(value.clone(), self, &mut findings, policies),
            Some(_) => {}
        }
        if kind.is_none() && report.is_empty() && findings.is_empty() {
            match serde_path_to_error::deserialize(value) {
                Ok(access) => policies.set_access(Access::new(access)),
                Err(error) => findings.add("", error.to_string(), ""),
            }
        }
        report.append(document.report(&findings));
        report.in_order()
    }
}

fn standalone(schema: fn(&mut SchemaGenerator) -> Schema) -> Value {
    let mut generator = SchemaSettings::draft2020_12().for_deserialize().into_generator();
    let mut root = schema(&mut generator).to_value();
    root["$defs"] = Value::Object(generator.take_definitions(true));
    root
}

/// The JSON Schema of a policy document of any of these kinds, for editors.
#[must_use]
pub fn policy_schema(kinds: &[&Kind]) -> Value {
    let mut generator = SchemaSettings::draft2020_12().for_deserialize().into_generator();
    let access = (ACCESS, AccessDocument::json_schema(&mut generator));
    let others: Vec<_> = kinds.iter().map(|kind| (kind.name, (kind.schema)(&mut generator))).collect();
    let mut definitions = generator.take_definitions(true);
    let mut branches = Vec::new();
    let mut names = Vec::new();
    for (name, schema) in std::iter::once(access).chain(others) {
        let mut schema = schema.to_value();
        let target =
            schema.get("$ref").and_then(Value::as_str).and_then(|text| text.strip_prefix("#/$defs/"));
        let own = match target.map(str::to_owned).and_then(|target| definitions.get_mut(&target)) {
            Some(definition) => definition,
            None => &mut schema,
        };
        own["properties"]["kind"] = json!({"const": name, "description": "What the document is about."});
        branches.push(json!({"if": {"properties": {"kind": {"const": name}}}, "then": schema}));
        names.push(name);
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "a policy document of Outrigger",
        "description": "One document of each kind, in the directory that `policies:` of proxy.yaml names.",
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"enum": names}},
        "allOf": branches,
        "$defs": definitions,
    })
}
