//! Redis Cluster: one script takes from all of a call's buckets, on Redis's own clock.
//!
//! A bucket's key is `tenant:<limit>:rate-limit:{<tenant>}:<key>`. The first `{…}` of a key is its hash tag; a
//! limit's name has no brace and a tenant is a UUID, so braces in the caller's part change nothing. The tenant
//! stands between the first braces and ends where they end, so no key can reach into another tenant's.

#[cfg(test)]
mod failover;
mod history;
mod record;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::Value;
use smallvec::SmallVec;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::breaker::Breakers;
use super::config::RateLimitConfig;
use super::fallback::Fallback;
use super::metrics::RateLimitMetrics;
use super::{Asks, Outcome, Source, Taking, TokenSource};
use crate::pools::redis::{RedisFailure, RedisPool, Script, Slot};
use crate::tasks::Tasks;
use history::Histories;
use record::Record;

/// How often each primary's history is looked at, so that one this process has no calls for is seen in time.
const HISTORY_INTERVAL: Duration = Duration::from_secs(5);
/// The same after a look that did not show all; it doubles each time, up to the above.
const RETRY_HISTORY_INTERVAL: Duration = Duration::from_millis(100);
/// How long each of its two steps may take: it is no caller's time.
const HISTORY_BUDGET: Duration = Duration::from_secs(1);
/// How often it is said why Redis refuses.
const WARN_INTERVAL: Duration = Duration::from_secs(10);
/// How often expired keys of the fallback are removed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Buckets in Redis.
pub(super) struct RedisSource {
    pool: Arc<RedisPool>,
    script: Script,
    budget: Duration,
    breakers: Breakers,
    histories: Histories,
    record: Record,
    fallback: Fallback,
    metrics: RateLimitMetrics,
    warned: Mutex<Option<Instant>>,
}

/// What the script says.
struct Answer {
    history: Box<[u8]>,
    allowed: bool,
    overflowed: usize,
    debts: SmallVec<[i64; 1]>,
}

impl RedisSource {
    /// Begins to watch the cluster, in the background.
    pub(super) fn start(
        config: &RateLimitConfig,
        pool: Arc<RedisPool>,
        metrics: &RateLimitMetrics,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let source = Arc::new(Self {
            pool,
            script: Script::new(include_str!("redis/check.lua")),
            budget: Duration::from_millis(config.budget_ms),
            breakers: Breakers::new(config.breaker_failures, metrics.breakers_open.clone()),
            histories: Histories::new(),
            record: Record::new(),
            fallback: Fallback::new(config.max_keys),
            metrics: metrics.clone(),
            warned: Mutex::new(None),
        });
        let (probing, watching) = (Arc::clone(&source), Arc::clone(&source));
        let interval = Duration::from_millis(config.probe_interval_ms);
        let stopping = tasks.stopping().clone();
        tasks.spawn("probe redis for rate limits", async move {
            probing.keep_probing(interval, &stopping).await;
        });
        let stopping = tasks.stopping().clone();
        tasks.spawn("watch redis for rate limits", async move {
            watching.keep_watching(&stopping).await;
        });
        source
    }

    async fn ask(&self, asks: &Asks) -> Outcome {
        let tenant = asks.tenant();
        let sent = Instant::now();
        let answer = self.run(tenant, asks).await;
        self.metrics.backend_seconds.observe(sent.elapsed().as_secs_f64());
        match answer {
            Ok(answer) => {
                self.breakers.succeeded(tenant);
                let age_us = self.age_us(asks, &answer, sent).await;
                judge(asks, &answer, age_us)
            }
            Err(failure) => {
                match &failure {
                    // Refused at once: waiting is not what costs, so later checks still ask.
                    RedisFailure::Refused(_) => {
                        self.warn(&failure, "redis refuses rate-limit checks, which are answered without it")
                    }
                    RedisFailure::Unavailable(_) | RedisFailure::Unknown(_) => {
                        self.breakers.failed(tenant, sent)
                    }
                }
                self.fallback.take(asks)
            }
        }
    }

