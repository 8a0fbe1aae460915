//! Push to real servers: what endpoints get, and what becomes of events whose endpoints misbehave.

mod crowd;
mod hostile;
mod receiver;
mod store;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use uuid::Uuid;

use super::memory::Memory;
use super::*;
use crate::config::SecretSource;
use crate::names::Name;
use crate::pools::upstream::Reach;
use crate::tasks::Tasks;
use crate::telemetry::Registry;
use receiver::Receiver;

const TENANT: Uuid = Uuid::from_u128(0x0190_c7a8_3c5e_7f00_8000_0000_0000_00a1);
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

/// A dispatcher over deliveries in memory, and a folder for secrets.
struct Bench {
    memory: Arc<Memory>,
    dispatcher: Dispatcher,
    registry: Registry,
    metrics: PushMetrics,
    tasks: Tasks,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self::with(Timing { secrets: Duration::from_millis(100), ..Timing::default() })
    }

    fn with(timing: Timing) -> Self {
        Self::over(Arc::default(), timing)
    }

    fn over(memory: Arc<Memory>, timing: Timing) -> Self {
        let (registry, tasks) = (Registry::default(), Tasks::default());
        let metrics = PushMetrics::new(&registry).unwrap();
        let deliveries: Arc<dyn Deliveries> = Arc::clone(&memory) as _;
        let dispatcher = Dispatcher::start(deliveries, metrics.clone(), timing, &tasks).unwrap();
        let bench =
            Self { memory, dispatcher, registry, metrics, tasks, folder: tempfile::tempdir().unwrap() };
        bench.write_secret("secret", SECRET);
        bench
    }

    fn secret(&self, name: &str) -> SecretSource {
        SecretSource::File(self.folder.path().join(name))
    }

    fn write_secret(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    /// A subscription that waits little between attempts, of a topic of its own name.
    fn subscription(&self, text: &str, url: &str) -> Subscription {
        Subscription {
            name: name(text),
            group: name(&format!("push.{text}")),
            topic: name(text),
            types: Vec::new(),
            url: url.parse().unwrap(),
            reach: Reach::Private,
            ca_file: None,
            tenants: Tenants::Any,
            secrets: vec![self.secret("secret")],
            timeout_ms: 300,
            concurrency: 4,
            max_attempts: 3,
            backoff: Backoff { first_ms: 20, max_ms: 100 },
        }
    }

    fn set(&self, subscriptions: Vec<Subscription>) {
        let subscriptions: Vec<_> = subscriptions.into_iter().map(Arc::new).collect();
        self.dispatcher.set(&subscriptions).unwrap();
    }

    /// Accepts an event, and says so.
    fn publish(&self, topic: &str, key: &str, data: &str) -> i64 {
        let position = self.memory.publish(&name(topic), TENANT, "made", key, data);
        self.dispatcher.arrival(&name(topic), TENANT);
        position
    }

    fn outcomes(&self, subscription: &str) -> Vec<(u32, Outcome, Option<u16>)> {
        let attempts = self.memory.attempts(&name(subscription));
        attempts.iter().map(|attempt| (attempt.attempt, attempt.outcome, attempt.status)).collect()
    }

    async fn attempts(&self, subscription: &str, count: usize) -> Vec<Attempt> {
        until("attempts", || self.memory.attempts(&name(subscription)).len() >= count).await;
        self.memory.attempts(&name(subscription))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.tasks.stopping().cancel();
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut looks = tokio::time::interval(Duration::from_millis(2));
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        looks.tick().await;
    }
}

