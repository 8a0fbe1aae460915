//! The log in PostgreSQL.

mod append;
mod attempts;
mod dead_letters;
mod groups;
mod head;
#[cfg(test)]
mod ids_tests;
mod limits;
mod partitions;
#[cfg(test)]
mod partitions_tests;
mod push;
mod read;
#[cfg(test)]
mod sessions;

pub(super) use append::{insert, take_ids};
pub use attempts::{AttemptFilter, ListedAttempt, attempts};
pub(super) use dead_letters::{copy, found};
pub(super) use groups::{
    count as count_groups, create as create_group, drop_idle as drop_idle_groups, load as load_group,
    store as store_group,
};
pub(super) use head::{last_value, readable};
pub(super) use limits::broker_limits;
pub(super) use partitions::days_ahead;
pub(super) use push::{
    begin_subscription, keep_attempts, of_key, replayed, replays, tenants_with_events, topics_of_tenants,
};
pub(super) use read::{at, first_after, horizon, newest, newest_of_all, page, span};
