//! Days and months of time zones in which clocks change, some of them at midnight: sums over HTTP against those that PostgreSQL makes of the
//! raw records with its own time zones.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use jiff::Timestamp;
use rig::PostgresRole;
use serde_json::{Value, json};
use support::postgres::OnPostgres;
use support::random::{Random, seed};
use support::sidecar::ACME;
use support::tenant::Tenant;

/// Of two hemispheres, so that clocks change in the 90 days before any day of most of a year; in two of them at midnight, in one by half an hour.
const ZONES: [&str; 4] = ["America/New_York", "America/Santiago", "Africa/Cairo", "Australia/Lord_Howe"];
const JSON: (&str, &str) = ("Content-Type", "application/json");
/// Records are taken for 90 days.
const DAYS: u64 = 89;

#[test]
fn days_and_months_of_a_zone_are_those_that_postgresql_makes_of_the_records() {
    let seed = seed();
    println!("seed {seed}");
    for zone in ZONES {
        let policy = format!(
            "kind: usage\ntime_zone: {zone}\nmetrics:\n  api_calls: {{accept_late_ms: 7776000000}}\n"
        );
        let on = OnPostgres::new().with_policy("usage.yaml", &policy).with_config("");
        let sidecar = on.sidecar();
        let ask = |sql: &str| on.database.psql(PostgresRole::Superuser, &[sql]).unwrap().trim().to_owned();
        let mut acme = Tenant::new(&sidecar, ACME);
        let begins = format!(
            "SELECT extract(epoch FROM day AT TIME ZONE '{zone}')::bigint \
             FROM generate_series(now() AT TIME ZONE '{zone}' - interval '{DAYS} days', now() AT TIME ZONE '{zone}', '1 day') AS moment, \
                 date_trunc('day', moment + interval '1 day') AS day WHERE day < now() AT TIME ZONE '{zone}'"
        );
        let midnights: Vec<i64> = ask(&begins).lines().map(|line| line.parse().unwrap()).collect();
        assert!(midnights.len() >= 88, "{midnights:?}");
        let (mut random, now) = (Random::new(seed), Timestamp::now().as_second());
        let mut times: Vec<i64> =
            midnights.iter().flat_map(|at| [at - 3600, at - 1, *at, at + 1800]).collect();
        times.retain(|time| *time < now);
        times.extend((0..1000).map(|_| now - i64::try_from(random.below(DAYS * 86_400)).unwrap()));
        let record = |(number, time): (usize, &i64)| {
            let value = format!("{}.{:09}", random.below(1_000_000), random.below(1_000_000_000));
            let time = Timestamp::from_second(*time).unwrap().to_string();
            json!({"metric": "api_calls", "value": value, "time": time, "idempotency_key": number.to_string()})
        };
        let records: Vec<Value> = times.iter().enumerate().map(record).collect();
        let recorded = acme.send("POST", "/v1/usage", &[JSON], &json!({ "records": records }).to_string());
        assert_eq!(
            (recorded.status, &recorded.json()["accepted"]),
            (202, &json!(records.len())),
            "{}",
            recorded.text()
        );

        let utc = "'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'";
        let from = ask(&format!(
            "SELECT to_char(date_trunc('month', min(time), '{zone}') AT TIME ZONE 'UTC', {utc}) FROM usage_events"
        ));
        for window in ["day", "month"] {
            let expected = ask(&format!(
                "SELECT to_char(date_trunc('{window}', time, '{zone}') AT TIME ZONE 'UTC', {utc}) || ' ' || trim_scale(sum(value)) || ' ' || count(*) \
                 FROM usage_events GROUP BY date_trunc('{window}', time, '{zone}') ORDER BY 1"
            ));
            let target = format!("/v1/usage/api_calls?from={from}&window={window}");
            let reading = acme.send("GET", &target, &[], "");
            assert_eq!(reading.status, 200, "{zone}: {}", reading.text());
            let reading = reading.json();
            let points = reading["points"].as_array().unwrap().iter().filter(|point| point["count"] != 0);
            let shown: Vec<String> = points
                .map(|point| {
                    let text = |name: &str| point[name].as_str().unwrap();
                    format!("{} {} {}", text("start"), text("value"), point["count"])
                })
                .collect();
            assert_eq!(shown, expected.lines().collect::<Vec<_>>(), "{window} of {zone}");
        }
    }
}
