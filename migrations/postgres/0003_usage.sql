-- Usage: points counted once, and their sums.

-- Which keys were counted. A row is a hash and says nothing of whose it is; the application reads it through the functions
-- below alone, so that no policy is needed.
CREATE TABLE usage_dedupe (
    -- Of the point's time, UTC.
    day date NOT NULL,
    -- Orders keys as their clients made them: an index of keys without an order costs five times as much.
    place bigint NOT NULL,
    -- The first half of SHA-256 over tenant, metric, day and key.
    hash uuid NOT NULL,
    -- By which another point under the same key is seen.
    fingerprint bigint NOT NULL
) PARTITION BY RANGE (day);

-- Every point, as it came: for reporting tools and for reconciling. Without row-level security, which TimescaleDB does not
-- compress; the application has no right to it.
CREATE TABLE usage_events (
    time timestamptz NOT NULL,
    tenant_id uuid NOT NULL,
    metric text COLLATE "C" NOT NULL,
    value numeric(38, 9) NOT NULL,
    tags jsonb,
    metadata json
) PARTITION BY RANGE (time);

-- With TimescaleDB, where its administrator installed the extension before this: a hypertable with a chunk for each day instead of the
-- partitions, and `daily_usage` for reporting tools. Compression and aggregates are not in what has the Apache licence alone.
-- No unique index: those were not held in compressed chunks (keys are in usage_dedupe). Records come for 90 days at the most, so that
-- chunks are compressed, and aggregates are at rest, after that; a late one is taken all the same.
DO $timescale$
DECLARE
    its_schema text := (SELECT quote_ident(nspname) FROM pg_extension
        JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'timescaledb');
BEGIN
    IF its_schema IS NULL OR current_setting('timescaledb.license', true) IS DISTINCT FROM 'timescale' THEN
        RETURN;
    END IF;
    CREATE TABLE usage_chunks (LIKE usage_events);
    DROP TABLE usage_events;
    ALTER TABLE usage_chunks RENAME TO usage_events;
    EXECUTE format($sql$SELECT %s.create_hypertable('usage_events', 'time', chunk_time_interval => interval '1 day',
        create_default_indexes => false)$sql$, its_schema);
    CREATE INDEX usage_events_by_time ON usage_events USING brin (time) WITH (pages_per_range = 32, autosummarize = on);
    ALTER TABLE usage_events SET (timescaledb.compress, timescaledb.compress_segmentby = 'tenant_id, metric',
        timescaledb.compress_orderby = 'time');
    EXECUTE format($sql$SELECT %s.add_compression_policy('usage_events', interval '91 days')$sql$, its_schema);
    -- Days of UTC, once they are over.
    EXECUTE format($sql$CREATE MATERIALIZED VIEW daily_usage
        WITH (timescaledb.continuous, timescaledb.materialized_only = true) AS
        SELECT %s.time_bucket(interval '1 day', time) AS day, tenant_id, metric, sum(value) AS value, count(*) AS count
        FROM usage_events GROUP BY 1, 2, 3 WITH NO DATA$sql$, its_schema);
    EXECUTE format($sql$SELECT %s.add_continuous_aggregate_policy('daily_usage', start_offset => interval '95 days',
        end_offset => interval '1 hour', schedule_interval => interval '6 hours')$sql$, its_schema);
END
$timescale$;

-- For reporting tools that read no decimals.
CREATE VIEW usage_events_float AS
    SELECT time, tenant_id, metric, value::double precision AS value, tags, metadata FROM usage_events;

