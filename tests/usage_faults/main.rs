//! Usage under faults: clients that retry, duplicate, reorder, delay and lie, while sidecars and the store are killed and disks are full. In the
//! end every total is the model's to the last digit, every lie was a conflict, and the sums are those of the records.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "test code")]

mod backlog;
mod client;
mod embedded;
mod load;
mod postgres;
#[path = "../support/mod.rs"]
mod support;
mod verdict;
