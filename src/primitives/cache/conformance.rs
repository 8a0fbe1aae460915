//! What every backend promises. A backend runs it in one line: `conformance::run(factory)`.
//!
//! A case gets a tenant of its own, so that cases share a store without meeting.

mod invalidation;
mod leases;
mod values;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::HeaderValue;
use uuid::Uuid;

use super::etag::{Conditions, Etag};
use super::key::{Address, Scope};
use super::lease::LeaseToken;
use super::policy::{Format, Namespace};
use super::{CacheBackend, CacheError, Found, LeaseAnswer, Lookup, Tier, Write};
use crate::names::Key;

const BUDGET: Duration = Duration::from_secs(5);
const LEASE_MS: u64 = 10_000;

/// One case's surroundings.
pub(super) struct Case {
    pub(super) backend: Arc<dyn CacheBackend>,
    /// Another process on the same store, where the backend serves a fleet; else the same.
    other: Arc<dyn CacheBackend>,
    tenant: u128,
    format: Format,
}

/// Runs every case, in both formats, on the backend and on its `other`.
pub(super) async fn run(backend: Arc<dyn CacheBackend>, other: Arc<dyn CacheBackend>) {
    type Run = fn(Case) -> BoxFuture<'static, ()>;
    let cases: &[(&str, Run)] = &[
        ("values", |case| Box::pin(values::are_read_as_written(case))),
        ("tenants", |case| Box::pin(values::of_tenants_namespaces_and_versions_are_apart(case))),
        ("delete", |case| Box::pin(values::deleted_are_gone(case))),
        ("conditions", |case| Box::pin(values::conditions_are_judged_in_the_same_step(case))),
        ("one of many", |case| Box::pin(values::one_of_many_creators_wins(case))),
        ("expiry", |case| Box::pin(values::end_with_their_time(case))),
        ("room", |case| Box::pin(values::over_a_tenants_room_are_refused_until_some_are_deleted(case))),
        ("l1", |case| Box::pin(values::in_l1_are_never_older_than_this_process_s_writes(case))),
        ("invalidate", |case| Box::pin(invalidation::takes_everything_of_one_scope(case))),
        ("invalidate version", |case| Box::pin(invalidation::of_a_version_takes_that_version(case))),
        ("invalidate many", |case| Box::pin(invalidation::of_many_versions_is_bounded(case))),
        ("lease", |case| Box::pin(leases::one_caller_fills_and_the_others_wait(case))),
        ("lease void", |case| Box::pin(leases::a_void_lease_writes_nothing(case))),
        ("lease in use", |case| {
            Box::pin(leases::nobody_gets_a_lease_while_its_holder_s_write_is_under_way(case))
        }),
        ("lease given up", |case| Box::pin(leases::a_lease_given_up_goes_to_one_other(case))),
        ("lease over", |case| Box::pin(leases::a_lease_that_ran_out_goes_to_exactly_one_waiter(case))),
        ("stale", |case| Box::pin(leases::a_waiter_gets_a_stale_value_where_the_namespace_allows_it(case))),
    ];
    for format in [Format::Envelope, Format::Raw] {
        for (name, case) in cases {
            println!("{format:?}: {name}");
            let tenant = Uuid::new_v4().as_u128();
            case(Case { backend: Arc::clone(&backend), other: Arc::clone(&other), tenant, format }).await;
        }
    }
}

impl Case {
    fn rules(&self) -> Namespace {
        Namespace {
            format: self.format,
            content_type: HeaderValue::from_static("text/plain"),
            max_value_bytes: 1 << 20,
            default_ttl_ms: 60_000,
            max_ttl_ms: 60_000,
            fill_lease_ms: Some(LEASE_MS),
            stale_ms: 0,
            l1_ttl_ms: 60_000,
        }
    }

    fn scope(&self) -> Scope {
        Scope::for_test(self.tenant, "conformance")
    }

    fn address(&self, key: &str) -> Address {
        Address::new(self.scope(), &Key::parse(key).unwrap(), None)
    }

    fn versioned(&self, key: &str, version: &str) -> Address {
        Address::new(self.scope(), &Key::parse(key).unwrap(), Some(Key::parse(version).unwrap()))
    }

    async fn put(&self, address: &Address, body: &str) -> Result<Etag, CacheError> {
        self.backend.put(address, &self.rules(), write(body), BUDGET).await
    }

    async fn get(&self, address: &Address) -> Option<String> {
        get(&*self.backend, address, &self.rules()).await
    }

    /// What the store has, whatever L1 has.
    async fn stored(&self, address: &Address) -> Option<Found> {
        match self.backend.lookup(address, &self.rules(), BUDGET).await.unwrap() {
            Lookup::Found(found) => Some(found),
            Lookup::Absent => None,
        }
    }

    async fn lease(&self, address: &Address, lease_ms: u64) -> LeaseAnswer {
        self.backend.lease(address, &self.rules(), lease_ms, BUDGET).await.unwrap()
    }

    async fn granted(&self, address: &Address, lease_ms: u64) -> LeaseToken {
        match self.lease(address, lease_ms).await {
            LeaseAnswer::Granted(token) => token,
            other => panic!("expected a lease, got {other:?}"),
        }
    }

    async fn invalidate(&self, version: Option<&str>) {
        self.backend.invalidate(&self.scope(), &self.rules(), version, BUDGET).await.unwrap();
    }

    /// Until so many callers wait for an entry to change.
    async fn waiting(&self, callers: usize) {
        let (end, mut ticks) = (Instant::now() + BUDGET, tokio::time::interval(Duration::from_millis(1)));
        while self.backend.waiters().count() != callers {
            assert!(Instant::now() < end, "{} callers wait", self.backend.waiters().count());
            ticks.tick().await;
        }
    }

    /// Waits until another process reads this.
    async fn other_reads(&self, address: &Address, expected: Option<&str>, within: Duration) {
        let end = Instant::now() + within;
        loop {
            let found = get(&*self.other, address, &self.rules()).await;
            if found.as_deref() == expected {
                return;
            }
            assert!(Instant::now() < end, "the other process still reads {found:?} after {within:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

async fn get(backend: &dyn CacheBackend, address: &Address, rules: &Namespace) -> Option<String> {
    let found = match backend.cached(address) {
        Some(found) => Some(found),
        None => match backend.lookup(address, rules, BUDGET).await.unwrap() {
            Lookup::Found(found) => Some(found),
            Lookup::Absent => None,
        },
    };
    found.map(|found| String::from_utf8(found.stored.body.to_vec()).unwrap())
}

fn write(body: &str) -> Write {
    Write {
        body: Bytes::copy_from_slice(body.as_bytes()),
        content_type: HeaderValue::from_static("text/plain"),
        ttl_ms: 60_000,
        conditions: Conditions::default(),
        lease: None,
        max_tenant_bytes: 1 << 30,
    }
}