#[tokio::test]
async fn an_event_is_posted_as_a_signed_cloudevent_with_nothing_else_of_ours() {
    let (bench, receiver) = (Bench::new(), Receiver::start().await);
    let url = format!("http://{}/hook?for=crm", receiver.address);
    bench.set(vec![bench.subscription("crm", &url)]);
    let position = bench.publish("crm", "k", "hello");
    let attempts = bench.attempts("crm", 1).await;
    let received = receiver.received();
    assert_eq!(
        (received.len(), received[0].method.clone(), received[0].path.as_str()),
        (1, Method::POST, "/hook")
    );
    let mut names: Vec<_> = received[0].headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    let expected = [
        "content-length",
        "content-type",
        "host",
        "user-agent",
        "webhook-id",
        "webhook-signature",
        "webhook-timestamp",
    ];
    assert_eq!(names, expected);
    assert_eq!(received[0].header("content-type"), "application/cloudevents+json");
    assert_eq!(received[0].header("host"), receiver.address.to_string());
    let body = format!(
        "{{\"specversion\":\"1.0\",\"id\":\"event-{position}\",\"source\":\"/test\",\"type\":\"made\",\"data\":\"hello\"}}"
    );
    assert_eq!(received[0].body, body);
    let timestamp: i64 = received[0].header("webhook-timestamp").parse().unwrap();
    assert!((jiff::Timestamp::now().as_second() - timestamp).abs() < 20);
    let (id, signature) = (received[0].header("webhook-id"), received[0].header("webhook-signature"));
    assert!(signature::verify(SECRET, id, timestamp, &received[0].body, signature));
    assert!(!signature::verify(OTHER_SECRET, id, timestamp, &received[0].body, signature));
    let attempt = &attempts[0];
    assert_eq!((&*attempt.event_id, &*attempt.message_id), (format!("event-{position}").as_str(), id));
    assert_eq!(
        (attempt.attempt, attempt.outcome, attempt.status, attempt.next_at_ms),
        (1, Outcome::Delivered, Some(204), None)
    );
    assert_eq!(bench.metrics.attempts(Outcome::Delivered), 1);
    until("the end", || bench.memory.outstanding(&name("crm")) == 0).await;
}

#[tokio::test]
async fn while_a_secret_rotates_receivers_of_either_are_content() {
    let (bench, receiver) = (Bench::new(), Receiver::start().await);
    bench.write_secret("next", OTHER_SECRET);
    let mut subscription = bench.subscription("crm", &format!("http://{}/", receiver.address));
    subscription.secrets = vec![bench.secret("next"), bench.secret("secret")];
    bench.set(vec![subscription.clone()]);
    bench.publish("crm", "k", "both");
    bench.attempts("crm", 1).await;
    let good = |secret: &str, at: usize| {
        let request = &receiver.received()[at];
        let timestamp = request.header("webhook-timestamp").parse().unwrap();
        signature::verify(
            secret,
            request.header("webhook-id"),
            timestamp,
            &request.body,
            request.header("webhook-signature"),
        )
    };
    assert!(good(SECRET, 0) && good(OTHER_SECRET, 0));
    assert_eq!(receiver.received()[0].header("webhook-signature").split(' ').count(), 2);
    // The file changes under a subscription that stays as it is.
    subscription.secrets = vec![bench.secret("secret")];
    bench.set(vec![subscription]);
    bench.publish("crm", "k", "old");
    bench.attempts("crm", 2).await;
    assert!(good(SECRET, 1) && !good(OTHER_SECRET, 1));
    bench.write_secret("secret", OTHER_SECRET);
    // What is sent before the file is looked at again is signed with the old one, and never with both.
    let mut last = 1;
    while !good(OTHER_SECRET, last) {
        assert!(good(SECRET, last) && last < 10_000, "the new secret is not read");
        bench.publish("crm", "k", "new");
        last += 1;
        bench.attempts("crm", last + 1).await;
    }
    assert!(!good(SECRET, last));
}

#[tokio::test]
async fn without_a_secret_nothing_is_sent_and_no_attempt_is_used_up() {
    let bench = Bench::with(Timing {
        look: Duration::from_millis(20),
        secrets: Duration::from_millis(20),
        ..Timing::default()
    });
    let (receiver, well) = (Receiver::start().await, Receiver::start().await);
    let mut subscription = bench.subscription("crm", &format!("http://{}/", receiver.address));
    subscription.secrets = vec![bench.secret("later")];
    let erp = bench.subscription("erp", &format!("http://{}/", well.address));
    bench.set(vec![subscription, erp]);
    bench.publish("crm", "k", "x");
    // Meanwhile what has a secret goes out.
    for number in 0..10 {
        bench.publish("erp", "k", "x");
        bench.attempts("erp", number + 1).await;
    }
    until("ten looks", || bench.memory.looks().0 >= 10).await;
    assert_eq!((receiver.count(), bench.memory.pulls(&name("crm"))), (0, 0));
    bench.write_secret("later", SECRET);
    assert_eq!(bench.attempts("crm", 1).await[0].attempt, 1);
}

