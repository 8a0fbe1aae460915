//! The log as a relay reads it, on a real database: how much one statement looks through, and from where it goes on.

use std::time::{Duration, Instant};

use rig::PostgresRole;
use uuid::Uuid;

use super::ordered::ask;
use super::{PROGRESS_EVERY, PostgresLog, SLACK_MS, orders};
use crate::leases::{Leases, Owner};
use crate::primitives::events::Position;
use crate::primitives::events::arrivals::Arrivals;
use crate::primitives::events::read::STEP;
use crate::primitives::events::relay::lanes::{MAX_PARKED_KEYS_OF_TENANT, OrderedKey, Parked};
use crate::primitives::events::relay::passed::Passed;
use crate::primitives::events::relay::{Batch, LogReader, Settled, Shard};
use crate::store::Store;
use crate::store::postgres::bench::{Bench, bench};
use crate::store::postgres::{ConnectAs, Postgres, PostgresMetrics};
use crate::telemetry::Registry;

/// Most of them one key's, in lane 0, and one event of lane 1 behind them.
const MANY: i64 = 30_000;
const INSERT: &str = "INSERT INTO events (id, accepted_at, tenant_id, topic, lane, key, type, attributes, form, data) \
     SELECT nextval('events_id_seq'), now(), '00000000-0000-0000-0000-000000000001', 'leads', lane, 'k', 'made', \
         convert_to(format('{\"id\":\"%s\"}', number), 'UTF8'), 2, convert_to('x', 'UTF8') \
     FROM (SELECT number, CASE number WHEN 30000 THEN 1 ELSE 0 END AS lane FROM generate_series(1, 30000) number) made";
/// From now on each row that the relay's statements look at is counted.
const COUNTED: [&str; 3] = [
    "CREATE SEQUENCE looked_at",
    "GRANT USAGE ON SEQUENCE looked_at TO outrigger_relay",
    "ALTER POLICY relays ON events USING (nextval('public.looked_at') > 0)",
];

/// A shard's log, with its lease.
struct Opened {
    log: PostgresLog,
    store: Store,
    database: Bench,
}

async fn opened() -> Opened {
    let database = bench(2).await;
    let health = crate::telemetry::HealthBoard::default().add("postgres.relay", false);
    let metrics = PostgresMetrics::new(&Registry::default()).unwrap();
    let role = database.config.relay.clone().unwrap();
    let role = ConnectAs::Relay(&role);
    let postgres = Postgres::start(&database.config, &role, health, &metrics, &database.tasks).unwrap();
    let store = Store::Postgres(postgres);
    let leases = Leases::new(store.clone(), Owner::of_this_process());
    let lease = leases.take("relay/shard/1", Duration::from_secs(60)).await.unwrap().unwrap();
    let arrivals = Arrivals::new(store.clone(), 0, database.tasks.clone());
    Opened { log: PostgresLog::new(store.clone(), arrivals, lease), store, database }
}

impl Opened {
    fn psql(&self, sql: &[&str]) -> String {
        let done = || self.database.database.psql(PostgresRole::Superuser, sql).unwrap();
        tokio::task::block_in_place(done).trim().to_owned()
    }

    /// Rows that were looked at since this was asked last.
    fn looked_at(&self) -> i64 {
        let count = self.psql(&["SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM looked_at"]);
        self.psql(&["ALTER SEQUENCE looked_at RESTART"]);
        count.parse().unwrap()
    }

    async fn read(&self, after: Position) -> Batch {
        self.log.read(SHARD(), after, 5000).await.unwrap()
    }
}

