//! Workers of several tenants side by side.

use std::collections::BTreeMap;

use super::random::{Random, seed};
use super::sidecar::Sidecar;

/// Whom one of six works for: there are two of each of three tenants, each at a sidecar of its own.
pub struct Seat<'s> {
    pub number: usize,
    pub tenant: String,
    /// The other tenants.
    pub others: Vec<String>,
    pub bearer: String,
    pub sidecar: &'s Sidecar,
    pub random: Random,
}

/// Six seats, of tenants that nobody else uses.
pub fn seats<'s>(sidecars: [&'s Sidecar; 2], operations: u64) -> Vec<Seat<'s>> {
    let (seed, tenants): (u64, [String; 3]) =
        (seed(), std::array::from_fn(|_| uuid::Uuid::new_v4().to_string()));
    println!("seed {seed}, {operations} operations");
    let seat = |number: usize| {
        let (tenant, sidecar) = (&tenants[number / 2], sidecars[number % 2]);
        let token = sidecar.token_with(&["--tenant", tenant, "--subject", "t", "--ttl", "12h"]);
        Seat {
            number,
            tenant: tenant.clone(),
            others: tenants.iter().filter(|other| *other != tenant).cloned().collect(),
            bearer: format!("Bearer {token}"),
            sidecar,
            random: Random::new(seed + number as u64),
        }
    };
    (0..6).map(seat).collect()
}

/// How often each thing was done.
pub type Counts = BTreeMap<&'static str, u64>;

/// Has each of them work to its end in a thread of its own, and adds up what they counted. Where one fails, so does this, once all have ended.
pub fn side_by_side<W: Send>(workers: Vec<W>, work: impl Fn(W) -> Counts + Sync) -> Counts {
    let ended: Vec<_> = std::thread::scope(|scope| {
        let started: Vec<_> = workers.into_iter().map(|worker| scope.spawn(|| work(worker))).collect();
        started.into_iter().map(|worker| worker.join()).collect()
    });
    let mut counts = Counts::new();
    for ended in ended {
        for (what, count) in ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
            *counts.entry(what).or_default() += count;
        }
    }
    counts
}