    /// Says why Redis refuses, from time to time: no memory or a missing right needs a person.
    fn warn(&self, failure: &RedisFailure, message: &'static str) {
        let now = Instant::now();
        let mut warned = self.warned.lock();
        if warned.is_none_or(|at| now.saturating_duration_since(at) > WARN_INTERVAL) {
            *warned = Some(now);
            tracing::warn!(%failure, message);
        }
    }

    /// How long the history has been there that an answer comes from. Where that is not known, and where it matters
    /// to these asks, it is asked for in what is left of the budget.
    async fn age_us(&self, asks: &Asks, answer: &Answer, sent: Instant) -> u64 {
        let (age_us, asked) = self.histories.age_us(&answer.history, sent);
        if asked || age_us >= longest_fill_us(asks) {
            return age_us;
        }
        let deadline = sent + self.budget;
        let asked = self.histories.asked_about(&answer.history);
        if tokio::time::timeout_at(deadline.into(), asked).await.is_err() {
            tracing::debug!(
                "it is not known in time since when a primary is one: as far as that, the answer is degraded"
            );
        }
        self.histories.age_us(&answer.history, sent).0
    }

    async fn run(&self, tenant: Uuid, asks: &Asks) -> Result<Answer, RedisFailure> {
        let count = asks.as_slice().len();
        let mut keys = Vec::with_capacity(1 + count);
        let mut arguments = Vec::with_capacity(1 + 5 * count);
        keys.push(format!("tenant:rate-limit-keys:{{{tenant}}}"));
        arguments.push(asks.max_keys().to_string());
        for ask in asks.as_slice() {
            let (bucket, quota) = (ask.bucket(), &ask.rule().quota);
            let prefix = format!("tenant:{}:rate-limit:{{{tenant}}}:", bucket.limit());
            arguments.push(quota.ticks_per_us().to_string());
            arguments.push(quota.capacity().to_string());
            arguments.push(quota.ticks(ask.cost()).to_string());
            arguments.push(bucket.id().to_owned());
            arguments.push(format!("{prefix}\0{}", ask.rule().pattern));
            keys.push(prefix + bucket.key());
        }
        let keys: SmallVec<[&[u8]; 4]> = keys.iter().map(String::as_bytes).collect();
        let arguments: SmallVec<[&[u8]; 8]> = arguments.iter().map(String::as_bytes).collect();
        let slot = Slot::of(keys.first().copied().unwrap_or_default());
        let value = self.pool.script(slot, &self.script, &keys, &arguments, self.budget).await?;
        read(&value, count)
            .ok_or_else(|| RedisFailure::Refused("the script's answer is not of its form".to_owned()))
    }

    /// Asks, while breakers are open, whether Redis answers again.
    async fn keep_probing(&self, interval: Duration, stopping: &CancellationToken) {
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = self.breakers.opened.notified() => {}
            }
            let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = stopping.cancelled() => return,
                    _ = ticks.tick() => {}
                }
                let open = self.breakers.to_probe();
                if open.is_empty() {
                    break;
                }
                futures_util::future::join_all(open.into_iter().map(|tenant| self.probe(tenant))).await;
            }
        }
    }

    /// Runs the script without a bucket where the tenant's are.
    async fn probe(&self, tenant: Uuid) {
        let answer = self.run(tenant, &Asks::new(1)).await;
        if let Ok(answer) = &answer {
            self.histories.age_us(&answer.history, Instant::now());
        }
        self.breakers.probed(tenant, answer.is_ok());
    }

    async fn keep_watching(&self, stopping: &CancellationToken) {
        let mut sweeps = tokio::time::interval(SWEEP_INTERVAL);
        let mut next = Instant::now();
        let mut retry = RETRY_HISTORY_INTERVAL;
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                _ = sweeps.tick() => {
                    self.fallback.sweep();
                    continue;
                }
                () = self.histories.unknown.notified() => {}
                () = tokio::time::sleep_until(next.into()) => {}
            }
            if self.look_at_histories().await {
                retry = RETRY_HISTORY_INTERVAL;
                next = Instant::now() + HISTORY_INTERVAL;
            } else {
                next = Instant::now() + retry;
                retry = (retry * 2).min(HISTORY_INTERVAL);
            }
        }
    }

    /// Learns which histories there are and, with all other processes, since when. Says whether all is known.
    async fn look_at_histories(&self) -> bool {
        let mut command = redis::cmd("INFO");
        command.arg("replication");
        let answers = self.pool.on_primaries(&command, HISTORY_BUDGET).await;
        let ids: Vec<_> = answers.iter().filter_map(|answer| history_of(answer.as_ref().ok()?)).collect();
        for id in &ids {
            self.histories.age_us(id, Instant::now());
        }
        let told = self.histories.to_share(&ids);
        let whole = !ids.is_empty() && ids.len() == answers.len();
        let answer = if told.is_empty() {
            Ok(None)
        } else {
            self.record.share(&self.pool, &told, whole, HISTORY_BUDGET).await
        };
        let answer = answer.unwrap_or_else(|failure| {
            match &failure {
                RedisFailure::Refused(_) => {
                    self.warn(&failure, "redis refuses to say since when its primaries are such");
                }
                // The pool's health says so, and it is asked again.
                RedisFailure::Unavailable(_) | RedisFailure::Unknown(_) => {
                    tracing::debug!(%failure, "redis did not say since when its primaries are such");
                }
            }
            None
        });
        self.histories.shared(&told, answer.as_deref());
        whole && answer.is_some()
    }
}

