//! Events: a log of what happened, a tenant's own, in the order of its keys.
//!
//! Nothing serves it yet.

mod event;
pub mod groups;

pub use event::{Data, Event, Logged, Position};
