//! Context attributes: checked in one pass, and written as the JSON text that is kept.

use std::borrow::Cow;

use bytes::Bytes;
use uuid::Uuid;

use super::error::{Place, Wrong};
use super::media::Media;
use super::values::{self, Verdict};
use super::{BrokerBound, Context, RESERVED};
use crate::names::{Key, NameError};
use crate::primitives::events::relay::{batch_bytes, letter_batch_bytes};
use crate::primitives::events::{Data, Event};

/// The most attributes of an event beside `tenantid`: each is a header in Kafka and in HTTP's binary mode, and servers
/// take about 100.
pub(super) const MAX_ATTRIBUTES: usize = 64;
/// What the record's key in Kafka has before the event's: the tenant and a `/`.
const TENANT_BYTES: usize = 37;

/// An attribute's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Given<'a> {
    Text(Cow<'a, str>),
    Integer(i32),
    Boolean(bool),
}

/// An attribute as it came; without a value where it is none of any type, which is said already.
pub(super) type Attribute<'a> = (Cow<'a, str>, Option<Given<'a>>);

/// The attributes of one event, checked as far as they are there.
pub(super) struct Checked<'a> {
    place: Place,
    list: Vec<Attribute<'a>>,
    /// What `datacontenttype` says.
    pub(super) media: Option<Media>,
}

impl<'a> Checked<'a> {
    /// Checks every attribute; what is wrong is added to `wrong`.
    pub(super) fn new(
        list: Vec<Attribute<'a>>,
        place: Place,
        context: &Context<'_>,
        wrong: &mut Wrong,
    ) -> Self {
        for (name, value) in &list {
            let Some(value) = value else { continue };
            if name == "tenantid" {
                if !is_tenant(value, context.tenant) {
                    wrong.forbidden(place.attribute(name), "the tenant of the token, or left out");
                }
            } else if let Err(detail) = check_name(name) {
                wrong.invalid(place.attribute(name), detail);
            } else if let Err(detail) = check_value(name, value) {
                wrong.invalid(place.attribute(name), detail);
            }
        }
        let count = list.iter().filter(|(name, _)| name != "tenantid").count();
        if count > MAX_ATTRIBUTES {
            let detail = format!("at most {MAX_ATTRIBUTES} attributes; there are {count}");
            wrong.invalid(place.event(), detail);
        }
        for name in ["specversion", "id", "source", "type"] {
            if !list.iter().any(|(there, _)| there == name) {
                wrong.invalid(
                    place.attribute(name),
                    "it is missing: every event has `specversion`, `id`, `source` and `type`",
                );
            }
        }
        let mut checked = Self { place, list, media: None };
        checked.media = checked.text("datacontenttype").and_then(Media::parse);
        checked.check_key(wrong);
        checked
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.list.iter().find(|(there, _)| there == name).and_then(|(_, value)| match value {
            Some(Given::Text(text)) => Some(&**text),
            Some(Given::Integer(_) | Given::Boolean(_)) | None => None,
        })
    }

    /// What orders the event, and the attribute that it is from.
    fn key(&self) -> Option<(&'static str, &str)> {
        ["partitionkey", "subject", "id"].into_iter().find_map(|name| Some((name, self.text(name)?)))
    }

    fn check_key(&self, wrong: &mut Wrong) {
        let Some((name, key)) = self.key() else { return };
        // An empty one and control characters are refused as values of the attribute already.
        if !key.is_empty() && Key::check(key) == Err(NameError::KeyLength) {
            let detail = "at most 512 bytes, as it is what orders the event: `partitionkey`, else `subject`, else `id`";
            wrong.invalid(self.place.attribute(name), detail);
        }
    }

    /// The event with this payload, where its required attributes are there.
    pub(super) fn with(
        self,
        data: Data,
        id_is_ours: bool,
        context: &Context<'_>,
        wrong: &mut Wrong,
    ) -> Option<Event> {
        let boxed = |name: &str| self.text(name).map(Box::<str>::from);
        let event = Event {
            id: boxed("id")?,
            source: boxed("source")?,
            kind: boxed("type")?,
            key: Box::from(self.key()?.1),
            id_is_ours,
            attributes: self.written(context.tenant),
            data,
        };
        let bytes = event.bytes();
        if bytes > context.max_event_bytes {
            let most = context.max_event_bytes;
            let detail =
                format!("at most {most} bytes of attributes, data and key in this topic; it has {bytes}");
            wrong.too_large(self.place.event(), detail);
        } else if let Some(detail) = too_large_for(context, &event) {
            wrong.too_large(self.place.event(), detail);
        }
        Some(event)
    }

