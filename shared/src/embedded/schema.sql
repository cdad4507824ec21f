-- A state file of pixfleet: the queue, the limits and the ledger of one machine. Times are microseconds since 1970.
-- The file is pixfleet's own: read results with `pixfleet results --state FILE`, or have them written to a database.

-- Whoever lends jobs, or writes a batch, from this file. What it holds comes back when its time is over.
CREATE TABLE processes (
  token     INTEGER PRIMARY KEY,   -- random
  identity  TEXT NOT NULL,      -- which process of which machine, where that can be told: see process.rs
  until_us  INTEGER NOT NULL    -- renewed while it lives
);

-- Jobs that are not settled, in the order of their arrival.
CREATE TABLE jobs (
  seq       INTEGER PRIMARY KEY AUTOINCREMENT,
  id        BLOB NOT NULL,      -- 16 bytes
  provider  TEXT NOT NULL,
  priority  INTEGER NOT NULL,   -- 0 high, 1 normal, 2 bulk
  lane      INTEGER NOT NULL,
  state     INTEGER NOT NULL,   -- 0 ready, 1 lent, 2 waiting
  holder    INTEGER,            -- of a lent job: processes.token
  due_us    INTEGER NOT NULL,   -- of a waiting job: when it is ready again
  dropped   INTEGER NOT NULL,   -- how often a worker dropped it unsettled
  job       BLOB NOT NULL       -- its message
);
-- Each holds only the jobs of its state, so it is small or in order, whatever the batch's size.
CREATE INDEX jobs_ready   ON jobs (provider, priority, lane, seq) WHERE state = 0;
CREATE INDEX jobs_lent    ON jobs (holder, seq)                   WHERE state = 1;
CREATE INDEX jobs_waiting ON jobs (due_us)                        WHERE state = 2;

-- Jobs that will not be tried again by themselves.
CREATE TABLE dead (
  seq     INTEGER PRIMARY KEY,
  at_us   INTEGER NOT NULL,
  batch   TEXT NOT NULL,
  reason  TEXT NOT NULL,
  job     BLOB NOT NULL
);

-- What is published, in order: results and news of batches.
CREATE TABLE log (
  seq    INTEGER PRIMARY KEY,
  at_us  INTEGER NOT NULL,
  batch  TEXT NOT NULL,
  kind   INTEGER NOT NULL,      -- 0 a result, 1 a batch event
  trace  TEXT,                  -- W3C traceparent
  body   BLOB NOT NULL          -- JSON: docs/schemas/result.v1.json, batch.v1.json
);

-- How far each reader of the log is. A note is the reader's own.
CREATE TABLE readers (
  name      TEXT PRIMARY KEY,
  position  INTEGER NOT NULL,   -- the last log.seq that it has done with
  note      TEXT
) WITHOUT ROWID;

-- The ledger: jobs of which every result is in the log.
CREATE TABLE settled (
  job    BLOB PRIMARY KEY,
  at_us  INTEGER NOT NULL
) WITHOUT ROWID;

-- The limiter: what is granted of each stack, as an upper bound.
CREATE TABLE limits (
  stack          TEXT PRIMARY KEY,
  version        INTEGER NOT NULL,  -- moves with every grant
  at_us          INTEGER NOT NULL,
  held_until_us  INTEGER NOT NULL,
  pace           TEXT NOT NULL      -- JSON: {"<limit>": [tat, interval]}
) WITHOUT ROWID;

-- Counts, kept with what they count, so that nobody has to count again.
CREATE TABLE batches (
  batch    TEXT PRIMARY KEY,
  jobs     INTEGER NOT NULL DEFAULT 0,   -- put in
  results  INTEGER NOT NULL DEFAULT 0,   -- that those jobs promise
  ended    INTEGER NOT NULL DEFAULT 0,   -- jobs completed
  dead     INTEGER NOT NULL DEFAULT 0,   -- jobs that became dead letters
  closed   INTEGER NOT NULL DEFAULT 0    -- 1 when its enqueue put in all that it had
) WITHOUT ROWID;
CREATE TABLE outcomes (
  batch    TEXT NOT NULL,
  outcome  TEXT NOT NULL,
  reason   TEXT NOT NULL,       -- of a failure: its class, and the status where there was one
  results  INTEGER NOT NULL,
  example  TEXT NOT NULL,       -- the message of the first one
  PRIMARY KEY (batch, outcome, reason)
) WITHOUT ROWID;
CREATE TABLE calls (
  batch        TEXT NOT NULL,
  provider     TEXT NOT NULL,
  calls        INTEGER NOT NULL,
  first_us     INTEGER NOT NULL,  -- departures
  last_us      INTEGER NOT NULL,
  duration_us  INTEGER NOT NULL,  -- in sum
  cost_nano    INTEGER NOT NULL,  -- in sum, billionths of the provider's unit
  throttled    INTEGER NOT NULL,  -- 429s that the jobs met
  limit_per_s  REAL,
  PRIMARY KEY (batch, provider)
) WITHOUT ROWID;
