//! Events: a log of what happened, a tenant's own, in the order of its keys.
//!
//! Nothing serves it yet.

pub mod cloudevents;
mod cursor;
mod event;
mod fingerprint;
pub mod groups;
mod lane;
mod policy;
mod time;

pub use cursor::{Cursor, CursorError, CursorKey, ReadFrom, ReadFromError};
pub use event::{Data, Event, Logged, Position};
pub use fingerprint::dedupe_key;
pub use lane::lane;
pub use policy::{
    DEAD_LETTERS, EventsDocument, EventsPolicy, Groups, GroupsDocument, KIND, Topic, TopicDocument,
};
