-- What relays may do: read the log of everyone, and say how far they are. {relay} is `postgres.relay` of the configuration.
GRANT SELECT ON _sqlx_migrations, outrigger_store TO {relay};
GRANT SELECT ON SEQUENCE events_id_seq TO {relay};
GRANT SELECT ON events TO {relay};
GRANT SELECT, INSERT, UPDATE ON event_relays TO {relay};
DROP POLICY IF EXISTS relays ON events;
CREATE POLICY relays ON events FOR SELECT TO {relay} USING (true);
GRANT SELECT, INSERT, UPDATE (reason), DELETE ON event_parked TO {relay};
DROP POLICY IF EXISTS relays ON event_parked;
CREATE POLICY relays ON event_parked TO {relay} USING (true);
GRANT SELECT, INSERT, UPDATE (attributes, sent, done_at, outcome, detail), DELETE ON event_orders TO {relay};
DROP POLICY IF EXISTS relays ON event_orders;
CREATE POLICY relays ON event_orders TO {relay} USING (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON event_topic_limits TO {relay};
-- For operators, who list them.
GRANT SELECT ON event_attempts TO {relay};
DROP POLICY IF EXISTS relays ON event_attempts;
CREATE POLICY relays ON event_attempts FOR SELECT TO {relay} USING (true);
-- For the age of what groups have not looked at.
GRANT SELECT (tenant_id, topic, name, position) ON event_groups TO {relay};
DROP POLICY IF EXISTS relays ON event_groups;
CREATE POLICY relays ON event_groups FOR SELECT TO {relay} USING (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON leases TO {relay};
DROP POLICY IF EXISTS relays ON leases;
CREATE POLICY relays ON leases TO {relay} USING (true);
