//! Fill leases, sentence by sentence of the contract.

use super::*;
use crate::primitives::cache::lease::{self, Read};

async fn fill(case: &Case, address: &Address, token: &LeaseToken, body: &str) -> Result<Etag, CacheError> {
    let write = Write { lease: Some(token.clone()), ..write(body) };
    case.backend.put(address, &case.rules(), write, BUDGET).await
}

fn wait<'c>(
    case: &'c Case,
    address: &'c Address,
    rules: &'c Namespace,
    wait_ms: u64,
    lease_ms: u64,
) -> BoxFuture<'c, Read> {
    Box::pin(async move {
        let until = Instant::now() + Duration::from_millis(wait_ms);
        lease::read(&*case.backend, address, rules, lease_ms, Some(until), BUDGET).await.unwrap()
    })
}

pub(super) async fn one_caller_fills_and_the_others_wait(case: Case) {
    let (address, rules) = (case.address("k"), case.rules());
    let token = case.granted(&address, LEASE_MS).await;
    for _ in 0..3 {
        assert!(matches!(case.lease(&address, LEASE_MS).await, LeaseAnswer::Held { stale: None, .. }));
        let at_other = case.other.lease(&address, &rules, LEASE_MS, BUDGET).await.unwrap();
        assert!(matches!(at_other, LeaseAnswer::Held { .. }), "{at_other:?}");
    }
    assert!(matches!(wait(&case, &address, &rules, 30, LEASE_MS).await, Read::Wait));
    let began = Instant::now();
    let waiting =
        futures_util::future::join_all((0..8).map(|_| wait(&case, &address, &rules, 5000, LEASE_MS)));
    let filling = async {
        case.waiting(8).await;
        fill(&case, &address, &token, "filled").await.unwrap();
    };
    let (waited, ()) = futures_util::future::join(waiting, filling).await;
    for read in waited {
        let Read::Found(found) = read else { panic!("a waiter did not get the value") };
        assert_eq!(found.stored.body, "filled");
    }
    assert!(began.elapsed() < Duration::from_secs(2), "waiters were told late: {:?}", began.elapsed());
    assert!(matches!(case.lease(&address, LEASE_MS).await, LeaseAnswer::Found(_)));
    let again = fill(&case, &address, &token, "again").await;
    assert!(matches!(again, Err(CacheError::LeaseVoid)), "a lease is used once: {again:?}");
}

pub(super) async fn a_void_lease_writes_nothing(case: Case) {
    let invented = LeaseToken::random();
    let address = case.address("invented");
    assert!(matches!(fill(&case, &address, &invented, "no").await, Err(CacheError::LeaseVoid)));
    assert_eq!(case.get(&address).await, None);

    let address = case.address("written");
    let token = case.granted(&address, LEASE_MS).await;
    case.put(&address, "by another").await.expect("a PUT without a token wins");
    assert!(matches!(fill(&case, &address, &token, "late").await, Err(CacheError::LeaseVoid)));
    assert_eq!(case.get(&address).await.as_deref(), Some("by another"));

    let address = case.address("deleted");
    let token = case.granted(&address, LEASE_MS).await;
    case.backend.delete(&address, &case.rules(), None, BUDGET).await.unwrap();
    assert!(matches!(fill(&case, &address, &token, "late").await, Err(CacheError::LeaseVoid)));
    assert_eq!(case.get(&address).await, None);

    let address = case.address("invalidated");
    let token = case.granted(&address, LEASE_MS).await;
    case.invalidate(None).await;
    assert!(matches!(fill(&case, &address, &token, "late").await, Err(CacheError::LeaseVoid)));
    assert_eq!(case.get(&address).await, None);

    let address = case.address("ran out");
    let token = case.granted(&address, 20).await;
    tokio::time::sleep(Duration::from_millis(40)).await;
    assert!(matches!(fill(&case, &address, &token, "late").await, Err(CacheError::LeaseVoid)));
    assert_eq!(case.get(&address).await, None);
}

