//! A disk that is full: what was acknowledged stays, reads and deletes go on, writes are refused with what to do, and
//! come back by themselves once there is room. On a real file system of a few megabytes.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use support::client::Reply;
use support::disk::SmallDisk;
use support::random::{Random, seed};
use support::sidecar::{ACME, GLOBEX, Sidecar, embedded_config};
use support::wait_until;

const VALUE_BYTES: usize = 300 * 1024;

/// Outrigger's own margin and reserve are 16 MiB each (`docs/operations.md`).
const DISK_MIB: u32 = 96;

/// A sidecar whose data is on a small disk, and what it acknowledged.
struct Case {
    disk: SmallDisk,
    sidecar: Sidecar,
    bearers: [String; 2],
    random: Random,
    kept: BTreeMap<usize, Vec<u8>>,
}

impl Case {
    fn new(disk_mib: u32, more: &str) -> Self {
        let disk = SmallDisk::of_mib(disk_mib);
        let directory = tempfile::tempdir().unwrap();
        let config = embedded_config(directory.path(), more);
        let text = std::fs::read_to_string(&config).unwrap();
        let data = format!("data_dir: {}", disk.path().join("data").display());
        // How slow this machine's disk is, is not what is tested here.
        let patient = ("cache: {backend: embedded}", "cache: {backend: embedded, budget_ms: 8000}");
        let text = text.replace("data_dir: data", &data).replace(patient.0, patient.1);
        std::fs::write(&config, text).unwrap();
        let sidecar = Sidecar::serve_in(directory, &config);
        let bearers = [sidecar.bearer(ACME), sidecar.bearer(GLOBEX)];
        Self { disk, sidecar, bearers, random: Random::new(seed()), kept: BTreeMap::new() }
    }

    fn call(&self, method: &str, key: usize, query: &str, body: &[u8]) -> Reply {
        let headers = [("Authorization", self.bearers[key % 2].as_str())];
        self.sidecar.client().send(method, &format!("/v1/cache/scoring/k{key}{query}"), &headers, body)
    }

    fn put_for(&mut self, key: usize, query: &str) -> Reply {
        let value: Vec<u8> = (0..VALUE_BYTES / 8).flat_map(|_| self.random.next().to_le_bytes()).collect();
        let reply = self.call("PUT", key, query, &value);
        if reply.status == 204 {
            self.kept.insert(key, value);
        }
        reply
    }

    fn put(&mut self, key: usize) -> Reply {
        self.put_for(key, "?ttl_ms=3600000")
    }

    /// Writes new keys until one is refused; that refusal.
    fn put_until_refused(&mut self) -> Reply {
        let first = self.kept.keys().next_back().map_or(0, |last| last + 1);
        for key in first..first + 1000 {
            let reply = self.put(key);
            if reply.status != 204 {
                return reply;
            }
        }
        panic!("nothing was refused");
    }

    fn everything_kept_is_there(&self) {
        for (key, value) in &self.kept {
            let reply = self.call("GET", *key, "", b"");
            assert_eq!(reply.status, 200, "key {key}: {}", reply.text());
            assert!(reply.body == *value, "key {key} has other bytes");
        }
    }

    fn delete_some(&mut self, count: usize) {
        let keys: Vec<usize> = self.kept.keys().copied().take(count).collect();
        assert_eq!(keys.len(), count);
        for key in keys {
            let reply = self.call("DELETE", key, "", b"");
            assert_eq!(reply.status, 204, "{}", reply.text());
            assert_eq!(self.call("GET", key, "", b"").status, 404);
            self.kept.remove(&key);
        }
    }

    fn puts_work_again(&mut self) {
        let next = self.kept.keys().next_back().map_or(0, |last| last + 1);
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let reply = self.put(next);
            if reply.status == 204 {
                return;
            }
            assert!(Instant::now() < end, "a PUT is still refused: {}", reply.text());
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }

    fn board_line(&self) -> String {
        let text = self.sidecar.admin_client().send("GET", "/readyz?verbose", &[], b"").text();
        text.lines().find(|line| line.starts_with("cache.db")).unwrap_or_default().to_owned()
    }

