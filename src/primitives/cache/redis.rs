//! The Redis backend: entries in a Redis Cluster behind L1, for a fleet.
//!
//! A read that L1 does not answer is one command on one slot; a write is one script. L1 and the
//! generations are kept current by client tracking (`follow.rs`) and used only while that is.

mod follow;
mod keys;
mod leases;
mod places;
mod sweep;
mod tally;
mod values;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::join;
use redis::Value;

use self::follow::{Loss, Removal};
use self::keys::Keys;
use self::leases::Leases;
use self::places::Places;
use self::sweep::Sweeps;
use self::tally::{Ending, Tally};
use self::values::{Old, Raw, Scripts, bytes, condition, flag, integer};
use super::envelope::Header;
use super::etag::{Conditions, Etag};
use super::generation::{Generation, GenerationToken, Generations, MAX_VERSIONS, Unswept};
use super::key::{Address, Scope};
use super::l1::L1;
use super::lease::{LeaseToken, Waiters};
use super::metrics::CacheMetrics;
use super::policy::{Format, Namespace};
use super::{
    CacheBackend, CacheError, ENTRY_BYTES, Found, LeaseAnswer, Lookup, Stored, Tier, Write, cost, now_ms,
};
use crate::clock;
use crate::pools::redis::{RedisFailure, RedisPool, Slot};
use crate::tasks::Tasks;

/// A write is repeated so often when invalidations come between.
const ATTEMPTS: usize = 3;

/// The backend.
pub(super) struct RedisCache(Arc<Shared>);

/// What the background tasks share with it.
struct Shared {
    pool: Arc<RedisPool>,
    l1: Arc<L1>,
    generations: Generations,
    waiters: Waiters,
    metrics: CacheMetrics,
    scripts: Scripts,
    loss: Loss,
    tally: Tally,
    places: Places,
    sweeps: Sweeps,
    leases: Leases,
    tasks: Tasks,
}

/// What Redis has under a key.
enum Held {
    Fresh(Arc<Stored>),
    Stale(Arc<Stored>),
    Nothing,
}

impl RedisCache {
    /// Starts following changes.
    pub(super) fn start(
        pool: Arc<RedisPool>,
        l1: Arc<L1>,
        metrics: CacheMetrics,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let shared = Arc::new(Shared {
            pool,
            l1,
            generations: Generations::default(),
            waiters: Waiters::default(),
            metrics,
            scripts: Scripts::new(),
            loss: Loss::default(),
            tally: Tally::default(),
            places: Places::default(),
            sweeps: Sweeps::default(),
            leases: Leases::default(),
            tasks: tasks.clone(),
        });
        follow::start(&shared);
        tally::start(&shared);
        Arc::new(Self(shared))
    }
}

/// A read that fails is a read that was not done, whatever Redis did.
fn unread(failure: &RedisFailure) -> CacheError {
    tracing::debug!(%failure, "a cache read failed");
    CacheError::Unavailable
}

fn unwritten(failure: &RedisFailure) -> CacheError {
    tracing::debug!(%failure, "a cache write failed");
    match failure {
        RedisFailure::Unavailable(_) | RedisFailure::Refused(_) => CacheError::Unavailable,
        RedisFailure::Unknown(_) => CacheError::Unknown,
    }
}

impl Shared {
    /// The scope's generation, if this process hears of its changes.
    fn known(&self, scope: &Scope) -> Option<Arc<Generation>> {
        if self.pool.tracking_is_current() { self.generations.get(scope) } else { None }
    }

