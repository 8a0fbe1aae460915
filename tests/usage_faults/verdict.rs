//! What the totals must be, and what they are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use serde_json::Value;

use crate::client::{METRICS, Record, Said, decimal};
use crate::load::{TENANTS, closed_month};
use crate::support::sidecar::{BINARY, Sidecar};
use crate::support::wait_until;

/// What clients know.
pub struct Model {
    /// By tenant, metric, where it is booked, and region: the sum in 10⁻⁹ and how many.
    sums: BTreeMap<Of, (i128, i64)>,
    /// Lies that were accepted to disk, by tenant and metric.
    lies: BTreeMap<(usize, &'static str), BTreeSet<Shown>>,
}

/// A key, a value, a time, a region and a note.
type Shown = [String; 5];

/// A tenant's number, a metric, where it is booked, a region.
type Of = (usize, &'static str, Booked, Option<&'static str>);

/// In the hour of its time, or whenever it came, as an adjustment of a month that was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Booked {
    Hour(Timestamp),
    Adjusts(Timestamp),
}

impl Booked {
    fn of(time: Timestamp) -> Self {
        let hour = Timestamp::from_second(time.as_second().div_euclid(3600) * 3600).unwrap();
        let month = closed_month(time).map(|month| TimeZone::UTC.to_timestamp(month.at(0, 0, 0, 0)).unwrap());
        month.map_or(Self::Hour(hour), Self::Adjusts)
    }

    /// As [`read`] names it, beside another name.
    fn beside(self, name: &str) -> String {
        match self {
            Self::Hour(_) => name.to_owned(),
            Self::Adjusts(month) => format!("{name} adjusts {month}"),
        }
    }
}

impl Model {
    /// Of what clients know to be counted, each with its tenant.
    pub fn new(clients: Vec<(usize, BTreeMap<String, Said>, Vec<Record>)>) -> Self {
        let (mut sums, mut all_lies): (BTreeMap<_, _>, BTreeMap<_, BTreeSet<Shown>>) = Default::default();
        for (tenant, counted, lies) in clients {
            for (key, said) in lies {
                let region = said.region.unwrap_or_default().to_owned();
                let note = said.note.map(|note| note.to_string()).unwrap_or_default();
                let lie = [key, decimal(said.nanos), said.time.to_string(), region, note];
                all_lies.entry((tenant, said.metric)).or_default().insert(lie);
            }
            for said in counted.into_values() {
                let of = (tenant, said.metric, Booked::of(said.time), said.region);
                let sum: &mut (i128, i64) = sums.entry(of).or_default();
                sum.0 += said.nanos;
                sum.1 += 1;
            }
        }
        Self { sums, lies: all_lies }
    }

    /// Waits until what is on disk is counted; how long that took.
    pub fn until_counted(&self, sidecar: &Sidecar, bound: Duration) -> Duration {
        let began = Instant::now();
        wait_until("everything that was accepted is counted", bound, || {
            let of = |tenant: &&str| {
                METRICS.iter().map(|metric| total_count(sidecar, tenant, metric)).sum::<i64>()
            };
            let counted = TENANTS.iter().map(of).sum::<i64>() >= self.records();
            counted && Self::all_conflicts(sidecar) == self.lies
        });
        began.elapsed()
    }

    /// Every lie is listed, and nothing else is.
    pub fn lists_every_lie(&self, sidecar: &Sidecar) {
        assert_eq!(Self::all_conflicts(sidecar), self.lies);
        let lies: usize = self.lies.values().map(BTreeSet::len).sum();
        assert!(lies > 0, "nobody lied");
        println!("{lies} lies are listed");
    }

    fn all_conflicts(sidecar: &Sidecar) -> BTreeMap<(usize, &'static str), BTreeSet<Shown>> {
        let of = |(number, tenant): (usize, &&str)| {
            METRICS.map(|metric| ((number, metric), conflicts(sidecar, tenant, metric)))
        };
        TENANTS.iter().enumerate().flat_map(of).filter(|(_, found)| !found.is_empty()).collect()
    }

