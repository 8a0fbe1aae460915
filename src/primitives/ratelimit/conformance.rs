//! What every source of tokens promises, by its own clock: each backend runs [`run`] in one line.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;

use super::policy::{RateLimits, RateLimitsDocument};
use super::{Asks, Outcome, Rule, Source, TokenSource};
use crate::config::Findings;

/// How long a promise about the future may take to come true.
const PATIENCE: Duration = Duration::from_secs(10);
const MANY: usize = 10_000;

/// The rule of a limit of `requests` in `per_ms`, `burst` at once.
pub(super) fn rule(limit: &str, requests: u64, per_ms: u64, burst: u64) -> Arc<Rule> {
    read(limit, &json!({"tiers": {"free": {"requests": requests, "per_ms": per_ms, "burst": burst}}}))
}

/// A rule of 100 a minute, burst 20, with this answer while the backend is away.
pub(super) fn rule_with(limit: &str, on_backend_failure: &str) -> Arc<Rule> {
    let quota = json!({"requests": 100, "per_ms": 60_000, "burst": 20});
    read(limit, &json!({"tiers": {"free": quota}, "on_backend_failure": on_backend_failure}))
}

fn read(limit: &str, document: &serde_json::Value) -> Arc<Rule> {
    let mut findings = Findings::default();
    let document: RateLimitsDocument = serde_json::from_value(json!({"limits": {limit: document}})).unwrap();
    let limits = RateLimits::new(&document, &mut findings);
    assert!(findings.is_empty(), "{findings:?}");
    Arc::clone(limits.limit(limit).unwrap().rule_of(&Uuid::nil(), "free", "k"))
}

/// Asks of a tenant: a rule, a key and a cost each.
pub(super) fn asks(tenant: Uuid, max_keys: usize, wanted: &[(&Arc<Rule>, &str, u64)]) -> Asks {
    let mut asks = Asks::new(max_keys);
    for (rule, key, cost) in wanted {
        asks.add_for(tenant, rule.limit.as_str(), rule, key, *cost).unwrap();
    }
    asks
}

async fn take(source: &dyn TokenSource, tenant: Uuid, wanted: &[(&Arc<Rule>, &str, u64)]) -> Outcome {
    take_of(source, tenant, MANY, wanted).await
}

async fn take_of(
    source: &dyn TokenSource,
    tenant: Uuid,
    max_keys: usize,
    wanted: &[(&Arc<Rule>, &str, u64)],
) -> Outcome {
    let outcome = source.take(&asks(tenant, max_keys, wanted)).outcome().await;
    assert_eq!(outcome.source, Source::Backend, "the backend did not answer");
    assert_eq!(outcome.standings.iter().any(|standing| standing.over), !outcome.allowed);
    outcome
}

/// Everything that a source promises.
pub(super) async fn run(source: Arc<dyn TokenSource>) {
    let one = &*source;
    a_burst_passes_and_then_nothing(one).await;
    several_are_taken_or_none(one).await;
    a_cost_of_nothing_looks_without_taking(one).await;
    buckets_are_apart(one).await;
    retry_after_is_neither_early_nor_late(one).await;
    new_keys_beyond_the_most_share_a_bucket(one).await;
    expired_keys_make_room(one).await;
    a_quota_that_became_smaller_holds_at_once(one).await;
    many_at_once_get_exactly_the_limit(&source, 300, 1000).await;
    many_at_once_get_exactly_the_limit(&source, 70, 900).await;
}

async fn a_burst_passes_and_then_nothing(source: &dyn TokenSource) {
    let (tenant, api) = (Uuid::new_v4(), rule("api", 1, 60_000, 20));
    for left in (0..20).rev() {
        let outcome = take(source, tenant, &[(&api, "/leads", 1)]).await;
        assert!(outcome.allowed);
        let standing = outcome.standings[0];
        assert_eq!((standing.remaining, standing.retry_after_ms), (left, 0));
        let full = (20 - left) * 60_000;
        assert!((full - 5_000..=full).contains(&standing.reset_ms), "{standing:?}");
    }
    let refused = take(source, tenant, &[(&api, "/leads", 1)]).await;
    assert!(!refused.allowed);
    assert_eq!(refused.standings[0].remaining, 0);
    assert!((55_000..=60_000).contains(&refused.standings[0].retry_after_ms), "{refused:?}");
    let dearer = take(source, tenant, &[(&api, "/leads", 3)]).await;
    assert!((175_000..=180_000).contains(&dearer.standings[0].retry_after_ms), "{dearer:?}");
}

