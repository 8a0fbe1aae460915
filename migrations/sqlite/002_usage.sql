-- Usage: points counted once, and their sums.

CREATE TABLE usage_dedupe (
    day INTEGER NOT NULL,
    place INTEGER NOT NULL,
    hash BLOB NOT NULL,
    fingerprint INTEGER NOT NULL,
    PRIMARY KEY (day, place, hash)
) STRICT, WITHOUT ROWID;

CREATE TABLE usage_events (
    time_us INTEGER NOT NULL,
    tenant BLOB NOT NULL,
    metric TEXT NOT NULL,
    value TEXT NOT NULL,
    tags TEXT,
    metadata TEXT
) STRICT;

-- By UTC hour in microseconds since 1970, and by day of the policy's time zone as a text: of all together (tag ''), and of each
-- value of the tags by which the metric can be grouped.
CREATE TABLE usage_hourly (
    tenant BLOB NOT NULL,
    metric TEXT NOT NULL,
    tag TEXT NOT NULL,
    start INTEGER NOT NULL,
    tag_value TEXT NOT NULL,
    value TEXT NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (tenant, metric, tag, start, tag_value)
) STRICT, WITHOUT ROWID;

CREATE TABLE usage_daily (
    tenant BLOB NOT NULL,
    metric TEXT NOT NULL,
    tag TEXT NOT NULL,
    start TEXT NOT NULL,
    tag_value TEXT NOT NULL,
    value TEXT NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (tenant, metric, tag, start, tag_value)
) STRICT, WITHOUT ROWID;
