//! Clients of three tenants, while something happens.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};

use crate::client::{Ack, Client, Counts};
use crate::support::doors::Doors;
use crate::support::random::Random;
use crate::support::sidecar::{ACME, GLOBEX, Sidecar};
use crate::support::wait_until;
use crate::verdict::Model;

pub const TENANTS: [&str; 3] = [ACME, GLOBEX, "0190c7a8-3c5e-7f00-8000-0000000000c3"];
/// The usage policy of a run.
pub fn policy(ack: Ack) -> String {
    let ack = if ack == Ack::Spool { "spool" } else { "database" };
    let close_after_ms = close_after_ms();
    format!(
        "kind: usage\nbilling: {{close_after_ms: {close_after_ms}}}\nmetrics:\n  api_calls: {{ack: {ack}, group_by: [endpoint]}}\n  \
         voice_minutes: {{ack: {ack}, group_by: [direction, region]}}\n"
    )
}

/// How long after its end a month closes.
pub fn close_after_ms() -> i64 {
    *CLOSE_AFTER_DAYS * 86_400_000
}

/// After how many days a month closes: such that none does within two days of the run's beginning.
static CLOSE_AFTER_DAYS: LazyLock<i64> =
    LazyLock::new(|| if TimeZone::UTC.to_datetime(Timestamp::now()).day() <= 8 { 10 } else { 5 });

/// The month of a record, by its first day, where it was closed when the run began.
pub fn closed_month(time: Timestamp) -> Option<Date> {
    let month = TimeZone::UTC.to_datetime(time).date().first_of_month();
    let is_over = TimeZone::UTC.to_timestamp(month.checked_add(1.month()).unwrap().at(0, 0, 0, 0)).unwrap();
    (is_over + (24 * *CLOSE_AFTER_DAYS).hours() <= Timestamp::now()).then_some(month)
}

/// Of each tenant.
const CLIENTS: usize = 2;

/// The ways in of every tenant, and what a client that goes there hears.
pub struct Ways {
    /// Of each client, by tenant.
    doors: [Vec<Doors>; CLIENTS],
    ack: Ack,
    sidecars: usize,
}

impl Ways {
    /// Every client goes to any of them.
    pub fn of(sidecars: &[&Sidecar]) -> Self {
        let doors = || TENANTS.iter().map(|tenant| Doors::of_tenant(tenant, sidecars)).collect();
        Self { doors: std::array::from_fn(|_| doors()), ack: Ack::Database, sidecars: sidecars.len() }
    }

    /// Each client goes to one of them, where what it says is counted in the order in which it said it.
    pub fn spooled(sidecars: [&Sidecar; CLIENTS]) -> Self {
        let doors = |sidecar: &Sidecar| {
            TENANTS.iter().map(|tenant| Doors::of_tenant(tenant, &[sidecar])).collect::<Vec<_>>()
        };
        Self { doors: sidecars.map(doors), ack: Ack::Spool, sidecars: CLIENTS }
    }

    /// A sidecar has started again, with the same keys.
    pub fn moved(&self, at: usize, sidecar: &Sidecar) {
        match self.ack {
            // Of one sidecar the second client is the same.
            Ack::Database if at >= self.sidecars => {}
            Ack::Database => self.doors.iter().flatten().for_each(|doors| doors.moved(at, sidecar)),
            Ack::Spool => self.doors[at].iter().for_each(|doors| doors.moved(0, sidecar)),
        }
    }
}

/// The load as who disturbs it sees it.
pub struct Load<'l> {
    pub ways: &'l Ways,
    counts: &'l Counts,
}

impl Load<'_> {
    /// Waits until so many more records are accepted; how long that took.
    pub fn until_more_are_accepted(&self, records: u64, bound: Duration) -> Duration {
        let (began, wanted) = (Instant::now(), self.accepted() + records);
        wait_until("more records that are accepted", bound, || self.accepted() >= wanted);
        began.elapsed()
    }

    /// Waits until calls are refused.
    pub fn until_calls_are_refused(&self, calls: u64, bound: Duration) {
        let wanted = self.counts.refused.load(Ordering::Relaxed) + calls;
        wait_until("calls that are refused", bound, || self.counts.refused.load(Ordering::Relaxed) >= wanted);
    }

    fn accepted(&self) -> u64 {
        self.counts.accepted.load(Ordering::Relaxed)
    }
}

/// Runs the clients while `disturb` does what it does; what they know in the end.
pub fn run(ways: &Ways, seed: u64, disturb: impl FnOnce(&Load<'_>)) -> Model {
    let (counts, over) = (Counts::default(), AtomicBool::new(false));
    let mut random = Random::new(seed);
    let counted = std::thread::scope(|scope| {
        let mut clients = Vec::new();
        for tenant in 0..TENANTS.len() {
            for (number, doors) in ways.doors.iter().enumerate() {
                let (seed, counts, over) = (random.next(), &counts, &over);
                clients.push(scope.spawn(move || {
                    let name = format!("client{tenant}{number}");
                    let mut client = Client::new(&doors[tenant], name, seed, ways.ack, counts);
                    while !over.load(Ordering::Relaxed) {
                        client.act();
                    }
                    (tenant, client.counted, client.lies)
                }));
            }
        }
        let ends = Ends(&over);
        disturb(&Load { ways, counts: &counts });
        drop(ends);
        clients.into_iter().map(|client| client.join().unwrap()).collect::<Vec<_>>()
    });
    println!("{counts:?}");
    Model::new(counted)
}

/// Ends the clients, also where what disturbs them fails.
struct Ends<'o>(&'o AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
