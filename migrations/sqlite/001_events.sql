-- The log of events, what is known of their ids, and how far each group of consumers is.

CREATE TABLE store (
    singleton INTEGER PRIMARY KEY CHECK (singleton = 1),
    cursor_key BLOB NOT NULL
) STRICT;
INSERT INTO store VALUES (1, randomblob(32));

CREATE TABLE leases (
    name TEXT PRIMARY KEY,
    owner BLOB,
    epoch INTEGER NOT NULL,
    until_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What each tenant's rows take, in bytes: written with them, so that a tenant's part of the file can be held to.
CREATE TABLE tenant_bytes (
    tenant BLOB PRIMARY KEY,
    bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    accepted_ms INTEGER NOT NULL,
    tenant BLOB NOT NULL,
    topic TEXT NOT NULL,
    key TEXT NOT NULL,
    type TEXT NOT NULL,
    attributes BLOB NOT NULL,
    form INTEGER NOT NULL,
    data BLOB
) STRICT;
CREATE INDEX events_of_tenant ON events (tenant, topic, id);

CREATE TABLE event_dedupe (
    tenant BLOB NOT NULL,
    key BLOB NOT NULL,
    until_ms INTEGER NOT NULL,
    fingerprint INTEGER NOT NULL,
    PRIMARY KEY (tenant, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX event_dedupe_by_end ON event_dedupe (until_ms);

CREATE TABLE event_subscriptions (
    name TEXT PRIMARY KEY,
    position INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE event_attempts (
    tenant BLOB NOT NULL,
    at_ms INTEGER NOT NULL,
    subscription TEXT NOT NULL,
    event_id TEXT NOT NULL,
    message_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    status INTEGER,
    duration_ms INTEGER NOT NULL,
    next_at_ms INTEGER
) STRICT;
CREATE INDEX event_attempts_by_age ON event_attempts (at_ms);

CREATE TABLE event_groups (
    tenant BLOB NOT NULL,
    topic TEXT NOT NULL,
    name TEXT NOT NULL,
    position INTEGER NOT NULL,
    changed_ms INTEGER NOT NULL,
    state BLOB NOT NULL,
    PRIMARY KEY (tenant, topic, name)
) STRICT, WITHOUT ROWID;
