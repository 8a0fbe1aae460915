CREATE TABLE cache_entries (
    entry BLOB NOT NULL PRIMARY KEY,
    tenant BLOB NOT NULL,
    namespace TEXT NOT NULL,
    version TEXT,
    stamp BLOB NOT NULL,
    bytes INTEGER NOT NULL,
    written_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    gone_at_ms INTEGER NOT NULL,
    etag BLOB NOT NULL,
    content_type TEXT NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX cache_entries_by_end ON cache_entries (gone_at_ms);
CREATE INDEX cache_entries_by_scope ON cache_entries (tenant, namespace);

CREATE TABLE cache_generations (
    tenant BLOB NOT NULL,
    namespace TEXT NOT NULL,
    -- '' is the whole scope.
    version TEXT NOT NULL,
    token BLOB NOT NULL,
    PRIMARY KEY (tenant, namespace, version)
) STRICT, WITHOUT ROWID;

CREATE TABLE cache_bytes (
    tenant BLOB NOT NULL PRIMARY KEY,
    bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- A tenant's bytes are exact whoever changes the entries.
CREATE TRIGGER cache_bytes_inserted AFTER INSERT ON cache_entries BEGIN
    INSERT INTO cache_bytes VALUES (NEW.tenant, NEW.bytes)
    ON CONFLICT (tenant) DO UPDATE SET bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER cache_bytes_deleted AFTER DELETE ON cache_entries BEGIN
    UPDATE cache_bytes SET bytes = bytes - OLD.bytes WHERE tenant = OLD.tenant;
END;
CREATE TRIGGER cache_bytes_updated AFTER UPDATE OF bytes ON cache_entries BEGIN
    UPDATE cache_bytes SET bytes = bytes - OLD.bytes + NEW.bytes WHERE tenant = NEW.tenant;
END;
