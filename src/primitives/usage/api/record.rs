//! `POST /v1/usage`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::{ANSWER, Api, other_zone};
use crate::error::ErrorKind;
use crate::http::{self as wire, Problem, Reply, json, ndjson};
use crate::names::Name;
use crate::policy::{Caller, Permit};
use crate::primitives::usage::metrics::UsageMetrics;
use crate::primitives::usage::record::taken_for;
use crate::primitives::usage::spool::SpoolError;
use crate::primitives::usage::{
    AcceptWindow, Call, Checks, Late, MAX_RECORDS, Metric, Point, RECORD, Record, Records, Refusal,
    UsagePolicy, Verdict, Wrong,
};
use crate::primitives::write_rates::Rate;
use crate::store::spool::AppendError;

/// Of a whole body, in bytes.
const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;
/// Records that are named in one answer.
const MAX_NAMED: usize = 100;

/// What became of the records.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct RecordReply {
    /// Records that are counted now, and were not before.
    accepted: usize,
    /// Records that were counted already: the same again under the same key. Null where they are counted later.
    duplicates: Option<usize>,
    /// Whether they are counted later: `ack: spool`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pending: bool,
}

pub(super) async fn record(api: &Api, mut call: Box<wire::Call>) -> Result<Reply, Problem> {
    call.query.expect_only(&[])?;
    let is_ndjson = is_ndjson(&call.headers)?;
    let body = call.bytes(MAX_BODY_BYTES).await?;
    let records = if is_ndjson { lines(&body)? } else { list(&body)? };
    if records.is_empty() || records.len() > MAX_RECORDS {
        return Err(Problem::new(ErrorKind::Invalid, "too few records, or too many")
            .with_field("/records", format!("1 to {MAX_RECORDS} records")));
    }
    let (permit, rate, call) = read(&call.caller, &records).inspect_err(|_| api.metrics.invalid.inc())?;
    if let Some(rate) = rate {
        let taken = api.rates.take(call.tenant(), &rate, records.len() as u64, call.cost());
        taken.inspect_err(|_| api.metrics.rate_limited.inc())?;
    }
    if let Some(spooler) = api.spooler.as_ref().filter(|_| call.is_spooled()) {
        drop(records);
        if let Some(in_force) = api.standing.other_zone(call.calendar().zone_name()) {
            api.metrics.other_zone.inc();
            return Err(other_zone(call.calendar().zone_name(), &in_force));
        }
        let body = if is_ndjson { listed(&body) } else { body };
        let accepted = spooler.accept(&permit, &call, &body).await;
        let accepted = accepted.map_err(|error| unspooled(&error, &api.metrics))?;
        let reply = RecordReply { accepted, duplicates: None, pending: true };
        return Reply::new(StatusCode::ACCEPTED).with_json(&reply);
    }
    // A call that waits holds its points alone.
    drop(records);
    drop(body);
    if let Some(spooler) = api.spooler.as_ref().filter(|_| call.has_spooled_metrics()) {
        spooler.until_counted(call.tenant()).await;
    }
    let (late, calendar) = (call.late().to_vec(), Arc::clone(call.calendar()));
    match api.counter.count(permit, call).await.map_err(|error| ANSWER.of_group(&error))? {
        Verdict::Counted { accepted, duplicates } => Reply::new(StatusCode::ACCEPTED)
            .with_json(&RecordReply { accepted, duplicates: Some(duplicates), pending: false }),
        Verdict::Refused(refusal) => Err(refused(&refusal, &late)),
        Verdict::OtherZone(in_force) => {
            api.standing.differs();
            Err(other_zone(calendar.zone_name(), &in_force))
        }
    }
}

