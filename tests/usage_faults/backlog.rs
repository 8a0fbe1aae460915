//! What was accepted to disk is counted in the end though the embedded store, or the disk of both, ends: what would not fit is not accepted.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::{Timestamp, ToSpan as _};

use crate::embedded::configured;
use crate::support::disk::SmallDisk;
use crate::support::sidecar::{ACME, GLOBEX, Sidecar};
use crate::support::tenant::Tenant;
use crate::support::wait_until;

/// Each record has values of its own, so that it takes eight times of the store what it takes of the spool.
const USAGE: &str = "kind: usage\nmetrics:\n  m: {ack: spool, group_by: [a, b, c, d]}\n";
const BOUND: Duration = Duration::from_secs(150);
/// Of a call.
const RECORDS: u64 = 500;

#[test]
fn embedded_a_backlog_is_counted_though_the_bound_of_the_store_is_near() {
    // With a part of the spool for each that is more than the store takes.
    backlog(320, "limits: {durable_db_bytes: 33554432, durable_db_tenant_percent: 100}\n");
}

#[test]
fn embedded_a_backlog_is_counted_though_the_end_of_its_disk_is_near() {
    backlog(100, "");
}

fn backlog(disk_mib: u32, more: &str) {
    let disk = SmallDisk::of_mib(disk_mib);
    let directory = tempfile::tempdir().unwrap();
    let config = configured(directory.path(), &disk, USAGE, more);
    let sidecar = Sidecar::serve_in(directory, &config);
    let mut all = [0, 0];
    for round in 0_u32.. {
        let accepted = std::thread::scope(|scope| {
            let client = |(tenant, number)| {
                let sidecar = &sidecar;
                scope.spawn(move || until_refused(sidecar, tenant, round * 4 + number))
            };
            let clients = [(ACME, 0), (GLOBEX, 1), (ACME, 2), (GLOBEX, 3)].map(client);
            clients.map(|client| client.join().unwrap())
        });
        let waiting = sidecar.metric("outrigger_usage_spool_bytes");
        println!("accepted {accepted:?}, {waiting} bytes of the spool are used");
        all[0] += accepted[0] + accepted[2];
        all[1] += accepted[1] + accepted[3];
        let counted = all.map(|count| count.to_string());
        let is_counted = || [ACME, GLOBEX].map(|tenant| total(&sidecar, tenant)) == counted;
        wait_until("all to be counted", BOUND, is_counted);
        let oldest = || sidecar.metric("outrigger_usage_spool_oldest_timestamp_seconds");
        wait_until("no age", BOUND, || oldest() == 0.0);
        if accepted.iter().sum::<u64>() <= 4 * RECORDS {
            // Nothing waits, and hardly anything fits.
            break;
        }
        assert!(round < 60, "it is never full");
    }
    for name in ["damaged_bytes", "refused"] {
        assert_eq!(sidecar.metric(&format!("outrigger_usage_spool_{name}_total")), 0.0);
    }
    // Who comes first each time is chance.
    assert!(
        all.iter().sum::<u64>() > 40 * RECORDS && all.iter().all(|count| *count > 10 * RECORDS),
        "{all:?}"
    );
}

/// Sends calls until one is refused; how many records were accepted.
fn until_refused(sidecar: &Sidecar, tenant: &str, client: u32) -> u64 {
    let mut tenant = Tenant::new(sidecar, tenant);
    let time = hour() + 1.minute();
    for call in 0..10_000 {
        let mut records = String::new();
        for number in 0..RECORDS {
            let key = format!("{client}-{}", call * RECORDS + number);
            writeln!(
                records,
                r#"{{"metric":"m","value":1,"time":"{time}","idempotency_key":"{key}","tags":{{"a":"{key}","b":"{key}","c":"{key}","d":"{key}"}}}}"#
            )
            .unwrap();
        }
        let reply = tenant.send("POST", "/v1/usage", &[("Content-Type", "application/x-ndjson")], &records);
        if reply.status != 202 {
            assert!([429, 503].contains(&reply.status), "{}", reply.text());
            return call * RECORDS;
        }
    }
    panic!("nothing is refused");
}

/// The beginning of the hour that an hour ago was in.
fn hour() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second().div_euclid(3600) * 3600 - 3600).unwrap()
}

fn total(sidecar: &Sidecar, tenant: &str) -> String {
    let (from, to) = (hour() - 1.hour(), hour() + 2.hour());
    let target = format!("/v1/usage/m?from={from}&to={to}&window=hour");
    let reply = Tenant::new(sidecar, tenant).send("GET", &target, &[], "");
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["total"].as_str().unwrap().to_owned()
}
