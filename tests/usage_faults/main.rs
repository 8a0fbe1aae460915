//! Usage under faults: clients that retry, duplicate, reorder, delay and lie, while sidecars and the store are killed and disks are full. In the
//! end every total is the model's to the last digit, every lie was a conflict, and the sums are those of the records.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "test code")]

mod client;
#[allow(dead_code, reason = "events use more of it")]
#[path = "../event_faults/doors.rs"]
mod doors;
mod embedded;
mod load;
mod postgres;
#[path = "../support/mod.rs"]
mod support;
mod verdict;