    /// The scope's generation, from Redis; with `create` it exists afterwards.
    async fn ask(
        &self,
        scope: &Scope,
        create: bool,
        budget: Duration,
    ) -> Result<Arc<Generation>, CacheError> {
        let current = self.pool.tracking_is_current();
        let began = self.generations.begin_read();
        let key = keys::generation(scope);
        let mut pipeline = redis::pipe();
        if create {
            let token = GenerationToken::random().to_bytes();
            pipeline.cmd("HSETNX").arg(&*key).arg("all").arg(&token);
        }
        pipeline.cmd("HGETALL").arg(&*key);
        let answers = self.pool.pipeline(Slot::of(&key), &pipeline, budget).await;
        let answers = answers.map_err(|failure| unread(&failure))?;
        if answers.iter().any(|answer| matches!(answer, Value::ServerError(_))) {
            return Err(CacheError::Unavailable);
        }
        let fields = answers.into_iter().next_back().unwrap_or(Value::Nil);
        let generation = read_generation(fields);
        self.sweeps.note(scope, generation.unswept());
        Ok(if current {
            self.generations.learn(scope, generation, &began)
        } else {
            generation.unheard(&began)
        })
    }

    /// One command on one slot; together with the generation where that is not known.
    async fn load(&self, address: &Address, rules: &Namespace, budget: Duration) -> Result<Held, CacheError> {
        let (_place, budget) = self.enter_read(address.scope(), rules, budget).await?;
        let fill = self.l1.begin_fill(address.entry());
        let slot = Slot::of(address.entry());
        let command = values::read_command(address.entry(), rules.format);
        let read = self.pool.command(slot, &command, budget);
        let (generation, read) = match self.known(address.scope()) {
            Some(generation) => (generation, read.await),
            None => {
                let (generation, read) = join(self.ask(address.scope(), false, budget), read).await;
                (generation?, read)
            }
        };
        let read = read.map_err(|failure| unread(&failure))?;
        self.note_read(address.scope(), &read);
        let raw = Raw::of_read(read, rules.format);
        let held = classify(raw, address, rules, &generation);
        if let Held::Fresh(stored) = &held
            && rules.l1_ttl_ms > 0
            && !generation.is_void()
        {
            self.l1.finish_fill(&fill, address.entry(), stored);
        }
        Ok(held)
    }

    /// What this process last read, while Redis does not answer.
    fn stale_copy(&self, address: &Address, rules: &Namespace) -> Option<Found> {
        if rules.stale_ms == 0 || !self.loss.is_recent(&self.pool) {
            return None;
        }
        let stored = self.l1.peek(address.entry())?;
        let usable = !self.generations.is_invalidated(address.scope(), &stored.generation)
            && now_ms() < stored.expires_at_ms.saturating_add(rules.stale_ms);
        usable.then_some(Found { stored, tier: Tier::Stale })
    }

    /// Writes under this generation.
    async fn write(
        &self,
        address: &Address,
        rules: &Namespace,
        write: &Write,
        generation: &Generation,
        budget: Duration,
    ) -> Result<Etag, CacheError> {
        let now = now_ms();
        let stamp = generation.stamp(address.version());
        let etag = match rules.format {
            Format::Raw => Etag::of_body(&write.body),
            Format::Envelope => Etag::of_typed(write.content_type.as_bytes(), &write.body),
        };
        let header =
            Header { written_at_ms: now, expires_at_ms: now.saturating_add(write.ttl_ms), stamp, etag };
        let (value, companion) = values::encoded(&header, rules.format, write);
        // A raw key ends with its time, because other systems read it.
        let stale_ms = if rules.format == Format::Raw { 0 } else { rules.stale_ms };
        let kept_ms = write.ttl_ms.saturating_add(stale_ms);
        let ending = Ending::of(now, kept_ms);
        let new_cost = cost(address, value.len());
        let keys = Keys::of(address.entry());
        let (kept, now_text) = (kept_ms.to_string(), now.to_string());
        let room = self.tally.room(address.scope(), write.max_tenant_bytes).to_string();
        let entry_bytes = ENTRY_BYTES.to_string();
        let arguments: [&[u8]; 12] = [
            values::name(rules.format),
            &value,
            &companion,
            kept.as_bytes(),
            stamp.as_bytes(),
            write.lease.as_ref().map_or(b"", |token| token.as_str().as_bytes()),
            &condition(write.conditions.if_match.as_ref()),
            &condition(write.conditions.if_none_match.as_ref()),
            now_text.as_bytes(),
            room.as_bytes(),
            entry_bytes.as_bytes(),
            flag(generation.admits_unstamped(address.version())),
        ];
        // Counted before it is sent: whose caller leaves, or whose answer is lost, may be stored.
        self.tally.add(address.scope(), ending, new_cost);
        let answer = self.pool.script(keys.slot, &self.scripts.put, &keys.all(), &arguments, budget).await;
        self.l1.invalidate(address.entry());
        self.waiters.changed(address.entry());
        let written = answer.map_err(|failure| unwritten(&failure)).and_then(|answer| {
            let mut parts = values::array(answer).into_iter();
            match parts.next().and_then(bytes).as_deref() {
                Some(b"ok") => Ok(Old::of(&mut parts)),
                Some(b"void") => Err(CacheError::LeaseVoid),
                Some(b"failed") => Err(CacheError::PreconditionFailed),
                Some(b"full") => Err(CacheError::TenantFull { max_bytes: write.max_tenant_bytes }),
                _ => Err(CacheError::Unknown),
            }
        });
        if let (Some(token), Ok(_) | Err(CacheError::LeaseVoid)) = (&write.lease, &written) {
            self.leases.remove(address.scope().tenant(), token);
        }
        match &written {
            Ok(_) | Err(CacheError::Unknown) => {}
            Err(_) => self.tally.subtract(address.scope(), ending, new_cost),
        }
        self.forget(address, written?, stale_ms);
        Ok(etag)
    }

