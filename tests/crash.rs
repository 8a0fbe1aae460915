//! `kill -9` under load: what was acknowledged more than a second before is there afterwards, byte for byte.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use support::random::{Random, seed, size};
use support::sidecar::{ACME, GLOBEX, Sidecar};

/// What the embedded backends promise to keep.
const ACKNOWLEDGED_AGO: Duration = Duration::from_secs(1);

/// The last acknowledged write of a key.
struct Written {
    value: String,
    at: Instant,
}

/// Keys that a kill must leave, for a round to show anything.
const ENOUGH: usize = 20;

/// Those that are promised to be there after a kill now.
fn promised(
    written: &BTreeMap<(usize, u64), Written>,
    now: Instant,
) -> impl Iterator<Item = (&(usize, u64), &Written)> {
    written.iter().filter(move |(_, written)| now - written.at > ACKNOWLEDGED_AGO)
}

/// Writes from two tenants until `until`, and on a slow machine until enough is old enough; remembers what was
/// acknowledged when.
fn write_until(sidecar: &Sidecar, until: Instant, random: &mut Random) -> BTreeMap<(usize, u64), Written> {
    let bearers = [sidecar.bearer(ACME), sidecar.bearer(GLOBEX)];
    let mut client = sidecar.client();
    let mut written = BTreeMap::new();
    let latest = until + Duration::from_secs(20);
    while Instant::now() < until
        || (promised(&written, Instant::now()).count() <= ENOUGH && Instant::now() < latest)
    {
        let (tenant, key) = (random.below(2) as usize, random.below(400));
        let value = format!("{tenant}/{key}/{}", random.next());
        let headers = [("Authorization", bearers[tenant].as_str())];
        let reply =
            client.send("PUT", &format!("/v1/cache/profiles/crash-{key}"), &headers, value.as_bytes());
        assert_eq!(reply.status, 204, "{reply:?}");
        written.insert((tenant, key), Written { value, at: Instant::now() });
    }
    written
}

#[test]
fn what_was_acknowledged_a_second_ago_survives_a_kill() {
    let seed = seed();
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let mut sidecar = Sidecar::dev();
    for round in 0..size(2, 40) {
        let load = Duration::from_millis(1500 + random.below(1000));
        let written = write_until(&sidecar, Instant::now() + load, &mut random);
        let killed = Instant::now();
        sidecar = Sidecar::dev_in(sidecar.kill(), &[]);
        let bearers = [sidecar.bearer(ACME), sidecar.bearer(GLOBEX)];
        let mut client = sidecar.client();
        let mut checked = 0;
        for ((tenant, key), expected) in promised(&written, killed) {
            let headers = [("Authorization", bearers[*tenant].as_str())];
            let reply = client.send("GET", &format!("/v1/cache/profiles/crash-{key}"), &headers, b"");
            assert_eq!(
                (reply.status, reply.text()),
                (200, expected.value.clone()),
                "round {round}, key {key}"
            );
            checked += 1;
        }
        println!("round {round}: {} keys written, {checked} old enough to be promised", written.len());
        assert!(checked > ENOUGH, "too few to show anything");
    }
}

#[test]
fn a_limit_taken_a_second_ago_is_still_taken_after_a_kill() {
    let sidecar = Sidecar::dev();
    let bearer = sidecar.bearer(ACME);
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    let check = |sidecar: &Sidecar, cost: u8| {
        let body = format!(r#"{{"checks":[{{"limit":"login","key":"crash","cost":{cost}}}]}}"#);
        sidecar.client().send("POST", "/v1/ratelimit/check", &headers, body.as_bytes())
    };
    while check(&sidecar, 1).status == 200 {}
    let reset_ms = check(&sidecar, 0).json()["results"][0]["reset_ms"].as_u64().unwrap();
    let emptied = Instant::now();
    while emptied.elapsed() <= ACKNOWLEDGED_AGO {
        std::thread::park_timeout(Duration::from_millis(50));
    }
    let sidecar = Sidecar::dev_in(sidecar.kill(), &[]);
    let after = check(&sidecar, 0).json();
    let left_ms = after["results"][0]["reset_ms"].as_u64().unwrap();
    let passed_ms = u64::try_from(emptied.elapsed().as_millis()).unwrap();
    assert!(
        left_ms + passed_ms + 50 >= reset_ms,
        "{left_ms} ms left of {reset_ms} after {passed_ms} ms: {after}"
    );
    assert!(left_ms > 0, "the limit came back full: {after}");
}
