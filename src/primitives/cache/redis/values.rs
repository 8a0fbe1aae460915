//! Values on their way to and from Redis.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use redis::{Cmd, Value};

use super::keys;
use crate::pools::redis::Script;
use crate::primitives::cache::envelope::{self, HEADER_BYTES, Header};
use crate::primitives::cache::etag::{Etag, Tags};
use crate::primitives::cache::generation::{Generation, Stamp};
use crate::primitives::cache::policy::{Format, Namespace};
use crate::primitives::cache::{Stored, Write};

/// The scripts. Those that remove run also where Redis is full: they write little, and to make room.
pub(super) struct Scripts {
    pub(super) put: Script,
    pub(super) lease: Script,
    pub(super) delete: Script,
    pub(super) give_up: Script,
    pub(super) sweep: Script,
    pub(super) renew: Script,
    pub(super) settle: Script,
    pub(super) confirm: Script,
    pub(super) bytes: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            put: Script::new(concat!(include_str!("current.lua"), include_str!("put.lua"))),
            lease: Script::new(concat!(include_str!("current.lua"), include_str!("lease.lua"))),
            delete: Script::new(concat!(
                "#!lua flags=allow-oom\n",
                include_str!("current.lua"),
                include_str!("delete.lua")
            )),
            give_up: Script::new(include_str!("give_up.lua")),
            sweep: Script::new(concat!(include_str!("current.lua"), include_str!("sweep.lua"))),
            renew: Script::new(concat!("#!lua flags=allow-oom\n", include_str!("renew.lua"))),
            settle: Script::new(include_str!("settle.lua")),
            confirm: Script::new(concat!("#!lua flags=allow-oom\n", include_str!("confirm.lua"))),
            bytes: Script::new(include_str!("bytes.lua")),
        }
    }
}

/// A format as scripts name it.
pub(super) fn name(format: Format) -> &'static [u8] {
    match format {
        Format::Raw => b"raw",
        Format::Envelope => b"envelope",
    }
}

/// A choice as scripts read it.
pub(super) fn flag(yes: bool) -> &'static [u8] {
    if yes { b"1" } else { b"0" }
}

/// The one command that reads an entry. MGET also of one key: what is no string is nothing to it, and no error.
pub(super) fn read_command(entry: &[u8], format: Format) -> Cmd {
    let mut command = redis::cmd("MGET");
    command.arg(entry);
    if format == Format::Raw {
        command.arg(keys::companion(entry));
    }
    command
}

/// The entry's bytes and its companion's.
pub(super) fn encoded(header: &Header, format: Format, write: &Write) -> (Bytes, Vec<u8>) {
    match format {
        Format::Raw => (write.body.clone(), envelope::encode(header, "", b"")),
        Format::Envelope => {
            let content_type = write.content_type.to_str().unwrap_or_default();
            (Bytes::from(envelope::encode(header, content_type, &write.body)), Vec::new())
        }
    }
}

/// A condition as the scripts read it.
pub(super) fn condition(tags: Option<&Tags>) -> Vec<u8> {
    match tags {
        None => Vec::new(),
        Some(Tags::Any) => b"*".to_vec(),
        Some(Tags::Listed(tags)) => {
            let mut text = b",".to_vec();
            for tag in tags {
                text.extend_from_slice(&tag.hex());
                text.push(b',');
            }
            text
        }
    }
}

/// An entry as Redis has it.
pub(super) enum Raw {
    Envelope(Vec<u8>),
    Body { body: Vec<u8>, companion: Option<Vec<u8>> },
}

impl Raw {
    /// From the answer to [`read_command`].
    pub(super) fn of_read(answer: Value, format: Format) -> Option<Self> {
        let mut parts = array(answer).into_iter();
        Self::of_parts(parts.next(), parts.next(), format)
    }

    pub(super) fn of_parts(entry: Option<Value>, companion: Option<Value>, format: Format) -> Option<Self> {
        let entry = entry.and_then(bytes)?;
        Some(match format {
            Format::Envelope => Self::Envelope(entry),
            Format::Raw => Self::Body { body: entry, companion: companion.and_then(bytes) },
        })
    }

