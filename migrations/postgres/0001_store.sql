-- What the store says of itself, and who owns what in a fleet. No tenant's data.

CREATE TABLE outrigger_store (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    -- Raised after a restore to an earlier point, so that relays do not go on from what no longer is.
    epoch bigint NOT NULL DEFAULT 1,
    -- The last event's id when the epoch before this one ended.
    previous_epoch_end bigint,
    -- Binds the cursors that readers are given to their tenant and topic.
    cursor_key bytea NOT NULL
        DEFAULT decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex'),
    events_retention_days integer NOT NULL DEFAULT 7 CHECK (events_retention_days BETWEEN 1 AND 3650)
);
INSERT INTO outrigger_store DEFAULT VALUES;

CREATE TABLE leases (
    name text PRIMARY KEY,
    owner uuid,
    -- Grows with each new owner: what an earlier one still sends is refused by it.
    epoch bigint NOT NULL,
    until timestamptz NOT NULL
);
