-- Tenants, their tokens (hashes only), and the operator's aliases. Times are unix milliseconds.
CREATE TABLE tenants (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  scopes TEXT NOT NULL,
  limits TEXT NOT NULL,
  disabled INTEGER NOT NULL DEFAULT 0,
  created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE tokens (
  key_id TEXT PRIMARY KEY,
  tenant_id TEXT NOT NULL REFERENCES tenants (id),
  -- SHA-256 of the token's text, hex
  token_hash TEXT NOT NULL,
  label TEXT NOT NULL DEFAULT '',
  created_at INTEGER NOT NULL,
  expires_at INTEGER,
  revoked_at INTEGER
) STRICT;

CREATE INDEX tokens_by_tenant ON tokens (tenant_id);

CREATE TABLE aliases (
  alias TEXT PRIMARY KEY,
  source TEXT NOT NULL,
  adapter_id TEXT NOT NULL,
  revision TEXT,
  generation INTEGER NOT NULL,
  updated_at INTEGER NOT NULL
) STRICT;