-- Sums by UTC hour, and by day of the store's time zone: of all together (tag ''), and of each value of the tags by which the
-- metric can be grouped ('' of points without the tag). A sum of values that fit numeric(38, 9) may not. What came for a month that
-- was closed is in the hour and on the day when it came, in a row of its own that says which month it adjusts.
CREATE TABLE usage_hourly (
    tenant_id uuid NOT NULL,
    metric text COLLATE "C" NOT NULL,
    tag text COLLATE "C" NOT NULL,
    start timestamptz NOT NULL,
    tag_value text COLLATE "C" NOT NULL,
    -- The first day of that month; '-infinity' of what adjusts none.
    adjusts date NOT NULL,
    value numeric NOT NULL,
    count bigint NOT NULL,
    PRIMARY KEY (tenant_id, metric, tag, start, tag_value, adjusts)
) WITH (fillfactor = 70);
CREATE TABLE usage_daily (
    tenant_id uuid NOT NULL,
    metric text COLLATE "C" NOT NULL,
    tag text COLLATE "C" NOT NULL,
    start date NOT NULL,
    tag_value text COLLATE "C" NOT NULL,
    -- The first day of that month; '-infinity' of what adjusts none.
    adjusts date NOT NULL,
    value numeric NOT NULL,
    count bigint NOT NULL,
    PRIMARY KEY (tenant_id, metric, tag, start, tag_value, adjusts)
) WITH (fillfactor = 70);
-- For `outrigger usage reconcile`, which looks at days of everyone; it costs next to nothing to keep.
CREATE INDEX usage_hourly_by_start ON usage_hourly USING brin (start) WITH (pages_per_range = 32, autosummarize = on);
CREATE INDEX usage_daily_by_start ON usage_daily USING brin (start) WITH (pages_per_range = 32, autosummarize = on);

-- The points that are adjustments, when they were booked: each is in usage_events too, at its own time.
CREATE TABLE usage_adjustments (
    booked_at timestamptz NOT NULL,
    time timestamptz NOT NULL,
    tenant_id uuid NOT NULL,
    metric text COLLATE "C" NOT NULL,
    value numeric(38, 9) NOT NULL,
    tags jsonb,
    metadata json
);
CREATE INDEX usage_adjustments_of_tenant ON usage_adjustments (tenant_id, metric, booked_at);
CREATE INDEX usage_adjustments_by_booking ON usage_adjustments (booked_at);
CREATE INDEX usage_adjustments_by_time ON usage_adjustments (time);