/// Whether the body is lines; 415 where it is neither that nor JSON.
fn is_ndjson(headers: &HeaderMap) -> Result<bool, Problem> {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    if given.split(';').next().is_some_and(|media| media.trim().eq_ignore_ascii_case(ndjson::MEDIA_TYPE)) {
        return Ok(true);
    }
    json::require_json(headers).map(|()| false).map_err(|_| {
        Problem::new(
            ErrorKind::UnsupportedMediaType,
            "send the body with `Content-Type: application/json`, or `application/x-ndjson` with a record on each line",
        )
    })
}

fn list(body: &[u8]) -> Result<Vec<Record<'_>>, Problem> {
    json::parse_part::<Records<'_>>(body, "").map(|body| body.records)
}

/// A record on each line that is not empty; pointers are as if they were in `records`.
fn lines(body: &[u8]) -> Result<Vec<Record<'_>>, Problem> {
    let mut records = Vec::new();
    for line in body.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
        if records.len() > MAX_RECORDS {
            break;
        }
        records.push(json::parse_part::<Record<'_>>(line, &format!("/records/{}", records.len()))?);
    }
    Ok(records)
}

/// Lines as the list that they stand for.
fn listed(body: &[u8]) -> Bytes {
    let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    let mut list = b"{\"records\":[".to_vec();
    for (number, line) in lines.enumerate() {
        if number > 0 {
            list.push(b',');
        }
        list.extend_from_slice(line);
    }
    list.extend_from_slice(b"]}");
    list.into()
}

/// The call's metrics, each once.
#[derive(Default)]
struct Found {
    places: HashMap<Name, Option<u16>>,
    metrics: Vec<Arc<Metric>>,
    permit: Option<Permit>,
}

