//! An accepted call as bytes: the records as they came, and what policy said of them then.
//!
//! `version (1) | tenant (16) | accepted, ms since 1970 (8) | length of the terms (4) | terms | body`, numbers little-endian. The terms
//! are JSON, and the body is what `POST /v1/usage` takes. An entry of every version begins with its version, tenant and time, so that an
//! earlier release knows whose it leaves to a later one.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::{AcceptWindow, Ack, Calendar, Call, Checks, Metric, Point, Records};
use crate::names::Name;

/// Of the entries that this release writes; it reads those before too.
pub(super) const VERSION: u8 = 1;
const HEAD_BYTES: usize = 1 + 16 + 8;

/// What policy said when a call was accepted.
#[derive(Debug, Serialize, Deserialize)]
struct Terms {
    time_zone: String,
    close_after_ms: Option<u64>,
    metrics: Vec<MetricTerms>,
}

#[derive(Debug, Serialize, Deserialize)]
struct MetricTerms {
    name: String,
    group_by: Vec<String>,
}

/// Whose an entry is, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) version: u8,
    pub(super) tenant: Uuid,
    pub(super) accepted_ms: i64,
}

/// A call that was read back.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) accepted_ms: i64,
    pub(super) call: Call,
    /// The key of each of its points.
    pub(super) keys: Vec<Box<str>>,
}

/// Why an entry is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum EntryError {
    /// By no Outrigger.
    #[error("it does not begin as an entry does")]
    Head,
    /// By a later release.
    #[error("a later release wrote it")]
    Later,
    /// What it says cannot be read.
    #[error("it cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// What it says is not what was accepted.
    #[error("{0}")]
    Wrong(String),
}

/// A call whose records came as this body.
pub(super) fn write(call: &Call, accepted: Timestamp, body: &[u8]) -> Result<Vec<u8>, EntryError> {
    let calendar = call.calendar();
    let metrics = call.metrics().iter().map(|metric| MetricTerms {
        name: metric.name.to_string(),
        group_by: metric.group_by.iter().map(Name::to_string).collect(),
    });
    let zone = calendar
        .zone()
        .iana_name()
        .ok_or_else(|| EntryError::Wrong("a time zone without a name".to_owned()))?;
    let terms = Terms {
        time_zone: zone.to_owned(),
        close_after_ms: calendar.close_after_ms(),
        metrics: metrics.collect(),
    };
    let terms = serde_json::to_vec(&terms)?;
    let terms_bytes =
        u32::try_from(terms.len()).map_err(|_| EntryError::Wrong("terms without end".to_owned()))?;
    let mut payload = Vec::with_capacity(HEAD_BYTES + 4 + terms.len() + body.len());
    payload.push(VERSION);
    payload.extend_from_slice(call.tenant().as_bytes());
    payload.extend_from_slice(&accepted.as_millisecond().to_le_bytes());
    payload.extend_from_slice(&terms_bytes.to_le_bytes());
    payload.extend_from_slice(&terms);
    payload.extend_from_slice(body);
    Ok(payload)
}

impl Head {
    /// Whether this release does not know the rest of it.
    pub(super) fn is_later(&self) -> bool {
        self.version > VERSION
    }
}

/// What an entry begins with, of a later release's too.
pub(super) fn head(payload: &[u8]) -> Result<Head, EntryError> {
    parts(payload).map(|(head, _)| head)
}

fn parts(payload: &[u8]) -> Result<(Head, &[u8]), EntryError> {
    let read = || {
        let (version, rest) = payload.split_first()?;
        let (tenant, rest) = rest.split_first_chunk()?;
        let (accepted, rest) = rest.split_first_chunk()?;
        let (tenant, accepted_ms) = (Uuid::from_bytes(*tenant), i64::from_le_bytes(*accepted));
        (*version > 0).then_some((Head { version: *version, tenant, accepted_ms }, rest))
    };
    read().ok_or(EntryError::Head)
}

fn terms_and_body(rest: &[u8]) -> Result<(&[u8], &[u8]), EntryError> {
    let read = || {
        let (length, rest) = rest.split_first_chunk()?;
        rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)
    };
    read().ok_or_else(|| EntryError::Wrong("it ends too soon".to_owned()))
}

