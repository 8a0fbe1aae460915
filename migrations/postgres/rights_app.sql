-- What tenants' calls may do. Said anew at each migration; {app} is `postgres.app` of the configuration.
GRANT SELECT ON _sqlx_migrations, outrigger_store TO {app};
GRANT SELECT, USAGE ON SEQUENCE events_id_seq TO {app};
GRANT SELECT, INSERT ON events TO {app};
-- UPDATE of columns, not of tables: who may update or delete in a whole table may lock it against everyone (LOCK TABLE).
REVOKE ALL ON event_dedupe, event_groups, event_subscriptions, leases FROM {app};
GRANT SELECT, INSERT, UPDATE (until, fingerprint) ON event_dedupe TO {app};
GRANT SELECT, INSERT, UPDATE (position, state, changed_at) ON event_groups TO {app};
GRANT SELECT, UPDATE (replays) ON event_subscriptions TO {app};
GRANT EXECUTE ON FUNCTION outrigger_begin_subscription(text, bigint),
    outrigger_take_new_event_ids(uuid[], bytea[], bigint[], bigint[], integer) TO {app};
GRANT SELECT, INSERT ON event_attempts TO {app};
GRANT SELECT ON event_topic_limits TO {app};
GRANT EXECUTE ON FUNCTION outrigger_keep_partitions(), outrigger_drop_idle_groups() TO {app};
-- A sidecar takes no relay's lease.
GRANT SELECT, INSERT, UPDATE (owner, epoch, until) ON leases TO {app};
ALTER TABLE leases ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS sidecars ON leases;
CREATE POLICY sidecars ON leases TO {app} USING (name NOT LIKE 'relay/%');
GRANT SELECT ON usage_hourly, usage_daily, usage_adjustments, usage_conflicts TO {app};
GRANT EXECUTE ON FUNCTION outrigger_make_usage_day(date), outrigger_keep_usage_partitions(), outrigger_drop_usage_conflicts(),
    outrigger_usage_terms(text, bigint, text[], text[], boolean),
    outrigger_usage_insert(uuid[], text[], timestamptz[], numeric[], text[], text[], date[], bigint[], uuid[], bigint[], uuid),
    outrigger_usage_counted(date[], bigint[], uuid[]),
    outrigger_usage_adjust(uuid[], text[], timestamptz[], numeric[], text[], text[]),
    outrigger_usage_note_conflicts(uuid[], text[], text[], bigint[], timestamptz[], numeric[], text[], text[]),
    outrigger_usage_add(uuid[], text[], text[], text[], date[], timestamptz[], numeric[], bigint[]),
    outrigger_usage_add_days(uuid[], text[], text[], text[], date[], date[], numeric[], bigint[]) TO {app};
