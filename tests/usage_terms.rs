//! What all sidecars of a store count by, over HTTP and by the commands: the time zone, billing periods, tags, and what is too late.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::process::{Command, Output};
use std::time::Duration;

use jiff::{Timestamp, ToSpan as _};
use rig::{PostgresCluster, PostgresOptions, PostgresRole};
use serde_json::{Value, json};
use support::client::Reply;
use support::postgres::OnPostgres;
use support::sidecar::{ACME, BINARY, Sidecar};
use support::tenant::Tenant;
use support::wait_until;

const JSON: (&str, &str) = ("Content-Type", "application/json");
const SOON: Duration = Duration::from_secs(30);
const METRICS: &str = "metrics:\n  api_calls: {accept_late_ms: LATE}\n  voice_minutes: {accept_late_ms: LATE, group_by: [region]}\n  \
                       leads_scored: {accept_late_ms: LATE, ack: spool}\n";
const DAYS_35: &str = "3024000000";

fn policy(head: &str, accept_late_ms: &str) -> String {
    format!("kind: usage\n{head}{}", METRICS.replace("LATE", accept_late_ms))
}

fn record(metric: &str, key: &str, value: &str, time: Timestamp) -> Value {
    json!({"metric": metric, "value": value, "time": time.to_string(), "idempotency_key": key, "tags": {"region": "eu"}})
}

fn send(tenant: &mut Tenant, records: &[Value]) -> Reply {
    tenant.send("POST", "/v1/usage", &[JSON], &json!({ "records": records }).to_string())
}

fn hours_ago(hours: i64) -> Timestamp {
    let hour = Timestamp::now().as_second().div_euclid(3600) * 3600;
    Timestamp::from_second(hour).unwrap() - hours.hours()
}

fn put(sidecar: &Sidecar, policy: &str) {
    std::fs::write(sidecar.directory.path().join("policies/usage.yaml"), policy).unwrap();
}

/// The board's line of usage.
fn board(sidecar: &Sidecar) -> String {
    let reply = sidecar.admin_client().send("GET", "/readyz?verbose", &[], b"");
    let text = String::from_utf8_lossy(&reply.body).into_owned();
    text.lines().find(|line| line.starts_with("usage ")).unwrap().to_owned()
}

