//! From a file to a [`ProxyConfig`], or to everything that is wrong with it.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use schemars::JsonSchema as _;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::document::MAX_DOCUMENT_BYTES;
use super::meaning::{self, Surroundings};
use super::{Document, DocumentSchema, Findings, ProxyConfig, Report, Section, pointer_step};

/// What can be said about a configuration file, also where it is wrong.
#[derive(Debug, Default)]
pub struct Inspection {
    /// The document, where it is YAML.
    pub document: Option<Document>,
    /// The configuration, where nothing is wrong.
    pub config: Option<ProxyConfig>,
    /// Everything that is wrong.
    pub report: Report,
    /// The policy directory, where the file names one.
    pub policies: Option<PathBuf>,
    /// The primitives' sections that the file has.
    pub sections: Vec<&'static str>,
}

impl ProxyConfig {
    /// Reads and validates `path`. Relative paths in it are taken as relative to its folder.
    pub fn load(path: &Path, sections: &[Section]) -> Result<Self, Report> {
        let inspection = Self::inspect(path, sections);
        inspection.config.ok_or(inspection.report)
    }

    /// Reads and validates `path`, and keeps what can be known of a wrong file.
    #[must_use]
    pub fn inspect(path: &Path, sections: &[Section]) -> Inspection {
        let document = match read_document(path) {
            Ok(document) => document,
            Err(report) => return Inspection { report, ..Inspection::default() },
        };
        let base = path.parent().unwrap_or(Path::new(""));
        let value = document.value();
        let mut report = match DocumentSchema::new(proxy_schema(sections)) {
            Ok(schema) => schema.check(&document, value),
            Err(defect) => Report::of_file(document.name(), format!("its schema is defective: {defect}"), ""),
        };
        let mut findings = Findings::default();
        let names: Vec<_> = sections.iter().map(|section| section.name).collect();
        meaning::check(value, &Surroundings { base, sections }, &mut findings);
        report.append(document.report(&findings));
        let config = if report.is_empty() { typed(&document, &names, base, &mut report) } else { None };
        Inspection {
            config,
            report: report.in_order(),
            policies: value.get("policies").and_then(Value::as_str).map(|directory| base.join(directory)),
            sections: names.into_iter().filter(|name| value.get(name).is_some()).collect(),
            document: Some(document),
        }
    }

    fn resolve(&mut self, base: &Path) {
        let listeners = &mut self.listeners;
        let tls = listeners.tls.iter_mut().flat_map(|tls| [&mut tls.certificate, &mut tls.key]);
        let paths = tls.chain(listeners.socket.iter_mut()).chain(self.data_dir.iter_mut());
        for path in paths.chain([&mut self.policies]) {
            *path = base.join(&*path);
        }
        self.identity.resolve(base);
        if let Some(kafka) = &mut self.kafka {
            kafka.resolve(base);
        }
        if let Some(postgres) = &mut self.postgres {
            postgres.resolve(base);
        }
        for instance in self.redis.values_mut() {
            instance.resolve(base);
        }
    }
}

/// The typed configuration; what only its types can see is added to `report`.
fn typed(document: &Document, sections: &[&str], base: &Path, report: &mut Report) -> Option<ProxyConfig> {
    let mut members = document.value().as_object().cloned().unwrap_or_default();
    let sections: BTreeMap<String, Value> =
        sections.iter().filter_map(|name| members.shift_remove_entry(*name)).collect();
    match serde_path_to_error::deserialize::<_, ProxyConfig>(Value::Object(members)) {
        Ok(mut config) => {
            config.sections = sections;
            config.resolve(base);
            Some(config)
        }
        Err(error) => {
            let mut findings = Findings::default();
            findings.add(pointer(error.path()), error.inner().to_string(), "");
            report.append(document.report(&findings));
            None
        }
    }
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    path.iter()
        .map(|segment| match segment {
            Segment::Seq { index } => format!("/{index}"),
            Segment::Map { key } => pointer_step(key),
            Segment::Enum { variant } => pointer_step(variant),
            Segment::Unknown => String::new(),
        })
        .collect()
}

/// Reads a file and parses it.
fn read_document(path: &Path) -> Result<Document, Report> {
    Document::parse(path.display().to_string(), read_text(path)?)
}

/// Reads a file of text in UTF-8, within the bound of a document's size.
pub fn read_text(path: &Path) -> Result<String, Report> {
    let name = path.display().to_string();
    let refuse = |message: String, expected: &str| Report::of_file(name.as_str(), message, expected);
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| refuse(format!("cannot be read: {error}"), ""))?;
    let bound = u64::try_from(MAX_DOCUMENT_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    file.take(bound)
        .read_to_end(&mut bytes)
        .map_err(|error| refuse(format!("cannot be read: {error}"), ""))?;
    if bytes.len() > MAX_DOCUMENT_BYTES {
        return Err(refuse("too large".to_owned(), "at most 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|_| refuse("not UTF-8".to_owned(), "text in UTF-8"))
}

/// The JSON Schema of `proxy.yaml` with these sections.
#[must_use]
pub fn proxy_schema(sections: &[Section]) -> Value {
    let mut generator = SchemaSettings::draft2020_12().for_deserialize().into_generator();
    let mut root = ProxyConfig::json_schema(&mut generator).to_value();
    for section in sections {
        let schema = (section.schema)(&mut generator).to_value();
        root["properties"][section.name] = schema;
    }
    let mut whole = Map::new();
    whole.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    whole.insert("title".to_owned(), json!("proxy.yaml of Outrigger"));
    if let Value::Object(members) = root {
        whole.extend(members);
    }
    whole.insert("description".to_owned(), json!("What `outrigger serve --config` reads."));
    whole.insert("$defs".to_owned(), Value::Object(generator.take_definitions(true)));
    Value::Object(whole)
}