#[tokio::test]
async fn events_of_a_key_come_in_order_though_some_fail() {
    let (bench, receiver) = (Bench::new(), Receiver::start().await);
    // Each third request fails, whosever it is.
    let mut subscription = bench.subscription("crm", &format!("http://{}/fail/2/crm", receiver.address));
    subscription.max_attempts = 20;
    bench.set(vec![subscription]);
    for number in 0..40 {
        bench.publish("crm", &format!("k{}", number % 3), &format!("{number:02}"));
    }
    until("all", || bench.memory.attempts(&name("crm")).len() == 42).await;
    let attempts = bench.memory.attempts(&name("crm"));
    assert_eq!(attempts.iter().filter(|attempt| attempt.outcome == Outcome::Failed).count(), 2);
    for key in 0..3 {
        let mut data: Vec<_> = receiver.received().iter().map(receiver::Received::data).collect();
        data.retain(|data| data.parse::<u32>().unwrap() % 3 == key);
        data.dedup();
        assert!(data.is_sorted(), "key {key}: {data:?}");
        assert!(data.len() >= 13, "{data:?}");
    }
    assert!(receiver.most_at_once("/fail/2/crm") <= 3, "a key's events are not sent side by side");
}

#[tokio::test]
async fn what_was_handled_and_not_answered_comes_again_with_the_same_id() {
    let (bench, receiver) = (Bench::new(), Receiver::start().await);
    bench.set(vec![bench.subscription("crm", &format!("http://{}/handled-then-close/1", receiver.address))]);
    bench.publish("crm", "k", "x");
    bench.attempts("crm", 2).await;
    assert_eq!(bench.outcomes("crm"), [(1, Outcome::BrokenOff, None), (2, Outcome::Delivered, Some(204))]);
    let received = receiver.received();
    assert_eq!(received.len(), 2);
    assert_eq!(received[0].header("webhook-id"), received[1].header("webhook-id"));
    assert_eq!(received[0].body, received[1].body);
}

#[tokio::test]
async fn what_could_not_be_settled_comes_again_and_is_not_lost() {
    let (bench, receiver) = (Bench::new(), Receiver::start().await);
    bench.memory.refuses_to_settle.store(true, std::sync::atomic::Ordering::SeqCst);
    bench.set(vec![bench.subscription("crm", &format!("http://{}/", receiver.address))]);
    bench.publish("crm", "k", "x");
    until("the request", || receiver.count() == 1).await;
    assert_eq!(bench.memory.outstanding(&name("crm")), 1);
    bench.memory.refuses_to_settle.store(false, std::sync::atomic::Ordering::SeqCst);
    until("the settlement", || bench.memory.outstanding(&name("crm")) == 0).await;
    assert_eq!(bench.outcomes("crm"), [(1, Outcome::Delivered, Some(204))]);
}

#[tokio::test]
async fn what_a_process_that_died_was_sending_is_sent_by_another_with_the_same_id() {
    let (memory, receiver) = (Arc::new(Memory::default()), Receiver::start().await);
    let url = format!("http://{}/hang/1", receiver.address);
    let timing = Timing {
        look: Duration::from_millis(50),
        lease_grace: Duration::from_millis(400),
        ..Timing::default()
    };
    let process = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (first_memory, first_url) = (Arc::clone(&memory), url.clone());
    let first = process.spawn(async move {
        let bench = Bench::over(first_memory, timing);
        bench.set(vec![bench.subscription("crm", &first_url)]);
        bench.publish("crm", "k", "x");
        bench
    });
    let first = first.await.unwrap();
    until("the first request", || receiver.count() == 1).await;
    process.shutdown_background();
    let second = Bench::over(memory, timing);
    second.set(vec![second.subscription("crm", &url)]);
    second.attempts("crm", 1).await;
    assert_eq!(second.outcomes("crm"), [(2, Outcome::Delivered, Some(204))]);
    let received = receiver.received();
    assert_eq!(received[0].header("webhook-id"), received[1].header("webhook-id"));
    drop(first);
}

