//! A document's text, and how a span of it is shown.

use std::ops::Range;

use super::redact;
use super::report::{Diagnostic, Place};

/// The longest line that is shown, in bytes; of a longer one the place is told alone.
const MAX_SHOWN_BYTES: usize = 4096;

/// The text of a file, with what of it must not be shown.
#[derive(Debug, Clone, Default)]
pub(super) struct Source {
    pub(super) name: String,
    pub(super) text: String,
    /// Byte spans of values that are likely secrets.
    pub(super) hidden: Vec<Range<usize>>,
}

impl Source {
    /// A problem at a byte span of the text. A span over several lines is shown by its first.
    pub(super) fn diagnostic(
        &self,
        span: &Range<usize>,
        pointer: impl Into<String>,
        message: impl Into<String>,
        expected: impl Into<String>,
    ) -> Diagnostic {
        Diagnostic {
            file: self.name.clone(),
            place: Some(self.place(span)),
            pointer: pointer.into(),
            message: message.into(),
            expected: expected.into(),
        }
    }

    fn place(&self, span: &Range<usize>) -> Place {
        let start = self.boundary(span.start);
        let line_start = self.text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = self.text[start..].find('\n').map_or(self.text.len(), |at| start + at);
        let line = self.text[line_start..line_end].trim_end_matches('\r');
        let column = self.text[line_start..start].chars().count() + 1;
        let number = self.text[..line_start].matches('\n').count() + 1;
        if line.len() > MAX_SHOWN_BYTES {
            return Place { line: number, column, text: String::new(), span: 0..0 };
        }
        let from = (start - line_start).min(line.len());
        let to = (self.boundary(span.end).max(start) - line_start).min(line.trim_end().len());
        let next = line[from..].chars().next().map_or(from, |character| from + character.len_utf8());
        let hidden: Vec<_> = self
            .hidden
            .iter()
            .filter(|hidden| hidden.start < line_end && hidden.end > line_start)
            .map(|hidden| hidden.start.saturating_sub(line_start)..hidden.end - line_start)
            .collect();
        Place { line: number, column, text: redact::mask(line, &hidden), span: from..to.max(next) }
    }

    /// The character boundary at or before `at`.
    fn boundary(&self, at: usize) -> usize {
        let mut at = at.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        at
    }
}
