//! Values: written, read, condition by condition, until they end.

use super::*;
use crate::primitives::cache::etag::Tags;
use crate::primitives::cache::now_ms;

pub(super) async fn are_read_as_written(case: Case) {
    let address = case.address("a:b/{c} %-é");
    assert_eq!(case.get(&address).await, None);
    let before = now_ms();
    let etag = case.put(&address, "one").await.unwrap();
    let found = case.stored(&address).await.unwrap();
    assert_eq!((found.tier, &found.stored.body[..]), (Tier::L2, &b"one"[..]));
    assert_eq!(
        (found.stored.etag, &found.stored.content_type),
        (etag, &HeaderValue::from_static("text/plain"))
    );
    assert!((before..=now_ms()).contains(&found.stored.written_at_ms));
    assert_ne!(case.put(&address, "two").await.unwrap(), etag);
    assert_eq!(case.get(&address).await.as_deref(), Some("two"));
    case.other_reads(&address, Some("two"), BUDGET).await;
    case.put(&address, "").await.unwrap();
    assert_eq!(case.get(&address).await.as_deref(), Some(""));
    let large = "x".repeat(1 << 20);
    case.put(&address, &large).await.unwrap();
    assert_eq!(case.get(&address).await, Some(large));
}

pub(super) async fn of_tenants_namespaces_and_versions_are_apart(case: Case) {
    let own = case.address("k");
    case.put(&own, "own").await.unwrap();
    let foreign = Scope::for_test(Uuid::new_v4().as_u128(), "conformance");
    let elsewhere = Scope::for_test(case.tenant, "conformance2");
    let key = Key::parse("k").unwrap();
    for address in [
        Address::new(foreign, &key, None),
        Address::new(elsewhere, &key, None),
        case.versioned("k", "-"),
        case.versioned("k", "1"),
    ] {
        assert_eq!(case.get(&address).await, None, "{address:?}");
        case.put(&address, "other").await.unwrap();
    }
    assert_eq!(case.get(&own).await.as_deref(), Some("own"));
}

pub(super) async fn deleted_are_gone(case: Case) {
    let address = case.address("k");
    case.backend.delete(&address, &case.rules(), None, BUDGET).await.unwrap();
    case.put(&address, "one").await.unwrap();
    assert_eq!(case.get(&address).await.as_deref(), Some("one"));
    case.other_reads(&address, Some("one"), BUDGET).await;
    case.backend.delete(&address, &case.rules(), None, BUDGET).await.unwrap();
    assert_eq!(case.get(&address).await, None);
    case.other_reads(&address, None, Duration::from_millis(100)).await;
}

pub(super) async fn conditions_are_judged_in_the_same_step(case: Case) {
    let (address, rules) = (case.address("k"), case.rules());
    let conditional = |if_match: Option<Tags>, if_none_match: Option<Tags>| {
        let conditions = Conditions { if_match, if_none_match };
        case.backend.put(&address, &rules, Write { conditions, ..write("new") }, BUDGET)
    };
    let refused = |written: Result<Etag, CacheError>| matches!(written, Err(CacheError::PreconditionFailed));
    assert!(refused(conditional(Some(Tags::Any), None).await), "nothing is there");
    let one = case.put(&address, "one").await.unwrap();
    assert!(refused(conditional(None, Some(Tags::Any)).await));
    assert!(refused(conditional(None, Some(Tags::Listed(vec![one]))).await));
    assert!(refused(conditional(Some(Tags::Listed(vec![])), None).await));
    assert_eq!(case.get(&address).await.as_deref(), Some("one"), "what was refused left no trace");
    let two = conditional(Some(Tags::Listed(vec![Etag::of_body(b"x"), one])), None).await.unwrap();
    assert!(refused(conditional(Some(Tags::Listed(vec![one])), None).await));
    assert!(conditional(Some(Tags::Any), Some(Tags::Listed(vec![one]))).await.is_ok());
    assert_eq!(case.stored(&address).await.unwrap().stored.etag, two);
    case.backend.delete(&address, &case.rules(), None, BUDGET).await.unwrap();
    assert!(conditional(None, Some(Tags::Any)).await.is_ok());
}

