//! The policy kind `usage`: the metrics, and what holds for each.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::tz::TimeZone;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde_json::Value;

use super::Calendar;
use super::limits::{self, RateDocument};
use crate::config::{Findings, pointer_step};
use crate::names::Name;
use crate::policy::{Kind, Permit, Policies, Vocabulary};
use crate::primitives::tiers::Tiers;
use crate::primitives::write_rates::{self, LimitsDocument, Rate};
use crate::store::postgres::UsageTerms;

/// The kind of document, as the loader takes it.
pub const KIND: Kind = Kind { name: "usage", schema, load };

/// A `usage` policy document.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UsageDocument {
    /// The time zone in which days and months begin, as IANA names it. The store has that of the first one who counts; with another one nothing
    /// is counted.
    #[serde(default = "default_time_zone")]
    pub time_zone: String,
    /// Billing periods, where months close; without it they never do.
    #[serde(default)]
    pub billing: Option<BillingDocument>,
    /// How fast each tenant may record; without it as fast as it can.
    #[serde(default)]
    pub limits: Option<LimitsDocument<RateDocument>>,
    /// The metrics, by name. What is not listed does not exist.
    pub metrics: BTreeMap<String, MetricDocument>,
}

/// Billing periods: the months of `time_zone`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BillingDocument {
    /// How long after its end a month closes, in milliseconds; 90 days at the most. What comes for it later is booked when it comes, as
    /// an adjustment. On PostgreSQL `outrigger migrate` puts a change into force.
    #[schemars(range(min = 0, max = 7_776_000_000_u64))]
    pub close_after_ms: u64,
}

/// One metric.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MetricDocument {
    /// How old a record may be when it is sent, in milliseconds; 90 days at the most.
    #[serde(default = "default_accept_late_ms")]
    #[schemars(range(min = 60_000, max = 7_776_000_000_u64))]
    pub accept_late_ms: u64,
    /// The tags by which totals can be grouped, eight at the most. Others are kept with the record alone.
    #[serde(default)]
    #[schemars(length(max = 8))]
    pub group_by: Vec<String>,
    /// When its records are answered.
    #[serde(default)]
    pub ack: Ack,
}

/// What a record has got to when it is answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ack {
    /// The store: it is counted, and what is wrong with it was said.
    #[default]
    Database,
    /// This machine's disk (`data_dir`): it is counted soon, also where the store is down now. A key that comes back with another record is
    /// listed as a conflict then.
    Spool,
}

fn default_time_zone() -> String {
    "UTC".to_owned()
}

fn default_accept_late_ms() -> u64 {
    3_024_000_000
}

/// A metric in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metric {
    /// Its name.
    pub name: Name,
    /// How old a record may be, in milliseconds.
    pub accept_late_ms: u64,
    /// The tags by which totals can be grouped, sorted.
    pub group_by: Vec<Name>,
    /// When its records are answered.
    pub ack: Ack,
}

/// The usage policy in force.
#[derive(Debug)]
pub struct UsagePolicy {
    calendar: Arc<Calendar>,
    metrics: BTreeMap<Name, Arc<Metric>>,
    limits: Option<Tiers<Rate>>,
}

impl UsagePolicy {
    /// Its days and months.
    #[must_use]
    pub fn calendar(&self) -> &Arc<Calendar> {
        &self.calendar
    }

    /// What it says of how everybody counts.
    #[must_use]
    pub fn terms(&self) -> UsageTerms {
        let of_metric = |metric: &Arc<Metric>| {
            let metric = Arc::clone(metric);
            metric.group_by.iter().map(|tag| (metric.name.to_string(), tag.to_string())).collect::<Vec<_>>()
        };
        UsageTerms {
            time_zone: self.calendar.zone_name().to_owned(),
            close_after_ms: self.calendar.close_after_ms(),
            metrics: self.metrics.keys().map(Name::to_string).collect(),
            tags: self.metrics.values().flat_map(of_metric).collect(),
        }
    }

    /// How fast the permit's tenant may record; none where there is no limit.
    pub(super) fn rate(&self, permit: &Permit) -> Option<&Arc<Rate>> {
        self.limits.as_ref().map(|limits| limits.of(permit))
    }

    /// The metric of this name.
    #[must_use]
    pub fn metric(&self, name: &str) -> Option<&Arc<Metric>> {
        self.metrics.get(&Name::parse(name).ok()?)
    }

    /// Every metric, by name.
    pub fn metrics(&self) -> impl Iterator<Item = &Arc<Metric>> {
        self.metrics.values()
    }
}

fn schema(generator: &mut SchemaGenerator) -> Schema {
    UsageDocument::json_schema(generator)
}

fn load(document: Value, known: &Vocabulary, findings: &mut Findings, policies: &mut Policies) {
    match serde_json::from_value::<UsageDocument>(document) {
        Ok(document) => {
            if let Some(policy) = read(&document, known.data_dir, findings) {
                policies.insert(Arc::new(policy));
            }
        }
        Err(error) => findings.add("", error.to_string(), "a document that fits the schema of `kind: usage`"),
    }
}

