//! `GET /v1/usage` and `GET /v1/usage/{metric}`.

use std::str::FromStr;
use std::sync::Arc;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::{ANSWER, Api, no_such_metric, other_zone};
use crate::error::ErrorKind;
use crate::http::{Call, Problem, Reply};
use crate::names::Name;
use crate::primitives::usage::{
    Metric, READ, Range, RangeError, ReadError, ReadPoint, Reading, SumOf, UsagePolicy, Window,
    read as read_sums,
};
use crate::rfc3339;

/// The metrics that the caller may read.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ListReply<'a> {
    /// By name.
    metrics: Vec<ListedMetric<'a>>,
}

/// A metric.
#[derive(Debug, Serialize, JsonSchema)]
struct ListedMetric<'a> {
    /// Its name.
    metric: &'a str,
    /// How old a record may be, in milliseconds.
    accept_late_ms: u64,
    /// The tags by which it can be grouped.
    group_by: Vec<&'a str>,
}

/// A page of windows.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ReadReply<'a> {
    /// The metric's name.
    metric: &'a str,
    /// `hour`, `day`, `month` or `total`.
    window: &'a str,
    /// Every window of every group, in order, also where nothing was used.
    points: Vec<PointReply<'a>>,
    /// The exact sum of the whole range, whatever page this is.
    total: String,
    /// As `cursor` it gets the next page; without it this is the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// A window, of a group where it is grouped.
#[derive(Debug, Serialize, JsonSchema)]
struct PointReply<'a> {
    /// Its first instant.
    start: String,
    /// The exact sum of its records' values.
    value: String,
    /// How many records.
    count: i64,
    /// The tag's value; empty of records without the tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a str>,
    /// The beginning of a month that was closed when these records came: they adjust it, and are booked here.
    #[serde(skip_serializing_if = "Option::is_none")]
    adjusts: Option<String>,
}

pub(super) async fn list(_: &Api, call: Box<Call>) -> Result<Reply, Problem> {
    call.query.expect_only(&[])?;
    let policy = call.caller.policies().get::<UsagePolicy>();
    let metrics = policy.into_iter().flat_map(UsagePolicy::metrics);
    let readable = metrics.filter(|metric| call.caller.permit(READ, &metric.name).is_ok());
    let listed = readable.map(|metric| ListedMetric {
        metric: metric.name.as_str(),
        accept_late_ms: metric.accept_late_ms,
        group_by: metric.group_by.iter().map(Name::as_str).collect(),
    });
    Reply::json(&ListReply { metrics: listed.collect() })
}

pub(super) async fn read(api: &Api, call: Box<Call>) -> Result<Reply, Problem> {
    call.query.expect_only(&["from", "to", "window", "group_by", "cursor"])?;
    let name = call.name_param("metric")?;
    let permit = call.caller.permit(READ, &name)?;
    let policy = call.caller.policies().get::<UsagePolicy>();
    let found = policy.and_then(|policy| Some((policy, policy.metric(name.as_str())?)));
    let (policy, metric) = found.ok_or_else(|| no_such_metric(&name))?;
    let text = call.query.text("window").unwrap_or("total");
    let window = text.parse::<Window>().map_err(|detail| wrong("?window", detail))?;
    let (zone, from) = (policy.calendar().zone(), time(&call, "from")?);
    let to = match call.query.text("to") {
        Some(_) => time(&call, "to")?,
        None => Range::end(window, from, Timestamp::now(), zone),
    };
    let range = Range::new(window, from, to, zone);
    let range = Arc::new(range.map_err(|error| range_problem(&error))?);
    let tag = call.query.text("group_by").map(|tag| group_by(metric, tag)).transpose()?;
    let begin = call.query.text("cursor").map(|_| time(&call, "cursor")).transpose()?;
    let (tenant, asked) = (*permit.tenant().as_uuid(), (name.clone(), tag.clone()));
    let reading: Result<Reading, ReadError> = api
        .store
        .read(&permit, move |tx| {
            let (range, (name, tag)) = (Arc::clone(&range), asked.clone());
            Box::pin(async move {
                let tag = tag.as_ref().map_or("", Name::as_str);
                read_sums(tx, &SumOf { tenant, metric: name.as_str(), tag }, &range, begin).await
            })
        })
        .await;
    let reading = reading.map_err(|error| match &error {
        ReadError::Store(error) => ANSWER.of(error),
        ReadError::Range(error) => range_problem(error),
        ReadError::TooManyGroups(_) => wrong("?group_by", error.to_string()),
        ReadError::OtherZone(in_force) => {
            api.standing.differs();
            other_zone(policy.calendar().zone_name(), in_force)
        }
    })?;
    Reply::json(&ReadReply {
        metric: name.as_str(),
        window: text,
        points: reading.points.iter().map(|point| point_reply(point, tag.is_some())).collect(),
        total: reading.total.to_string(),
        next_cursor: reading.next.map(|start| start.to_string()),
    })
}

fn point_reply(point: &ReadPoint, is_grouped: bool) -> PointReply<'_> {
    PointReply {
        start: point.start.to_string(),
        value: point.added.value.to_string(),
        count: point.added.count,
        group: is_grouped.then_some(&*point.group),
        adjusts: point.adjusts.map(|month| month.to_string()),
    }
}

/// The time that a parameter has.
pub(super) fn time(call: &Call, name: &'static str) -> Result<Timestamp, Problem> {
    call.query.text(name).and_then(rfc3339::instant).ok_or_else(|| {
        wrong(format!("?{name}"), "an RFC 3339 time with its offset, such as 2026-01-31T00:00:00Z".to_owned())
    })
}

fn group_by(metric: &Metric, text: &str) -> Result<Name, Problem> {
    let found = metric.group_by.iter().find(|tag| tag.as_str() == text);
    found.cloned().ok_or_else(|| {
        let tags = metric.group_by.iter().map(|tag| format!("`{tag}`")).collect::<Vec<_>>().join(", ");
        let right =
            if tags.is_empty() { "this metric has none".to_owned() } else { format!("one of {tags}") };
        wrong("?group_by", format!("a tag that the metric's policy names in `group_by`: {right}"))
    })
}

fn range_problem(error: &RangeError) -> Problem {
    wrong(format!("?{}", error.field), error.detail.clone())
}

pub(super) fn wrong(pointer: impl Into<String>, detail: String) -> Problem {
    Problem::new(ErrorKind::Invalid, "a query parameter is wrong").with_field(pointer, detail)
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "hour" => Ok(Self::Hour),
            "day" => Ok(Self::Day),
            "month" => Ok(Self::Month),
            "total" => Ok(Self::Total),
            _ => Err("`hour`, `day`, `month` or `total`".to_owned()),
        }
    }
}
