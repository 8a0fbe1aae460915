//! What the totals must be, and what they are.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use jiff::{Timestamp, ToSpan as _};

use crate::client::{Said, decimal};
use crate::load::TENANTS;
use crate::support::sidecar::{BINARY, Sidecar};

/// By tenant, metric, hour and region: the sum in 10⁻⁹ and how many.
pub struct Model(BTreeMap<Of, (i128, i64)>);

/// A tenant's number, a metric, an hour in seconds since 1970, a region.
type Of = (usize, &'static str, i64, Option<&'static str>);

impl Model {
    /// Of what clients know to be counted, each with its tenant.
    pub fn new(counted: Vec<(usize, BTreeMap<String, Said>)>) -> Self {
        let mut sums = BTreeMap::new();
        for (tenant, counted) in counted {
            for said in counted.into_values() {
                let hour = said.time.as_second().div_euclid(3600) * 3600;
                let sum: &mut (i128, i64) = sums.entry((tenant, said.metric, hour, said.region)).or_default();
                sum.0 += said.nanos;
                sum.1 += 1;
            }
        }
        Self(sums)
    }

    /// Holds every hour of each tenant's metrics, and each region's, against what a sidecar reads.
    pub fn holds(&self, sidecar: &Sidecar) {
        let midnight = Timestamp::now().as_second().div_euclid(86_400) * 86_400;
        let from = Timestamp::from_second(midnight).unwrap() - (24 * 36).hours();
        for (number, tenant) in TENANTS.iter().enumerate() {
            for metric in ["voice_minutes", "api_calls"] {
                let of_metric =
                    self.0.iter().filter(|((of, named, ..), _)| *of == number && *named == metric);
                let of_metric: Vec<_> =
                    of_metric.map(|((_, _, hour, region), sum)| (*hour, *region, *sum)).collect();
                let mut hours: BTreeMap<String, (i128, i64)> = BTreeMap::new();
                let mut regions: BTreeMap<String, (i128, i64)> = BTreeMap::new();
                for (hour, region, (nanos, count)) in &of_metric {
                    let hour = Timestamp::from_second(*hour).unwrap().to_string();
                    for (sums, name) in
                        [(&mut hours, hour), (&mut regions, region.unwrap_or_default().to_owned())]
                    {
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
        println!("{} sums of {} records are as they should be", self.0.len(), self.records());
    }

    pub fn records(&self) -> i64 {
        self.0.values().map(|(_, count)| count).sum()
    }
}

fn shown(sums: &BTreeMap<String, (i128, i64)>) -> Vec<String> {
    sums.iter().map(|(name, (nanos, count))| format!("{name} {} {count}", decimal(*nanos))).collect()
}

/// The points that count something, named by one of their fields, and the total.
fn read(sidecar: &Sidecar, tenant: &str, target: &str, named: &str) -> (Vec<String>, String) {
    let reply = sidecar.client().send("GET", target, &[("Authorization", &sidecar.bearer(tenant))], b"");
    assert_eq!(reply.status, 200, "{}", reply.text());
    let reading = reply.json();
    let points = reading["points"].as_array().unwrap().iter().filter(|point| point["count"] != 0);
    let shown = points.map(|point| {
        let text = |field: &str| point[field].as_str().unwrap();
        format!("{} {} {}", text(named), text("value"), point["count"])
    });
    (shown.collect(), reading["total"].as_str().unwrap().to_owned())
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