-- Records that were accepted to disk (`ack: spool`) and not counted, since their keys are others'. Each once, however often it comes.
CREATE TABLE usage_conflicts (
    tenant_id uuid NOT NULL,
    metric text COLLATE "C" NOT NULL,
    idempotency_key text COLLATE "C" NOT NULL,
    fingerprint bigint NOT NULL,
    found_at timestamptz NOT NULL DEFAULT now(),
    time timestamptz NOT NULL,
    value numeric(38, 9) NOT NULL,
    tags jsonb,
    metadata json,
    PRIMARY KEY (tenant_id, metric, idempotency_key, fingerprint)
);
CREATE INDEX usage_conflicts_found ON usage_conflicts (tenant_id, metric, found_at, idempotency_key, fingerprint);
CREATE INDEX usage_conflicts_by_finding ON usage_conflicts (found_at);
ALTER TABLE usage_conflicts ENABLE ROW LEVEL SECURITY;
ALTER TABLE usage_conflicts FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON usage_conflicts FOR SELECT
    USING (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')::uuid));
CREATE POLICY found ON usage_conflicts TO CURRENT_USER USING (true) WITH CHECK (true);
ALTER TABLE usage_adjustments ENABLE ROW LEVEL SECURITY;
ALTER TABLE usage_adjustments FORCE ROW LEVEL SECURITY;
ALTER TABLE usage_hourly ENABLE ROW LEVEL SECURITY;
ALTER TABLE usage_hourly FORCE ROW LEVEL SECURITY;
ALTER TABLE usage_daily ENABLE ROW LEVEL SECURITY;
ALTER TABLE usage_daily FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON usage_hourly FOR SELECT
    USING (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')::uuid));
CREATE POLICY own ON usage_daily FOR SELECT
    USING (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')::uuid));
CREATE POLICY own ON usage_adjustments FOR SELECT
    USING (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')::uuid));
-- The functions below are the owner's.
CREATE POLICY booked ON usage_adjustments TO CURRENT_USER USING (true) WITH CHECK (true);
CREATE POLICY sums ON usage_hourly TO CURRENT_USER USING (true) WITH CHECK (true);
CREATE POLICY sums ON usage_daily TO CURRENT_USER USING (true) WITH CHECK (true);

-- Raises where one of these is not a tenant that this transaction's permits named.
CREATE FUNCTION outrigger_check_tenants(tenants uuid[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- Of NULL nothing is true.
    IF tenants IS NULL OR array_position(tenants, NULL) IS NOT NULL OR NOT tenants <@ (coalesce(nullif(current_setting('app.writes_for', true), '')::uuid[], '{}')
        || coalesce(ARRAY[nullif(current_setting('app.tenant_id', true), '')::uuid], '{}'))
    THEN
        RAISE EXCEPTION 'usage of a tenant that no permit named' USING ERRCODE = 'insufficient_privilege';
    END IF;
END
$$;

-- Whether TimescaleDB keeps usage_events, and makes its chunks.
CREATE FUNCTION outrigger_usage_in_chunks() RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT relkind = 'r' FROM pg_class WHERE oid = 'public.usage_events'::regclass $$;

-- Makes the partitions of a day; nothing where they are there. Days of the last 100 and of the next 10 alone.
CREATE FUNCTION outrigger_make_usage_day(day date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET TimeZone = 'UTC'
AS $$
DECLARE
    suffix text := to_char(day::timestamp, 'YYYYMMDD');
    events text := 'usage_events_' || suffix;
    dedupe text := 'usage_dedupe_' || suffix;
BEGIN
    IF day NOT BETWEEN current_date - 100 AND current_date + 10 THEN
        RAISE EXCEPTION 'no usage is kept of %', day USING ERRCODE = 'check_violation';
    END IF;
    IF to_regclass('public.' || dedupe) IS NOT NULL THEN
        RETURN false;
    END IF;
    -- One at a time; who comes second finds it done, by a look of its own: `to_regclass` remembers what it did not find.
    PERFORM pg_advisory_xact_lock(1869968499, 1);
    IF EXISTS (SELECT FROM pg_class WHERE relname = dedupe AND relnamespace = 'public'::regnamespace) THEN
        RETURN false;
    END IF;
    -- Made apart and attached: made in place it would lock the tables against everyone.
    IF NOT public.outrigger_usage_in_chunks() THEN
        EXECUTE format('CREATE TABLE public.%I (LIKE public.usage_events INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', events);
        EXECUTE format('CREATE INDEX %I ON public.%I USING brin (time) WITH (pages_per_range = 32, autosummarize = on)',
            events || '_by_time', events);
        EXECUTE format('ALTER TABLE public.usage_events ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)',
            events, day, day + 1);
    END IF;
    EXECUTE format('CREATE TABLE public.%I (LIKE public.usage_dedupe INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', dedupe);
    EXECUTE format('CREATE UNIQUE INDEX %I ON public.%I (place, hash)', dedupe || '_keys', dedupe);
    EXECUTE format('ALTER TABLE public.usage_dedupe ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)',
        dedupe, day, day + 1);
    RETURN true;
END
$$;

ALTER TABLE outrigger_store
    -- For how many days raw records are kept.
    ADD COLUMN usage_retention_days integer NOT NULL DEFAULT 400,
    -- The first UTC day whose raw records are all there.
    ADD COLUMN usage_records_from date NOT NULL DEFAULT '-infinity',
    -- What all sidecars count by, whatever their policies say: in which zone days and months begin (null until somebody counts), and
    -- how long after its end a month closes (null: never).
    ADD COLUMN usage_time_zone text,
    ADD COLUMN usage_close_after_ms bigint,
    -- Another one with each change of these and of usage_tags.
    ADD COLUMN usage_edition uuid NOT NULL DEFAULT gen_random_uuid();

-- The tags by whose values sums are kept; '' of each metric of which something was counted. `since` is the store's clock's: what was counted
-- before is not in the sums of the tag.
CREATE TABLE usage_tags (
    metric text COLLATE "C" NOT NULL,
    tag text COLLATE "C" NOT NULL,
    since timestamptz NOT NULL,
    PRIMARY KEY (metric, tag)
);

-- By what is counted in this transaction. The first one who counts says it, and who has a tag that is not there adds it; of another zone than
-- the store's only where that is no matter (`any_zone`).
--
-- Who counts has the table locked as whoever changes it may not: what is counted by these terms is committed before they change.
CREATE FUNCTION outrigger_usage_terms(zone text, closes_ms bigint, declared_metrics text[], declared_tags text[], any_zone boolean)
RETURNS TABLE (edition uuid, time_zone text, close_after_ms bigint, metrics text[], tags text[])
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    kept text := (SELECT usage_time_zone FROM public.outrigger_store);
BEGIN
    IF kept IS NULL OR ((kept = zone OR any_zone) AND EXISTS (
        SELECT * FROM unnest(declared_metrics, declared_tags) EXCEPT SELECT known.metric, known.tag FROM public.usage_tags known))
    THEN
        LOCK TABLE public.outrigger_store IN EXCLUSIVE MODE;
        -- Of a metric that nobody has counted yet all is in their sums.
        INSERT INTO public.usage_tags (metric, tag, since)
            SELECT input.metric, input.tag, CASE WHEN EXISTS (SELECT FROM public.usage_tags known WHERE known.metric = input.metric)
                THEN clock_timestamp() ELSE '-infinity' END
            FROM unnest(declared_metrics, declared_tags) AS input (metric, tag)
        ON CONFLICT DO NOTHING;
        UPDATE public.outrigger_store SET usage_edition = gen_random_uuid(),
            usage_close_after_ms = CASE WHEN usage_time_zone IS NULL THEN closes_ms ELSE usage_close_after_ms END,
            usage_time_zone = coalesce(usage_time_zone, zone);
    ELSE
        LOCK TABLE public.outrigger_store IN ROW SHARE MODE;
    END IF;
    RETURN QUERY SELECT store.usage_edition, store.usage_time_zone, store.usage_close_after_ms,
        ARRAY(SELECT known.metric FROM public.usage_tags known ORDER BY known.metric, known.tag),
        ARRAY(SELECT known.tag FROM public.usage_tags known ORDER BY known.metric, known.tag)
        FROM public.outrigger_store store;
END
$$;

-- Puts a policy's terms into force, for `outrigger migrate`: tags of its metrics that it does not name are no longer counted by. The zone
-- stays as it is once there is usage, whose days are that zone's.
CREATE FUNCTION outrigger_put_usage_terms(zone text, closes_ms bigint, named text[], metrics text[], tags text[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '20s'
AS $$
DECLARE
    kept text;
    is_less boolean;
BEGIN
    LOCK TABLE public.outrigger_store IN EXCLUSIVE MODE;
    kept := (SELECT usage_time_zone FROM public.outrigger_store);
    IF kept <> zone AND EXISTS (SELECT FROM public.usage_daily) THEN
        RAISE EXCEPTION 'the days and months of the usage in this database are those of `%`, and the policy has `time_zone: %`: '
            '`time_zone: %` is right; another zone can be chosen only before there is usage', kept, zone, kept
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    DELETE FROM public.usage_tags known WHERE known.metric = ANY (named) AND known.tag <> ''
        AND (known.metric, known.tag) NOT IN (SELECT * FROM unnest(metrics, tags));
    is_less := FOUND;
    UPDATE public.outrigger_store
        SET usage_edition = gen_random_uuid(), usage_time_zone = zone, usage_close_after_ms = closes_ms
        WHERE is_less OR (usage_time_zone, usage_close_after_ms) IS DISTINCT FROM (zone, closes_ms);
END
$$;
REVOKE ALL ON FUNCTION outrigger_usage_terms(text, bigint, text[], text[], boolean),
    outrigger_put_usage_terms(text, bigint, text[], text[], text[]) FROM PUBLIC;

-- Makes the partitions of today and of the two days after, and drops those of raw records that are older than the retention, and of keys of days
-- of which no record is taken. One that somebody uses is not dropped this time (`kept`).
CREATE FUNCTION outrigger_keep_usage_partitions() RETURNS TABLE (made integer, dropped integer, kept integer)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '500ms'
SET TimeZone = 'UTC'
AS $$
DECLARE
    today date := current_date;
    retention integer := greatest((SELECT usage_retention_days FROM public.outrigger_store), 100);
    in_chunks boolean := public.outrigger_usage_in_chunks();
    parent text;
    part text;
BEGIN
    made := (SELECT count(*) FILTER (WHERE public.outrigger_make_usage_day(today + ahead)) FROM generate_series(0, 2) ahead);
    dropped := 0;
    kept := 0;
    -- Before anything is dropped: who counts holds this table, and waits for what is dropped.
    UPDATE public.outrigger_store SET usage_records_from = today - retention WHERE usage_records_from < today - retention;
    PERFORM set_config('lock_timeout', '50ms', true);
    IF in_chunks THEN
        BEGIN
            EXECUTE (SELECT format('SELECT count(*) FROM %I.drop_chunks(''public.usage_events'', older_than => $1)', nspname)
                    FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'timescaledb')
                INTO dropped USING (today - retention)::timestamptz;
        EXCEPTION WHEN lock_not_available THEN
            kept := 1;
        END;
    END IF;
    FOREACH parent IN ARRAY CASE WHEN in_chunks THEN '{usage_dedupe}'::text[] ELSE '{usage_events,usage_dedupe}' END LOOP
        FOR part IN
            SELECT child.relname::text FROM pg_inherits
                JOIN pg_class child ON child.oid = inhrelid
                WHERE inhparent = ('public.' || parent)::regclass
                    AND to_date(right(child.relname, 8), 'YYYYMMDD')
                        < today - CASE WHEN parent = 'usage_events' THEN retention ELSE 100 END
        LOOP
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

-- Drops listed conflicts that are older than the retention, a part of them at a time; whether there may be more.
CREATE FUNCTION outrigger_drop_usage_conflicts() RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET TimeZone = 'UTC'
AS $$
DECLARE
    at_once integer := 10000;
    dropped integer;
BEGIN
    DELETE FROM public.usage_conflicts WHERE ctid IN (
        SELECT ctid FROM public.usage_conflicts
        WHERE found_at < current_date - greatest((SELECT usage_retention_days FROM public.outrigger_store), 100)
        ORDER BY found_at LIMIT at_once);
    GET DIAGNOSTICS dropped = ROW_COUNT;
    RETURN dropped = at_once;
END
$$;
REVOKE ALL ON FUNCTION outrigger_keep_usage_partitions(), outrigger_drop_usage_conflicts() FROM PUBLIC;

-- Counts points whose keys are all new, and returns nothing. Where some are known nothing is written, and each of those is
-- returned: its place in the list, from 1, and the fingerprint of the point that has its key. Keys come sorted, so that no two
-- transactions wait for each other.
--
-- It is the first that a transaction which counts writes, and holds the store's terms as they are until its end: those of this edition, by
-- which the sums that come after it are made.
--
-- Indexes alone, and no plan that is made anew: one that is made while a day's partition is empty would read it whole for as long
-- as its session lasts.
CREATE FUNCTION outrigger_usage_insert(
    tenants uuid[], metrics text[], times timestamptz[], amounts numeric[], tags text[], metadata text[],
    days date[], places bigint[], hashes uuid[], fingerprints bigint[], edition uuid
) RETURNS TABLE (held integer, held_fingerprint bigint)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET TimeZone = 'UTC'
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
BEGIN
    PERFORM public.outrigger_check_tenants(tenants);
    -- A key for each record, and no other.
    IF cardinality(tenants) IS DISTINCT FROM cardinality(hashes) OR cardinality(tenants) IS DISTINCT FROM cardinality(days)
        OR cardinality(tenants) IS DISTINCT FROM cardinality(places) OR cardinality(tenants) IS DISTINCT FROM cardinality(amounts)
    THEN
        RAISE EXCEPTION 'usage without a key for each record' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    LOCK TABLE public.outrigger_store IN ROW SHARE MODE;
    IF edition IS DISTINCT FROM (SELECT usage_edition FROM public.outrigger_store) THEN
        RAISE EXCEPTION 'usage is counted by other terms now' USING ERRCODE = 'serialization_failure';
    END IF;
    BEGIN
        INSERT INTO public.usage_dedupe (day, place, hash, fingerprint)
            SELECT * FROM unnest(days, places, hashes, fingerprints);
        INSERT INTO public.usage_events (time, tenant_id, metric, value, tags, metadata)
            SELECT input.time, input.tenant, input.metric, input.amount, input.tags::jsonb, input.metadata::json
            FROM unnest(times, tenants, metrics, amounts, tags, metadata)
                AS input (time, tenant, metric, amount, tags, metadata);
        RETURN;
    EXCEPTION WHEN unique_violation THEN
        NULL;
    END;
    RETURN QUERY SELECT * FROM public.outrigger_usage_counted(days, places, hashes);
    -- Nothing that is returned means that all was written.
    IF NOT FOUND THEN
        RAISE EXCEPTION 'a key that is held and not to be seen' USING ERRCODE = 'serialization_failure';
    END IF;
END
$$;

-- Of keys, the numbers of those that were counted, from 1, and the fingerprints of their points.
CREATE FUNCTION outrigger_usage_counted(days date[], places bigint[], hashes uuid[])
RETURNS TABLE (held integer, held_fingerprint bigint)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
BEGIN
    RETURN QUERY SELECT input.number::integer, kept.fingerprint
        FROM unnest(days, places, hashes) WITH ORDINALITY AS input (day, place, hash, number)
        CROSS JOIN LATERAL (
            SELECT known.fingerprint FROM public.usage_dedupe known
            WHERE known.day = input.day AND known.place = input.place AND known.hash = input.hash LIMIT 1) kept;
END
$$;

-- Notes points that are adjustments, as of this transaction's beginning.
CREATE FUNCTION outrigger_usage_adjust(
    tenants uuid[], metrics text[], times timestamptz[], amounts numeric[], tags text[], metadata text[]
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM public.outrigger_check_tenants(tenants);
    INSERT INTO public.usage_adjustments (booked_at, time, tenant_id, metric, value, tags, metadata)
        SELECT now(), input.time, input.tenant, input.metric, input.amount, input.tags::jsonb, input.metadata::json
        FROM unnest(times, tenants, metrics, amounts, tags, metadata)
            AS input (time, tenant, metric, amount, tags, metadata);
END
$$;

-- Lists records whose keys are others', as of this transaction's beginning.
CREATE FUNCTION outrigger_usage_note_conflicts(
    tenants uuid[], metrics text[], keys text[], fingerprints bigint[], times timestamptz[], amounts numeric[], tags text[], metadata text[]
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM public.outrigger_check_tenants(tenants);
    INSERT INTO public.usage_conflicts (tenant_id, metric, idempotency_key, fingerprint, time, value, tags, metadata)
        SELECT input.tenant, input.metric, input.key, input.fingerprint, input.time, input.amount, input.tags::jsonb, input.metadata::json
        FROM unnest(tenants, metrics, keys, fingerprints, times, amounts, tags, metadata)
            AS input (tenant, metric, key, fingerprint, time, amount, tags, metadata)
        ORDER BY input.tenant, input.metric, input.key, input.fingerprint
    ON CONFLICT DO NOTHING;
END
$$;

-- Adds to sums; they come sorted by key.
CREATE FUNCTION outrigger_usage_add(
    tenants uuid[], metrics text[], tags text[], tag_values text[], adjusted date[], hours timestamptz[],
    amounts numeric[], counts bigint[]
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET jit = off
AS $$
BEGIN
    PERFORM public.outrigger_check_tenants(tenants);
    INSERT INTO public.usage_hourly AS kept (tenant_id, metric, tag, start, tag_value, adjusts, value, count)
        SELECT input.tenant, input.metric, input.tag, input.hour, input.tag_value, input.adjusts, input.amount, input.points
        FROM unnest(tenants, metrics, tags, tag_values, adjusted, hours, amounts, counts)
            AS input (tenant, metric, tag, tag_value, adjusts, hour, amount, points)
        ON CONFLICT (tenant_id, metric, tag, start, tag_value, adjusts)
            DO UPDATE SET value = kept.value + excluded.value, count = kept.count + excluded.count;
END
$$;
CREATE FUNCTION outrigger_usage_add_days(
    tenants uuid[], metrics text[], tags text[], tag_values text[], adjusted date[], days date[],
    amounts numeric[], counts bigint[]
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET jit = off
AS $$
BEGIN
    PERFORM public.outrigger_check_tenants(tenants);
    INSERT INTO public.usage_daily AS kept (tenant_id, metric, tag, start, tag_value, adjusts, value, count)
        SELECT input.tenant, input.metric, input.tag, input.day, input.tag_value, input.adjusts, input.amount, input.points
        FROM unnest(tenants, metrics, tags, tag_values, adjusted, days, amounts, counts)
            AS input (tenant, metric, tag, tag_value, adjusts, day, amount, points)
        ON CONFLICT (tenant_id, metric, tag, start, tag_value, adjusts)
            DO UPDATE SET value = kept.value + excluded.value, count = kept.count + excluded.count;
END
$$;
REVOKE ALL ON FUNCTION outrigger_check_tenants(uuid[]), outrigger_usage_in_chunks(), outrigger_make_usage_day(date),
    outrigger_usage_insert(uuid[], text[], timestamptz[], numeric[], text[], text[], date[], bigint[], uuid[], bigint[], uuid),
    outrigger_usage_counted(date[], bigint[], uuid[]),
    outrigger_usage_adjust(uuid[], text[], timestamptz[], numeric[], text[], text[]),
    outrigger_usage_note_conflicts(uuid[], text[], text[], bigint[], timestamptz[], numeric[], text[], text[]),
    outrigger_usage_add(uuid[], text[], text[], text[], date[], timestamptz[], numeric[], bigint[]),
    outrigger_usage_add_days(uuid[], text[], text[], text[], date[], date[], numeric[], bigint[]) FROM PUBLIC;
