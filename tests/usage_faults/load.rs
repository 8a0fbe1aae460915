//! Clients of three tenants, while something happens.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::client::{Client, Counts};
use crate::support::doors::Doors;
use crate::support::random::Random;
use crate::support::sidecar::{ACME, GLOBEX, Sidecar};
use crate::support::wait_until;
use crate::verdict::Model;

pub const TENANTS: [&str; 3] = [ACME, GLOBEX, "0190c7a8-3c5e-7f00-8000-0000000000c3"];
/// Of each tenant.
const CLIENTS: u64 = 2;

/// The ways in of every tenant.
pub struct Ways(Vec<Doors>);

impl Ways {
    pub fn of(sidecars: &[&Sidecar]) -> Self {
        Self(TENANTS.iter().map(|tenant| Doors::of_tenant(tenant, sidecars)).collect())
    }

    /// A sidecar has started again, with the same keys.
    pub fn moved(&self, at: usize, sidecar: &Sidecar) {
        self.0.iter().for_each(|doors| doors.moved(at, sidecar));
    }
}

/// The load as who disturbs it sees it.
pub struct Load<'l> {
    pub ways: &'l Ways,
    counts: &'l Counts,
}

impl Load<'_> {
    /// Waits until so many more records are counted; how long that took.
    pub fn until_more_are_counted(&self, records: u64, bound: Duration) -> Duration {
        let (began, wanted) = (Instant::now(), self.accepted() + records);
        wait_until("more records that are counted", bound, || self.accepted() >= wanted);
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
        for (tenant, doors) in ways.0.iter().enumerate() {
            for number in 0..CLIENTS {
                let (seed, counts, over) = (random.next(), &counts, &over);
                clients.push(scope.spawn(move || {
                    let mut client = Client::new(doors, format!("client{tenant}{number}"), seed, counts);
                    while !over.load(Ordering::Relaxed) {
                        client.act();
                    }
                    (tenant, client.counted)
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