impl TokenSource for RedisSource {
    fn take<'a>(&'a self, asks: &'a Asks) -> Taking<'a> {
        if self.breakers.is_open(asks.tenant()) {
            return Taking::Now(self.fallback.take(asks));
        }
        Taking::Later(Box::pin(self.ask(asks)))
    }
}

fn longest_fill_us(asks: &Asks) -> u64 {
    asks.as_slice().iter().map(|ask| ask.rule().quota.fill_us()).max().unwrap_or(0)
}

/// What the buckets say, under a history that has been there for `age_us`.
fn judge(asks: &Asks, answer: &Answer, age_us: u64) -> Outcome {
    let standings = asks.as_slice().iter().zip(&answer.debts).map(|(ask, debt)| {
        let quota = &ask.rule().quota;
        quota.standing(*debt, quota.ticks(ask.cost()), answer.allowed)
    });
    Outcome {
        allowed: answer.allowed,
        source: if age_us >= longest_fill_us(asks) { Source::Backend } else { Source::Recovering },
        standings: standings.collect(),
        overflowed: answer.overflowed,
    }
}

fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        Value::VerbatimString { text, .. } => Some(text.as_bytes()),
        _ => None,
    }
}

fn history_of(info: &Value) -> Option<Box<[u8]>> {
    let text = std::str::from_utf8(bytes(info)?).ok()?;
    let id = text.lines().find_map(|line| line.strip_prefix("master_replid:"))?;
    Some(Box::from(id.trim().as_bytes()))
}

