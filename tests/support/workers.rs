//! Workers of several tenants side by side.

use std::collections::BTreeMap;

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