    /// Holds every hour of each tenant's metrics, and each region's, against what a sidecar reads.
    pub fn holds(&self, sidecar: &Sidecar) {
        let from = from();
        for (number, tenant) in TENANTS.iter().enumerate() {
            for metric in METRICS {
                let of_metric =
                    self.sums.iter().filter(|((of, named, ..), _)| *of == number && *named == metric);
                let of_metric: Vec<_> =
                    of_metric.map(|((_, _, booked, region), sum)| (*booked, *region, *sum)).collect();
                let mut hours: BTreeMap<String, (i128, i64)> = BTreeMap::new();
                let mut regions: BTreeMap<String, (i128, i64)> = BTreeMap::new();
                for (booked, region, (nanos, count)) in &of_metric {
                    let hour = match booked {
                        Booked::Hour(hour) => hour.to_string(),
                        Booked::Adjusts(_) => booked.beside(""),
                    };
                    let region = booked.beside(region.unwrap_or_default());
                    for (sums, name) in [(&mut hours, hour), (&mut regions, region)] {
                        let sum = sums.entry(name).or_default();
                        sum.0 += nanos;
                        sum.1 += count;
                    }
                }
                let total: i128 = of_metric.iter().map(|(.., (nanos, _))| nanos).sum();
                let target = format!("/v1/usage/{metric}?from={from}");
                assert_eq!(
                    read(sidecar, tenant, &format!("{target}&window=hour"), "start"),
                    (shown(&hours), decimal(total))
                );
                if metric == "voice_minutes" {
                    let read = read(sidecar, tenant, &format!("{target}&group_by=region"), "group");
                    assert_eq!(read, (shown(&regions), decimal(total)));
                }
            }
        }
        let adjusting =
            self.sums.iter().filter(|((_, _, booked, _), _)| matches!(booked, Booked::Adjusts(_)));
        let adjusting: i64 = adjusting.map(|(_, (_, count))| count).sum();
        let (sums, records) = (self.sums.len(), self.records());
        println!("{sums} sums of {records} records, {adjusting} of them adjustments, are as they should be");
    }

    pub fn records(&self) -> i64 {
        self.sums.values().map(|(_, count)| count).sum()
    }
}

fn shown(sums: &BTreeMap<String, (i128, i64)>) -> Vec<String> {
    sums.iter().map(|(name, (nanos, count))| format!("{name} {} {count}", decimal(*nanos))).collect()
}

fn from() -> Timestamp {
    let midnight = Timestamp::now().as_second().div_euclid(86_400) * 86_400;
    Timestamp::from_second(midnight).unwrap() - (24 * 36).hours()
}

fn get(sidecar: &Sidecar, tenant: &str, target: &str) -> Value {
    let reply = sidecar.client().send("GET", target, &[("Authorization", &sidecar.bearer(tenant))], b"");
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

fn total_count(sidecar: &Sidecar, tenant: &str, metric: &str) -> i64 {
    let reading = get(sidecar, tenant, &format!("/v1/usage/{metric}?from={}", from()));
    reading["points"].as_array().unwrap().iter().map(|point| point["count"].as_i64().unwrap()).sum()
}

/// Page by page.
fn conflicts(sidecar: &Sidecar, tenant: &str, metric: &str) -> BTreeSet<Shown> {
    let (mut listed, mut more) = (BTreeSet::new(), String::new());
    loop {
        let page = get(sidecar, tenant, &format!("/v1/usage/{metric}/conflicts{more}"));
        for one in page["conflicts"].as_array().unwrap() {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let [key, value, time, region] =
                [&one["idempotency_key"], &one["value"], &one["time"], &one["tags"]["region"]].map(text);
            let note = one["metadata"]["note"].as_u64().map(|note| note.to_string()).unwrap_or_default();
            let shown = [key, value, time, region, note];
            assert!(listed.insert(shown), "twice: {one}");
        }
        match page["next_cursor"].as_str() {
            Some(cursor) => more = format!("?cursor={cursor}"),
            None => return listed,
        }
    }
}

/// The points that count something, named by one of their fields, and the total. Adjustments of a month are together, wherever they were booked.
fn read(sidecar: &Sidecar, tenant: &str, target: &str, named: &str) -> (Vec<String>, String) {
    let reading = get(sidecar, tenant, target);
    let mut sums: BTreeMap<String, (i128, i64)> = BTreeMap::new();
    for point in reading["points"].as_array().unwrap().iter().filter(|point| point["count"] != 0) {
        let name = point[named].as_str().unwrap();
        let name = match point["adjusts"].as_str() {
            Some(month) => {
                let name = if named == "start" { "" } else { name };
                Booked::Adjusts(month.parse().unwrap()).beside(name)
            }
            None => name.to_owned(),
        };
        let sum = sums.entry(name).or_default();
        sum.0 += nanos(point["value"].as_str().unwrap());
        sum.1 += point["count"].as_i64().unwrap();
    }
    (shown(&sums), reading["total"].as_str().unwrap().to_owned())
}

/// The inverse of [`decimal`].
fn nanos(text: &str) -> i128 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    format!("{whole}{fraction:0<9}").parse().unwrap()
}

/// The sums are those of the records, as `outrigger usage reconcile` sees them.
pub fn reconciles(config: &Path) {
    let day = |days: i64| {
        let midnight = Timestamp::now().as_second().div_euclid(86_400) * 86_400;
        (Timestamp::from_second(midnight).unwrap() + (24 * days).hours()).to_string()[..10].to_owned()
    };
    let output = Command::new(BINARY)
        .args(["usage", "reconcile", "--config"])
        .arg(config)
        .args(["--from", &day(-36), "--to", &day(1)])
        .output()
        .unwrap();
    let (told, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}{wrong}");
    assert_eq!(told.trim(), "every sum is that of its records");
}
