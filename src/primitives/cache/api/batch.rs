//! `:batchGet` and `:batchPut`: several keys of one namespace in one call, each with its own answer.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use http::HeaderValue;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::write::{checked_content_type, within_bound};
use super::{Api, Place};
use crate::error::ErrorKind;
use crate::http::problem::appearance;
use crate::http::{Call, Problem, Reply};
use crate::names::Key;
use crate::primitives::cache::etag::{Conditions, Etag};
use crate::primitives::cache::key::Address;
use crate::primitives::cache::{CacheError, Found, Lookup, READ, WRITE, Write, now_ms};

/// Items of one call at the most.
const MAX_ITEMS: usize = 100;
/// Items of a `:batchGet` that are looked up at the same time.
const AT_ONCE: usize = 8;
/// The largest body of a `:batchGet`.
const MAX_GET_BYTES: usize = 1024 * 1024;
/// The largest body of a `:batchPut`, and the most bytes of values that a `:batchGet` answers.
const MAX_BATCH_BYTES: usize = 8 * 1024 * 1024;

/// The values to get.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BatchGetRequest {
    /// 1 to 100.
    #[schemars(length(min = 1, max = 100))]
    items: Vec<Wanted>,
}

/// A value to get.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Wanted {
    key: String,
    #[serde(default)]
    version: Option<String>,
}

/// The values that were asked for, in the order of asking.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct BatchGetReply {
    items: Vec<Got>,
}

/// One value; where it is not found for another reason than a miss, the reason.
#[derive(Debug, Default, Serialize, JsonSchema)]
struct Got {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    found: bool,
    /// In base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    age_ms: Option<u64>,
    #[serde(flatten)]
    failure: Option<Failure>,
}

/// Why an item was not done.
#[derive(Debug, Serialize, JsonSchema)]
struct Failure {
    /// The status that the item's own call would have had.
    status: u16,
    code: &'static str,
    detail: String,
}

/// The values to put.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BatchPutRequest {
    /// 1 to 100.
    #[schemars(length(min = 1, max = 100))]
    items: Vec<Given>,
}

/// A value to put.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Given {
    key: String,
    #[serde(default)]
    version: Option<String>,
    /// In base64.
    value: String,
    #[serde(default)]
    content_type: Option<String>,
    #[serde(default)]
    ttl_ms: Option<u64>,
}

/// How each item ended, in the order of asking.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct BatchPutReply {
    items: Vec<Put>,
}

/// How one item ended.
#[derive(Debug, Serialize, JsonSchema)]
struct Put {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(flatten)]
    outcome: PutOutcome,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
enum PutOutcome {
    /// It is stored.
    Stored { status: u16, etag: String },
    /// It is not.
    Failed(Failure),
}

impl Failure {
    fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        let look = appearance(kind);
        Self { status: look.status.as_u16(), code: look.code, detail: detail.into() }
    }
}

pub(super) async fn get(api: &Api, mut call: Box<Call>) -> Result<Reply, Problem> {
    call.query.expect_only(&[])?;
    let place = Place::of(&call, READ)?;
    let request: BatchGetRequest = call.json(MAX_GET_BYTES).await?;
    check_count(request.items.len())?;
    let names = request.items.iter().map(|item| (item.key.as_str(), item.version.as_deref()));
    let addresses = addresses(&place, names)?;
    let lookups: Vec<_> = addresses.iter().map(|address| api.look_up(&place, address, &call)).collect();
    // A few at a time, so that what has no room in the reply is not all in memory, nor asked for.
    let mut lookups = futures_util::stream::iter(lookups).buffered(AT_ONCE);
    let (mut room, mut items) = (MAX_BATCH_BYTES, Vec::with_capacity(addresses.len()));
    for item in request.items {
        let found = if room > 0 { lookups.next().await } else { None };
        items.push(api.got(item, found, &mut room));
    }
    drop(lookups);
    Reply::json(&BatchGetReply { items })
}

impl Api {
    async fn look_up(&self, place: &Place, address: &Address, call: &Call) -> Result<Lookup, CacheError> {
        match self.backend.cached(address) {
            Some(found) => Ok(Lookup::Found(found)),
            None => self.backend.lookup(address, &place.rules, self.budget(call)).await,
        }
    }

    async fn put_item(
        &self,
        place: &Place,
        item: &Given,
        address: &Address,
        budget: Duration,
    ) -> Result<Etag, Failure> {
        let write = write(item, place)?;
        let written = self.backend.put(address, &place.rules, write, budget).await;
        self.count(&written, false);
        written.map_err(|error| Failure::new(error.kind(), error.to_string()))
    }

