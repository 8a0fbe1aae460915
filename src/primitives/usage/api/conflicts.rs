//! `GET /v1/usage/{metric}/conflicts`.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;

use super::read::{time, wrong};
use super::{ANSWER, Api};
use crate::error::ErrorKind;
use crate::http::{Call, Problem, Reply};
use crate::names::Key;
use crate::primitives::usage::READ;
use crate::primitives::usage::conflicts::{self, Behind, Listed};
use crate::store::StoreError;

/// Of a page, at the most.
const PAGE: usize = 1000;

/// A page of conflicts.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ConflictsReply<'a> {
    /// The metric's name.
    metric: &'a str,
    /// As they were found.
    conflicts: Vec<ConflictReply>,
    /// As `cursor` it gets the next page; without it this is the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// A record that was accepted with `ack: spool` and not counted: its key is another one's, of the same metric and day.
#[derive(Debug, Serialize, JsonSchema)]
struct ConflictReply {
    /// When it was found.
    found_at: String,
    /// As it was sent.
    idempotency_key: String,
    /// As it was sent.
    time: String,
    /// An exact decimal.
    value: String,
    /// As they were sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "serde_json::Map<String, serde_json::Value>")]
    tags: Option<Box<RawValue>>,
    /// As it was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "serde_json::Map<String, serde_json::Value>")]
    metadata: Option<Box<RawValue>>,
}

pub(super) async fn conflicts(api: &Api, call: Box<Call>) -> Result<Reply, Problem> {
    call.query.expect_only(&["from", "cursor"])?;
    let name = call.name_param("metric")?;
    // Whether a policy names the metric now says nothing about what was found of it.
    let permit = call.caller.permit(READ, &name)?;
    let behind = match (call.query.text("cursor"), call.query.text("from")) {
        (Some(cursor), _) => read_cursor(cursor)
            .ok_or_else(|| wrong("?cursor", "the `next_cursor` of the page before".to_owned()))?,
        (None, Some(_)) => Behind::all_from(time(&call, "from")?),
        (None, None) => Behind::all_from(Timestamp::UNIX_EPOCH),
    };
    let (tenant, metric) = (*permit.tenant().as_uuid(), name.clone());
    let limit = i64::try_from(PAGE).unwrap_or(i64::MAX);
    let listed: Result<Vec<Listed>, StoreError> = api
        .store
        .read(&permit, move |tx| {
            let (metric, behind) = (metric.clone(), behind.clone());
            Box::pin(async move { conflicts::list(tx, (tenant, &metric), &behind, limit).await })
        })
        .await;
    let listed = listed.map_err(|error| ANSWER.of(&error))?;
    let next_cursor = listed.last().filter(|_| listed.len() == PAGE).map(cursor);
    let conflicts = listed.into_iter().map(reply).collect::<Result<Vec<_>, _>>()?;
    Reply::json(&ConflictsReply { metric: name.as_str(), conflicts, next_cursor })
}

fn reply(listed: Listed) -> Result<ConflictReply, Problem> {
    let defect = |error: &dyn std::fmt::Display| {
        tracing::error!(%error, "a conflict of usage cannot be read");
        Problem::new(ErrorKind::Internal, "the store holds what cannot be read")
    };
    let object =
        |text: Option<String>| text.map(RawValue::from_string).transpose().map_err(|error| defect(&error));
    Ok(ConflictReply {
        found_at: Timestamp::from_microsecond(listed.found_us).map_err(|error| defect(&error))?.to_string(),
        idempotency_key: listed.key,
        time: listed.time.to_string(),
        value: listed.value,
        tags: object(listed.tags)?,
        metadata: object(listed.metadata)?,
    })
}

/// It says nothing that the page does not say.
fn cursor(last: &Listed) -> String {
    format!("{}.{}.{}", last.found_us, last.fingerprint, last.key)
}

fn read_cursor(text: &str) -> Option<Behind> {
    let (found, rest) = text.split_once('.')?;
    let (fingerprint, key) = rest.split_once('.')?;
    // Of a time at which one can be found, and a key that could be: the store would refuse others.
    let found = Timestamp::from_microsecond(found.parse().ok()?).ok()?;
    let found = Some(found).filter(|found| *found >= Timestamp::UNIX_EPOCH)?;
    Key::check(key).ok()?;
    Some(Behind { fingerprint: fingerprint.parse().ok()?, key: key.to_owned(), ..Behind::all_from(found) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        let listed = Listed {
            found_us: 5,
            key: "a.b".to_owned(),
            fingerprint: -7,
            time: Timestamp::UNIX_EPOCH,
            value: "1".to_owned(),
            tags: None,
            metadata: None,
        };
        let behind = Behind { found_us: 5, key: "a.b".to_owned(), fingerprint: -7 };
        assert_eq!(read_cursor(&cursor(&listed)), Some(behind));
        assert_eq!(read_cursor("5.x.a"), None);
        assert_eq!(read_cursor("9223372036854775807.1.a"), None);
        assert_eq!(read_cursor("-5.1.a"), None);
        assert_eq!(read_cursor("5.1.a\0"), None);
        assert_eq!(read_cursor("5"), None);
    }
}
