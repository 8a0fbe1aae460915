//! Whose events came, looked for in real stores.

use rig::PostgresRole;

use super::super::look::Steps;
use super::*;
use crate::primitives::events::append;
use crate::primitives::events::bench::{Callers, event};
use crate::store::bench::Stores;
use crate::store::{Store, StoreError};

const TOPICS: &str = "  leads: {}\n  quiet: {}\n";
/// Each hundredth row takes a statement 60 ms: the flood's 20,000 together take longer than a statement may.
const SLOW: [&str; 2] = [
    "CREATE FUNCTION slow(id bigint) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN \
         IF id % 100 = 0 THEN PERFORM pg_sleep(0.06); END IF; RETURN true; END $$",
    "CREATE POLICY slow ON events AS RESTRICTIVE FOR SELECT USING (slow(id))",
];
const FLOOD: &str = "INSERT INTO events (id, accepted_at, tenant_id, topic, lane, key, type, attributes, form, data) \
     SELECT nextval('events_id_seq'), now(), '00000000-0000-0000-0000-000000000003', 'leads', 0, 'k', 'made', '{}', 2, 'x' \
     FROM generate_series(1, 20000)";

/// What another process accepts: nobody here is told.
async fn accept(store: &Store, callers: &Callers, tenant: u128, topic: &str, ids: &[&str]) {
    let permit = callers.publisher(tenant, topic).await;
    let events = ids.iter().map(|id| event(id, id)).collect();
    let batch = Arc::new(callers.batch(tenant, topic, events).await);
    let done: Result<_, StoreError> = store
        .run(&permit, batch.bytes(), move |tx| {
            let batch = Arc::clone(&batch);
            Box::pin(async move { append(tx, &batch).await })
        })
        .await;
    assert_eq!(done.unwrap().accepted, ids.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_while_a_circuit_is_open_keeps_no_other_subscription_s_events_from_being_found() {
    let (stores, callers) = (Stores::new(4).await, Callers::new(TOPICS));
    let (bench, receiver) = (Bench::new(), Receiver::start().await);
    let store = &stores.postgres;
    let deliveries = Arc::new(StoreDeliveries::new(store.clone(), callers.source.clone(), None));
    let metrics = PushMetrics::new(&Registry::default()).unwrap();
    let dispatcher = Dispatcher::start(deliveries, metrics.clone(), Timing::default(), &bench.tasks).unwrap();
    let leads = Subscription {
        tenants: Tenants::These([Uuid::from_u128(1)].into()),
        max_attempts: 100,
        ..bench.subscription("leads", &format!("http://{}/fail/5/leads", receiver.address))
    };
    let quiet = bench.subscription("quiet", &format!("http://{}/", receiver.address));
    dispatcher.set(&[leads, quiet].map(Arc::new)).unwrap();
    let came = |data: &str| receiver.times().contains_key(data);
    let mut probes = 0;
    while !came(&format!("probe{probes}")) {
        probes += 1;
        accept(store, &callers, 2, "quiet", &[&format!("probe{probes}")]).await;
        tokio::time::timeout(Duration::from_secs(3), until("it", || came(&format!("probe{probes}"))))
            .await
            .ok();
    }
    accept(store, &callers, 1, "leads", &["1", "2", "3", "4", "5"]).await;
    until("the circuit", || metrics.circuits_open.get() == 1).await;
    let sql: Vec<&str> = SLOW.into_iter().chain([FLOOD]).collect();
    tokio::task::block_in_place(|| stores._database.database.psql(PostgresRole::Superuser, &sql)).unwrap();
    let of_leads = || receiver.received().iter().filter(|one| one.path == "/fail/5/leads").count();
    until("its end", || of_leads() > 5 && metrics.circuits_open.get() == 0).await;
    accept(store, &callers, 2, "quiet", &["after"]).await;
    let began = Instant::now();
    while !came("after") && began.elapsed() < Duration::from_secs(60) {
        tokio::time::timeout(Duration::from_secs(1), until("it", || came("after"))).await.ok();
    }
    println!("found after {:?}", began.elapsed());
    assert!(came("after"), "nothing of any topic is found any more");
}

/// The lines of all looks until there is nothing more, and how many looks that were.
async fn looks(
    deliveries: &StoreDeliveries,
    subscriptions: &[Arc<Subscription>],
) -> (Vec<(String, u128)>, usize) {
    let (mut lines, mut looks) = (Vec::new(), 0);
    loop {
        let pending = deliveries.pending(subscriptions).await.unwrap();
        let told =
            pending.lines.iter().map(|line| (line.subscription.name.to_string(), line.tenant.as_u128()));
        lines.extend(told);
        looks += 1;
        if !pending.more {
            lines.sort();
            return (lines, looks);
        }
    }
}

fn of(lines: &[(&str, u128)]) -> Vec<(String, u128)> {
    lines.iter().map(|(name, tenant)| ((*name).to_owned(), *tenant)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_is_told_once_and_to_an_endpoint_that_begins_anew_all_that_there_is() {
    let (stores, callers) = (Stores::new(2).await, Callers::new(TOPICS));
    let bench = Bench::new();
    let subscriptions = || ["leads", "quiet"].map(|topic| Arc::new(bench.subscription(topic, "http://x/")));
    for (name, store) in stores.both() {
        let steps = Steps { positions: 4, lines: 3, far: 40 };
        let deliveries = StoreDeliveries::in_steps(store.clone(), callers.source.clone(), None, steps);
        for tenant in 1..=5 {
            accept(store, &callers, tenant, "leads", &["a", "b"]).await;
        }
        accept(store, &callers, 3, "quiet", &["a"]).await;
        let first = subscriptions();
        let all = [("leads", 1), ("leads", 2), ("leads", 3), ("leads", 4), ("leads", 5), ("quiet", 3)];
        assert_eq!(looks(&deliveries, &first).await, (of(&all), 3), "{name}: by three of the index a look");
        assert_eq!(looks(&deliveries, &first).await, (Vec::new(), 1), "{name}");
        accept(store, &callers, 6, "leads", &["1", "2", "3", "4", "5", "6"]).await;
        accept(store, &callers, 7, "quiet", &["1"]).await;
        let (lines, count) = looks(&deliveries, &first).await;
        let told = [("leads", 6), ("leads", 6), ("quiet", 7)];
        assert_eq!((lines, count), (of(&told), 2), "{name}: by four of the log a look");
        let [anew, _] = subscriptions();
        let [_, same] = first;
        let (lines, _) = looks(&deliveries, &[Arc::clone(&anew), Arc::clone(&same)]).await;
        let of_leads: Vec<_> = (1..=6).map(|tenant| ("leads", tenant)).collect();
        assert_eq!(lines, of(&of_leads), "{name}: all for the one that is new");
        assert_eq!(looks(&deliveries, &[anew, same]).await, (Vec::new(), 1), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn far_behind_it_is_asked_who_has_anything_and_gone_on_from_the_head() {
    let (stores, callers) = (Stores::new(2).await, Callers::new(TOPICS));
    let (bench, store) = (Bench::new(), &stores.postgres);
    let steps = Steps { positions: 10, lines: 100, far: 40 };
    let deliveries = StoreDeliveries::in_steps(store.clone(), callers.source.clone(), None, steps);
    let subscriptions = [Arc::new(bench.subscription("leads", "http://x/"))];
    assert_eq!(looks(&deliveries, &subscriptions).await, (Vec::new(), 1));
    tokio::task::block_in_place(|| stores._database.database.psql(PostgresRole::Superuser, &[FLOOD]))
        .unwrap();
    assert_eq!(looks(&deliveries, &subscriptions).await, (of(&[("leads", 3)]), 1));
    accept(store, &callers, 4, "leads", &["1"]).await;
    assert_eq!(looks(&deliveries, &subscriptions).await, (of(&[("leads", 4)]), 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_has_sent_again_is_seen_though_nothing_comes() {
    let (stores, callers) = (Stores::new(2).await, Callers::new(TOPICS));
    let (bench, store) = (Bench::new(), &stores.postgres);
    let deliveries = StoreDeliveries::new(store.clone(), callers.source.clone(), None);
    let subscriptions = [Arc::new(bench.subscription("leads", "http://x/"))];
    accept(store, &callers, 1, "leads", &["1"]).await;
    assert_eq!(looks(&deliveries, &subscriptions).await, (of(&[("leads", 1)]), 1));
    let replayed = "UPDATE event_subscriptions SET replays = replays + 1";
    tokio::task::block_in_place(|| stores._database.database.psql(PostgresRole::Superuser, &[replayed]))
        .unwrap();
    let began = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    loop {
        ticks.tick().await;
        let (lines, _) = looks(&deliveries, &subscriptions).await;
        if !lines.is_empty() {
            assert_eq!(lines, of(&[("leads", 1)]));
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "the replay is not seen");
    }
}
