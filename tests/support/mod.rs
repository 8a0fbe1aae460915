//! What whole-process tests share: the real binary, started and stopped, and a plain HTTP client.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "test code")]

pub mod client;
pub mod configuration;
pub mod disk;
pub mod doors;
pub mod http2;
pub mod postgres;
pub mod random;
pub mod sidecar;
pub mod tenant;
pub mod webhooks;
pub mod workers;

use std::time::{Duration, Instant};

/// Waits until `condition` holds, looking every 5 ms; panics with `what` after `bound`.
pub fn wait_until(what: &str, bound: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + bound;
    while !condition() {
        assert!(Instant::now() < end, "{what}: not within {bound:?}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