fn outrigger(command: &[&str], sidecar: &Sidecar, more: &[&str]) -> Output {
    let config = sidecar.directory.path().join("proxy.yaml");
    Command::new(BINARY).args(command).arg("--config").arg(config).args(more).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn whose_policy_has_another_time_zone_is_stopped_alone_and_goes_on_with_the_right_one() {
    let on = OnPostgres::new().with_policy("usage.yaml", &policy("", DAYS_35));
    let (utc, berlin) =
        (on.sidecar(), on.with_policy("usage.yaml", &policy("time_zone: Europe/Berlin\n", DAYS_35)));
    let berlin = berlin.sidecar();
    let (mut right, mut wrong) = (Tenant::new(&utc, ACME), Tenant::new(&berlin, ACME));
    let hour = hours_ago(1);
    assert_eq!(send(&mut right, &[record("voice_minutes", "k1", "1", hour)]).status, 202);
    let reply = send(&mut wrong, &[record("voice_minutes", "k2", "2", hour)]);
    assert_eq!(reply.status, 503, "{}", reply.text());
    let problem = reply.json();
    assert_eq!((&problem["code"], &problem["retryable"]), (&json!("backend_unavailable"), &json!(true)));
    for words in ["has `time_zone: Europe/Berlin`", "are those of `UTC`", "nothing was counted"] {
        assert!(problem["detail"].as_str().unwrap().contains(words), "{problem}");
    }
    wait_until("the board", SOON, || board(&berlin).contains("down"));
    let line = board(&berlin);
    assert!(line.contains("put `time_zone: UTC` into the policy") && line.contains("optional"), "{line}");
    assert!(berlin.log().contains("no usage is counted by this process"), "{}", berlin.log());
    assert_eq!(berlin.admin_client().send("GET", "/readyz", &[], b"").status, 200, "it serves all else");
    assert!(board(&utc).contains(" up "), "{}", board(&utc));
    let spooled = send(&mut wrong, &[record("leads_scored", "k1", "1", hour)]);
    assert_eq!(spooled.status, 503, "{}", spooled.text());
    let metrics = String::from_utf8(berlin.admin_client().send("GET", "/metrics", &[], b"").body).unwrap();
    assert!(metrics.contains("outrigger_usage_calls_rejected_total{cause=\"time_zone\"} 2"), "{metrics}");
    let of = |window: &str, from: Timestamp| format!("/v1/usage/voice_minutes?window={window}&from={from}");
    assert_eq!(wrong.send("GET", &of("hour", hour), &[], "").json()["total"], "1", "hours are everyone's");
    let midnight = hours_ago(26).in_tz("Europe/Berlin").unwrap().start_of_day().unwrap().timestamp();
    let days = wrong.send("GET", &of("day", midnight), &[], "");
    assert_eq!((days.status, &days.json()["code"]), (503, &json!("backend_unavailable")));

    put(&berlin, &policy("", DAYS_35));
    wait_until("the right zone", SOON, || {
        send(&mut wrong, &[record("voice_minutes", "k2", "2", hour)]).status == 202
    });
    wait_until("the board", SOON, || board(&berlin).contains(" up "));
    // Another zone at a reload, and the other one goes on.
    put(&utc, &policy("time_zone: Europe/Berlin\n", DAYS_35));
    wait_until("the wrong zone", SOON, || {
        send(&mut right, &[record("voice_minutes", "k1", "1", hour)]).status == 503
    });
    assert_eq!(send(&mut wrong, &[record("voice_minutes", "k3", "4", hour)]).status, 202);
    assert_eq!(wrong.send("GET", &of("hour", hour), &[], "").json()["total"], "7");
    let checked = outrigger(&["check"], &utc, &[]);
    assert_eq!(checked.status.code(), Some(1), "{checked:?}");
    assert!(
        said(&checked)
            .contains("days and months of `UTC`, and the usage policy has `time_zone: Europe/Berlin`"),
        "{checked:?}"
    );
    let migrated = outrigger(&["migrate"], &utc, &[]);
    let words = "the days and months of the usage in this database are those of `UTC`, and the policy has `time_zone: Europe/Berlin`";
    assert_eq!(migrated.status.code(), Some(1), "{migrated:?}");
    assert!(said(&migrated).contains(words), "{migrated:?}");
}

#[test]
fn on_the_embedded_store_a_zone_can_be_chosen_until_something_is_counted() {
    let sidecar = Sidecar::dev();
    let mut acme = Tenant::new(&sidecar, ACME);
    let send_at = |acme: &mut Tenant, metric: &str, key: &str| {
        send(acme, &[record(metric, key, "1", hours_ago(1))]).status
    };
    let day = || hours_ago(26).in_tz("Europe/Berlin").unwrap().start_of_day().unwrap().timestamp();
    let by_days = |acme: &mut Tenant| {
        acme.send("GET", &format!("/v1/usage/api_calls?window=day&from={}", day()), &[], "").status
    };
    let metric = |acme: &mut Tenant| {
        acme.send("GET", "/v1/usage", &[], "").json()["metrics"][0]["accept_late_ms"].clone()
    };
    put(&sidecar, &policy("time_zone: Europe/Berlin\n", "3000000000"));
    wait_until("a policy", SOON, || metric(&mut acme) == json!(3_000_000_000_u64));
    assert_eq!((send_at(&mut acme, "api_calls", "k1"), by_days(&mut acme)), (202, 200));
    put(&sidecar, &policy("", "3100000000"));
    wait_until("another", SOON, || metric(&mut acme) == json!(3_100_000_000_u64));
    assert_eq!(send_at(&mut acme, "api_calls", "k2"), 503);
    wait_until("the board", SOON, || {
        board(&sidecar).contains("down") && board(&sidecar).contains("put `time_zone: Europe/Berlin`")
    });
    assert_eq!(send_at(&mut acme, "leads_scored", "k1"), 503, "with `ack: spool`");
    put(&sidecar, &policy("time_zone: Europe/Berlin\n", "3200000000"));
    wait_until("the first one", SOON, || metric(&mut acme) == json!(3_200_000_000_u64));
    assert_eq!((send_at(&mut acme, "api_calls", "k2"), by_days(&mut acme)), (202, 200));
    wait_until("the board", SOON, || board(&sidecar).contains(" up "));
    assert_eq!(send_at(&mut acme, "leads_scored", "k1"), 202);
    // Months close, though all that comes may have been accepted before.
    put(&sidecar, &policy("time_zone: Europe/Berlin\nbilling: {close_after_ms: 0}\n", "3200000000"));
    let mut keys = 0..;
    wait_until("an adjustment", SOON, || {
        let key = format!("late-{}", keys.next().unwrap());
        let sent = send(&mut acme, &[record("leads_scored", &key, "1", hours_ago(36 * 24))]);
        assert_eq!((sent.status, &sent.json()["pending"]), (202, &json!(true)), "{}", sent.text());
        let from = hours_ago(26).in_tz("Europe/Berlin").unwrap().start_of_day().unwrap().timestamp();
        let reading =
            acme.send("GET", &format!("/v1/usage/leads_scored?window=day&from={from}"), &[], "").json();
        reading["points"].as_array().unwrap().iter().any(|point| point["adjusts"].is_string())
    });
}

#[test]
fn chaos_what_is_accepted_to_disk_by_who_cannot_ask_for_the_zone_is_counted_in_the_store_s() {
    let cluster = PostgresCluster::start(PostgresOptions::default()).unwrap();
    let on = OnPostgres::on_cluster(&cluster, None)
        .with_policy("usage.yaml", &policy("time_zone: Asia/Kathmandu\n", DAYS_35));
    cluster.stop(cluster.primary()).unwrap();
    let sidecar = on.sidecar();
    let mut acme = Tenant::new(&sidecar, ACME);
    // The last instant of yesterday, which is today in Kathmandu.
    let midnight = Timestamp::from_second(Timestamp::now().as_second().div_euclid(86_400) * 86_400).unwrap();
    let accepted = send(&mut acme, &[record("leads_scored", "k1", "1", midnight - 1.second())]);
    assert_eq!((accepted.status, &accepted.json()["pending"]), (202, &json!(true)), "{}", accepted.text());
    cluster.cont(cluster.primary()).unwrap();
    let hour = format!("/v1/usage/leads_scored?window=hour&from={}&to={midnight}", midnight - 1.hour());
    wait_until("counted", SOON, || acme.send("GET", &hour, &[], "").json()["total"] == "1");
    wait_until("the board", SOON, || board(&sidecar).contains("down"));
    assert_eq!(
        send(&mut acme, &[record("leads_scored", "k2", "1", midnight)]).status,
        503,
        "now that it knows"
    );
    let days = "SELECT (now() AT TIME ZONE 'UTC')::date - start FROM usage_daily WHERE tag = ''";
    assert_eq!(on.database.psql(PostgresRole::Superuser, &[days]).unwrap().trim(), "1");
}

#[test]
fn a_zone_before_there_is_usage_and_billing_periods_are_put_into_force_by_migrate_for_all() {
    let on = OnPostgres::new().with_policy("usage.yaml", &policy("time_zone: Asia/Kathmandu\n", DAYS_35));
    let first = on.sidecar();
    let mut acme = Tenant::new(&first, ACME);
    let month =
        Timestamp::now().in_tz("Asia/Kathmandu").unwrap().first_of_month().unwrap().start_of_day().unwrap();
    let before = month.timestamp() - 1.hour();
    assert_eq!(send(&mut acme, &[record("api_calls", "k1", "1", before)]).status, 503);
    let migrated = outrigger(&["migrate"], &first, &[]);
    assert!(migrated.status.success(), "{migrated:?}");
    assert!(said(&migrated).contains("days and months of Asia/Kathmandu, which never close"), "{migrated:?}");
    assert_eq!(send(&mut acme, &[record("api_calls", "k1", "1", before)]).status, 202);

    let closing = on.with_policy(
        "usage.yaml",
        &policy("time_zone: Asia/Kathmandu\nbilling: {close_after_ms: 0}\n", DAYS_35),
    );
    let second = closing.sidecar();
    wait_until("the board", SOON, || board(&second).contains("degraded"));
    let line = board(&second);
    assert!(line.contains("months close never, and the usage policy says 0 ms after their end"), "{line}");
    let mut other = Tenant::new(&second, ACME);
    let months = format!("/v1/usage/api_calls?window=month&from={}", (&month - 1.month()).timestamp());
    assert_eq!(send(&mut other, &[record("api_calls", "k2", "2", before)]).status, 202);
    assert_eq!(other.send("GET", &months, &[], "").json()["points"][0]["value"], "3", "not closed yet");
    assert!(outrigger(&["migrate"], &second, &[]).status.success());
    wait_until("the board", SOON, || board(&second).contains(" up "));
    // Also of who has the policy of before.
    assert_eq!(send(&mut acme, &[record("api_calls", "k3", "4", before)]).status, 202);
    let read = acme.send("GET", &months, &[], "").json();
    let points = read["points"].as_array().unwrap();
    assert_eq!((&points[0]["value"], &read["total"]), (&json!("3"), &json!("7")), "{read}");
    let adjustment = points.iter().find(|point| !point["adjusts"].is_null()).unwrap();
    assert_eq!(adjustment["adjusts"], (&month - 1.month()).timestamp().to_string(), "{read}");
}

fn refused(reply: &Reply, status: u16) -> (String, String) {
    assert_eq!(reply.status, status, "{}", reply.text());
    let text = |field: &Value| field.as_str().unwrap().to_owned();
    let problem = reply.json();
    (text(&problem["errors"][0]["pointer"]), text(&problem["errors"][0]["detail"]))
}

#[test]
fn a_late_retry_of_what_was_counted_is_a_duplicate_a_lie_is_a_conflict_and_what_is_unknown_is_too_late() {
    let late = |sidecar: &Sidecar| {
        put(sidecar, &policy("", DAYS_35));
        let (mut acme, old) = (Tenant::new(sidecar, ACME), hours_ago(3));
        let takes = |acme: &mut Tenant, ms: u64| {
            acme.send("GET", "/v1/usage", &[], "").json()["metrics"][1]["accept_late_ms"] == ms
        };
        wait_until("a policy", SOON, || takes(&mut acme, 3_024_000_000));
        let of = |metric: &str, value: &str| record(metric, "k1", value, old);
        assert_eq!(send(&mut acme, &[of("api_calls", "1")]).status, 202);
        assert_eq!(send(&mut acme, &[of("leads_scored", "1")]).json()["pending"], true);
        put(sidecar, &policy("", "3600000"));
        wait_until("a shorter time", SOON, || takes(&mut acme, 3_600_000));
        let counted =
            |accepted: u64, duplicates: u64| json!({"accepted": accepted, "duplicates": duplicates});
        for metric in ["api_calls", "leads_scored"] {
            let again = send(&mut acme, &[of(metric, "1"), record(metric, "new", "2", Timestamp::now())]);
            // With `ack: spool` too: it is looked at now, behind all that is on the disk.
            assert_eq!((again.status, again.json()), (202, counted(1, 1)), "{metric}: {}", again.text());
            assert_eq!(
                refused(&send(&mut acme, &[of(metric, "7")]), 409).0,
                "/records/0/idempotency_key",
                "{metric}"
            );
            let unknown = [
                of(metric, "1"),
                record(metric, "k2", "1", old),
                record(metric, "more", "1", Timestamp::now()),
            ];
            let (pointer, detail) = refused(&send(&mut acme, &unknown), 422);
            assert_eq!(pointer, "/records/1/time", "{metric}");
            assert!(
                detail.contains("for 3600000 ms") && detail.contains("no record of this key was"),
                "{detail}"
            );
            let lost = [of(metric, "1"), record(metric, "k3", "1", hours_ago(24 * 101))];
            let (pointer, detail) = refused(&send(&mut acme, &lost), 422);
            assert_eq!(pointer, "/records/1/time", "{metric}");
            assert!(detail.contains("keys are known for 100 days"), "{detail}");
            let read = acme.send("GET", &format!("/v1/usage/{metric}?from={old}"), &[], "").json();
            assert_eq!(read["total"], "3", "{metric}: {read}");
        }
    };
    late(&Sidecar::dev());
    let on = OnPostgres::new();
    late(&on.sidecar());
}

#[test]
fn reconcile_says_what_it_could_not_compare_and_ends_with_a_code_of_its_own() {
    let on = OnPostgres::new().with_policy("usage.yaml", &policy("", DAYS_35));
    let sidecar = on.sidecar();
    let mut acme = Tenant::new(&sidecar, ACME);
    let records =
        [record("voice_minutes", "k1", "1", hours_ago(1)), record("api_calls", "k1", "1", hours_ago(1))];
    assert_eq!(send(&mut acme, &records).status, 202);
    let day = |days: i64| hours_ago(24 * days).to_string()[..10].to_owned();
    let days = [day(2), day(-1)];
    let look = |more: &[&str]| {
        outrigger(
            &["usage", "reconcile"],
            &sidecar,
            &[&["--from", &days[0], "--to", &days[1]], more].concat(),
        )
    };
    let ended = look(&[]);
    assert_eq!((ended.status.code(), said(&ended).trim()), (Some(0), "every sum is that of its records"));
    let superuser = |sql: &str| on.database.psql(PostgresRole::Superuser, &[sql]).unwrap();
    superuser("UPDATE usage_tags SET since = now() WHERE tag = 'region'");
    let ended = look(&[]);
    assert_eq!(ended.status.code(), Some(4), "{ended:?}");
    assert!(said(&ended).starts_with("not compared: 2 sums of voice_minutes by region before "), "{ended:?}");
    superuser("UPDATE outrigger_store SET usage_records_from = current_date - 1");
    superuser("UPDATE usage_hourly SET value = 3 WHERE metric = 'api_calls'");
    let ended = look(&["--json"]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let lines: Vec<Value> = said(&ended).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let what: Vec<&Value> = lines.iter().map(|line| &line["not_compared"]).collect();
    assert_eq!(what, [&Value::Null, &json!("dropped"), &json!("tag")], "{lines:?}");
    assert_eq!(lines[0]["kept"], json!({"value": "3", "count": 1}), "{lines:?}");
}