    /// Gives back the bytes of what was replaced or removed.
    fn forget(&self, address: &Address, old: Option<Old>, stale_ms: u64) {
        if let Some(old) = old {
            let ending = Ending::of(old.written_at_ms, old.kept_ms(stale_ms));
            self.tally.subtract(address.scope(), ending, cost(address, old.bytes));
        }
    }
}

fn read_generation(fields: Value) -> Generation {
    let (mut all, mut versions) = (GenerationToken::default(), HashMap::new());
    let mut unswept = Unswept::default();
    for (field, value) in values::pairs(fields) {
        let (token, is_unswept) = match value.strip_suffix(keys::UNSWEPT) {
            Some(token) if token.len() == 8 => (token, true),
            _ => (&*value, false),
        };
        let token = GenerationToken::from_bytes(token).unwrap_or_default();
        match field.strip_prefix(b"v:") {
            None => (all, unswept.all) = (token, is_unswept),
            Some(version) => {
                let version: Box<str> = String::from_utf8_lossy(version).into();
                if is_unswept {
                    unswept.versions.insert(version.clone());
                }
                versions.insert(version, token);
            }
        }
    }
    Generation::new(all, versions).with_unswept(unswept)
}

fn classify(raw: Option<Raw>, address: &Address, rules: &Namespace, generation: &Arc<Generation>) -> Held {
    let now = now_ms();
    let stamp = generation.stamp(address.version());
    let Some(raw) = raw else { return Held::Nothing };
    let unstamped = generation.admits_unstamped(address.version());
    let stored = raw.into_stored(rules, &stamp, unstamped, generation, now);
    let Some(stored) = stored else { return Held::Nothing };
    let stored = Arc::new(stored);
    if now < stored.expires_at_ms {
        Held::Fresh(stored)
    } else if now < stored.expires_at_ms.saturating_add(rules.stale_ms) {
        Held::Stale(stored)
    } else {
        Held::Nothing
    }
}

#[async_trait]
impl CacheBackend for RedisCache {
    fn cached(&self, address: &Address) -> Option<Found> {
        if !self.0.pool.tracking_is_current() {
            return None;
        }
        let stored = self.0.l1.get(address.entry(), clock::since_1970_ms())?;
        Some(Found { stored, tier: Tier::L1 })
    }

