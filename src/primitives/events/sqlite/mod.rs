//! The log in SQLite: one writer, so that rows appear in the order of their ids.

mod append;
mod dead_letters;
mod groups;
mod held;
#[cfg(test)]
mod held_tests;
mod old;
mod push;
mod read;

pub(super) use append::{insert, take_ids};
pub(super) use dead_letters::{copy, found};
pub(super) use groups::{
    count as count_groups, create as create_group, drop_idle as drop_idle_groups, load as load_group,
    store as store_group,
};
pub(super) use old::drop_old;
pub(super) use push::{begin_subscription, keep_attempts, tenants_with_events, topics_of_tenants};
pub(super) use read::{at, first_after, horizon, page, readable, span};