    /// The item's answer; it was not looked up where the reply has no room left.
    fn got(&self, item: Wanted, looked_up: Option<Result<Lookup, CacheError>>, room: &mut usize) -> Got {
        let got = Got { key: item.key, version: item.version, ..Got::default() };
        let no_room = || {
            let detail = format!(
                "the values of one reply have {MAX_BATCH_BYTES} bytes at most: ask for this one again"
            );
            Some(Failure::new(ErrorKind::TooLarge, detail))
        };
        let Some(looked_up) = looked_up else { return Got { failure: no_room(), ..got } };
        match looked_up {
            Ok(Lookup::Found(Found { stored, tier })) => {
                self.metrics.hit(tier);
                let Some(left) = room.checked_sub(stored.body.len()) else {
                    *room = 0;
                    return Got { failure: no_room(), ..got };
                };
                *room = left;
                Got {
                    found: true,
                    value: Some(STANDARD.encode(&stored.body)),
                    content_type: Some(stored.content_type.to_str().unwrap_or_default().to_owned()),
                    etag: Some(quoted(&stored.etag)),
                    age_ms: Some(now_ms().saturating_sub(stored.written_at_ms)),
                    ..got
                }
            }
            Ok(Lookup::Absent) => {
                self.metrics.misses.inc();
                got
            }
            Err(error) => {
                self.metrics.lookups_failed.inc();
                Got { failure: Some(Failure::new(error.kind(), error.to_string())), ..got }
            }
        }
    }
}

pub(super) async fn put(api: &Api, mut call: Box<Call>) -> Result<Reply, Problem> {
    call.query.expect_only(&[])?;
    let place = Place::of(&call, WRITE)?;
    let request: BatchPutRequest = call.json(MAX_BATCH_BYTES).await?;
    check_count(request.items.len())?;
    let names = request.items.iter().map(|item| (item.key.as_str(), item.version.as_deref()));
    let addresses = addresses(&place, names)?;
    let budget = api.budget(&call);
    let mut writes = FuturesOrdered::new();
    for (item, address) in request.items.iter().zip(&addresses) {
        writes.push_back(api.put_item(&place, item, address, budget));
    }
    let written: Vec<_> = writes.collect().await;
    let items = request.items.into_iter().zip(written).map(|(item, written)| Put {
        key: item.key,
        version: item.version,
        outcome: match written {
            Ok(etag) => PutOutcome::Stored { status: 204, etag: quoted(&etag) },
            Err(failure) => PutOutcome::Failed(failure),
        },
    });
    Reply::json(&BatchPutReply { items: items.collect() })
}

/// The item as a write, or why it cannot be one; the other items go on.
fn write(item: &Given, place: &Place) -> Result<Write, Failure> {
    let value = STANDARD
        .decode(&item.value)
        .map_err(|_| Failure::new(ErrorKind::Invalid, "`value` is base64 (RFC 4648, section 4, padded)"))?;
    let max_bytes = place.rules.max_value_bytes;
    if value.len() > max_bytes {
        let detail = format!("a value in this namespace may have {max_bytes} bytes at most");
        return Err(Failure::new(ErrorKind::TooLarge, detail));
    }
    let content_type = match &item.content_type {
        None => place.rules.content_type.clone(),
        Some(text) => HeaderValue::from_str(text)
            .map_err(|_| "a content type is visible ASCII".to_owned())
            .and_then(|value| checked_content_type(&value, &place.rules))
            .map_err(|detail| Failure::new(ErrorKind::Invalid, detail))?,
    };
    let ttl_ms = within_bound(item.ttl_ms, &place.rules)
        .map_err(|bound| Failure::new(ErrorKind::Invalid, format!("`ttl_ms` is {bound}")))?;
    Ok(Write {
        body: Bytes::from(value),
        content_type,
        ttl_ms,
        conditions: Conditions::default(),
        lease: None,
        max_tenant_bytes: place.max_tenant_bytes,
    })
}

fn check_count(items: usize) -> Result<(), Problem> {
    if (1..=MAX_ITEMS).contains(&items) {
        return Ok(());
    }
    Err(Problem::new(ErrorKind::Invalid, "a field of the body is wrong")
        .with_field("/items", format!("1 to {MAX_ITEMS} items")))
}

/// Every item's address; 422 with a pointer each where some cannot be one, and nothing is done.
fn addresses<'i>(
    place: &Place,
    items: impl Iterator<Item = (&'i str, Option<&'i str>)>,
) -> Result<Vec<Address>, Problem> {
    let (mut addresses, mut wrong) = (Vec::new(), Vec::new());
    for (at, (key, version)) in items.enumerate() {
        let (key, version) = (Key::parse(key), version.map(Key::parse).transpose());
        if let Err(error) = &key {
            wrong.push((format!("/items/{at}/key"), error.to_string()));
        }
        if let Err(error) = &version {
            wrong.push((format!("/items/{at}/version"), error.to_string()));
        }
        if let (Ok(key), Ok(version)) = (key, version) {
            addresses.push(place.address(&key, version));
        }
    }
    if wrong.is_empty() {
        return Ok(addresses);
    }
    let problem = Problem::new(ErrorKind::Invalid, "a field of the body is wrong");
    Err(wrong.into_iter().fold(problem, |problem, (pointer, detail)| problem.with_field(pointer, detail)))
}

fn quoted(etag: &Etag) -> String {
    etag.header().to_str().unwrap_or_default().to_owned()
}