    async fn lookup(
        &self,
        address: &Address,
        rules: &Namespace,
        budget: Duration,
    ) -> Result<Lookup, CacheError> {
        match self.0.load(address, rules, budget).await {
            Ok(Held::Fresh(stored)) => Ok(Lookup::Found(Found { stored, tier: Tier::L2 })),
            Ok(Held::Stale(_) | Held::Nothing) => Ok(Lookup::Absent),
            Err(error) => self.0.stale_copy(address, rules).map(Lookup::Found).ok_or(error),
        }
    }

    async fn lease(
        &self,
        address: &Address,
        rules: &Namespace,
        lease_ms: u64,
        budget: Duration,
    ) -> Result<LeaseAnswer, CacheError> {
        let (_place, budget) = self.0.enter_read(address.scope(), rules, budget).await?;
        let end = Instant::now() + budget;
        // Asked anew: a lease under an old generation would be void from the start.
        let generation = self.0.ask(address.scope(), true, budget).await?;
        let (keys, token) = (Keys::of(address.entry()), LeaseToken::random());
        let (shared, tenant) = (&*self.0, address.scope().tenant());
        let has_room = shared.leases.add(tenant, &token, Instant::now() + Duration::from_millis(lease_ms));
        let (lease_ms, now) = (lease_ms.to_string(), now_ms().to_string());
        let stamp = generation.stamp(address.version());
        let arguments: [&[u8]; 7] = [
            values::name(rules.format),
            if has_room { token.as_str().as_bytes() } else { b"" },
            lease_ms.as_bytes(),
            stamp.as_bytes(),
            now.as_bytes(),
            flag(rules.stale_ms > 0),
            flag(generation.admits_unstamped(address.version())),
        ];
        let left = end.saturating_duration_since(Instant::now());
        let answer =
            shared.pool.script(keys.slot, &shared.scripts.lease, &keys.all(), &arguments, left).await;
        // It was not given; one whose answer is lost may have been.
        if matches!(&answer, Err(RedisFailure::Unavailable(_) | RedisFailure::Refused(_))) {
            shared.leases.remove(tenant, &token);
        }
        let answer = answer.map_err(|failure| unread(&failure))?;
        shared.note_read(address.scope(), &answer);
        let mut parts = values::array(answer).into_iter();
        let ending = parts.next().and_then(bytes);
        if ending.as_deref() != Some(b"granted") {
            shared.leases.remove(tenant, &token);
        }
        match ending.as_deref() {
            Some(b"granted") => Ok(LeaseAnswer::Granted(token)),
            Some(b"full") => Err(CacheError::Overloaded),
            Some(b"value") => {
                let raw = Raw::of_parts(parts.next(), parts.next(), rules.format);
                match classify(raw, address, rules, &generation) {
                    Held::Fresh(stored) => Ok(LeaseAnswer::Found(Found { stored, tier: Tier::L2 })),
                    // Its time ended between the two looks at the clock.
                    Held::Stale(_) | Held::Nothing => Ok(LeaseAnswer::Held { for_ms: 0, stale: None }),
                }
            }
            Some(b"held") => {
                let for_ms =
                    parts.next().and_then(integer).and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0);
                let raw = Raw::of_parts(parts.next(), None, rules.format);
                let stale = match classify(raw, address, rules, &generation) {
                    Held::Stale(stored) if rules.format == Format::Envelope => {
                        Some(Found { stored, tier: Tier::Stale })
                    }
                    Held::Fresh(_) | Held::Stale(_) | Held::Nothing => None,
                };
                Ok(LeaseAnswer::Held { for_ms, stale })
            }
            _ => Err(CacheError::Unavailable),
        }
    }

    async fn put(
        &self,
        address: &Address,
        rules: &Namespace,
        write: Write,
        budget: Duration,
    ) -> Result<Etag, CacheError> {
        let (shared, scope, end) = (&*self.0, address.scope(), Instant::now() + budget);
        let left = || end.saturating_duration_since(Instant::now());
        // A few connections are all tenants': megabytes in front of its pings make a node look dead.
        let _place = shared.places.writes.enter(scope.tenant(), write.body.len(), left()).await?;
        shared.learn_bytes(scope, left()).await;
        // A condition is judged by the generation of now: under an old one a valid value looks absent, and
        // `If-None-Match: *` would overwrite it.
        let is_conditional = write.conditions != Conditions::default();
        let known = shared.known(scope).filter(|generation| generation.exists() && !is_conditional);
        let (mut generation, mut is_fresh) = match known {
            Some(generation) => (generation, false),
            None => (shared.ask(scope, true, budget).await?, true),
        };
        for _ in 0..ATTEMPTS {
            let writing = shared.write(address, rules, &write, &generation, left());
            if is_fresh {
                return writing.await;
            }
            // An invalidation elsewhere may have ended before this call began and not be known here yet:
            // what would be written under its old generation would be a miss.
            let (written, current) = join(writing, shared.ask(scope, true, left())).await;
            let Ok(current) = current else { return written };
            if current.stamp(address.version()) == generation.stamp(address.version()) {
                return written;
            }
            if write.lease.is_some() {
                return Err(CacheError::LeaseVoid);
            }
            written?;
            (generation, is_fresh) = (current, true);
        }
        Err(CacheError::Unknown)
    }

    async fn delete(
        &self,
        address: &Address,
        rules: &Namespace,
        lease: Option<LeaseToken>,
        budget: Duration,
    ) -> Result<(), CacheError> {
        let (shared, keys) = (&*self.0, Keys::of(address.entry()));
        if let Some(token) = lease {
            let (names, arguments) = ([keys.lease.as_slice()], [token.as_str().as_bytes()]);
            let given_up = shared.pool.script(keys.slot, &shared.scripts.give_up, &names, &arguments, budget);
            given_up.await.map_err(|failure| unwritten(&failure))?;
            shared.leases.remove(address.scope().tenant(), &token);
            shared.waiters.changed(address.entry());
            return Ok(());
        }
        // What replicas are slow to confirm waits in one queue for each node, which is all tenants'.
        let (_place, left) = shared.enter_removal(address.scope(), budget).await?;
        let format = [values::name(rules.format)];
        let removal = Removal::Entry(shared, address);
        let script = &shared.scripts.delete;
        let deleted = shared.pool.confirmed_script(keys.slot, script, &keys.all(), &format, left).await;
        drop(removal);
        let deleted = deleted.map_err(|failure| unwritten(&failure))?;
        let mut parts = values::array(deleted.answer).into_iter();
        let stale_ms = if rules.format == Format::Raw { 0 } else { rules.stale_ms };
        shared.forget(address, Old::of(&mut parts), stale_ms);
        if deleted.is_confirmed { Ok(()) } else { Err(CacheError::Unknown) }
    }

    async fn invalidate(
        &self,
        scope: &Scope,
        rules: &Namespace,
        version: Option<&str>,
        budget: Duration,
    ) -> Result<(), CacheError> {
        let shared = &self.0;
        let (_place, left) = shared.enter_removal(scope, budget).await?;
        shared.metrics.invalidations.inc();
        let key = keys::generation(scope);
        let field = version.map_or_else(|| "all".to_owned(), |version| format!("v:{version}"));
        let most = MAX_VERSIONS.to_string();
        let mut token = GenerationToken::random().to_bytes().to_vec();
        if rules.format == Format::Raw {
            token.extend_from_slice(keys::UNSWEPT);
        }
        let arguments: [&[u8]; 3] = [field.as_bytes(), &token, most.as_bytes()];
        let (slot, script) = (Slot::of(&key), &shared.scripts.renew);
        let removal = Removal::Scope(shared, scope);
        let renewed = shared.pool.confirmed_script(slot, script, &[&key], &arguments, left).await;
        drop(removal);
        let renewed = renewed.map_err(|failure| unwritten(&failure))?;
        sweep::request(shared, scope, rules, version);
        if renewed.is_confirmed { Ok(()) } else { Err(CacheError::Unknown) }
    }

    fn waiters(&self) -> &Waiters {
        &self.0.waiters
    }
}

#[cfg(test)]
mod tests;