/// The records as points of a call, a permit of its tenant, which there was for every metric, and how fast that may record. Else all that
/// is wrong in them.
fn read(caller: &Caller, records: &[Record<'_>]) -> Result<(Permit, Option<Arc<Rate>>, Call), Problem> {
    let policy = caller.policies().get::<UsagePolicy>();
    let mut found = Found::default();
    let mut named: Option<(&str, Option<u16>)> = None;
    let mut checks = Checks::default();
    let mut points: Vec<Point> = Vec::with_capacity(records.len());
    let now_us = Timestamp::now().as_microsecond();
    for (number, record) in records.iter().enumerate() {
        let text = &*record.metric;
        // Records of one metric come one after the other, mostly.
        let place = match named {
            Some((last, place)) if last == text => place,
            _ => found.place(caller, policy, text)?,
        };
        named = Some((text, place));
        let metric = place.and_then(|place| Some((place, found.metrics.get(usize::from(place))?)));
        let Some((place, metric)) = metric else {
            checks.wrong(number, "/metric", "a metric that a policy of `kind: usage` names");
            continue;
        };
        let Some(permit) = &found.permit else { continue };
        let accept_late_us = i64::try_from(metric.accept_late_ms).unwrap_or(i64::MAX).saturating_mul(1000);
        let window = AcceptWindow { accept_late_us, now_us };
        points.extend(checks.point(
            *permit.tenant().as_uuid(),
            number,
            record,
            (place, &metric.name),
            window,
        ));
    }
    let late = checks.into_result().map_err(|wrong| invalid(&wrong))?;
    let (policy, permit) = policy.zip(found.permit).ok_or_else(|| {
        tracing::error!("records without a metric passed");
        Problem::new(ErrorKind::Internal, "the records cannot be counted")
    })?;
    let rate = policy.rate(&permit).map(Arc::clone);
    let call = Call::new(&permit, found.metrics, (points, late), policy.calendar());
    Ok((permit, rate, call))
}

impl Found {
    /// The place of the metric that has this name, whose usage the caller may record; none where there is no such metric.
    fn place(
        &mut self,
        caller: &Caller,
        policy: Option<&UsagePolicy>,
        text: &str,
    ) -> Result<Option<u16>, Problem> {
        let Ok(name) = Name::parse(text) else { return Ok(None) };
        if let Some(place) = self.places.get(&name) {
            return Ok(*place);
        }
        let permit = caller.permit(RECORD, &name)?;
        let metric = policy.and_then(|policy| policy.metric(name.as_str()));
        let place = metric.and_then(|_| u16::try_from(self.metrics.len()).ok());
        if let (Some(metric), Some(_)) = (metric, place) {
            self.metrics.push(Arc::clone(metric));
            self.permit = Some(permit);
        }
        self.places.insert(name, place);
        Ok(place)
    }
}

fn unspooled(error: &SpoolError, metrics: &UsageMetrics) -> Problem {
    metrics.unspooled(error);
    match error {
        SpoolError::Store(error) => return ANSWER.of(error),
        SpoolError::Unwritable(_) => tracing::error!(%error, "a call could not be accepted to disk"),
        _ => tracing::debug!(%error, "a call was not accepted to disk"),
    }
    let detail = match error.kind() {
        ErrorKind::TooLarge => "the call is too large for the spool: send it in parts",
        ErrorKind::OutcomeUnknown => {
            "the spool's disk did not say whether this was accepted: send it again; each key counts once"
        }
        ErrorKind::Overloaded if matches!(error, SpoolError::ShareTaken) => {
            "this tenant has as much in the spool as one may: nothing was accepted"
        }
        ErrorKind::Overloaded => "too many calls wait for the spool's disk: nothing was accepted",
        ErrorKind::Internal => "the call cannot be accepted to disk, which is a defect",
        _ if matches!(error, SpoolError::Append(AppendError::Disk(_))) => {
            "the spool's disk takes nothing, or its folder was replaced: nothing was accepted"
        }
        _ => {
            "the spool is full, or what is left of it is for tenants that have less there: nothing was accepted; there is room again \
             as records are counted"
        }
    };
    Problem::new(error.kind(), detail)
}

fn invalid(wrong: &[Wrong]) -> Problem {
    let problem =
        Problem::new(ErrorKind::Invalid, "records are wrong: nothing of this call was counted by it");
    wrong
        .iter()
        .fold(problem, |problem, wrong| problem.with_field(wrong.pointer.clone(), wrong.detail.clone()))
}

fn refused(refusal: &Refusal, late: &[Late]) -> Problem {
    let Refusal { conflicts, nothing_to_correct, too_late } = refusal;
    let problem = if conflicts.is_empty() {
        let detail = match (too_late.is_empty(), nothing_to_correct.is_empty()) {
            (true, _) => "records correct what was not counted: nothing was counted",
            (false, true) => "records came too late: nothing of this call was counted by it",
            (false, false) => {
                "records came too late, or correct what was not counted: nothing of this call was counted by it"
            }
        };
        Problem::new(ErrorKind::Invalid, detail)
    } else {
        let detail = format!(
            "{} of the records have an idempotency key of another one, of the same metric and day: nothing was counted",
            conflicts.len()
        );
        Problem::new(ErrorKind::Conflict, detail)
    };
    let own_key = "a key of its own, or the value, time, tags and metadata that it came with first";
    let counted = "the key of a record that was counted, of the same metric and UTC day of `time`";
    let taken = |number: &usize| {
        let late = late.iter().find(|late| late.number == *number);
        let taken = late.map_or_else(String::new, |late| taken_for(late.accept_late_us) + ", and ");
        format!("{taken}a later one is only what was counted before: no record of this key was")
    };
    let conflicts = conflicts.iter().map(|number| (number, "idempotency_key", Cow::Borrowed(own_key)));
    let corrections = nothing_to_correct.iter().map(|number| (number, "corrects", Cow::Borrowed(counted)));
    let too_late = too_late.iter().map(|number| (number, "time", Cow::Owned(taken(number))));
    conflicts
        .chain(corrections)
        .chain(too_late)
        .take(MAX_NAMED)
        .fold(problem, |problem, (number, field, right)| {
            problem.with_field(format!("/records/{number}/{field}"), right)
        })
}
