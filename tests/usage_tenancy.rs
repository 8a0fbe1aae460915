//! Three tenants with the same metrics and keys, over one connection to the store: everybody's totals and lists are of one's own records
//! alone, to the last digit.
//!
//! Each worker has a metric of its tenant to itself and keeps a model of it. A call that it closed in the middle it says again, so that the
//! model is exact after it. Values, times and tags of one key differ between tenants: a crossing is a conflict, a duplicate or another sum.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rig::PgBouncerOptions;
use serde_json::{Value, json};
use support::client::Reply;
use support::postgres::OnPostgres;
use support::random::{Random, size};
use support::sidecar::{Sidecar, embedded_config, with_own_policy};
use support::tenant::Tenant;
use support::wait_until;
use support::workers::{seats, side_by_side};

/// The second one's records are accepted to disk.
const METRICS: [&str; 2] = ["voice_minutes", "api_calls"];
const POLICY: &str = "kind: usage\nmetrics:\n  voice_minutes: {group_by: [region]}\n  api_calls: {group_by: [region], ack: spool}\n";
const JSON: (&str, &str) = ("Content-Type", "application/json");
const BOUND: Duration = Duration::from_secs(60);
/// Days that records are of.
const DAYS: u64 = 20;

/// A reading's points, each with its value and count, and its total.
type Shown = (BTreeMap<String, (String, u64)>, String);

/// What each worker shows the others, who try to use it: how many keys it has, and a cursor of its list of conflicts.
type Board = Mutex<BTreeMap<usize, usize>>;

/// What a record says, beside its key.
#[derive(Clone, PartialEq, Eq)]
struct Said {
    units: i64,
    time: i64,
    region: &'static str,
    corrects: Option<String>,
}

struct Worker<'a> {
    name: usize,
    tenant: String,
    others: Vec<String>,
    metric: &'static str,
    to: Tenant,
    sidecar: &'a Sidecar,
    board: &'a Board,
    random: Random,
    /// Midnight of the day that the run began.
    today: i64,
    counted: Vec<Said>,
    /// Accepted to disk and never counted.
    lies: BTreeSet<(String, String)>,
    counts: BTreeMap<&'static str, u64>,
}

