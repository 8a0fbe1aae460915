-- What tenants' calls may do. Said anew at each migration; {app} is `postgres.app` of the configuration.
GRANT SELECT ON _sqlx_migrations, outrigger_store TO {app};
GRANT SELECT, USAGE ON SEQUENCE events_id_seq TO {app};
GRANT SELECT, INSERT ON events TO {app};
GRANT SELECT, INSERT, UPDATE ON event_dedupe TO {app};
GRANT SELECT, INSERT, UPDATE, DELETE ON event_groups TO {app};
GRANT SELECT, INSERT, UPDATE ON event_subscriptions TO {app};
GRANT SELECT, INSERT ON event_attempts TO {app};
GRANT SELECT ON event_topic_limits TO {app};
GRANT EXECUTE ON FUNCTION outrigger_keep_partitions() TO {app};
-- A sidecar takes no relay's lease.
GRANT SELECT, INSERT, UPDATE ON leases TO {app};
ALTER TABLE leases ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS sidecars ON leases;
CREATE POLICY sidecars ON leases TO {app} USING (name NOT LIKE 'relay/%');