    /// The value, unless it is of another generation than `stamp` or not readable, or has no stamp where `unstamped` does
    /// not admit that.
    pub(super) fn into_stored(
        self,
        rules: &Namespace,
        stamp: &Stamp,
        unstamped: bool,
        generation: &Arc<Generation>,
        now_ms: u64,
    ) -> Option<Stored> {
        let (header, content_type, body) = match self {
            Self::Envelope(bytes) => {
                let envelope = envelope::decode(&bytes)
                    .inspect_err(|error| tracing::warn!(%error, "an envelope namespace has another value"))
                    .ok()?;
                let content_type = HeaderValue::from_str(envelope.content_type).ok()?;
                let (header, at) = (envelope.header, HEADER_BYTES + envelope.content_type.len());
                (header, content_type, Bytes::from(bytes).slice(at..))
            }
            Self::Body { body, companion } => {
                let etag = Etag::of_body(&body);
                let header = match own(etag, companion.as_deref()) {
                    Some(header) => header,
                    // Another system wrote it: it is of any generation, and as old as this look at it.
                    None if unstamped => {
                        Header { written_at_ms: now_ms, expires_at_ms: u64::MAX, stamp: *stamp, etag }
                    }
                    None => return None,
                };
                (header, rules.content_type.clone(), Bytes::from(body))
            }
        };
        (header.stamp == *stamp).then(|| Stored {
            body,
            content_type,
            etag: header.etag,
            etag_header: header.etag.header(),
            written_at_ms: header.written_at_ms,
            expires_at_ms: header.expires_at_ms,
            l1_until_ms: header.expires_at_ms.min(now_ms.saturating_add(rules.l1_ttl_ms)),
            generation: Arc::clone(generation),
        })
    }
}

/// The companion's header if it is about the body with this tag.
fn own(etag: Etag, companion: Option<&[u8]>) -> Option<Header> {
    let header = envelope::decode(companion?).ok()?.header;
    (header.etag == etag).then_some(header)
}

/// What a script says about the value that it replaced or removed.
pub(super) struct Old {
    pub(super) written_at_ms: u64,
    expires_at_ms: u64,
    pub(super) bytes: usize,
}

impl Old {
    /// From the header and the size; `None` where there was nothing of ours.
    pub(super) fn of(parts: &mut impl Iterator<Item = Value>) -> Option<Self> {
        let (mut header, size) = (parts.next().and_then(bytes)?, parts.next().and_then(integer)?);
        // The content type is not among the 58 bytes, so an envelope's is said to be empty.
        header.truncate(HEADER_BYTES);
        if let Some(length) = header.get_mut(HEADER_BYTES - 2..) {
            length.fill(0);
        }
        let header = envelope::decode(&header).ok()?.header;
        Some(Self {
            written_at_ms: header.written_at_ms,
            expires_at_ms: header.expires_at_ms,
            bytes: usize::try_from(size).ok()?,
        })
    }

    /// How long it was to be kept, with `stale_ms` past its time.
    pub(super) fn kept_ms(&self, stale_ms: u64) -> u64 {
        self.expires_at_ms.saturating_sub(self.written_at_ms).saturating_add(stale_ms)
    }
}

pub(super) fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        _ => None,
    }
}

pub(super) fn integer(value: Value) -> Option<i64> {
    match value {
        Value::Int(value) => Some(value),
        _ => None,
    }
}

pub(super) fn array(value: Value) -> Vec<Value> {
    match value {
        Value::Array(values) => values,
        _ => Vec::new(),
    }
}

/// The fields of a hash; RESP2 has them in a row, RESP3 in pairs.
pub(super) fn pairs(value: Value) -> Vec<(Vec<u8>, Vec<u8>)> {
    let pair = |field, value| Some((bytes(field)?, bytes(value)?));
    match value {
        Value::Map(fields) => fields.into_iter().filter_map(|(field, value)| pair(field, value)).collect(),
        other => {
            let mut values = array(other).into_iter();
            let next = std::iter::from_fn(|| Some((values.next()?, values.next()?)));
            next.filter_map(|(field, value)| pair(field, value)).collect()
        }
    }
}