    /// The refusal and the board both say that the disk is full and what to do.
    fn says_disk_full(&self, refused: &Reply) {
        let detail = refused.problem(503, "backend_unavailable")["detail"].to_string();
        assert!(detail.contains("disk") && detail.contains("full"), "{detail}");
        assert!(refused.header("retry-after").is_some());
        let told = |line: &str| {
            ["degraded", "since ", "disk", "full", "free "].iter().all(|part| line.contains(part))
        };
        wait_until("the board to say so", Duration::from_secs(5), || told(&self.board_line()));
        let ready = self.sidecar.admin_client().send("GET", "/readyz", &[], b"");
        assert_eq!(ready.status, 200, "reads and deletes go on");
    }

    fn board_is_up(&self) {
        wait_until("cache.db to be up", Duration::from_secs(5), || self.board_line().contains(" up "));
    }
}

#[test]
fn a_disk_that_our_own_values_filled_takes_more_after_deletes_and_after_expiry() {
    let mut case = Case::new(DISK_MIB, "");
    case.board_is_up();
    let refused = case.put_until_refused();
    case.says_disk_full(&refused);
    assert!(case.kept.len() > 50, "{} values found room", case.kept.len());
    case.everything_kept_is_there();
    case.delete_some(30);
    for _ in 0..20 {
        case.puts_work_again();
    }
    case.board_is_up();
    case.everything_kept_is_there();

    case.delete_some(20);
    for key in 3000..3015 {
        let reply = case.put_for(key, "?ttl_ms=4000");
        assert_eq!(reply.status, 204, "{}", reply.text());
        case.kept.remove(&key);
    }
    let refused = case.put_until_refused();
    case.says_disk_full(&refused);
    wait_until("room by expiry", Duration::from_secs(15), || case.put(5000).status == 204);
    case.everything_kept_is_there();
}

#[test]
fn a_database_at_its_bound_takes_more_after_deletes() {
    let mut case = Case::new(160, "limits: {cache_db_bytes: 16777216}\n");
    let refused = case.put_until_refused();
    let detail = refused.problem(503, "backend_unavailable")["detail"].to_string();
    assert!(detail.contains("limits.cache_db_bytes"), "{detail}");
    let told = |case: &Case| case.board_line().contains("limits.cache_db_bytes");
    wait_until("the board to say so", Duration::from_secs(5), || told(&case));
    assert!((30..60).contains(&case.kept.len()), "{} values in 16 MiB", case.kept.len());
    case.everything_kept_is_there();
    case.delete_some(10);
    for _ in 0..5 {
        case.puts_work_again();
    }
    case.board_is_up();
    case.everything_kept_is_there();
    let metrics = case.sidecar.admin_client().send("GET", "/metrics", &[], b"").text();
    assert!(metrics.contains("outrigger_cache_db_full{reason=\"bound\"} 0"), "{metrics}");
}

#[test]
fn a_disk_that_another_program_filled_takes_more_once_it_has_room_and_nothing_was_lost() {
    let mut case = Case::new(DISK_MIB, "");
    for key in 0..60 {
        assert_eq!(case.put(key).status, 204);
    }
    let theirs = case.disk.fill();
    let refused = case.put_until_refused();
    case.says_disk_full(&refused);
    case.everything_kept_is_there();
    case.delete_some(5);
    let check = br#"{"checks":[{"limit":"api","key":"k","cost":1}]}"#;
    let headers = [("Authorization", case.bearers[0].as_str()), ("Content-Type", "application/json")];
    let checked = case.sidecar.client().send("POST", "/v1/ratelimit/check", &headers, check);
    assert_eq!(checked.status, 200, "limits go on");
    // What was deleted may be written again, into the room that it left.
    case.puts_work_again();

    // Filled to the last page, killed, and started again on the full disk.
    case.disk.fill();
    let refused = case.put_until_refused();
    case.says_disk_full(&refused);
    let acknowledged = Instant::now();
    wait_until("a second", Duration::from_secs(2), || acknowledged.elapsed() > Duration::from_secs(1));
    let directory = std::mem::replace(&mut case.sidecar, Sidecar::dev()).kill();
    let config = directory.path().join("proxy.yaml");
    case.sidecar = Sidecar::serve_in(directory, &config);
    case.everything_kept_is_there();
    case.delete_some(5);
    let refused = case.put_until_refused();
    case.says_disk_full(&refused);
    case.everything_kept_is_there();

    std::fs::remove_file(theirs).unwrap();
    case.puts_work_again();
    case.board_is_up();
    case.everything_kept_is_there();
}