#[tokio::test]
async fn the_leases_of_a_key_s_events_are_kept_while_those_before_them_are_sent() {
    let bench = Bench::with(Timing { lease_grace: Duration::from_millis(100), ..Timing::default() });
    let receiver = Receiver::start().await;
    let url = format!("http://{}/slow/350", receiver.address);
    // Leases are for 1100 ms, and the last of eight is sent after 2450.
    bench.set(vec![Subscription { concurrency: 8, timeout_ms: 500, ..bench.subscription("crm", &url) }]);
    for number in 0..9 {
        bench.memory.publish(&name("crm"), TENANT, "made", "k", &number.to_string());
    }
    bench.dispatcher.arrival(&name("crm"), TENANT);
    bench.attempts("crm", 9).await;
    until("the end", || bench.memory.outstanding(&name("crm")) == 0).await;
    let data: Vec<_> = receiver.received().iter().map(receiver::Received::data).collect();
    assert_eq!(data.concat(), "012345678", "each once");
    assert_eq!(receiver.most_at_once("/slow/350"), 1, "one after another");
    assert_eq!(bench.outcomes("crm"), [(1, Outcome::Delivered, Some(204)); 9]);
}

#[tokio::test]
async fn after_its_attempts_an_event_is_dead_and_its_key_goes_on() {
    let (bench, receiver) = (Bench::new(), Receiver::start().await);
    bench.set(vec![bench.subscription("crm", &format!("http://{}/fail/3/crm", receiver.address))]);
    let position = bench.publish("crm", "k", "poisoned");
    bench.publish("crm", "k", "next");
    bench.attempts("crm", 4).await;
    assert_eq!(bench.memory.dead(&name("crm")), [(position, "nacked")]);
    let failed = |attempt| (attempt, Outcome::Failed, Some(500));
    assert_eq!(bench.outcomes("crm"), [failed(1), failed(2), failed(3), (1, Outcome::Delivered, Some(204))]);
    let attempts = bench.memory.attempts(&name("crm"));
    assert!(attempts[0].next_at_ms.is_some() && attempts[2].next_at_ms.is_none());
}

#[tokio::test]
async fn only_the_types_and_the_tenants_of_a_subscription_are_sent() {
    let (bench, receiver) = (Bench::new(), Receiver::start().await);
    let mut subscription = bench.subscription("crm", &format!("http://{}/", receiver.address));
    subscription.types = vec!["wanted".to_owned()];
    subscription.tenants = Tenants::These([TENANT].into());
    bench.set(vec![subscription]);
    let topic = name("crm");
    for number in 0..50 {
        bench.memory.publish(&topic, TENANT, "other", &format!("k{number}"), "other");
    }
    bench.memory.publish(&topic, TENANT, "wanted", "k", "wanted");
    bench.memory.publish(&topic, Uuid::from_u128(2), "wanted", "k", "foreign");
    for tenant in [TENANT, Uuid::from_u128(2)] {
        bench.dispatcher.arrival(&topic, tenant);
    }
    bench.attempts("crm", 1).await;
    until("the end", || bench.memory.outstanding(&topic) == 0).await;
    let data: Vec<_> = receiver.received().iter().map(receiver::Received::data).collect();
    assert_eq!(data, ["wanted"]);
    assert_eq!(bench.memory.attempts(&topic).len(), 1, "what is not sent is no attempt");
}

