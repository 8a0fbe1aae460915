//! Connections shared by primitives: made lazily, healed by themselves, with their state on the health board.

pub mod backoff;
pub mod kafka;
pub mod redis;
pub mod upstream;
