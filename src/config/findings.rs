//! What is wrong with a document, collected so that all of it is reported at once.

/// One thing wrong, at a place in the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// RFC 6901 pointer to the value.
    pub pointer: String,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub expected: String,
}

/// The findings about one document.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// Adds what is wrong at `pointer`, and what would be right.
    pub fn add(
        &mut self,
        pointer: impl Into<String>,
        message: impl Into<String>,
        expected: impl Into<String>,
    ) {
        self.0.push(Finding { pointer: pointer.into(), message: message.into(), expected: expected.into() });
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every finding, in order of addition.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.0.iter()
    }
}

/// One step of an RFC 6901 pointer, escaped.
#[must_use]
pub fn pointer_step(text: &str) -> String {
    format!("/{}", text.replace('~', "~0").replace('/', "~1"))
}