#[tokio::test]
async fn what_no_arrival_told_is_found_by_a_look_and_idle_subscriptions_cost_one_question_each_look() {
    let bench = Bench::with(Timing { look: Duration::from_millis(20), ..Timing::default() });
    let receiver = Receiver::start().await;
    let url = format!("http://{}/", receiver.address);
    bench.set((0..1000).map(|number| bench.subscription(&format!("s{number}"), &url)).collect());
    until("looks", || bench.memory.looks().0 >= 3).await;
    assert_eq!(bench.memory.looks().1, 1000, "one question for all of them");
    let pulls = |bench: &Bench| {
        (0..1000).map(|number| bench.memory.pulls(&name(&format!("s{number}")))).sum::<usize>()
    };
    assert_eq!((pulls(&bench), receiver.connections()), (0, 0));
    bench.memory.publish(&name("s7"), TENANT, "made", "k", "x");
    bench.attempts("s7", 1).await;
    until("the end", || bench.memory.outstanding(&name("s7")) == 0).await;
    let (looks, before) = (bench.memory.looks().0, pulls(&bench));
    until("more looks", || bench.memory.looks().0 >= looks + 3).await;
    assert!(pulls(&bench) <= before + 2 && before <= 4, "{before} pulls, then {}", pulls(&bench));
}

#[tokio::test]
async fn a_subscription_that_policy_has_no_more_stops_and_the_others_go_on_undisturbed() {
    let (bench, receiver) = (Bench::new(), Receiver::start().await);
    let with = |text: &str| bench.subscription(text, &format!("http://{}/{text}", receiver.address));
    bench.set(vec![with("stays"), with("goes")]);
    bench.publish("stays", "k", "1");
    bench.publish("goes", "k", "2");
    until("both", || receiver.count() == 2).await;
    bench.set(vec![with("stays")]);
    bench.publish("goes", "k", "3");
    bench.publish("stays", "k", "4");
    until("the one", || receiver.count() == 3).await;
    assert_eq!(receiver.received()[2].path, "/stays");
    assert_eq!(receiver.connections(), 2, "the connection is used again");
}

#[tokio::test]
async fn at_the_end_what_is_being_sent_is_waited_for_and_settled() {
    let (bench, receiver) = (Bench::new(), Receiver::start().await);
    bench.set(vec![bench.subscription("crm", &format!("http://{}/slow/150", receiver.address))]);
    bench.publish("crm", "k", "x");
    until("the request", || receiver.count() == 1).await;
    assert!(bench.tasks.stop(Duration::from_secs(5)).await);
    assert_eq!(bench.outcomes("crm"), [(1, Outcome::Delivered, Some(204))]);
    assert_eq!(bench.memory.outstanding(&name("crm")), 0);
}

#[tokio::test]
async fn tls_is_verified_by_the_subscription_s_authority_and_for_the_url_s_name() {
    let bench = Bench::new();
    let certificate = rig::Certificate::create(&bench.folder.path().join("tls")).unwrap();
    let receiver = Receiver::start_tls(&certificate.certificate, &certificate.key).await;
    let with = |text: &str, host: &str, ca_file: Option<PathBuf>| {
        let url = format!("https://{host}:{}/", receiver.address.port());
        Subscription { ca_file, timeout_ms: 3000, max_attempts: 1, ..bench.subscription(text, &url) }
    };
    let authority = Some(certificate.authority.clone());
    bench.set(vec![
        with("trusted", "localhost", authority.clone()),
        with("public", "localhost", None),
        // 127.0.0.2 is the same server, and not in its certificate.
        with("other-name", "127.0.0.2", authority),
    ]);
    for text in ["trusted", "public", "other-name"] {
        bench.publish(text, "k", text);
        bench.attempts(text, 1).await;
    }
    assert_eq!(bench.outcomes("trusted"), [(1, Outcome::Delivered, Some(204))]);
    assert_eq!(bench.outcomes("public"), [(1, Outcome::Tls, None)]);
    assert_eq!(receiver.received().iter().map(receiver::Received::data).collect::<Vec<_>>(), ["trusted"]);
    let other = bench.outcomes("other-name");
    assert!(matches!(other[..], [(1, Outcome::Tls | Outcome::Unreachable, None)]), "{other:?}");
}
