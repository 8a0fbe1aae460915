//! Endpoints that are down, slow, or after something else.

use super::*;

/// One event for an endpoint, and what the first `count` attempts came to.
async fn outcomes(
    subscription: Subscription,
    bench: &Bench,
    count: usize,
) -> Vec<(u32, Outcome, Option<u16>)> {
    let text = subscription.name.to_string();
    bench.set(vec![subscription]);
    bench.publish(&text, "k", "x");
    bench.attempts(&text, count).await;
    bench.outcomes(&text)
}

#[tokio::test]
async fn an_endpoint_that_misbehaves_is_a_failure_of_its_kind() {
    let receiver = Receiver::start().await;
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let at = |path: &str| format!("http://{}{path}", receiver.address);
    for (url, expected, status) in [
        (at("/never"), Outcome::TimedOut, None),
        (at("/close"), Outcome::BrokenOff, None),
        (at("/status/500"), Outcome::Failed, Some(500)),
        (at("/status/404"), Outcome::Rejected, Some(404)),
        (at("/status/410"), Outcome::Gone, Some(410)),
        (at("/status/503"), Outcome::Failed, Some(503)),
        (at("/throttle/1"), Outcome::Throttled, Some(429)),
        (at("/endless"), Outcome::Delivered, Some(200)),
        (format!("http://{free}/"), Outcome::Unreachable, None),
        ("http://does-not-exist.invalid/".to_owned(), Outcome::Unreachable, None),
    ] {
        let bench = Bench::new();
        let mut subscription = bench.subscription("crm", &url);
        if url.contains("invalid") {
            subscription.timeout_ms = 10_000;
        }
        assert_eq!(outcomes(subscription, &bench, 1).await[0], (1, expected, status), "{url}");
        let text = bench.registry.render().unwrap();
        let line = format!("outrigger_events_push_attempts_total{{outcome=\"{}\"}}", expected.label());
        assert!(text.lines().any(|found| found.starts_with(&line) && !found.ends_with(" 0")), "{text}");
        assert!(!text.contains("crm") && !text.contains("whsec"), "{text}");
    }
}

#[tokio::test]
async fn a_redirect_to_somewhere_inside_is_not_followed() {
    let (receiver, inside) = (Receiver::start().await, Receiver::start().await);
    for target in [
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        format!("http://{}/", inside.address),
        format!("http://localhost:{}/", inside.address.port()),
    ] {
        let bench = Bench::new();
        let url = format!("http://{}/redirect?{target}", receiver.address);
        let failed = |attempt| (attempt, Outcome::Redirected, Some(307));
        let found = outcomes(bench.subscription("crm", &url), &bench, 3).await;
        assert_eq!(found, [failed(1), failed(2), failed(3)], "{target}");
    }
    assert_eq!(inside.connections(), 0);
}

#[tokio::test]
async fn a_name_or_address_of_this_machine_is_refused_where_private_ones_are_not_allowed() {
    let receiver = Receiver::start().await;
    let port = receiver.address.port();
    for host in ["localhost", "127.0.0.1", "127.1", "[::ffff:127.0.0.1]"] {
        for scheme in ["http", "https"] {
            let bench = Bench::new();
            // To TLS, `127.1` is no name at all.
            let scheme = if host == "127.1" { "http" } else { scheme };
            let url = format!("{scheme}://{host}:{port}/");
            let subscription = Subscription { reach: Reach::Public, ..bench.subscription("crm", &url) };
            assert_eq!(
                outcomes(subscription, &bench, 1).await[0],
                (1, Outcome::AddressRefused, None),
                "{url}"
            );
        }
    }
    assert_eq!(receiver.connections(), 0, "not even a connection");
    let bench = Bench::new();
    let subscription = Subscription {
        reach: Reach::Loopback,
        ..bench.subscription("own", &format!("http://127.0.0.1:{port}/"))
    };
    assert_eq!(outcomes(subscription, &bench, 1).await, [(1, Outcome::Delivered, Some(204))]);
}

