//! Why a request is no events.

use std::fmt::Display;

use crate::config::pointer_step;
use crate::error::ErrorKind;
use crate::http::FieldError;

/// Fields that are named in one error at the most; a batch of a thousand can have many more that are wrong.
const MAX_FIELDS: usize = 100;

/// Why a request is no events. Nothing of it is kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// The body is not what its media type says.
    #[error("{0}")]
    Malformed(String),
    /// The body is of a media type that is not taken.
    #[error("{0}")]
    UnsupportedMediaType(&'static str),
    /// An `Idempotency-Key` with anything but plain JSON.
    #[error(
        "an `Idempotency-Key` names a plain JSON event only: a CloudEvent's own `source` and `id` make a retry count once"
    )]
    IdempotencyNotSupported,
    /// A `tenantid` that is not the caller's tenant.
    #[error("an event's `tenantid` is that of the token: leave it out, and Outrigger sets it")]
    Forbidden(Vec<FieldError>),
    /// Attributes or data are wrong; every one is named, and what would be right.
    #[error("no event was kept: {}", wrong(.0))]
    Invalid(Vec<FieldError>),
    /// Events are larger than the topic takes; each is named.
    #[error("no event was kept: {}", wrong(.0))]
    TooLarge(Vec<FieldError>),
}

fn wrong(fields: &[FieldError]) -> String {
    match fields {
        [only] if only.pointer.is_empty() => only.detail.clone(),
        [only] => format!("`{}`: {}", only.pointer, only.detail),
        _ => "each wrong field is named in `errors`, with what would be right".to_owned(),
    }
}

impl EventError {
    /// Which of the contract's kinds it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Malformed(_) => ErrorKind::Malformed,
            Self::UnsupportedMediaType(_) => ErrorKind::UnsupportedMediaType,
            Self::IdempotencyNotSupported => ErrorKind::IdempotencyNotSupported,
            Self::Forbidden(_) => ErrorKind::Forbidden,
            Self::Invalid(_) => ErrorKind::Invalid,
            Self::TooLarge(_) => ErrorKind::TooLarge,
        }
    }

    /// The fields that are wrong.
    #[must_use]
    pub fn fields(&self) -> &[FieldError] {
        match self {
            Self::Forbidden(fields) | Self::Invalid(fields) | Self::TooLarge(fields) => fields,
            Self::Malformed(_) | Self::UnsupportedMediaType(_) | Self::IdempotencyNotSupported => &[],
        }
    }
}

/// Where in the request an event is, and so how its attributes are pointed at.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// The body: `/type`.
    Body,
    /// One of a batch: `/3/type`.
    Item(usize),
    /// The headers: `ce-type`.
    Headers,
    /// Query, headers and body: `?type`, `idempotency-key`.
    Plain,
}

impl Place {
    /// Where the event is.
    pub(super) fn event(self) -> String {
        match self {
            Self::Body | Self::Headers | Self::Plain => String::new(),
            Self::Item(index) => format!("/{index}"),
        }
    }

    /// Where an attribute of it is.
    pub(super) fn attribute(self, name: &str) -> String {
        match self {
            Self::Body => pointer_step(name),
            Self::Item(index) => format!("/{index}{}", pointer_step(name)),
            Self::Headers if name == "datacontenttype" => "content-type".to_owned(),
            Self::Headers => format!("ce-{name}"),
            Self::Plain => match name {
                "type" => "?type".to_owned(),
                "id" => "idempotency-key".to_owned(),
                _ => String::new(),
            },
        }
    }
}

/// What is wrong, as it is found.
#[derive(Debug, Default)]
pub(super) struct Wrong {
    invalid: Vec<FieldError>,
    forbidden: Vec<FieldError>,
    too_large: Vec<FieldError>,
    count: usize,
}

impl Wrong {
    /// A field is wrong; `detail` says what would be right.
    pub(super) fn invalid(&mut self, pointer: String, detail: impl Display) {
        Self::add(&mut self.invalid, &mut self.count, pointer, detail);
    }

    /// A field claims what is not the caller's.
    pub(super) fn forbidden(&mut self, pointer: String, detail: impl Display) {
        Self::add(&mut self.forbidden, &mut self.count, pointer, detail);
    }

    /// An event is too large.
    pub(super) fn too_large(&mut self, pointer: String, detail: impl Display) {
        Self::add(&mut self.too_large, &mut self.count, pointer, detail);
    }

    fn add(fields: &mut Vec<FieldError>, count: &mut usize, pointer: String, detail: impl Display) {
        *count += 1;
        if fields.len() < MAX_FIELDS {
            fields.push(FieldError { pointer, detail: detail.to_string() });
        }
    }

    /// How much is wrong so far.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// `value`, where nothing is wrong. What is forbidden comes first, since its answer may not depend on the rest;
    /// what is too large last, and among other fields where there are some.
    pub(super) fn into_result<T>(mut self, value: T) -> Result<T, EventError> {
        if !self.forbidden.is_empty() {
            return Err(EventError::Forbidden(self.forbidden));
        }
        if !self.invalid.is_empty() {
            let room = MAX_FIELDS.saturating_sub(self.invalid.len());
            self.invalid.extend(self.too_large.into_iter().take(room));
            return Err(EventError::Invalid(self.invalid));
        }
        if self.too_large.is_empty() { Ok(value) } else { Err(EventError::TooLarge(self.too_large)) }
    }
}
