//! One YAML document with the place of each key and value. It has the subset of YAML that JSON has too: no anchors,
//! no tags, text keys, each once.

use std::collections::BTreeMap;
use std::ops::Range;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};
use serde_json::{Map, Value};

use super::report::{Diagnostic, MAX_DIAGNOSTICS};
use super::source::Source;
use super::{Findings, Report, pointer_step, redact, scalar};

/// The largest document, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 1024 * 1024;
/// The deepest nesting.
pub const MAX_DOCUMENT_DEPTH: usize = 64;

/// A parsed document that can say where each of its values is.
#[derive(Debug, Clone)]
pub struct Document {
    source: Source,
    value: Value,
    root: Node,
}

/// Where a value is, and the values in it.
#[derive(Debug, Clone, Default)]
struct Node {
    key: Option<Range<usize>>,
    value: Range<usize>,
    children: Children,
}

#[derive(Debug, Clone, Default)]
enum Children {
    #[default]
    None,
    List(Vec<Node>),
    Mapping(BTreeMap<String, Node>),
}

const TOO_DEEP: &str = "nested too deeply";

fn depth_bound() -> String {
    format!("at most {MAX_DOCUMENT_DEPTH} levels")
}

/// Which part of a member a problem is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    Key,
    Value,
}

impl Document {
    /// Parses the text of the file `name`. The report has every duplicate key and unsupported construct up to the
    /// first error of syntax.
    pub fn parse(name: impl Into<String>, text: impl Into<String>) -> Result<Self, Report> {
        let source = Source { name: name.into(), text: text.into(), hidden: Vec::new() };
        if source.text.len() > MAX_DOCUMENT_BYTES {
            let message = format!("the file has {} bytes", source.text.len());
            return Err(Report::of_file(source.name, message, format!("at most {MAX_DOCUMENT_BYTES} bytes")));
        }
        let text = source.text.clone();
        let mut builder = Builder::new(source, &text);
        for event in Parser::new_from_str(&text) {
            let proceed = match event {
                Ok((event, span)) => builder.event(event, span),
                Err(error) => {
                    builder.syntax_error(&error);
                    false
                }
            };
            if !proceed {
                break;
            }
        }
        builder.finish()
    }

    /// The file's name, as it was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.source.name
    }

    /// The content; null where there is none.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// What was found about this document, in the order of the places.
    #[must_use]
    pub fn report(&self, findings: &Findings) -> Report {
        let mut report = Report::default();
        for finding in findings.iter().take(MAX_DIAGNOSTICS) {
            report.push(self.diagnostic(Aim::Value, &finding.pointer, &finding.message, &finding.expected));
        }
        report.in_order()
    }

    /// A problem at `pointer`, or at the nearest thing around it that is there.
    pub(super) fn diagnostic(&self, aim: Aim, pointer: &str, message: &str, expected: &str) -> Diagnostic {
        let (node, exact) = self.nearest(pointer);
        let span = match (&node.key, aim) {
            (Some(key), Aim::Key) => key,
            (Some(key), Aim::Value) if !exact || node.value.is_empty() => key,
            (None, Aim::Key) => &(node.value.start..node.value.start),
            _ => &node.value,
        };
        self.source.diagnostic(span, pointer, message, expected)
    }

    fn nearest(&self, pointer: &str) -> (&Node, bool) {
        let mut node = &self.root;
        for step in pointer.split('/').skip(1) {
            let step = step.replace("~1", "/").replace("~0", "~");
            let child = match &node.children {
                Children::None => None,
                Children::List(items) => step.parse::<usize>().ok().and_then(|index| items.get(index)),
                Children::Mapping(members) => members.get(&step),
            };
            match child {
                Some(child) => node = child,
                None => return (node, false),
            }
        }
        (node, true)
    }
}

/// A list or mapping that is not complete yet.
struct Open {
    start: usize,
    /// Whether a key around it says that it holds secrets.
    secret: bool,
    content: Content,
}

enum Content {
    List(Vec<Value>, Vec<Node>),
    Mapping { values: Map<String, Value>, nodes: BTreeMap<String, Node>, key: Option<(String, Range<usize>)> },
}

struct Builder {
    source: Source,
    /// The byte at which each character begins, where the text is not ASCII.
    offsets: Option<Vec<usize>>,
    stack: Vec<Open>,
    root: Option<(Value, Node)>,
    report: Report,
}

impl Builder {
    fn new(source: Source, text: &str) -> Self {
        let offsets = (!text.is_ascii()).then(|| text.char_indices().map(|(at, _)| at).collect());
        Self { source, offsets, stack: Vec::new(), root: None, report: Report::default() }
    }

    fn byte(&self, character: usize) -> usize {
        match &self.offsets {
            Some(offsets) => offsets.get(character).copied().unwrap_or(self.source.text.len()),
            None => character.min(self.source.text.len()),
        }
    }

    fn refuse(&mut self, span: &Range<usize>, message: impl Into<String>, expected: &str) {
        let diagnostic = self.source.diagnostic(span, self.pointer(), message, expected);
        self.report.push(diagnostic);
    }

    fn syntax_error(&mut self, error: &ScanError) {
        let at = self.byte(error.marker().index());
        if error.info().contains("recursion limit") {
            self.refuse(&(at..at), TOO_DEEP, &depth_bound());
        } else {
            self.refuse(&(at..at), format!("not YAML: {}", error.info()), "");
        }
    }

