//! What is wrong in several files, ready to be shown: places, carets, and what would be right.

use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet};
use serde_json::{Value, json};

/// Diagnostics shown of one report; a broken document can have thousands.
pub(super) const MAX_DIAGNOSTICS: usize = 200;

/// One thing wrong in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file, as it was named to the process.
    pub file: String,
    /// Where in it; none where the file as a whole is meant.
    pub place: Option<Place>,
    /// RFC 6901 pointer to the value.
    pub pointer: String,
    /// What is wrong. Holds no value that may be a secret.
    pub message: String,
    /// What would be right; may be empty.
    pub expected: String,
}

/// A place in a file, with its line to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The line's text, empty where it is very long; what may be a secret is masked.
    pub text: String,
    /// What the caret points at: bytes of `text`.
    pub span: Range<usize>,
}

/// Every problem found, of every file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report(Vec<Diagnostic>);

impl Report {
    /// A report of one problem with a file as a whole.
    #[must_use]
    pub fn of_file(file: impl Into<String>, message: impl Into<String>, expected: impl Into<String>) -> Self {
        Self(vec![Diagnostic {
            file: file.into(),
            place: None,
            pointer: String::new(),
            message: message.into(),
            expected: expected.into(),
        }])
    }

    /// Adds a problem.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.0.push(diagnostic);
    }

    /// Adds the problems of another report.
    pub fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every problem, file by file.
    #[must_use]
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.0
    }

    /// `value` where nothing is wrong, else this report.
    pub fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }

    /// The problems as `outrigger check --json` prints them; `line` and `column` are null for a file as a whole.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let one = |diagnostic: &Diagnostic| {
            let place = diagnostic.place.as_ref();
            json!({
                "file": diagnostic.file,
                "line": place.map(|place| place.line),
                "column": place.map(|place| place.column),
                "pointer": diagnostic.pointer,
                "message": diagnostic.message,
                "expected": diagnostic.expected,
            })
        };
        self.0.iter().map(one).collect()
    }

    /// The problems of one document in the order of their places, each once.
    #[must_use]
    pub fn in_order(mut self) -> Self {
        let key = |diagnostic: &Diagnostic| diagnostic.place.as_ref().map(|place| (place.line, place.column));
        self.0.sort_by_key(key);
        let same =
            |one: &Diagnostic, other: &Diagnostic| one.place == other.place && one.message == other.message;
        self.0.dedup_by(|one, other| same(one, other));
        self
    }
}

impl Diagnostic {
    fn render(&self) -> String {
        let title = Level::ERROR.primary_title(self.message.as_str());
        let group = match &self.place {
            Some(place) if place.text.is_empty() => {
                title.element(Origin::path(self.file.as_str()).line(place.line).char_column(place.column))
            }
            Some(place) => title.element(
                Snippet::source(place.text.as_str())
                    .line_start(place.line)
                    .path(self.file.as_str())
                    .annotation(AnnotationKind::Primary.span(place.span.clone())),
            ),
            None => title.element(Origin::path(self.file.as_str())),
        };
        let group = match self.expected.as_str() {
            "" => group,
            expected => group.element(Level::HELP.message(expected)),
        };
        Renderer::plain().render(&[group])
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in self.0.iter().take(MAX_DIAGNOSTICS) {
            writeln!(f, "{}\n", diagnostic.render())?;
        }
        match self.0.len() {
            0 => f.write_str("no problems\n"),
            1 => f.write_str("1 problem\n"),
            n if n > MAX_DIAGNOSTICS => writeln!(f, "{n} problems; the first {MAX_DIAGNOSTICS} are shown"),
            n => writeln!(f, "{n} problems"),
        }
    }
}

impl std::error::Error for Report {}
