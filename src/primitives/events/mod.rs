//! Events: a log of what happened, a tenant's own, in the order of its keys.
//!
//! Nothing serves it yet.

mod append;
#[cfg(test)]
mod bench;
pub mod cloudevents;
#[cfg(test)]
mod conformance;
mod consumers;
mod cursor;
mod event;
mod fingerprint;
pub mod groups;
mod lane;
mod policy;
mod postgres;
mod read;
mod sqlite;
mod time;

pub use append::{Appended, Batch, append, append_all, is_dead_letters};
pub use consumers::{Deliveries, Delivery, Group, GroupError, Settle};
pub use cursor::{Cursor, CursorError, CursorKey, ReadFrom, ReadFromError};
pub use event::{Data, Event, Logged, Position};
pub use fingerprint::dedupe_key;
pub use lane::lane;
pub use policy::{
    DEAD_LETTERS, EventsDocument, EventsPolicy, Groups, GroupsDocument, KIND, Topic, TopicDocument,
};
pub use read::{Page, Scan, page, place};

use crate::policy::Action;

/// Appending events to a topic.
pub const PUBLISH: Action = Action::new("events", "publish");
/// Reading a topic from any place.
pub const READ: Action = Action::new("events", "read");
/// Pulling from a topic as one of a group, and settling what was pulled.
pub const CONSUME: Action = Action::new("events", "consume");
/// Every action.
pub const ACTIONS: &[Action] = &[PUBLISH, READ, CONSUME];
