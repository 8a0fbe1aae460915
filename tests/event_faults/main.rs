//! Events under load while what serves them is killed, stopped, cut off: on both stores, over HTTP, against the real
//! binary. Publishers, readers and consumers write down what they were told; in the end it must all agree.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "test code")]

#[path = "../relay/consumer.rs"]
mod kafka;
#[path = "../support/mod.rs"]
mod support;

mod consumer;
mod load;
mod postgres;
mod publisher;
mod reader;
mod sqlite;
mod unknown;
mod verdict;
mod whole;