async fn several_are_taken_or_none(source: &dyn TokenSource) {
    let tenant = Uuid::new_v4();
    let (wide, narrow) = (rule("wide", 1, 60_000, 10), rule("narrow", 1, 60_000, 2));
    let both = [(&wide, "k", 1), (&narrow, "k", 1)];
    assert!(take(source, tenant, &both).await.allowed);
    assert!(take(source, tenant, &both).await.allowed);
    let refused = take(source, tenant, &both).await;
    assert!(!refused.allowed);
    assert_eq!(refused.standings.iter().map(|standing| standing.over).collect::<Vec<_>>(), [false, true]);
    assert_eq!(refused.standings[0].remaining, 8, "nothing is taken from a limit that had enough");
    assert_eq!(refused.standings[0].retry_after_ms, 0);
    let looked = take(source, tenant, &[(&wide, "k", 0)]).await;
    assert_eq!(looked.standings[0].remaining, 8);
}

async fn a_cost_of_nothing_looks_without_taking(source: &dyn TokenSource) {
    let (tenant, api) = (Uuid::new_v4(), rule("api", 1, 60_000, 2));
    for _ in 0..5 {
        let outcome = take(source, tenant, &[(&api, "k", 0)]).await;
        assert!(outcome.allowed);
        assert_eq!((outcome.standings[0].remaining, outcome.standings[0].reset_ms), (2, 0));
    }
    assert!(take(source, tenant, &[(&api, "k", 2)]).await.allowed);
    let empty = take(source, tenant, &[(&api, "k", 0)]).await;
    assert!(empty.allowed, "a look is never refused");
    assert_eq!(empty.standings[0].remaining, 0);
}

async fn buckets_are_apart(source: &dyn TokenSource) {
    let (tenant, other) = (Uuid::new_v4(), Uuid::new_v4());
    let (api, login) = (rule("api", 1, 60_000, 1), rule("login", 1, 60_000, 1));
    let odd = "}{:é\"\\ {a}:b/*";
    assert!(take(source, tenant, &[(&api, odd, 1)]).await.allowed);
    for (tenant, rule, key) in [(other, &api, odd), (tenant, &login, odd), (tenant, &api, "}{:é")] {
        assert!(take(source, tenant, &[(rule, key, 1)]).await.allowed, "{key}");
    }
    assert!(!take(source, tenant, &[(&api, odd, 1)]).await.allowed);
}

/// Asks until it passes, and says how long that took.
async fn until_allowed(source: &dyn TokenSource, tenant: Uuid, rule: &Arc<Rule>, cost: u64) -> Duration {
    let began = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    while !take(source, tenant, &[(rule, "k", cost)]).await.allowed {
        assert!(began.elapsed() < PATIENCE, "it did not pass within {PATIENCE:?}");
        ticks.tick().await;
    }
    began.elapsed()
}

async fn retry_after_is_neither_early_nor_late(source: &dyn TokenSource) {
    let (tenant, quick) = (Uuid::new_v4(), rule("quick", 3, 1000, 4));
    assert!(take(source, tenant, &[(&quick, "k", 4)]).await.allowed);
    let refused = take(source, tenant, &[(&quick, "k", 2)]).await;
    let promised = Duration::from_millis(refused.standings[0].retry_after_ms);
    let took = until_allowed(source, tenant, &quick, 2).await;
    assert!(promised <= Duration::from_millis(667), "{promised:?}");
    // By the caller's clock the promise began a round trip ago.
    assert!(took + Duration::from_millis(25) >= promised, "passed after {took:?}, promised in {promised:?}");
    assert!(took <= promised + Duration::from_millis(500), "passed after {took:?}, promised in {promised:?}");
}