fn read(value: &Value, count: usize) -> Option<Answer> {
    let Value::Array(parts) = value else { return None };
    let [history, allowed, overflowed, debts @ ..] = parts.as_slice() else { return None };
    let number = |value: &Value| match value {
        Value::Int(number) => Some(*number),
        _ => None,
    };
    let debts: SmallVec<[i64; 1]> = debts.iter().map(number).collect::<Option<_>>()?;
    Some(Answer {
        history: Box::from(bytes(history)?),
        allowed: number(allowed)? == 1,
        overflowed: usize::try_from(number(overflowed)?).ok()?,
        debts: (debts.len() == count).then_some(debts)?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::conformance::{self, asks, rule};
    use super::*;
    use crate::pools::redis::RedisMetrics;
    use crate::telemetry::{BackendState, HealthBoard, Registry};

    /// What is promised is counting, however slow the machine is.
    const PATIENT_MS: u64 = 1000;

    /// A source on these nodes, once its pool is in `state`.
    pub(super) async fn source_on(
        nodes: &[String],
        state: BackendState,
        tasks: &Tasks,
        budget_ms: u64,
    ) -> Arc<RedisSource> {
        let registry = Registry::default();
        let health = HealthBoard::default().add("redis.main", false);
        let instance = serde_json::from_value(json!({"nodes": nodes})).unwrap();
        let metrics = RedisMetrics::new(&registry).unwrap();
        let pool = RedisPool::new("main", instance, health.clone(), &metrics, tasks).unwrap();
        let metrics = RateLimitMetrics::new(&registry).unwrap();
        let mut config = RateLimitConfig::of("redis");
        config.budget_ms = budget_ms;
        let source = RedisSource::start(&config, pool, &metrics, tasks);
        let end = Instant::now() + Duration::from_secs(10);
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        while health.state() != state {
            assert!(Instant::now() < end, "redis is {:?}", health.state());
            ticks.tick().await;
        }
        source
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_keeps_every_promise_of_a_source() {
        let tasks = Tasks::default();
        conformance::run(source_on(&rig::shared_redis_nodes(), BackendState::Up, &tasks, PATIENT_MS).await)
            .await;
        assert!(tasks.stop(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn keys_and_values_are_as_documented() {
        let tasks = Tasks::default();
        let source = source_on(&rig::shared_redis_nodes(), BackendState::Up, &tasks, PATIENT_MS).await;
        let tenant = Uuid::new_v4();
        let (api, login) = (rule("api", 100, 60_000, 20), rule("login", 7, 60_000, 5));
        let outcome =
            source.take(&asks(tenant, 10, &[(&api, "/a:{b}", 1), (&login, "x", 1)])).outcome().await;
        assert!(outcome.allowed);
        let get = async |command: &str, key: String| {
            let mut asked = redis::cmd(command);
            asked.arg(&key);
            if command == "ZRANGE" {
                asked.arg(0).arg(-1);
            }
            source.pool.command(Slot::of(key.as_bytes()), &asked, Duration::from_secs(1)).await.unwrap()
        };
        let text = |value: &Value| String::from_utf8(bytes(value).unwrap().to_vec()).unwrap();
        let whole = text(&get("GET", format!("tenant:api:rate-limit:{{{tenant}}}:/a:{{b}}")).await);
        let whole_us: i64 = whole.parse().unwrap();
        let part = text(&get("GET", format!("tenant:login:rate-limit:{{{tenant}}}:x")).await);
        let (us, fraction) = part.split_once('+').unwrap();
        assert_eq!(us.parse::<i64>().unwrap() - whole_us, 60_000_000 / 7 - 600_000);
        assert_eq!(fraction, "4/7", "a token is 8,571,428 and 4/7 us: {part}");
        let index = format!("tenant:rate-limit-keys:{{{tenant}}}");
        let Value::Array(members) = get("ZRANGE", index.clone()).await else { panic!("no index") };
        assert_eq!(members.iter().map(text).collect::<Vec<_>>(), ["api:/a:{b}", "login:x"]);
        let Value::Int(ttl_ms) = get("PTTL", index).await else { panic!("no time to live") };
        assert!((8_000..=8_572).contains(&ttl_ms), "{ttl_ms}");
        assert!(tasks.stop(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn without_redis_it_answers_in_time_and_says_so() {
        let tasks = Tasks::default();
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let source = source_on(&[nobody.to_string()], BackendState::Down, &tasks, 20).await;
        let (tenant, api) = (Uuid::new_v4(), rule("api", 1, 60_000, 20));
        let mut slowest = Duration::ZERO;
        let passed = async {
            let mut passed = 0;
            for _ in 0..20 {
                let began = Instant::now();
                let outcome = source.take(&asks(tenant, 10, &[(&api, "k", 1)])).outcome().await;
                slowest = slowest.max(began.elapsed());
                assert_eq!(outcome.source, Source::Local);
                passed += usize::from(outcome.allowed);
            }
            passed
        };
        assert_eq!(passed.await, 5, "a quarter of the burst");
        assert!(slowest < Duration::from_millis(200), "{slowest:?}");
        assert!(source.breakers.is_open(tenant), "later checks do not wait");
        assert!(matches!(source.take(&asks(tenant, 10, &[(&api, "k", 1)])), Taking::Now(_)));
        assert!(tasks.stop(Duration::from_secs(5)).await);
    }
}