#[tokio::test]
async fn a_pause_for_one_tenant_keeps_no_other_s_events_waiting() {
    let (bench, receiver) = (Bench::new(), Receiver::start().await);
    let (topic, other) = (name("crm"), Uuid::from_u128(2));
    let subscription = Subscription {
        max_attempts: 100,
        ..bench.subscription("crm", &format!("http://{}/throttle-hot/30", receiver.address))
    };
    bench.set(vec![subscription]);
    let publish = |tenant, key: &str, data: &str| {
        bench.memory.publish(&topic, tenant, "made", key, data);
        bench.dispatcher.arrival(&topic, tenant);
    };
    // As many answers of this kind as would open a circuit, and each for another key.
    for number in 0..8 {
        publish(TENANT, &format!("k{number}"), "hot");
    }
    bench.attempts("crm", 1).await;
    for number in 0..20 {
        publish(other, "k", &format!("cold{number}"));
        until("the other tenant's", || receiver.times().contains_key(&format!("cold{number}"))).await;
    }
    assert_eq!(bench.metrics.circuits_open.get(), 0);
    let times = receiver.times();
    let first = receiver.received().first().unwrap().at;
    let waited = times["cold19"].duration_since(first);
    assert!(waited < Duration::from_secs(3), "{waited:?}");
    let hot = receiver.received().iter().filter(|one| one.data() == "hot").count();
    assert!((1..=4).contains(&hot), "{hot}: what was under way with the first, and no more");
}

#[tokio::test]
async fn an_endpoint_that_fails_or_hangs_on_one_tenant_s_events_is_sent_the_others() {
    for path in ["fail-hot", "hang-hot"] {
        let (bench, receiver) = (Bench::new(), Receiver::start().await);
        let (topic, other) = (name("crm"), Uuid::from_u128(2));
        bench.set(vec![Subscription {
            max_attempts: 1000,
            timeout_ms: 10_000,
            ..bench.subscription("crm", &format!("http://{}/{path}/", receiver.address))
        }]);
        let publish = |tenant, key: &str, data: &str| {
            bench.memory.publish(&topic, tenant, "made", key, data);
            bench.dispatcher.arrival(&topic, tenant);
        };
        let hot = || receiver.received().iter().filter(|one| one.data() == "hot").count();
        for number in 0..40 {
            publish(TENANT, &format!("k{number}"), "hot");
        }
        until("the first", || hot() > 0).await;
        for round in 0..8 {
            if path == "fail-hot" {
                // It failed five times, and then at trials.
                until("failures", || hot() >= [5, 6][usize::from(round >= 4)]).await;
            }
            let (data, began) = (format!("cold{round}"), Instant::now());
            publish(other, "k", &data);
            until("the other tenant's", || receiver.times().contains_key(&data)).await;
            assert!(began.elapsed() < Duration::from_secs(2), "{path} {round}: {:?}", began.elapsed());
        }
        assert!(hot() <= 8, "{}: the one tenant's rest", hot());
    }
}

#[tokio::test]
async fn an_endpoint_that_asks_many_tenants_for_a_pause_is_left_alone_as_its_circuit_says() {
    let (bench, receiver) = (Bench::new(), Receiver::start().await);
    let topic = name("crm");
    bench.set(vec![bench.subscription("crm", &format!("http://{}/throttle-hot/30", receiver.address))]);
    for tenant in 1..=20 {
        bench.memory.publish(&topic, Uuid::from_u128(tenant), "made", "k", "hot");
        bench.dispatcher.arrival(&topic, Uuid::from_u128(tenant));
    }
    until("the circuit", || bench.metrics.circuits_open.get() == 1).await;
    assert!((5..=6).contains(&receiver.count()), "{}: two at a time", receiver.count());
}

#[tokio::test]
async fn an_endpoint_that_says_when_to_come_again_is_left_alone_until_then() {
    let (bench, receiver) = (Bench::new(), Receiver::start().await);
    bench.set(vec![bench.subscription("crm", &format!("http://{}/throttle/1", receiver.address))]);
    bench.publish("crm", "k1", "1");
    bench.attempts("crm", 1).await;
    let pulls = bench.memory.pulls(&name("crm"));
    bench.publish("crm", "k2", "2");
    bench.attempts("crm", 3).await;
    let received = receiver.received();
    let waited = received[1].at.duration_since(received[0].at);
    assert!(waited >= Duration::from_millis(950), "{waited:?}");
    assert_eq!(bench.metrics.circuits_open.get(), 0);
    assert!(bench.memory.pulls(&name("crm")) > pulls);
}

