-- What relays may do: read the log of everyone, and say how far they are. {relay} is `postgres.relay` of the configuration.
GRANT SELECT ON _sqlx_migrations, outrigger_store TO {relay};
GRANT SELECT ON SEQUENCE events_id_seq TO {relay};
GRANT SELECT ON events TO {relay};
GRANT SELECT, INSERT, UPDATE ON event_relays TO {relay};
DROP POLICY IF EXISTS relays ON events;
CREATE POLICY relays ON events FOR SELECT TO {relay} USING (true);
GRANT SELECT, INSERT, UPDATE ON leases TO {relay};
DROP POLICY IF EXISTS relays ON leases;
CREATE POLICY relays ON leases TO {relay} USING (true);