    /// The pointer to what is being read.
    fn pointer(&self) -> String {
        let step = |open: &Open| match &open.content {
            Content::List(values, _) => format!("/{}", values.len()),
            Content::Mapping { key: Some((key, _)), .. } => pointer_step(key),
            Content::Mapping { key: None, .. } => String::new(),
        };
        self.stack.iter().map(step).collect()
    }

    /// Takes an event; `false` where nothing after it can be read.
    fn event(&mut self, event: Event<'_>, span: Span) -> bool {
        let span = self.byte(span.start.index())..self.byte(span.end.index());
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.check_decoration(&span, anchor, tag.is_some());
                self.scalar(&text, style, span);
            }
            Event::SequenceStart(anchor, tag) => {
                self.check_decoration(&span, anchor, tag.is_some());
                return self.open(&span, Content::List(Vec::new(), Vec::new()));
            }
            Event::MappingStart(anchor, tag) => {
                self.check_decoration(&span, anchor, tag.is_some());
                let content = Content::Mapping { values: Map::new(), nodes: BTreeMap::new(), key: None };
                return self.open(&span, content);
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(span.end),
            Event::Alias(_) => {
                self.refuse(&span, "aliases are not supported", "the value itself, written out");
                self.complete(Value::Null, span, Children::None);
            }
            Event::DocumentStart(_) if self.root.is_some() => {
                self.refuse(&span, "a second document in the file", "one document in a file");
                return false;
            }
            Event::DocumentStart(_) | Event::DocumentEnd | Event::StreamStart | Event::StreamEnd => {}
            Event::Nothing => {}
        }
        self.report.diagnostics().len() < MAX_DIAGNOSTICS
    }

    fn check_decoration(&mut self, span: &Range<usize>, anchor: usize, tag: bool) {
        if anchor > 0 {
            self.refuse(span, "anchors are not supported", "the value without `&name`");
        }
        if tag {
            self.refuse(span, "tags are not supported", "the value without `!`; quotes make it text");
        }
    }

    fn awaits_key(&self) -> bool {
        matches!(self.stack.last(), Some(Open { content: Content::Mapping { key: None, .. }, .. }))
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, span: Range<usize>) {
        if self.awaits_key() {
            self.key(text.to_owned(), span);
            return;
        }
        let secret = self.stack.last().is_some_and(|open| open.secret || pending_is_secret(open));
        if (secret && !redact::is_reference(text)) || redact::is_pem(text) {
            self.source.hidden.push(span.clone());
        }
        let value = match style {
            ScalarStyle::Plain => scalar::resolve(text).unwrap_or_else(|problem| {
                self.refuse(&span, problem, "a number within 64 bits; quotes make it text");
                Value::Null
            }),
            _ => Value::String(text.to_owned()),
        };
        self.complete(value, span, Children::None);
    }

    fn key(&mut self, name: String, span: Range<usize>) {
        let Some(Open { content: Content::Mapping { nodes, key, .. }, .. }) = self.stack.last_mut() else {
            return;
        };
        let earlier = nodes.get(&name).and_then(|node| node.key.clone());
        *key = Some((name, span.clone()));
        if let Some(earlier) = earlier {
            let line = self.source.text[..earlier.start].matches('\n').count() + 1;
            self.refuse(&span, format!("a key twice; it is on line {line} already"), "each key once");
        }
    }

    fn open(&mut self, span: &Range<usize>, content: Content) -> bool {
        if self.awaits_key() {
            self.refuse(span, "a key that is a list or a mapping", "a key is text");
            return false;
        }
        if self.stack.len() >= MAX_DOCUMENT_DEPTH {
            self.refuse(span, TOO_DEEP, &depth_bound());
            return false;
        }
        let secret = self.stack.last().is_some_and(|parent| parent.secret || pending_is_secret(parent));
        self.stack.push(Open { start: span.start, secret, content });
        true
    }

    fn close(&mut self, end: usize) {
        let Some(Open { start, content, .. }) = self.stack.pop() else { return };
        let (value, children) = match content {
            Content::List(values, nodes) => (Value::Array(values), Children::List(nodes)),
            Content::Mapping { values, nodes, .. } => (Value::Object(values), Children::Mapping(nodes)),
        };
        self.complete(value, start..end.max(start), children);
    }

    /// Puts a complete value where it belongs.
    fn complete(&mut self, value: Value, span: Range<usize>, children: Children) {
        let mut node = Node { key: None, value: span, children };
        match self.stack.last_mut().map(|open| &mut open.content) {
            Some(Content::List(values, nodes)) => {
                values.push(value);
                nodes.push(node);
            }
            Some(Content::Mapping { values, nodes, key }) => {
                let Some((name, place)) = key.take() else { return };
                node.key = Some(place);
                values.insert(name.clone(), value);
                nodes.insert(name, node);
            }
            None => self.root = Some((value, node)),
        }
    }

    fn finish(self) -> Result<Document, Report> {
        let (value, root) = self.root.unwrap_or_default();
        self.report.into_result(Document { source: self.source, value, root })
    }
}

fn pending_is_secret(open: &Open) -> bool {
    matches!(&open.content, Content::Mapping { key: Some((name, _)), .. } if redact::is_secret_key(name))
}