const SHARD: fn() -> Shard = || Shard::new(1, 4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_passes_another_ones_hot_lane_in_steps_and_never_begins_again() {
    let opened = opened().await;
    opened.psql(&[INSERT]);
    opened.psql(&COUNTED);
    let (mut reads, mut most) = (0, 0);
    let found = loop {
        // As after each failure of the store.
        opened.log.origin(Position::START).await.unwrap();
        opened.looked_at();
        let batch = opened.read(Position::START).await;
        reads += 1;
        most = most.max(opened.looked_at());
        if !batch.rows.is_empty() {
            break batch;
        }
        assert!(batch.more && reads < 20, "{reads} reads, and the event was not found");
    };
    assert_eq!((found.rows.len(), found.rows[0].lane, found.more), (1, 1, false));
    println!("{reads} reads, {most} rows at the most in one");
    assert!(most <= STEP + 10, "{most} rows in one read");
    assert_eq!(reads, MANY / STEP);
    // It is read again until it is delivered, and nothing before it.
    opened.looked_at();
    assert_eq!(opened.read(Position::START).await.rows, found.rows);
    assert!(opened.looked_at() <= STEP + 10);
    let delivered = found.rows[0].event.position;
    let after = opened.read(delivered).await;
    assert!(after.rows.is_empty() && !after.more);
}

/// What is told of the shard: the place, and how long before now it is delivered, in seconds.
async fn told(opened: &Opened, after: Position) -> (i64, i64) {
    opened.log.scanned.lock().told = Instant::now().checked_sub(PROGRESS_EVERY).unwrap();
    opened.read(after).await;
    let told =
        "SELECT position || ' ' || round(extract(epoch FROM now() - delivered_until)) FROM event_relays";
    let told = opened.psql(&[told]);
    let (position, seconds) = told.split_once(' ').unwrap();
    (position.parse().unwrap(), seconds.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_passed_is_told_as_delivered_and_what_comes_after_it_is_not() {
    let opened = opened().await;
    // Accepted three hours ago; the event of the shard too.
    opened.psql(&[&INSERT.replace("now()", "now() - interval '3 h'")]);
    let first: i64 = opened.psql(&["SELECT min(id) FROM events"]).parse().unwrap();
    let (hours, slack) = (3 * 3600, SLACK_MS / 1000);
    for step in 1..MANY / STEP {
        let (position, seconds) = told(&opened, Position::START).await;
        assert_eq!(position, first + step * STEP - 1, "step {step}");
        assert!((hours + slack..hours + slack + 60).contains(&seconds), "step {step}: {seconds} s");
    }
    let (position, seconds) = told(&opened, Position::START).await;
    assert_eq!(position, first + MANY - STEP - 1, "the event is found and not delivered");
    assert!((hours + slack..hours + slack + 60).contains(&seconds), "{seconds} s");
    let delivered = Position::new(first + MANY - 1);
    let (position, seconds) = told(&opened, delivered).await;
    assert_eq!(position, delivered.number());
    assert!((slack..slack + 60).contains(&seconds), "{seconds} s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_passed_is_forgotten_where_the_store_is_another_one() {
    let opened = opened().await;
    opened.psql(&[INSERT]);
    opened.log.origin(Position::START).await.unwrap();
    assert!(opened.read(Position::START).await.more);
    let passed = opened.log.scanned.lock().passed;
    opened.log.origin(Position::START).await.unwrap();
    assert_eq!(opened.log.scanned.lock().passed, passed, "it is the same one");
    // As after a failover to a standby that was behind: the position has another event, and so may those before it.
    let at = passed.go_on(Position::START).number();
    opened.psql(&[&format!("UPDATE events SET attributes = '{{}}', lane = 1 WHERE id = {at}")]);
    opened.log.origin(Position::START).await.unwrap();
    assert_eq!(opened.log.scanned.lock().passed, Passed::NOTHING);
    assert_eq!(opened.read(Position::START).await.rows[0].event.position.number(), at);
}

const PARKED: &str = "INSERT INTO event_parked \
     (shard, id, tenant_id, accepted_at, topic, lane, key, type, attributes, form, reason) \
     SELECT 1, 10 * number + tenant, ('00000000-0000-0000-0000-00000000000' || tenant)::uuid, now(), 't' || number % 2, 1, \
         'k' || number % keys, 'made', '', 0, 'larger' \
     FROM (VALUES (1, 20000, 5000), (2, 7, 3), (3, 20000, 1), (4, 100, 100)) AS tenants (tenant, events, keys), \
         LATERAL generate_series(1, events) number";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_parked_is_told_by_keys_and_of_a_tenant_with_many_no_more_than_that() {
    let opened = opened().await;
    opened.psql(&[PARKED]);
    let began = Instant::now();
    let parked = opened.log.parked(SHARD()).await.unwrap();
    println!("40,107 parked events: {:?}", began.elapsed());
    // Of 3 keys in two topics 6 are; the others are in one, but for the key that all events have.
    let tenants = [1, 2, 3, 4].map(Uuid::from_u128);
    assert_eq!(tenants.map(|tenant| parked.has_tenant(&tenant)), [true, false, false, false]);
    assert_eq!(parked.len(), MAX_PARKED_KEYS_OF_TENANT + 1 + 6 + 2 + 100);
    let key =
        |topic: &str, tenant: Uuid, key: &str| OrderedKey { topic: topic.into(), tenant, key: key.into() };
    let settled = Settled::Discarded(Position::new(10 * 7 + 2));
    let left = opened.log.settle(SHARD(), 1, &key("t1", tenants[1], "k1"), settled).await.unwrap();
    let first =
        |topic: &str, name: &str, number: i64| (key(topic, tenants[1], name), Position::new(10 * number + 2));
    let expected = [
        first("t0", "k0", 6),
        first("t0", "k1", 4),
        first("t0", "k2", 2),
        first("t1", "k0", 3),
        first("t1", "k1", 1),
        first("t1", "k2", 5),
    ];
    assert_eq!(left, Parked::new(expected.into(), MAX_PARKED_KEYS_OF_TENANT));
    let nothing = Settled::Discarded(Position::START);
    let left = opened.log.settle(SHARD(), 1, &key("t0", tenants[0], "k0"), nothing).await.unwrap();
    assert!(left.has_tenant(&tenants[0]) && left.len() == MAX_PARKED_KEYS_OF_TENANT + 1, "{left:?}");
}

/// Done so many days ago, each number of days by 600 orders; of the last ones one gave an event up that is still kept.
const ORDERS: &str = "INSERT INTO event_orders (shard, topic, tenant_id, key, discards, done_at, outcome) \
     SELECT 1, 't', gen_random_uuid(), 'k', CASE number WHEN 1 THEN 999999 WHEN 2 THEN (SELECT min(id) FROM events) END, \
         now() - days * interval '1 day', 'discarded' \
     FROM unnest(ARRAY[29, NULL, 31]) days, generate_series(1, 600) number";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_that_were_done_long_ago_are_forgotten_in_portions_but_for_events_that_are_kept() {
    let opened = opened().await;
    opened.psql(&[INSERT, ORDERS]);
    let forget = || ask(&opened.store, |tx| Box::pin(orders::forget(tx)));
    let mut forgotten = Vec::new();
    while forgotten.last() != Some(&0) {
        forgotten.push(forget().await.unwrap());
    }
    assert_eq!(forgotten, [500, 99, 0]);
    let old = "done_at < now() - interval '30 days'";
    let left = format!(
        "SELECT count(*) || ' ' || count(*) FILTER (WHERE {old} AND discards < 999999) FROM event_orders"
    );
    assert_eq!(opened.psql(&[&left]), "1201 1");
}
