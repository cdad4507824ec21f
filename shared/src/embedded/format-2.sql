-- What format 2 of a state file adds to the first: limits that are changed at run time, calls in flight
-- that are shared, and batches of weight.

ALTER TABLE limits ADD COLUMN probe_us INTEGER NOT NULL DEFAULT 0;     -- after a hold-off: 0 nothing, 1 a call goes ahead, else one did, until then
ALTER TABLE limits ADD COLUMN measured_us INTEGER NOT NULL DEFAULT 0;  -- the jitter that a process measured last
ALTER TABLE limits ADD COLUMN terms TEXT NOT NULL DEFAULT '{}';        -- JSON: what was changed at run time

-- Who changed what, in order.
CREATE TABLE changes (
  seq        INTEGER PRIMARY KEY,
  stack      TEXT NOT NULL,
  amendment  TEXT NOT NULL       -- JSON
);
CREATE INDEX changes_of ON changes (stack, seq);

-- Shares of the limits on calls in flight.
CREATE TABLE shares (
  stack    TEXT NOT NULL,
  limited  TEXT NOT NULL,        -- the limit
  holder   INTEGER NOT NULL,     -- processes.token
  calls    INTEGER NOT NULL,
  wanted   INTEGER NOT NULL,
  PRIMARY KEY (stack, limited, holder)
) WITHOUT ROWID;

-- The weight of a ready job, read with its place: the message may be long.
ALTER TABLE jobs ADD COLUMN weight INTEGER NOT NULL DEFAULT 1;
DROP INDEX jobs_ready;
CREATE INDEX jobs_ready ON jobs (provider, priority, lane, seq, weight) WHERE state = 0;
