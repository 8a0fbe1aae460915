//! Invalidation: by generation, at once, and exactly of what was asked.

use super::*;

pub(super) async fn takes_everything_of_one_scope(case: Case) {
    let addresses: Vec<_> = (0..50).map(|at| case.address(&format!("k{at}"))).collect();
    for address in &addresses {
        case.put(address, "old").await.unwrap();
        case.other_reads(address, Some("old"), BUDGET).await;
        assert_eq!(case.get(address).await.as_deref(), Some("old"));
    }
    let elsewhere =
        Address::new(Scope::for_test(case.tenant, "conformance2"), &Key::parse("k").unwrap(), None);
    case.put(&elsewhere, "kept").await.unwrap();
    case.invalidate(None).await;
    for address in &addresses {
        assert_eq!(case.get(address).await, None);
        case.other_reads(address, None, Duration::from_millis(100)).await;
    }
    assert_eq!(case.get(&elsewhere).await.as_deref(), Some("kept"));
    case.put(&addresses[0], "new").await.unwrap();
    assert_eq!(case.get(&addresses[0]).await.as_deref(), Some("new"));
    case.other_reads(&addresses[0], Some("new"), BUDGET).await;
    case.invalidate(None).await;
    case.invalidate(None).await;
    assert_eq!(case.get(&addresses[0]).await, None);
}

pub(super) async fn of_a_version_takes_that_version(case: Case) {
    let (one, two, none) = (case.versioned("k", "1"), case.versioned("k", "2"), case.address("k"));
    for address in [&one, &two, &none] {
        case.put(address, "old").await.unwrap();
    }
    case.invalidate(Some("1")).await;
    assert_eq!(case.get(&one).await, None);
    assert_eq!(case.get(&two).await.as_deref(), Some("old"));
    assert_eq!(case.get(&none).await.as_deref(), Some("old"));
    case.put(&one, "new").await.unwrap();
    assert_eq!(case.get(&one).await.as_deref(), Some("new"));
    case.invalidate(None).await;
    for address in [&one, &two, &none] {
        assert_eq!(case.get(address).await, None);
    }
}

pub(super) async fn of_many_versions_is_bounded(case: Case) {
    let kept = case.address("k");
    case.put(&kept, "old").await.unwrap();
    for version in 0..crate::primitives::cache::generation::MAX_VERSIONS + 2 {
        case.invalidate(Some(&format!("v{version}"))).await;
    }
    // At the bound the whole scope was renewed: a miss more, never an old value.
    assert_eq!(case.get(&kept).await, None);
    let first = case.versioned("k", "v0");
    case.put(&first, "new").await.unwrap();
    assert_eq!(case.get(&first).await.as_deref(), Some("new"));
}
