use futures_util::FutureExt;

use super::super::conformance;
use super::super::etag::{Conditions, Tags};
use super::*;
use crate::config::RedisInstance;
use crate::names::Key;
use crate::pools::redis::RedisMetrics;
use crate::telemetry::{HealthBoard, Registry};

/// A process's backend on the shared cluster, with its pool connected and its tracking current.
pub(super) async fn open() -> (Arc<RedisCache>, Arc<RedisPool>) {
    open_on(&rig::shared_redis_nodes()).await
}

async fn open_on(nodes: &[String]) -> (Arc<RedisCache>, Arc<RedisPool>) {
    let instance: RedisInstance = serde_json::from_value(serde_json::json!({"nodes": nodes})).unwrap();
    let (registry, tasks) = (Registry::default(), Tasks::default());
    let health = HealthBoard::default().add("redis.test", false);
    let pool =
        RedisPool::new("test", instance, health, &RedisMetrics::new(&registry).unwrap(), &tasks).unwrap();
    let metrics = CacheMetrics::new(&registry).unwrap();
    let l1 = Arc::new(L1::new(8 << 20, &metrics));
    let backend = RedisCache::start(Arc::clone(&pool), l1, metrics, &tasks);
    let end = Instant::now() + Duration::from_secs(10);
    while !pool.tracking_is_current() {
        assert!(Instant::now() < end, "tracking does not become current");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (backend, pool)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_redis_backend_keeps_the_contract() {
    let (backend, _pool) = open().await;
    let (other, _other_pool) = open().await;
    conformance::run(backend, other).await;
}

pub(super) const BUDGET: Duration = Duration::from_secs(5);

pub(super) fn rules(format: Format, stale_ms: u64) -> Namespace {
    Namespace {
        format,
        content_type: http::HeaderValue::from_static("text/plain"),
        max_value_bytes: 1 << 20,
        default_ttl_ms: 60_000,
        max_ttl_ms: 60_000,
        fill_lease_ms: Some(10_000),
        stale_ms,
        l1_ttl_ms: 60_000,
    }
}

pub(super) fn address(tenant: u128, key: &str) -> Address {
    Address::new(Scope::for_test(tenant, "hostile"), &Key::parse(key).unwrap(), None)
}

pub(super) fn tenant() -> u128 {
    uuid::Uuid::new_v4().as_u128()
}

fn write(body: &str, conditions: Conditions) -> Write {
    Write {
        body: bytes::Bytes::copy_from_slice(body.as_bytes()),
        content_type: http::HeaderValue::from_static("text/plain"),
        ttl_ms: 60_000,
        conditions,
        lease: None,
        max_tenant_bytes: 1 << 30,
    }
}

pub(super) async fn put(cache: &RedisCache, address: &Address, body: &str) {
    cache
        .put(address, &rules(Format::Envelope, 60_000), write(body, Conditions::default()), BUDGET)
        .await
        .unwrap();
}

pub(super) async fn is_found(cache: &RedisCache, address: &Address, rules: &Namespace) -> bool {
    matches!(cache.lookup(address, rules, BUDGET).await.unwrap(), Lookup::Found(_))
}

/// Reads until L1 has it: the push of a write of one's own may void the first fill.
async fn read_into_l1(cache: &RedisCache, address: &Address, rules: &Namespace) {
    let end = Instant::now() + BUDGET;
    while cache.cached(address).is_none() {
        assert!(is_found(cache, address, rules).await, "a miss");
        assert!(Instant::now() < end, "not in L1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_leaves_the_scope_s_other_values_in_l1() {
    let (cache, _pool) = open().await;
    let (tenant, rules) = (tenant(), rules(Format::Envelope, 0));
    let (one, two) = (address(tenant, "1"), address(tenant, "2"));
    put(&cache, &one, "old").await;
    put(&cache, &two, "old").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    read_into_l1(&cache, &one, &rules).await;
    put(&cache, &two, "new").await;
    assert!(cache.cached(&one).is_some(), "a write of another key emptied L1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_acknowledged_invalidation_no_copy_is_served_as_stale() {
    let (cache, _pool) = open().await;
    let rules = rules(Format::Envelope, 60_000);
    for lost in [false, true] {
        let tenant = tenant();
        let (one, two) = (address(tenant, "1"), address(tenant, "2"));
        put(&cache, &one, "old").await;
        read_into_l1(&cache, &one, &rules).await;
        if lost {
            cache.0.lost();
        } else {
            put(&cache, &two, "new").await;
        }
        assert!(cache.0.stale_copy(&one, &rules).is_some());
        cache.invalidate(one.scope(), &rules, None, BUDGET).await.unwrap();
        assert!(cache.0.stale_copy(&one, &rules).is_none(), "lost {lost}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_whose_caller_leaves_is_known_here_all_the_same() {
    let (cache, _pool) = open().await;
    let (address, rules) = (address(tenant(), "k"), rules(Format::Envelope, 60_000));
    put(&cache, &address, "old").await;
    read_into_l1(&cache, &address, &rules).await;
    assert!(cache.invalidate(address.scope(), &rules, None, BUDGET).now_or_never().is_none());
    assert!(cache.cached(&address).is_none(), "after an invalidation");
    assert!(cache.0.stale_copy(&address, &rules).is_none(), "after an invalidation");
    put(&cache, &address, "old").await;
    read_into_l1(&cache, &address, &rules).await;
    assert!(cache.delete(&address, &rules, None, BUDGET).now_or_never().is_none());
    assert!(cache.0.l1.peek(address.entry()).is_none(), "after a DELETE");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_condition_is_judged_by_the_generation_of_now() {
    let (cache, _pool) = open().await;
    let (other, _other_pool) = open().await;
    let (tenant, rules) = (tenant(), rules(Format::Envelope, 0));
    let address = address(tenant, "k");
    for round in 0..100 {
        put(&cache, &address, "old").await;
        read_into_l1(&cache, &address, &rules).await;
        other.invalidate(address.scope(), &rules, None, BUDGET).await.unwrap();
        put(&other, &address, "new").await;
        let absent = Conditions { if_match: None, if_none_match: Some(Tags::Any) };
        let written = cache.put(&address, &rules, write("third", absent), BUDGET).await;
        assert!(matches!(written, Err(CacheError::PreconditionFailed)), "round {round}: {written:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_caller_left_is_counted_against_its_tenant() {
    let (cache, _pool) = open().await;
    let (tenant, rules) = (tenant(), rules(Format::Envelope, 0));
    let body = "x".repeat(10_000);
    for at in 0..100 {
        let address = address(tenant, &at.to_string());
        put(&cache, &address, "").await;
        cache.delete(&address, &rules, None, BUDGET).await.unwrap();
        let writing = cache.put(&address, &rules, write(&body, Conditions::default()), BUDGET);
        tokio::time::timeout(Duration::from_micros(at * 15), writing).await.ok();
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut kept = 0;
    for at in 0..100 {
        kept += i64::from(is_found(&cache, &address(tenant, &at.to_string()), &rules).await);
    }
    let room = cache.0.tally.room(&Scope::for_test(tenant, "hostile"), 1 << 30);
    assert!((1 << 30) - room >= kept * 10_000, "{kept} values kept, {} bytes counted", (1 << 30) - room);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_does_not_know_a_tenant_asks_what_it_keeps() {
    let (cache, _pool) = open().await;
    let (other, _other_pool) = open().await;
    let (tenant, rules) = (tenant(), rules(Format::Envelope, 0));
    put(&cache, &address(tenant, "1"), &"x".repeat(10_000)).await;
    cache.0.exchange().await;
    let mut more = write("more", Conditions::default());
    more.max_tenant_bytes = 10_000;
    let written = other.put(&address(tenant, "2"), &rules, more, BUDGET).await;
    assert!(matches!(written, Err(CacheError::TenantFull { .. })), "{written:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_holds_all_of_its_leases_still_reads_and_gets_none() {
    let (cache, _pool) = open().await;
    let (tenant, rules) = (tenant(), rules(Format::Envelope, 0));
    let lease = async |key: &str| cache.lease(&address(tenant, key), &rules, 60_000, BUDGET).await;
    put(&cache, &address(tenant, "there"), "value").await;
    let mut granted = Vec::new();
    for at in 0..crate::primitives::cache::lease::MAX_OF_TENANT {
        match lease(&at.to_string()).await.unwrap() {
            LeaseAnswer::Granted(token) => granted.push(token),
            other => panic!("{at}: {other:?}"),
        }
    }
    let refused = lease("more").await;
    assert!(matches!(refused, Err(CacheError::Overloaded)), "{refused:?}");
    assert!(matches!(lease("there").await.unwrap(), LeaseAnswer::Found(_)));
    assert!(matches!(lease("0").await.unwrap(), LeaseAnswer::Held { .. }));
    let filled = Write { lease: Some(granted[1].clone()), ..write("v", Conditions::default()) };
    cache.put(&address(tenant, "1"), &rules, filled, BUDGET).await.unwrap();
    assert!(matches!(lease("more").await.unwrap(), LeaseAnswer::Granted(_)), "a fill makes room");
    cache.delete(&address(tenant, "2"), &rules, Some(granted[2].clone()), BUDGET).await.unwrap();
    assert!(matches!(lease("another").await.unwrap(), LeaseAnswer::Granted(_)), "giving up makes room");
    assert!(matches!(lease("third").await, Err(CacheError::Overloaded)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_that_its_process_did_not_end_is_ended_by_another() {
    let (cache, pool) = open().await;
    let (tenant, rules) = (tenant(), rules(Format::Raw, 0));
    let address = address(tenant, "k");
    let run = async |words: &[&[u8]], key: &[u8]| {
        let mut command = redis::cmd(std::str::from_utf8(words[0]).unwrap());
        command.arg(&words[1..]);
        pool.command(Slot::of(key), &command, BUDGET).await.unwrap()
    };
    let generation = keys::generation(address.scope());
    // As an invalidation leaves it whose process ended at once.
    run(&[b"HSET", &generation, b"all", b"12345678u"], &generation).await;
    run(&[b"SET", address.entry(), b"old"], address.entry()).await;
    assert!(!is_found(&cache, &address, &rules).await, "it may be from before");
    assert!(matches!(cache.lease(&address, &rules, 10_000, BUDGET).await.unwrap(), LeaseAnswer::Granted(_)));
    let absent = Conditions { if_match: Some(Tags::Any), if_none_match: None };
    let written = cache.put(&address, &rules, write("new", absent), BUDGET).await;
    assert!(matches!(written, Err(CacheError::PreconditionFailed)), "{written:?}");
    // While a sweep goes on nobody begins one.
    let claim = keys::sweep(address.scope());
    run(&[b"SET", &claim, b"1"], &claim).await;
    sweep::resume_after(&cache.0, Duration::ZERO);
    assert!(!is_found(&cache, &address, &rules).await);
    run(&[b"DEL", &claim], &claim).await;
    let end = Instant::now() + BUDGET;
    while run(&[b"EXISTS", address.entry()], address.entry()).await != Value::Int(0) {
        assert!(Instant::now() < end, "nobody swept");
        assert!(!is_found(&cache, &address, &rules).await);
        sweep::resume_after(&cache.0, Duration::ZERO);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    while run(&[b"HGET", &generation, b"all"], &generation).await != Value::BulkString(b"12345678".to_vec()) {
        assert!(Instant::now() < end, "the sweep does not say that it is at its end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    run(&[b"SET", address.entry(), b"theirs"], address.entry()).await;
    while !is_found(&cache, &address, &rules).await {
        assert!(Instant::now() < end, "their next value is not read");
    }
}

/// What a stopped replica cannot confirm is unknown; what is unavailable was not even sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_removals_of_one_tenant_leave_the_others_room_behind_a_stopped_replica() {
    let cluster =
        rig::RedisCluster::start(rig::Options { cluster_node_timeout_ms: 10_000, ..Default::default() })
            .unwrap();
    let (cache, _pool) = open_on(&cluster.addresses()).await;
    let primary = |address: &Address| {
        let slot = cluster.slot_of(std::str::from_utf8(address.entry()).unwrap()).unwrap();
        cluster.primary_of(slot).unwrap()
    };
    let (theirs, rules) = (address(tenant(), "k"), rules(Format::Envelope, 0));
    let budget = Duration::from_secs(1);
    let many = tenant();
    let many = (0..).map(|at| address(many, &format!("{at}"))).find(|many| primary(many) == primary(&theirs));
    let many = Arc::new(many.unwrap());
    cache.delete(&theirs, &rules, None, budget).await.unwrap();
    cluster.stop(cluster.replica_of(primary(&theirs)).unwrap()).unwrap();
    let mut flood = tokio::task::JoinSet::new();
    let began = Instant::now();
    for _ in 0..3000 {
        let (cache, many) = (Arc::clone(&cache), Arc::clone(&many));
        let rules = self::rules(Format::Envelope, 0);
        flood.spawn(async move {
            while began.elapsed() < Duration::from_secs(5) {
                assert!(cache.delete(&many, &rules, None, budget).await.is_err());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }
    for _ in 0..4 {
        let deleted = cache.delete(&theirs, &rules, None, budget).await;
        assert!(matches!(deleted, Err(CacheError::Unknown)), "{deleted:?}");
    }
    flood.join_all().await;
}

/// How large a value is, is known once it is there: it is their number that is bounded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_large_reads_of_one_tenant_leave_the_others_theirs() {
    let cluster = rig::RedisCluster::start(rig::Options::default()).unwrap();
    let (cache, _pool) = open_on(&cluster.addresses()).await;
    let (many, theirs) = (tenant(), tenant());
    let rules = || Namespace { l1_ttl_ms: 0, ..self::rules(Format::Envelope, 0) };
    let primary = |address: &Address| {
        let slot = cluster.slot_of(std::str::from_utf8(address.entry()).unwrap()).unwrap();
        cluster.primary_of(slot).unwrap()
    };
    let theirs = address(theirs, "k");
    let large =
        (0..).map(|at| address(many, &at.to_string())).find(|large| primary(large) == primary(&theirs));
    let large = Arc::new(large.unwrap());
    put(&cache, &theirs, "small").await;
    put(&cache, &large, &"x".repeat(1 << 20)).await;
    let mut flood = tokio::task::JoinSet::new();
    let began = Instant::now();
    for _ in 0..1000 {
        let (cache, large, rules) = (Arc::clone(&cache), Arc::clone(&large), rules());
        flood.spawn(async move {
            while began.elapsed() < Duration::from_secs(3) {
                drop(cache.lookup(&large, &rules, BUDGET).await);
            }
        });
    }
    let (mut worst, mut count) = (Duration::ZERO, 0);
    while began.elapsed() < Duration::from_secs(3) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let asked = Instant::now();
        let found = cache.lookup(&theirs, &rules(), Duration::from_secs(1)).await;
        assert!(matches!(found, Ok(Lookup::Found(_))), "{found:?} after {:?}", asked.elapsed());
        worst = worst.max(asked.elapsed());
        count += 1;
    }
    println!("{count} reads of another tenant, the worst {worst:?}");
    flood.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_redis_refused_does_not_count() {
    let (cache, pool) = open().await;
    let (tenant, rules) = (tenant(), rules(Format::Envelope, 0));
    let (bad, good) = (address(tenant, "bad"), address(tenant, "good"));
    let lease = keys::Keys::of(bad.entry()).lease;
    let mut plant = redis::cmd("LPUSH");
    plant.arg(&lease).arg("x");
    pool.command(Slot::of(&lease), &plant, BUDGET).await.unwrap();
    for _ in 0..=crate::primitives::cache::lease::MAX_OF_TENANT {
        assert!(cache.lease(&bad, &rules, 60_000, BUDGET).await.is_err());
    }
    assert!(matches!(cache.lease(&good, &rules, 60_000, BUDGET).await.unwrap(), LeaseAnswer::Granted(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_another_system_made_a_list_is_a_miss_and_can_be_overwritten() {
    let (cache, pool) = open().await;
    for format in [Format::Envelope, Format::Raw] {
        let rules = rules(format, 0);
        let address = address(tenant(), "k");
        let plant = async || {
            let mut command = redis::cmd("LPUSH");
            command.arg(address.entry()).arg("x");
            pool.command(Slot::of(address.entry()), &command, BUDGET).await.unwrap();
        };
        plant().await;
        assert!(!is_found(&cache, &address, &rules).await);
        assert!(matches!(
            cache.lease(&address, &rules, 10_000, BUDGET).await.unwrap(),
            LeaseAnswer::Granted(_)
        ));
        cache.delete(&address, &rules, None, BUDGET).await.unwrap();
        plant().await;
        cache.put(&address, &rules, write("v", Conditions::default()), BUDGET).await.unwrap();
        assert!(is_found(&cache, &address, &rules).await);
        cache.delete(&address, &rules, None, BUDGET).await.unwrap();
    }
}