pub(super) async fn one_of_many_creators_wins(case: Case) {
    let address = case.address("k");
    let rules = case.rules();
    let writes = (0..20).map(|at| {
        let conditions = Conditions { if_match: None, if_none_match: Some(Tags::Any) };
        let body = format!("by {at}");
        let backend = &case.backend;
        let (address, rules) = (&address, &rules);
        async move { backend.put(address, rules, Write { conditions, ..write(&body) }, BUDGET).await.is_ok() }
    });
    let won = futures_util::future::join_all(writes).await;
    assert_eq!(won.iter().filter(|won| **won).count(), 1);
    let winner = won.iter().position(|won| *won).unwrap();
    assert_eq!(case.get(&address).await, Some(format!("by {winner}")));
}

pub(super) async fn end_with_their_time(case: Case) {
    let address = case.address("k");
    let began = Instant::now();
    case.backend.put(&address, &case.rules(), Write { ttl_ms: 150, ..write("one") }, BUDGET).await.unwrap();
    if began.elapsed() < Duration::from_millis(100) {
        assert_eq!(case.get(&address).await.as_deref(), Some("one"));
    }
    while case.get(&address).await.is_some() {
        assert!(began.elapsed() < Duration::from_secs(2), "it is still there");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(began.elapsed() >= Duration::from_millis(149), "it ended early: {:?}", began.elapsed());
    let conditions = Conditions { if_match: None, if_none_match: Some(Tags::Any) };
    let created =
        case.backend.put(&address, &case.rules(), Write { conditions, ..write("two") }, BUDGET).await;
    assert!(created.is_ok(), "an ended value counts as absent: {created:?}");
}

pub(super) async fn over_a_tenants_room_are_refused_until_some_are_deleted(case: Case) {
    let rules = case.rules();
    let put = |address: Address, bytes: usize| {
        let write = Write { max_tenant_bytes: 10_000, ..write(&"x".repeat(bytes)) };
        let (backend, rules) = (&case.backend, &rules);
        async move { backend.put(&address, rules, write, BUDGET).await }
    };
    let within = |what: &'static str, end: Instant| assert!(Instant::now() < end, "{what}: not within 3 s");
    put(case.address("a"), 6000).await.unwrap();
    // A fleet knows the sum approximately: within a second.
    let end = Instant::now() + Duration::from_secs(3);
    loop {
        match put(case.address("b"), 6000).await {
            Err(CacheError::TenantFull { max_bytes: 10_000 }) => break,
            Ok(_) => case.backend.delete(&case.address("b"), &case.rules(), None, BUDGET).await.unwrap(),
            Err(error) => panic!("{error}"),
        }
        within("a write over the room was stored", end);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    put(case.address("a"), 6100).await.expect("an overwrite gives the old bytes back");
    case.backend.delete(&case.address("a"), &case.rules(), None, BUDGET).await.unwrap();
    let end = Instant::now() + Duration::from_secs(3);
    while put(case.address("b"), 6000).await.is_err() {
        within("deleting made no room", end);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(super) async fn in_l1_are_never_older_than_this_process_s_writes(case: Case) {
    let address = case.address("k");
    for round in 0..200 {
        let body = format!("round {round}");
        let (reads, written) = futures_util::future::join(
            futures_util::future::join_all((0..4).map(|_| case.get(&address))),
            case.put(&address, &body),
        )
        .await;
        written.unwrap();
        assert_eq!(reads.len(), 4);
        assert_eq!(case.get(&address).await, Some(body), "an older value was read after a write");
    }
    let end = Instant::now() + BUDGET;
    while case.backend.cached(&address).is_none() {
        assert!(Instant::now() < end, "nothing is ever served from L1");
        case.get(&address).await;
    }
    assert_eq!(case.backend.cached(&address).unwrap().tier, Tier::L1);
    case.backend.delete(&address, &case.rules(), None, BUDGET).await.unwrap();
    assert_eq!(case.get(&address).await, None);
}