    /// One JSON object: the required attributes first, the others as they came, `tenantid` last.
    fn written(&self, tenant: Uuid) -> Bytes {
        let required = ["specversion", "id", "source", "type"];
        let mut text = Vec::with_capacity(256);
        let first = required.iter().filter_map(|name| self.list.iter().find(|(there, _)| there == name));
        let others = self.list.iter().filter(|(name, _)| !required.contains(&&**name) && name != "tenantid");
        for (name, value) in first.chain(others) {
            let Some(value) = value else { continue };
            text.push(if text.is_empty() { b'{' } else { b',' });
            write_string(&mut text, name);
            text.push(b':');
            match value {
                Given::Text(value) => write_string(&mut text, value),
                Given::Integer(value) => {
                    text.extend_from_slice(itoa::Buffer::new().format(*value).as_bytes())
                }
                Given::Boolean(value) => text.extend_from_slice(if *value { b"true" } else { b"false" }),
            }
        }
        text.extend_from_slice(b",\"tenantid\":");
        write_string(&mut text, tenant.hyphenated().encode_lower(&mut Uuid::encode_buffer()));
        text.push(b'}');
        text.into()
    }
}

/// What an event's headers, lengths and number take in its record at the most, and those of its dead letter, beside twice its
/// attributes' bytes.
const RECORD_ROOM: usize = 1024;

/// Why the brokers would refuse the event, or the dead letter that its consumers may make of it: it would stay behind with
/// the later ones of its key.
fn too_large_for(context: &Context<'_>, event: &Event) -> Option<String> {
    let refused = |bound: Option<BrokerBound<'_>>, is_letter: bool| {
        let (bound, tenant) = (bound?, context.tenant);
        let most = bound.max_message_bytes;
        // Most events are far below it: nothing is counted for them.
        if event.bytes() + event.attributes.len() + RECORD_ROOM <= most {
            return None;
        }
        let bytes = if is_letter { letter_batch_bytes(event, tenant) } else { batch_bytes(event, tenant) };
        let bytes = bytes.filter(|bytes| *bytes > most)?;
        let (topic, what) = (bound.kafka_topic, if is_letter { "dead letter" } else { "record" });
        Some(format!(
            "at most {most} bytes as a {what} of Kafka, key and headers included: `max.message.bytes` of the topic `{topic}` \
             there; it would have {bytes}"
        ))
    };
    refused(context.broker, false).or_else(|| refused(context.broker_of_letters, true))
}

/// Names that are there more than once are wrong.
pub(super) fn check_once<'n>(names: impl Iterator<Item = &'n str> + Clone, place: Place, wrong: &mut Wrong) {
    for (index, name) in names.clone().enumerate() {
        if names.clone().take(index).any(|earlier| earlier == name) {
            wrong.invalid(place.attribute(name), "once: it is there more than once");
        }
    }
}

impl Event {
    /// Its size: attributes, data, and the key that it has in Kafka. Its record there is larger by a few hundred bytes
    /// of lengths and of headers that the relay adds, which a broker's limit of 1 MiB has room for.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.attributes.len() + self.data.bytes().len() + TENANT_BYTES + self.key.len()
    }
}

/// Writes a JSON string. A `Vec` takes every write, so that no error is left out here.
pub(super) fn write_string(text: &mut Vec<u8>, value: &str) {
    serde_json::to_writer(text, value).unwrap_or_default();
}

fn is_tenant(value: &Given<'_>, tenant: Uuid) -> bool {
    matches!(value, Given::Text(text) if Uuid::try_parse(text) == Ok(tenant))
}

fn check_name(name: &str) -> Result<(), Cow<'static, str>> {
    let is_right = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    if matches!(name, "data" | "data_base64") {
        return Err("in binary mode the data is the body".into());
    }
    if !is_right(name) {
        let meant: String =
            name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
        let rule = "an attribute's name is of the letters a-z and digits only (at most 20 of them, better)";
        let hint =
            if is_right(&meant) && meant.len() <= 40 { format!("; `{meant}`?") } else { String::new() };
        return Err(format!("{rule}{hint}").into());
    }
    if RESERVED.contains(&name) {
        return Err("left out: Outrigger sets it on the events that it gives".into());
    }
    Ok(())
}

fn check_value(name: &str, value: &Given<'_>) -> Verdict {
    let check: fn(&str) -> Verdict = match name {
        "specversion" => values::version,
        "id" | "type" | "subject" | "partitionkey" => values::filled,
        "source" => values::uri_reference,
        "datacontenttype" => values::media_type,
        "dataschema" => values::uri,
        "time" => values::time,
        _ => match value {
            Given::Text(text) => return values::string(text),
            Given::Integer(_) | Given::Boolean(_) => return Ok(()),
        },
    };
    match value {
        Given::Text(text) => check(text),
        Given::Integer(_) | Given::Boolean(_) => Err("a string, in quotes"),
    }
}