impl Worker<'_> {
    fn is_spooled(&self) -> bool {
        self.metric == METRICS[1]
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random.below(bound)
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn send(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let reply = self.to.send(method, target, headers, body);
        if reply.header("connection") == Some("close") {
            self.to.client = self.sidecar.client();
        }
        reply
    }

    /// Whether it is an answer of a store that is slow: what it did is not known.
    fn is_out(&mut self, reply: &Reply) -> bool {
        let out = matches!(reply.status, 503 | 504);
        if out {
            self.count("answered 503 or 504");
        }
        out
    }

    /// Units that another tenant has under no key, and times and regions that differ between tenants.
    fn make(&self, number: usize) -> Said {
        let (own, number) = (self.name as u64 + 1, number as u64);
        let time = self.today - i64::try_from((number * own) % DAYS).unwrap() * 86_400;
        let time = time + i64::try_from((number * 7919 * own) % 86_400).unwrap() - 86_400;
        let units = i64::try_from(number * 10 + own).unwrap();
        Said { units, time, region: ["eu", "us", ""][((number + own) % 3) as usize], corrects: None }
    }

    fn record(&self, key: &str, said: &Said) -> Value {
        let time = Timestamp::from_second(said.time).unwrap().to_string();
        let (value, metric) = (decimal(said.units), self.metric);
        let mut record = json!({"metric": metric, "value": value, "time": time, "idempotency_key": key});
        if !said.region.is_empty() {
            record["tags"] = json!({"region": said.region});
        }
        if let Some(corrects) = &said.corrects {
            record["corrects"] = json!(corrects);
        }
        record
    }

    fn body(&self, records: &[(String, Said)]) -> String {
        let records: Vec<Value> = records.iter().map(|(key, said)| self.record(key, said)).collect();
        json!({ "records": records }).to_string()
    }

    /// Until it is answered for good, and whether it took more than one try.
    fn say(&mut self, body: &str) -> (Reply, bool) {
        let mut retried = false;
        loop {
            let reply = self.send("POST", "/v1/usage", &[JSON], body);
            if !self.is_out(&reply) {
                return (reply, retried);
            }
            retried = true;
        }
    }

    /// Writes the call, or a part of it, and closes.
    fn cancel(&mut self, body: &str) {
        let headers = [("Authorization", self.to.bearer.as_str()), JSON];
        self.to.client.write_request("POST", "/v1/usage", &headers, body.as_bytes()).unwrap();
        std::thread::park_timeout(Duration::from_micros(self.random.below(4000)));
        self.to.client = self.sidecar.client();
    }

    /// New records, now and then with one that takes back a part of another.
    fn publish(&mut self) {
        let first = self.counted.len();
        let many = 1 + self.below(8) as usize;
        let mut call: Vec<(String, Said)> =
            (first..first + many).map(|number| (key(number), self.make(number))).collect();
        if first > 0 && self.below(6) == 0 {
            let corrected = self.below(first as u64) as usize;
            let Said { time, region, .. } = self.counted[corrected];
            let units = -1 - i64::try_from(self.below(1000)).unwrap();
            call.push((key(first + many), Said { units, time, region, corrects: Some(key(corrected)) }));
            self.count("corrections");
        }
        let (body, is_cancelled) = (self.body(&call), self.below(12) == 0);
        if is_cancelled {
            self.cancel(&body);
            self.count("calls cancelled");
        }
        let (reply, retried) = self.say(&body);
        assert_eq!(reply.status, 202, "{}", reply.text());
        let answer = reply.json();
        if self.is_spooled() && call.iter().all(|(_, said)| said.corrects.is_none()) {
            assert_eq!(answer, json!({"accepted": call.len(), "duplicates": null, "pending": true}));
        } else {
            let [accepted, duplicates] =
                ["accepted", "duplicates"].map(|name| answer[name].as_u64().unwrap());
            assert_eq!(accepted + duplicates, call.len() as u64);
            assert!(is_cancelled || retried || duplicates == 0, "CROSSING: {answer} of {body}");
        }
        self.counted.extend(call.into_iter().map(|(_, said)| said));
        self.board.lock().unwrap().insert(self.name, self.counted.len());
        self.count("calls");
    }

    fn known(&mut self) -> Option<(String, Said)> {
        let at = self.random.below(self.counted.len().max(1) as u64) as usize;
        self.counted.get(at).map(|said| (key(at), said.clone()))
    }

    fn say_again(&mut self) {
        let Some((key, said)) = self.known() else { return };
        let is_pending = self.is_spooled() && said.corrects.is_none();
        let (reply, _) = self.say(&self.body(&[(key, said)]));
        assert_eq!(reply.status, 202, "{}", reply.text());
        let expected = if is_pending { json!([1, null]) } else { json!([0, 1]) };
        let answer = reply.json();
        assert_eq!(json!([answer["accepted"], answer["duplicates"]]), expected);
        self.count("duplicates");
    }

    /// What another tenant says under a key of this one: here it is another record under it.
    fn lie(&mut self) {
        let Some((key, mut said)) = self.known().filter(|(_, said)| said.corrects.is_none()) else { return };
        said.units += 1;
        let lie = (key.clone(), decimal(said.units));
        let (reply, _) = self.say(&self.body(&[(key, said)]));
        if self.is_spooled() {
            assert_eq!((reply.status, &reply.json()["pending"]), (202, &json!(true)), "{}", reply.text());
            self.lies.insert(lie);
        } else {
            reply.problem(409, "conflict");
        }
        self.count("lies");
    }

    /// A key that another worker has and this one does not is nothing that could be corrected.
    fn correct_others(&mut self) {
        let most = self.board.lock().unwrap().values().copied().max().unwrap_or(0);
        let foreign = self.counted.len() + 9;
        if most <= foreign {
            return;
        }
        let said = self.make(foreign);
        let said = Said { units: -1, corrects: Some(key(foreign)), ..said };
        let (reply, _) = self.say(&self.body(&[("correction".to_owned(), said)]));
        reply.problem(422, "invalid");
        self.count("corrections of others' records");
    }

    /// Another tenant in the header is refused, for records and readings.
    fn as_another(&mut self) {
        let other = self.others[self.random.below(2) as usize].clone();
        let header = ("Outrigger-Tenant", other.as_str());
        let number = self.counted.len();
        let body = self.body(&[(key(number), self.make(number))]);
        self.send("POST", "/v1/usage", &[JSON, header], &body).problem(403, "forbidden");
        let target = format!("/v1/usage/{}?from={}", self.metric, self.from());
        self.send("GET", &target, &[header], "").problem(403, "forbidden");
        self.count("others' names");
    }

    fn from(&self) -> Timestamp {
        Timestamp::from_second(self.today - i64::try_from(DAYS + 2).unwrap() * 86_400).unwrap()
    }

    /// Records that are there by hour or region, and the total; none where the store was slow.
    fn reading(&mut self, how: &str, named: &str) -> Option<Shown> {
        let target = format!("/v1/usage/{}?from={}{how}", self.metric, self.from());
        let reply = self.send("GET", &target, &[], "");
        if self.is_out(&reply) {
            return None;
        }
        assert_eq!(reply.status, 200, "{}", reply.text());
        let reading = reply.json();
        let points = reading["points"].as_array().unwrap().iter().filter(|point| point["count"] != 0);
        let point = |point: &Value| {
            let [name, value] = [named, "value"].map(|field| point[field].as_str().unwrap().to_owned());
            (name, (value, point["count"].as_u64().unwrap()))
        };
        Some((points.map(point).collect(), reading["total"].as_str().unwrap().to_owned()))
    }

    fn read(&mut self) {
        let hour =
            |said: &Said| Timestamp::from_second(said.time.div_euclid(3600) * 3600).unwrap().to_string();
        let (how, named, name): (_, _, &dyn Fn(&Said) -> String) = match self.below(3) {
            0 => ("&window=hour", "start", &hour),
            1 => ("&group_by=region", "group", &|said| said.region.to_owned()),
            _ => ("&window=total", "start", &|_| String::new()),
        };
        let mut sums: BTreeMap<String, (i64, u64)> = BTreeMap::new();
        for said in &self.counted {
            let sum = sums.entry(name(said)).or_default();
            *sum = (sum.0 + said.units, sum.1 + 1);
        }
        let total = decimal(sums.values().map(|(units, _)| units).sum());
        let mut expected: BTreeMap<String, (String, u64)> =
            sums.into_iter().map(|(name, (units, count))| (name, (decimal(units), count))).collect();
        if how == "&window=total" {
            expected = expected.into_values().map(|sum| (self.from().to_string(), sum)).collect();
        }
        let began = Instant::now();
        loop {
            let read = self.reading(how, named);
            if read.as_ref().is_some_and(|(points, sum)| *points == expected && *sum == total) {
                break;
            }
            // What is on disk is counted soon; what is counted before it is answered is there.
            let may_wait = read.is_none() || self.is_spooled();
            let is_over = began.elapsed() > BOUND;
            assert!(
                may_wait && !is_over,
                "CROSSING or LOST in {how} of {}: {read:?}, not {expected:?}",
                self.tenant
            );
            std::thread::park_timeout(Duration::from_millis(5));
        }
        self.count("readings");
    }

    /// Every conflict of this one's metric, page by page.
    fn conflicts(&mut self) -> Option<BTreeSet<(String, String)>> {
        let (mut listed, mut more) = (BTreeSet::new(), String::new());
        loop {
            let target = format!("/v1/usage/{}/conflicts{more}", self.metric);
            let reply = self.send("GET", &target, &[], "");
            if self.is_out(&reply) {
                return None;
            }
            assert_eq!(reply.status, 200, "{}", reply.text());
            let page = reply.json();
            let one =
                |one: &Value| ["idempotency_key", "value"].map(|name| one[name].as_str().unwrap().to_owned());
            listed.extend(
                page["conflicts"].as_array().unwrap().iter().map(one).map(|[key, value]| (key, value)),
            );
            match page["next_cursor"].as_str() {
                Some(cursor) => more = format!("?cursor={cursor}"),
                None => return Some(listed),
            }
        }
    }

    fn list(&mut self) {
        let Some(listed) = self.conflicts() else { return };
        let foreign: Vec<_> = listed.difference(&self.lies).collect();
        assert!(foreign.is_empty(), "CROSSING: {foreign:?} are no lies of {}", self.tenant);
        self.count("lists of conflicts");
    }

    fn step(&mut self) {
        match self.below(100) {
            0..45 => self.publish(),
            45..58 => self.say_again(),
            58..68 => self.lie(),
            68..73 => self.correct_others(),
            73..76 => self.as_another(),
            76..94 => self.read(),
            _ => self.list(),
        }
    }

    fn end(&mut self) {
        for _ in 0..12 {
            self.read();
        }
        wait_until("the list of every lie", BOUND, || {
            let listed = self.conflicts();
            listed.is_some_and(|listed| listed == self.lies)
        });
    }
}