/// The call of an entry. Keys and fingerprints are made anew: a release that makes them in another way would not know them.
pub(super) fn read(payload: &[u8]) -> Result<Accepted, EntryError> {
    let (head, rest) = parts(payload)?;
    if head.is_later() {
        return Err(EntryError::Later);
    }
    let (terms, body) = terms_and_body(rest)?;
    let terms: Terms = serde_json::from_slice(terms)?;
    let records: Records<'_> = serde_json::from_slice(body)?;
    let wrong = |what: &str| EntryError::Wrong(what.to_owned());
    let zone = TimeZone::get(&terms.time_zone).map_err(|error| EntryError::Wrong(error.to_string()))?;
    let calendar = Calendar::new(zone, terms.close_after_ms);
    let metrics = terms.metrics.iter().map(metric).collect::<Option<Vec<_>>>();
    let metrics = metrics.ok_or_else(|| wrong("a metric's or a tag's name"))?;
    let numbers: HashMap<&str, (u16, &Name)> =
        (0..).zip(&metrics).map(|(number, metric)| (metric.name.as_str(), (number, &metric.name))).collect();
    let mut checks = Checks::default();
    let mut points: Vec<Point> = Vec::with_capacity(records.records.len());
    for (number, record) in records.records.iter().enumerate() {
        let metric =
            numbers.get(&*record.metric).ok_or_else(|| wrong("a metric that its terms do not name"))?;
        points.extend(checks.point(head.tenant, number, record, *metric, AcceptWindow::EVERYTHING));
    }
    if let Err(wrong) = checks.into_result() {
        let all: Vec<String> = wrong.iter().map(|one| format!("{}: {}", one.pointer, one.detail)).collect();
        return Err(EntryError::Wrong(all.join("; ")));
    }
    let keys = records.records.iter().map(|record| Box::from(&*record.idempotency_key)).collect();
    drop(numbers);
    let call = Call::of(head.tenant, metrics, points, &calendar);
    Ok(Accepted { accepted_ms: head.accepted_ms, call, keys })
}

fn metric(terms: &MetricTerms) -> Option<Arc<Metric>> {
    let group_by = terms.group_by.iter().map(|tag| Name::parse(tag).ok()).collect::<Option<Vec<_>>>()?;
    let name = Name::parse(&terms.name).ok()?;
    // How late it may come was looked at when it came.
    Some(Arc::new(Metric { name, accept_late_ms: u64::MAX, group_by, ack: Ack::Spool }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::primitives::usage::Day;

    const BODY: &str = "{\"records\": [{\"metric\": \"calls\", \"value\": 1.50, \"time\": \"2026-01-31T09:30:00Z\", \
                        \"idempotency_key\": \"k\", \"tags\": {\"region\": \"eu\"}, \"metadata\": {\"b\": 1, \"a\": 2}}]}";

    fn entry() -> Vec<u8> {
        let name = |text| Name::parse(text).unwrap();
        let metric = Metric {
            name: name("calls"),
            accept_late_ms: 1,
            group_by: vec![name("region")],
            ack: Ack::Spool,
        };
        let calendar = Calendar::new(TimeZone::get("Asia/Kathmandu").unwrap(), Some(5));
        let call = Call::of(Uuid::from_u128(7), vec![Arc::new(metric)], Vec::new(), &calendar);
        write(&call, Timestamp::from_millisecond(42).unwrap(), BODY.as_bytes()).unwrap()
    }

    #[test]
    fn a_call_is_read_as_it_was_accepted() {
        let entry = entry();
        assert_eq!(
            head(&entry).unwrap(),
            Head { version: VERSION, tenant: Uuid::from_u128(7), accepted_ms: 42 }
        );
        let Accepted { accepted_ms, call, keys } = read(&entry).unwrap();
        assert_eq!(accepted_ms, 42);
        assert_eq!((call.tenant(), &*keys), (Uuid::from_u128(7), &[Box::from("k")][..]));
        assert_eq!(call.calendar().zone().iana_name(), Some("Asia/Kathmandu"));
        assert_eq!(call.calendar().close_after_ms(), Some(5));
        let [point] = call.points() else { panic!("{call:?}") };
        assert_eq!(
            (point.value.to_string().as_str(), point.metadata.as_deref()),
            ("1.5", Some("{\"a\":2,\"b\":1}"))
        );
        let day = Day::of("2026-01-31T09:30:00Z".parse().unwrap());
        assert_eq!(point.key, crate::primitives::usage::PointKey::new(Uuid::from_u128(7), "calls", day, "k"));
        let metric = call.metric(point).unwrap();
        assert_eq!((metric.name.as_str(), metric.group_by.len()), ("calls", 1));
    }

    #[test]
    fn what_is_no_entry_is_said() {
        let whole = entry();
        let (mut later, mut none) = (whole.clone(), whole.clone());
        (later[0], none[0]) = (VERSION + 1, 0);
        let head_of_later = head(&later).unwrap();
        assert_eq!((head_of_later.is_later(), head_of_later.tenant), (true, Uuid::from_u128(7)));
        for (bytes, words) in [
            (later, "a later release"),
            (none, "does not begin"),
            (whole[..10].to_vec(), "does not begin"),
            (whole[..40].to_vec(), "ends too soon"),
            (whole[..whole.len() - 1].to_vec(), "cannot be read"),
        ] {
            let error = read(&bytes).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