/// The policy, where nothing is wrong.
fn read(
    document: &UsageDocument,
    has_data_dir: Option<bool>,
    findings: &mut Findings,
) -> Option<UsagePolicy> {
    let time_zone = TimeZone::get(&document.time_zone);
    if time_zone.is_err() {
        let message = format!("there is no time zone `{}`", document.time_zone);
        findings.add("/time_zone", message, "an IANA name such as `UTC` or `Europe/Berlin`");
    }
    let mut metrics = BTreeMap::new();
    for (text, metric) in &document.metrics {
        let pointer = format!("/metrics{}", pointer_step(text));
        if metric.ack == Ack::Spool && has_data_dir == Some(false) {
            let message =
                "`ack: spool` keeps records on this machine's disk, and `proxy.yaml` names no place for them";
            let right = "`data_dir: DIR` in `proxy.yaml`, on a volume that outlives the container, or `ack: database`";
            findings.add(format!("{pointer}/ack"), message, right);
        }
        let mut group_by = Vec::with_capacity(metric.group_by.len());
        for (number, tag) in metric.group_by.iter().enumerate() {
            match Name::parse(tag) {
                Ok(tag) if group_by.contains(&tag) => {
                    let pointer = format!("{pointer}/group_by/{number}");
                    findings.add(pointer, format!("`{tag}` is there twice"), "each tag once");
                }
                Ok(tag) => group_by.push(tag),
                Err(error) => {
                    let pointer = format!("{pointer}/group_by/{number}");
                    findings.add(pointer, "this is not a tag's name", error.to_string());
                }
            }
        }
        group_by.sort_unstable();
        match Name::parse(text) {
            Ok(name) => {
                let (accept_late_ms, ack) = (metric.accept_late_ms, metric.ack);
                let metric = Metric { name: name.clone(), accept_late_ms, group_by, ack };
                metrics.insert(name, Arc::new(metric));
            }
            Err(error) => findings.add(pointer, "this is not a metric's name", error.to_string()),
        }
    }
    let limits = document.limits.as_ref();
    let limits =
        limits.and_then(|document| write_rates::limits(document, &limits::WORDS, &limits::LARGEST, findings));
    let time_zone = time_zone.ok().filter(|_| findings.is_empty())?;
    let close_after_ms = document.billing.as_ref().map(|billing| billing.close_after_ms);
    Some(UsagePolicy { calendar: Arc::new(Calendar::new(time_zone, close_after_ms)), metrics, limits })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::check_documents;

    static USAGE: Kind = KIND;

    fn checked(text: &str) -> Result<Policies, String> {
        let vocabulary = Vocabulary { kinds: vec![&USAGE], data_dir: Some(false), ..Vocabulary::default() };
        let files = [("usage.yaml".to_owned(), text.to_owned())];
        let checked = check_documents(&vocabulary, 1, &files);
        checked.map(|checked| checked.policies).map_err(|report| report.to_string())
    }

    #[test]
    fn a_policy_is_read_with_its_defaults() {
        let policies = checked(
            "kind: usage\ntime_zone: Asia/Kathmandu\nmetrics:\n  api_calls: {}\n  voice_minutes: {accept_late_ms: 60000, group_by: [to, from]}\n",
        )
        .unwrap();
        let policy = policies.get::<UsagePolicy>().unwrap();
        assert_eq!(policy.calendar().zone().iana_name(), Some("Asia/Kathmandu"));
        let names: Vec<_> = policy.metrics().map(|metric| metric.name.as_str()).collect();
        assert_eq!(names, ["api_calls", "voice_minutes"]);
        assert_eq!(policy.metric("api_calls").unwrap().accept_late_ms, 35 * 86_400_000);
        let tags: Vec<_> =
            policy.metric("voice_minutes").unwrap().group_by.iter().map(Name::as_str).collect();
        assert_eq!(tags, ["from", "to"]);
        assert!(policy.metric("other").is_none());
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let report = checked(
            "kind: usage\ntime_zone: Mars/Olympus\nlimits:\n  tiers:\n    free: {records_per_second: 999, bytes_per_second: 2516582}\n  tenants:\n    ACME: {records_per_second: 1000, bytes_per_second: 2516583}\nmetrics:\n  Calls: {}\n  calls: {ack: spool, group_by: [a, a, B]}\n",
        );
        let report = report.err().unwrap();
        for words in [
            "there is no time zone `Mars/Olympus`",
            "an IANA name",
            "this is not a metric's name",
            "`a` is there twice",
            "this is not a tag's name",
            "names no place for them",
            "a burst of 9990 records has no room for a call of 10000",
            "a burst of 25165820 bytes has no room for the largest call",
            "this is not a tenant",
        ] {
            assert!(report.contains(words), "{words}: {report}");
        }
    }
}
