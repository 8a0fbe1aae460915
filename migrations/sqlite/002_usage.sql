-- Usage: points counted once, and their sums.

-- In which zone days and months begin, once something is counted; how long after its end a month closes, or never; and from when on all
-- raw records are there, where some were dropped.
ALTER TABLE store ADD COLUMN usage_time_zone TEXT;
ALTER TABLE store ADD COLUMN usage_close_after_ms INTEGER;
ALTER TABLE store ADD COLUMN usage_records_from_us INTEGER;

-- The tags by whose values sums are kept; '' of each metric of which something was counted. What was counted before `since_us` is not in the sums of the tag.
CREATE TABLE usage_tags (
    metric TEXT NOT NULL,
    tag TEXT NOT NULL,
    since_us INTEGER NOT NULL,
    PRIMARY KEY (metric, tag)
) STRICT, WITHOUT ROWID;

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

-- By UTC hour in microseconds since 1970, and by day of the store's time zone as a text: of all together (tag ''), and of each
-- value of the tags by which the metric can be grouped. What came for a month that was closed is in the hour and on the day when it
-- came, in a row of its own that says which month it adjusts, by its first day ('' of what adjusts none).
CREATE TABLE usage_hourly (
    tenant BLOB NOT NULL,
    metric TEXT NOT NULL,
    tag TEXT NOT NULL,
    start INTEGER NOT NULL,
    tag_value TEXT NOT NULL,
    adjusts TEXT NOT NULL,
    value TEXT NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (tenant, metric, tag, start, tag_value, adjusts)
) STRICT, WITHOUT ROWID;

CREATE TABLE usage_daily (
    tenant BLOB NOT NULL,
    metric TEXT NOT NULL,
    tag TEXT NOT NULL,
    start TEXT NOT NULL,
    tag_value TEXT NOT NULL,
    adjusts TEXT NOT NULL,
    value TEXT NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (tenant, metric, tag, start, tag_value, adjusts)
) STRICT, WITHOUT ROWID;

-- The points that are adjustments, when they were booked: each is in usage_events too, at its own time.
CREATE TABLE usage_adjustments (
    booked_us INTEGER NOT NULL,
    time_us INTEGER NOT NULL,
    tenant BLOB NOT NULL,
    metric TEXT NOT NULL,
    value TEXT NOT NULL,
    tags TEXT,
    metadata TEXT
) STRICT;
CREATE INDEX usage_adjustments_of_tenant ON usage_adjustments (tenant, metric, booked_us);

-- Records that were accepted to disk (`ack: spool`) and not counted, since their keys are others'. Each once, however often it comes.
CREATE TABLE usage_conflicts (
    tenant BLOB NOT NULL,
    metric TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    fingerprint INTEGER NOT NULL,
    found_us INTEGER NOT NULL,
    time_us INTEGER NOT NULL,
    value TEXT NOT NULL,
    tags TEXT,
    metadata TEXT,
    PRIMARY KEY (tenant, metric, idempotency_key, fingerprint)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_conflicts_found ON usage_conflicts (tenant, metric, found_us, idempotency_key, fingerprint);
CREATE INDEX usage_conflicts_by_finding ON usage_conflicts (found_us);