#[tokio::test]
async fn while_a_circuit_is_open_nothing_is_pulled_and_no_attempt_is_used_up() {
    let bench = Bench::with(Timing { look: Duration::from_millis(20), ..Timing::default() });
    let (receiver, well) = (Receiver::start().await, Receiver::start().await);
    let mut subscription = bench.subscription("crm", &format!("http://{}/status/500", receiver.address));
    subscription.max_attempts = 100;
    let erp = bench.subscription("erp", &format!("http://{}/", well.address));
    bench.set(vec![subscription, erp]);
    for number in 0..20 {
        bench.publish("crm", &format!("k{number}"), "x");
    }
    until("the circuit", || bench.metrics.circuits_open.get() == 1).await;
    assert_eq!(receiver.count(), 5, "five failures in a row, one at a time");
    assert_eq!(receiver.most_at_once("/status/500"), 1);
    let pulls = bench.memory.pulls(&name("crm"));
    bench.publish("crm", "k", "x");
    let looks = bench.memory.looks().0;
    // Meanwhile a well one's events go out, and what comes for either is looked for.
    for number in 0..10 {
        bench.publish("erp", "k", "x");
        bench.attempts("erp", number + 1).await;
    }
    until("five looks", || bench.memory.looks().0 >= looks + 5).await;
    assert_eq!(bench.memory.looks().1, 2);
    assert_eq!((bench.memory.pulls(&name("crm")), receiver.count()), (pulls, 5));
}

#[tokio::test]
async fn an_endpoint_that_is_gone_rests() {
    let (bench, receiver) = (Bench::new(), Receiver::start().await);
    let attempts = {
        bench.set(vec![bench.subscription("crm", &format!("http://{}/status/410", receiver.address))]);
        bench.publish("crm", "k", "x");
        bench.attempts("crm", 1).await
    };
    let rests_ms = attempts[0].next_at_ms.unwrap() - attempts[0].at_ms;
    assert!((3_599_000..3_660_000).contains(&rests_ms), "{rests_ms}");
    let pulls = bench.memory.pulls(&name("crm"));
    for _ in 0..3 {
        let looks = bench.memory.looks().0;
        bench.publish("crm", "other", "x");
        until("a look", || bench.memory.looks().0 > looks).await;
    }
    assert_eq!((bench.memory.pulls(&name("crm")), receiver.count()), (pulls, 1));
}

#[tokio::test]
async fn a_steady_endpoint_gets_as_many_at_once_as_policy_says_and_no_more() {
    let (bench, receiver) = (Bench::new(), Receiver::start().await);
    bench.set(vec![bench.subscription("crm", &format!("http://{}/slow/60", receiver.address))]);
    for number in 0..30 {
        bench.publish("crm", &format!("k{number}"), "x");
    }
    bench.attempts("crm", 30).await;
    assert_eq!(receiver.most_at_once("/slow/60"), 4);
    assert!(receiver.connections() <= 5, "{}", receiver.connections());
}

#[tokio::test]
async fn a_tenant_with_many_events_does_not_keep_another_waiting() {
    let (bench, receiver) = (Bench::new(), Receiver::start().await);
    let subscription = Subscription {
        concurrency: 1,
        ..bench.subscription("crm", &format!("http://{}/slow/20", receiver.address))
    };
    bench.set(vec![subscription]);
    let (topic, other) = (name("crm"), Uuid::from_u128(2));
    for number in 0..40 {
        bench.memory.publish(&topic, TENANT, "made", &format!("k{number}"), "many");
    }
    bench.memory.publish(&topic, other, "made", "k", "one");
    for tenant in [TENANT, other] {
        bench.dispatcher.arrival(&topic, tenant);
    }
    bench.attempts("crm", 41).await;
    let place = receiver.received().iter().position(|received| received.data() == "one").unwrap();
    assert!(place <= 5, "it was request {place}");
}

#[tokio::test]
async fn slow_and_dead_endpoints_that_fill_their_pool_hold_nobody_up() {
    let bench = Bench::with(Timing { places: 4, ..Timing::default() });
    let receiver = Receiver::start().await;
    let mut all: Vec<_> = (0..12)
        .map(|number| Subscription {
            timeout_ms: 15_000,
            ..bench.subscription(
                &format!("dead{number}"),
                &format!("http://{}/never/{number}", receiver.address),
            )
        })
        .collect();
    all.push(bench.subscription("well", &format!("http://{}/well", receiver.address)));
    bench.set(all);
    bench.publish("well", "k", "first");
    bench.attempts("well", 1).await;
    for number in 0..4 {
        bench.publish(&format!("dead{number}"), "k", "x");
    }
    until("four that hang", || receiver.count() == 5).await;
    bench.publish("well", "k", "second");
    bench.attempts("well", 2).await;
    let waited = receiver.times()["second"].duration_since(receiver.times()["first"]);
    assert!(waited < Duration::from_secs(5), "{waited:?}: they moved out of its way after a second");
}
