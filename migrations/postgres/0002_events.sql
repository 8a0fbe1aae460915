-- The log of events, what is known of their ids, and how far each group of consumers is.

CREATE SEQUENCE events_id_seq AS bigint;
-- A sequence that gave nothing yet has no last value that could be told from 1.
SELECT nextval('events_id_seq');

CREATE TABLE events (
    id bigint NOT NULL,
    accepted_at timestamptz NOT NULL,
    tenant_id uuid NOT NULL,
    topic text NOT NULL,
    -- The partition of the topic in Kafka.
    lane smallint NOT NULL,
    -- What orders it: `partitionkey`, else `subject`, else `id`.
    key text NOT NULL,
    type text NOT NULL,
    -- The CloudEvents context attributes, one JSON object without `data`.
    attributes bytea NOT NULL,
    -- What `data` is: 0 nothing, 1 JSON, 2 text, 3 binary.
    form smallint NOT NULL,
    data bytea,
    PRIMARY KEY (id, accepted_at)
) PARTITION BY RANGE (accepted_at);
CREATE INDEX events_of_tenant ON events (tenant_id, topic, id);
ALTER TABLE events ENABLE ROW LEVEL SECURITY;
ALTER TABLE events FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON events FOR SELECT
    USING (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')::uuid));
-- A service reads for all of its tenants.
CREATE POLICY fleet ON events FOR SELECT
    USING ((SELECT current_setting('app.reads_for', true) = 'every')
        OR tenant_id = ANY ((SELECT nullif(nullif(current_setting('app.reads_for', true), 'every'), ''))::uuid[]));
-- A batch carries the events of many tenants, each of which a permit named; it can read none of them.
CREATE POLICY own_or_batch ON events FOR INSERT
    WITH CHECK (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')::uuid)
        OR tenant_id = ANY ((SELECT nullif(current_setting('app.writes_for', true), ''))::uuid[]));

CREATE TABLE event_dedupe (
    tenant_id uuid NOT NULL,
    -- A place in the order of its client's ids, and the first half of SHA-256 over topic, source and id.
    key bytea NOT NULL,
    -- Of acceptance, UTC.
    day date NOT NULL,
    -- Until when another of this id is the same event.
    until timestamptz NOT NULL,
    -- By which other data under the same id is seen.
    fingerprint bigint NOT NULL,
    PRIMARY KEY (tenant_id, key, day)
) PARTITION BY RANGE (day);
ALTER TABLE event_dedupe ENABLE ROW LEVEL SECURITY;
ALTER TABLE event_dedupe FORCE ROW LEVEL SECURITY;
CREATE POLICY own_or_batch ON event_dedupe
    USING (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')::uuid)
        OR tenant_id = ANY ((SELECT nullif(current_setting('app.writes_for', true), ''))::uuid[]));

-- Takes ids of which nobody has any, and says whether it did; where one is known or over, or the day is just changing, it takes none. By
-- the caller's rights. A plain INSERT costs half of what ON CONFLICT does, and ids that are looked up first leave no dead rows
-- behind.
--
-- Indexes alone, and no plan that is made anew: one that is made while a day's partition is empty would read it whole for as long
-- as its session lasts.
CREATE FUNCTION outrigger_take_new_event_ids(
    tenants uuid[], keys bytea[], fingerprints bigint[], windows_ms bigint[], days_back integer
) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
DECLARE
    today date := (now() AT TIME ZONE 'UTC')::date;
BEGIN
    IF ((now() - interval '10 min') AT TIME ZONE 'UTC')::date <> today
        OR ((now() + interval '10 min') AT TIME ZONE 'UTC')::date <> today
    THEN
        RETURN false;
    END IF;
    PERFORM FROM unnest(tenants, keys, windows_ms) AS input (tenant_id, key, window_ms) CROSS JOIN LATERAL (
        SELECT FROM public.event_dedupe kept WHERE kept.tenant_id = input.tenant_id AND kept.key = input.key
            AND kept.day >= today - days_back AND kept.day <= today
            AND kept.day >= today - ((input.window_ms + 86399999) / 86400000)::integer
            AND kept.until > now() LIMIT 1) known
        LIMIT 1;
    IF FOUND THEN
        RETURN false;
    END IF;
    -- In one order, so that no two transactions wait for each other.
    INSERT INTO public.event_dedupe (tenant_id, key, day, until, fingerprint)
        SELECT tenant_id, key, today, now() + window_ms * interval '1 ms', fingerprint
        FROM unnest(tenants, keys, windows_ms, fingerprints) AS input (tenant_id, key, window_ms, fingerprint)
        ORDER BY tenant_id, key;
    RETURN true;
EXCEPTION WHEN unique_violation THEN
    RETURN false;
END
$$;
REVOKE ALL ON FUNCTION outrigger_take_new_event_ids(uuid[], bytea[], bigint[], bigint[], integer) FROM PUBLIC;

CREATE TABLE event_groups (
    -- Whose the group is: a tenant's, or a service's, which has a UUID like no tenant.
    tenant_id uuid NOT NULL,
    topic text NOT NULL,
    name text NOT NULL,
    -- The last event that was looked at.
    position bigint NOT NULL,
    -- What was delivered and is not done, and what waits behind it.
    state bytea NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, topic, name)
);
ALTER TABLE event_groups ENABLE ROW LEVEL SECURITY;
ALTER TABLE event_groups FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON event_groups
    USING (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')::uuid));
-- The owner of the table drops those that nobody uses, and sees no others.
CREATE POLICY idle ON event_groups TO CURRENT_USER USING (changed_at < now() - interval '1 day');

-- Where a subscription of policy began: its groups begin there, whenever their tenant's first event comes.
CREATE TABLE event_subscriptions (
    name text PRIMARY KEY,
    position bigint NOT NULL,
    since timestamptz NOT NULL DEFAULT now(),
    -- Grows with each replay by command, so that processes look at all of its groups again.
    replays bigint NOT NULL DEFAULT 0
);

-- Begins a subscription, where nobody has, at a place of now, and says where it began. Whoever may call it begins none in
-- the past, by which its endpoint would be sent everything again, nor in the future, by which it would be sent nothing.
CREATE FUNCTION outrigger_begin_subscription(subscription text, here bigint) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    reads_for text := current_setting('app.reads_for', true);
    begun bigint := (SELECT position FROM public.event_subscriptions WHERE name = subscription);
    next_at timestamptz;
BEGIN
    IF begun IS NOT NULL THEN
        RETURN begun;
    END IF;
    PERFORM set_config('app.reads_for', 'every', true);
    next_at := (SELECT accepted_at FROM public.events WHERE id > here ORDER BY id LIMIT 1);
    PERFORM set_config('app.reads_for', coalesce(reads_for, ''), true);
    -- No writer's transaction takes as long.
    IF here > (SELECT last_value FROM public.events_id_seq) OR next_at < now() - interval '10 minutes' THEN
        RAISE EXCEPTION 'a subscription begins where the log is now' USING ERRCODE = 'check_violation';
    END IF;
    INSERT INTO public.event_subscriptions (name, position) VALUES (subscription, here) ON CONFLICT DO NOTHING;
    RETURN (SELECT position FROM public.event_subscriptions WHERE name = subscription);
END
$$;
REVOKE ALL ON FUNCTION outrigger_begin_subscription(text, bigint) FROM PUBLIC;

-- What was tried for subscriptions.
CREATE TABLE event_attempts (
    tenant_id uuid NOT NULL,
    at timestamptz NOT NULL,
    subscription text NOT NULL,
    event_id text NOT NULL,
    message_id text NOT NULL,
    attempt integer NOT NULL,
    outcome text NOT NULL,
    status smallint,
    duration_ms integer NOT NULL,
    -- None after the last attempt.
    next_at timestamptz
) PARTITION BY RANGE (at);
CREATE INDEX event_attempts_of_subscription ON event_attempts (subscription, at);
ALTER TABLE event_attempts ENABLE ROW LEVEL SECURITY;
ALTER TABLE event_attempts FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON event_attempts
    USING (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')::uuid));

-- How far what is relayed has come: no partition is dropped before that.
CREATE TABLE event_relays (
    shard smallint PRIMARY KEY,
    position bigint NOT NULL,
    -- The acceptance of the last event delivered.
    delivered_until timestamptz NOT NULL
);

-- What Kafka refused, and the later events of the same keys: they wait for an operator, as long as it takes.
CREATE TABLE event_parked (
    shard smallint NOT NULL,
    id bigint NOT NULL,
    tenant_id uuid NOT NULL,
    accepted_at timestamptz NOT NULL,
    topic text NOT NULL,
    lane smallint NOT NULL,
    key text NOT NULL,
    type text NOT NULL,
    attributes bytea NOT NULL,
    form smallint NOT NULL,
    data bytea,
    reason text NOT NULL,
    parked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard, id)
);
CREATE INDEX event_parked_of_key ON event_parked (shard, tenant_id, topic, key, id);
ALTER TABLE event_parked ENABLE ROW LEVEL SECURITY;
ALTER TABLE event_parked FORCE ROW LEVEL SECURITY;

-- A lease ends soon, by this server's time, and its epoch grows by one at a time: who takes one cannot keep it from the
-- others for good.
CREATE FUNCTION outrigger_bound_lease() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF new.until > clock_timestamp() + interval '10 minutes'
        OR (TG_OP = 'INSERT' AND new.epoch <> 1)
        OR (TG_OP = 'UPDATE' AND new.epoch NOT BETWEEN old.epoch AND old.epoch + 1)
    THEN
        RAISE EXCEPTION 'a lease is for ten minutes at the most, and each new owner''s epoch one more'
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN new;
END
$$;
CREATE TRIGGER bound BEFORE INSERT OR UPDATE ON leases FOR EACH ROW EXECUTE FUNCTION outrigger_bound_lease();

-- What operators ordered for parked keys. The relay that has the shard does it, and says here what came of it. One that was done
-- goes after 30 days; one that gave an event up not before that event, which would be sent again by a replay.
CREATE TABLE event_orders (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    shard smallint NOT NULL,
    -- Both are empty where it is for all that is parked of the tenant in the shard.
    topic text NOT NULL,
    tenant_id uuid NOT NULL,
    key text NOT NULL,
    -- The event that is given up; none where the key's events are to be sent.
    discards bigint,
    -- Why it is given up.
    reason text,
    -- Its context attributes, so that what is given up can be told later.
    attributes bytea,
    ordered_at timestamptz NOT NULL DEFAULT now(),
    -- Events that Kafka has taken.
    sent bigint NOT NULL DEFAULT 0,
    done_at timestamptz,
    -- `released`, `discarded` or `refused`; none while it waits.
    outcome text,
    -- What Kafka said.
    detail text
);
CREATE INDEX event_orders_waiting ON event_orders (shard, number) WHERE done_at IS NULL;
ALTER TABLE event_orders ENABLE ROW LEVEL SECURITY;
ALTER TABLE event_orders FORCE ROW LEVEL SECURITY;

-- What Kafka takes in a topic, as a relay has read it there: publishers refuse what is larger.
CREATE TABLE event_topic_limits (
    topic text PRIMARY KEY,
    -- Its name in Kafka, and its `max.message.bytes` there.
    kafka_topic text NOT NULL,
    max_message_bytes bigint NOT NULL,
    read_at timestamptz NOT NULL
);

-- Makes the partitions of the days to come, and drops those whose last event is older than the retention and relayed.
-- Whoever may call it can do no more than that. A partition that somebody uses is not dropped this time (`kept`): a drop has
-- the whole table to itself, so everyone waits while it waits for one.
CREATE FUNCTION outrigger_keep_partitions() RETURNS TABLE (made integer, dropped integer, kept integer)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '500ms'
SET TimeZone = 'UTC'
AS $$
DECLARE
    today date := current_date;
    retention integer := (SELECT events_retention_days FROM public.outrigger_store);
    relayed date := (SELECT min(delivered_until)::date FROM public.event_relays);
    parent text;
    part text;
    day date;
BEGIN
    made := 0;
    dropped := 0;
    kept := 0;
    -- One at a time; who comes second finds it done. Not in the class of the writers' floors.
    PERFORM pg_advisory_xact_lock(1869968499, 0);
    FOREACH parent IN ARRAY ARRAY['events', 'event_dedupe', 'event_attempts'] LOOP
        FOR day IN SELECT today + ahead FROM generate_series(-1, 7) ahead LOOP
            part := parent || to_char(day::timestamp, '"_"YYYYMMDD');
            CONTINUE WHEN to_regclass('public.' || part) IS NOT NULL;
            -- Made apart and attached: made in place it would lock the log against everyone.
            EXECUTE format('CREATE TABLE public.%I (LIKE public.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', part, parent);
            EXECUTE format('ALTER TABLE public.%I ENABLE ROW LEVEL SECURITY', part);
            EXECUTE format('ALTER TABLE public.%I FORCE ROW LEVEL SECURITY', part);
            EXECUTE format('ALTER TABLE public.%I ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)',
                parent, part, day, day + 1);
            made := made + 1;
        END LOOP;
    END LOOP;
    PERFORM set_config('lock_timeout', '50ms', true);
    FOREACH parent IN ARRAY ARRAY['events', 'event_dedupe', 'event_attempts'] LOOP
        FOR part IN
            SELECT child.relname::text FROM pg_inherits
                JOIN pg_class child ON child.oid = inhrelid
                WHERE inhparent = ('public.' || parent)::regclass
        LOOP
            day := to_date(right(part, 8), 'YYYYMMDD');
            IF parent = 'events' THEN
                CONTINUE WHEN day >= today - retention OR day >= relayed;
            ELSIF parent = 'event_attempts' THEN
                CONTINUE WHEN day >= today - retention;
            ELSE
                -- The longest window of deduplication is 7 days.
                CONTINUE WHEN day >= today - 8;
            END IF;
            BEGIN
                EXECUTE format('DROP TABLE public.%I', part);
                dropped := dropped + 1;
            EXCEPTION WHEN lock_not_available THEN
                kept := kept + 1;
                -- Its others are used as well.
                EXIT;
            END;
        END LOOP;
    END LOOP;
    RETURN NEXT;
END
$$;
REVOKE ALL ON FUNCTION outrigger_keep_partitions() FROM PUBLIC;

-- Drops 500 of the groups that nobody used since the first day that is kept began: whatever they looked at is gone, and one of that
-- name that is made again goes on with the same event. How many.
CREATE FUNCTION outrigger_drop_idle_groups() RETURNS integer
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET TimeZone = 'UTC'
AS $$
    WITH idle AS (
        SELECT tenant_id, topic, name FROM public.event_groups
            WHERE changed_at < (
                SELECT min(to_date(right(relname::text, 8), 'YYYYMMDD')) FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
                    WHERE inhparent = 'public.events'::regclass) - interval '1 hour'
            LIMIT 500 FOR UPDATE SKIP LOCKED),
    dropped AS (
        DELETE FROM public.event_groups USING idle
            WHERE event_groups.tenant_id = idle.tenant_id AND event_groups.topic = idle.topic AND event_groups.name = idle.name
            RETURNING 1)
    SELECT count(*)::integer FROM dropped
$$;
REVOKE ALL ON FUNCTION outrigger_drop_idle_groups() FROM PUBLIC;
SELECT outrigger_keep_partitions();