pub(super) async fn nobody_gets_a_lease_while_its_holder_s_write_is_under_way(case: Case) {
    for round in 0..100 {
        let address = case.address(&format!("k{round}"));
        let token = case.granted(&address, LEASE_MS).await;
        let asking = futures_util::future::join_all((0..4).map(|_| case.lease(&address, LEASE_MS)));
        let (filled, answers) =
            futures_util::future::join(fill(&case, &address, &token, "filled"), asking).await;
        filled.unwrap();
        for answer in answers {
            assert!(!matches!(answer, LeaseAnswer::Granted(_)), "round {round}: {answer:?}");
        }
    }
}

pub(super) async fn a_lease_given_up_goes_to_one_other(case: Case) {
    let (address, rules) = (case.address("k"), case.rules());
    let token = case.granted(&address, LEASE_MS).await;
    case.backend.delete(&address, &case.rules(), Some(LeaseToken::random()), BUDGET).await.unwrap();
    assert!(matches!(case.lease(&address, LEASE_MS).await, LeaseAnswer::Held { .. }), "a foreign token");
    let waiting =
        futures_util::future::join_all((0..6).map(|_| wait(&case, &address, &rules, 600, LEASE_MS)));
    let giving_up = async {
        case.waiting(6).await;
        case.backend.delete(&address, &case.rules(), Some(token.clone()), BUDGET).await.unwrap();
    };
    let (waited, ()) = futures_util::future::join(waiting, giving_up).await;
    assert_eq!(waited.iter().filter(|read| matches!(read, Read::Fill(_))).count(), 1);
    assert_eq!(waited.iter().filter(|read| matches!(read, Read::Wait)).count(), 5);

    let kept = case.address("kept");
    case.put(&kept, "value").await.unwrap();
    case.backend.delete(&kept, &case.rules(), Some(LeaseToken::random()), BUDGET).await.unwrap();
    assert_eq!(case.get(&kept).await.as_deref(), Some("value"), "the lease only, not the value");
}

pub(super) async fn a_lease_that_ran_out_goes_to_exactly_one_waiter(case: Case) {
    let (address, rules) = (case.address("k"), case.rules());
    case.granted(&address, 100).await;
    let waited =
        futures_util::future::join_all((0..8).map(|_| wait(&case, &address, &rules, 500, LEASE_MS))).await;
    assert_eq!(waited.iter().filter(|read| matches!(read, Read::Fill(_))).count(), 1);
    assert_eq!(waited.iter().filter(|read| matches!(read, Read::Wait)).count(), 7);
}

pub(super) async fn a_waiter_gets_a_stale_value_where_the_namespace_allows_it(case: Case) {
    if case.format == Format::Raw {
        // A raw key ends with its time, since other systems read it.
        return;
    }
    let address = case.address("k");
    let rules = Namespace { stale_ms: 60_000, l1_ttl_ms: 0, ..case.rules() };
    let short = Write { ttl_ms: 30, ..write("old") };
    case.backend.put(&address, &rules, short, BUDGET).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(matches!(case.backend.lookup(&address, &rules, BUDGET).await.unwrap(), Lookup::Absent));
    let granted = case.backend.lease(&address, &rules, LEASE_MS, BUDGET).await.unwrap();
    assert!(matches!(granted, LeaseAnswer::Granted(_)), "who fills gets no stale value: {granted:?}");
    let Read::Found(found) = wait(&case, &address, &rules, 30, LEASE_MS).await else {
        panic!("a waiter gets the stale value when its wait is over")
    };
    assert_eq!((found.tier, &found.stored.body[..]), (Tier::Stale, &b"old"[..]));
    case.backend.invalidate(&case.scope(), &rules, None, BUDGET).await.unwrap();
    case.backend.lease(&address, &rules, LEASE_MS, BUDGET).await.unwrap();
    assert!(
        matches!(wait(&case, &address, &rules, 30, LEASE_MS).await, Read::Wait),
        "what was invalidated is not served as stale either"
    );
}