async fn new_keys_beyond_the_most_share_a_bucket(source: &dyn TokenSource) {
    let (tenant, api) = (Uuid::new_v4(), rule("api", 1, 60_000, 4));
    for key in ["a", "b", "c"] {
        assert_eq!(take_of(source, tenant, 3, &[(&api, key, 1)]).await.overflowed, 0);
    }
    let fourth = take_of(source, tenant, 3, &[(&api, "d", 1), (&api, "e", 2)]).await;
    assert!(fourth.allowed);
    assert_eq!(fourth.overflowed, 2);
    let fifth = take_of(source, tenant, 3, &[(&api, "f", 0)]).await;
    assert_eq!(fifth.standings[0].remaining, 1, "new keys share one bucket");
    assert!(!take_of(source, tenant, 3, &[(&api, "g", 1), (&api, "h", 1)]).await.allowed);
    let own = take_of(source, tenant, 3, &[(&api, "a", 1)]).await;
    assert_eq!((own.overflowed, own.standings[0].remaining), (0, 2), "a key in use keeps its own");
    let other = take_of(source, Uuid::new_v4(), 3, &[(&api, "d", 1)]).await;
    assert_eq!(other.overflowed, 0);
}

async fn expired_keys_make_room(source: &dyn TokenSource) {
    let (tenant, brief) = (Uuid::new_v4(), rule("brief", 1, 30, 1));
    for key in ["a", "b", "c"] {
        assert_eq!(take_of(source, tenant, 3, &[(&brief, key, 1)]).await.overflowed, 0);
    }
    let began = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    while take_of(source, tenant, 3, &[(&brief, "d", 0)]).await.overflowed > 0 {
        assert!(began.elapsed() < PATIENCE, "full keys still count after {PATIENCE:?}");
        ticks.tick().await;
    }
    assert!(take_of(source, tenant, 3, &[(&brief, "d", 1)]).await.allowed);
}

async fn a_quota_that_became_smaller_holds_at_once(source: &dyn TokenSource) {
    let tenant = Uuid::new_v4();
    let (large, small) = (rule("api", 7, 60_000, 50), rule("api", 1, 2000, 2));
    assert!(take(source, tenant, &[(&large, "k", 50)]).await.allowed);
    let refused = take(source, tenant, &[(&small, "k", 1)]).await;
    assert!(!refused.allowed);
    assert!(refused.standings[0].retry_after_ms <= 2000, "never longer than its own burst: {refused:?}");
}

/// From an empty bucket, and with a burst that no busy machine leaves full, what is taken and what is left at the
/// end are together exactly what was earned.
async fn many_at_once_get_exactly_the_limit(source: &Arc<dyn TokenSource>, requests: u64, per_ms: u64) {
    let (tenant, rule) = (Uuid::new_v4(), rule("shared", requests, per_ms, 10_000));
    let before = Instant::now();
    assert!(take(&**source, tenant, &[(&rule, "k", 10_000)]).await.allowed);
    let emptied = Instant::now();
    let end = emptied + Duration::from_millis(700);
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (source, rule) = (Arc::clone(source), Arc::clone(&rule));
        callers.spawn(async move {
            let mut passed = 0_u64;
            while Instant::now() < end {
                passed += u64::from(take(&*source, tenant, &[(&rule, "k", 1)]).await.allowed);
                tokio::task::yield_now().await;
            }
            passed
        });
    }
    let passed: u64 = callers.join_all().await.into_iter().sum();
    let least_ms = u64::try_from(emptied.elapsed().as_millis()).unwrap();
    let left = take(&**source, tenant, &[(&rule, "k", 0)]).await.standings[0].remaining;
    let most_ms = u64::try_from(before.elapsed().as_millis()).unwrap() + 1;
    let (least, most) = (requests * least_ms / per_ms, requests * most_ms / per_ms);
    assert!(
        passed > 0 && passed + left <= most,
        "{passed} passed, {left} are left, of {most} in {most_ms} ms"
    );
    assert!(passed + left + 1 >= least, "{passed} passed, {left} are left, of {least} in {least_ms} ms");
}
