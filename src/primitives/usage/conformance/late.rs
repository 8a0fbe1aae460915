//! What comes again when it is too late to be new.

use super::*;

const DAY_US: i64 = 86_400_000_000;

/// Counts a call in which the points of these numbers are late.
async fn late(partitions: &Days, store: &Store, points: &[Point], late: &[Late]) -> Verdict {
    let call = Call::of(A, vec![metric()], points.to_vec(), &calendar()).with_late(late.to_vec());
    partitions.make(call.days()).await.unwrap();
    as_tenant(store, A, call).await.unwrap().pop().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_record_is_what_was_counted_or_nothing() {
    let stores = Stores::with_timescale(2).await;
    for (name, store) in stores.all() {
        let (partitions, now) = (Days::new(store.clone()), now_us());
        let old = now - 40 * DAY_US;
        let of = |number| Late { number, accept_late_us: 35 * DAY_US, is_far: true };
        let (known, new) = (point(A, "known", old, "1.5", Some("eu")), point(A, "new", now, "4", None));
        let unknown = point(A, "unknown", old, "2", None);
        let accepted = |accepted, duplicates| Verdict::Counted { accepted, duplicates };
        assert_eq!(
            counted(&partitions, store, A, std::slice::from_ref(&known)).await,
            accepted(1, 0),
            "{name}"
        );

        let both = [known.clone(), new.clone()];
        assert_eq!(late(&partitions, store, &both, &[of(0)]).await, accepted(1, 1), "{name}");
        assert_eq!(late(&partitions, store, &both, &[of(0)]).await, accepted(0, 2), "{name}: again");
        let lie = [point(A, "known", old, "1.6", Some("eu"))];
        assert_eq!(late(&partitions, store, &lie, &[of(0)]).await, refused(vec![0]), "{name}");
        // Nothing of a call with one that is unknown is counted, and all that is wrong with it is said.
        let more = [point(A, "more", now, "8", None), unknown.clone(), lie[0].clone(), unknown.clone()];
        let all = Refusal { conflicts: vec![2], too_late: vec![1, 3], ..Refusal::default() };
        let of_all = [of(1), of(2), of(3)];
        assert_eq!(late(&partitions, store, &more, &of_all).await, Verdict::Refused(all), "{name}");
        assert_eq!(sums(store, A).await, expected(A, &[known, new]), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whether_one_is_late_that_is_near_the_limit_the_store_s_clock_says() {
    let stores = Stores::with_timescale(2).await;
    for (name, store) in stores.all() {
        let (partitions, now) = (Days::new(store.clone()), now_us());
        let points = [point(A, "k", now - 2 * DAY_US, "1", None)];
        // A process whose clock is an hour ahead takes it for late, and so is a minute.
        let near = |accept_late_us| [Late { number: 0, accept_late_us, is_far: false }];
        let verdict = late(&partitions, store, &points, &near(2 * DAY_US - 60_000_000)).await;
        let too_late = Refusal { too_late: vec![0], ..Refusal::default() };
        assert_eq!(verdict, Verdict::Refused(too_late), "{name}");
        let verdict = late(&partitions, store, &points, &near(2 * DAY_US + 600_000_000)).await;
        assert_eq!(verdict, Verdict::Counted { accepted: 1, duplicates: 0 }, "{name}");
        assert_eq!(sums(store, A).await, expected(A, &points), "{name}");
    }
}