fn key(number: usize) -> String {
    format!("k{number:09}")
}

/// Units of a thousandth, as the API writes sums.
fn decimal(units: i64) -> String {
    let sign = if units < 0 { "-" } else { "" };
    let text = format!("{sign}{}.{:03}", units.unsigned_abs() / 1000, units.unsigned_abs() % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn run(sidecars: [&Sidecar; 2], operations: u64) {
    let (board, began) = (Board::default(), Instant::now());
    let today = Timestamp::now().as_second().div_euclid(86_400) * 86_400;
    let seats = seats(sidecars, operations).into_iter();
    let workers = seats.map(|seat| Worker {
        name: seat.number,
        tenant: seat.tenant,
        others: seat.others,
        metric: METRICS[seat.number % 2],
        to: Tenant { bearer: seat.bearer, client: seat.sidecar.client() },
        sidecar: seat.sidecar,
        board: &board,
        random: seat.random,
        today,
        counted: Vec::new(),
        lies: BTreeSet::new(),
        counts: BTreeMap::new(),
    });
    let counts = side_by_side(workers.collect(), |mut worker| {
        for _ in 0..operations / 6 {
            worker.step();
        }
        worker.end();
        *worker.counts.entry("records").or_default() += worker.counted.len() as u64;
        worker.counts
    });
    println!("in {:?}: {counts:?}", began.elapsed());
    for what in ["calls cancelled", "corrections", "corrections of others' records", "lies", "others' names"]
    {
        assert!(counts.contains_key(what), "{what}: none");
    }
}

#[test]
fn no_tenant_s_usage_reaches_another_embedded() {
    let directory = tempfile::tempdir().unwrap();
    let config = embedded_config(directory.path(), "store: embedded\nusage: {}\n");
    with_own_policy(&config, "usage.yaml", POLICY);
    let sidecar = Sidecar::serve_in(directory, &config);
    run([&sidecar, &sidecar], size(3_000, 100_000));
}

#[test]
fn no_tenant_s_usage_reaches_another_through_one_connection_of_a_pooler() {
    let servers = rig::shared_postgres();
    let pooler = servers.bouncer(PgBouncerOptions { pool_size: 1, ..PgBouncerOptions::default() }).unwrap();
    let authority = &servers.access().certificate().authority;
    let direct = [servers.access().address(0)];
    let on = OnPostgres::at(servers.database().unwrap(), &direct, &[pooler.address()], authority)
        .with("  required: true\n", "  required: true\n  connections: 1\n  wait_ms: 20000\n")
        .with_policy("usage.yaml", POLICY);
    let (one, other) = (on.sidecar(), on.sidecar());
    run([&one, &other], size(600, 100_000));
}
