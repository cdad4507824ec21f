-- What format 3 of a state file adds to the second: what is known of each call, so that none is paid for twice; answers
-- that are kept; the tally of a batch and the word that stops it; dead letters that say why, and jobs that are set aside.
-- All of it is kept as long as the file, but for answers, whose time is over, and for what only the living hold.

-- The ledger. Turns below the floor are over; of a job that is done, all are.
ALTER TABLE settled ADD COLUMN floor INTEGER NOT NULL DEFAULT 9223372036854775807;
ALTER TABLE settled ADD COLUMN dead TEXT;   -- JSON: what its death counted as, which a replay takes back

-- The turn of a job that is under way: few rows, so they are at hand.
CREATE TABLE turns (
  job       BLOB PRIMARY KEY,
  turn      INTEGER NOT NULL,
  call      BLOB NOT NULL,
  answered  INTEGER NOT NULL,   -- 0 its call left, or is about to; 1 it was answered, and is paid for
  holder    INTEGER NOT NULL,   -- whose call it is: processes.token
  until_us  INTEGER NOT NULL,   -- then it is over for certain
  body      BLOB NOT NULL       -- JSON: the intent, or the settlement that follows from the answer
) WITHOUT ROWID;
-- Who has a job in hand that was lent before. Of a process that died it stays, as a crash.
CREATE TABLE taken (
  job     BLOB NOT NULL,
  holder  INTEGER NOT NULL,
  PRIMARY KEY (job, holder)
) WITHOUT ROWID;

-- Calls that were never answered, by the day (UTC) on which that was noted.
CREATE TABLE unanswered (
  call        BLOB PRIMARY KEY,
  day         TEXT NOT NULL,
  noted_us    INTEGER NOT NULL,
  decided     TEXT NOT NULL,    -- resent, parked
  intent      TEXT NOT NULL,    -- JSON
  resolution  TEXT              -- JSON: what somebody found out
) WITHOUT ROWID;
CREATE INDEX unanswered_on ON unanswered (day, noted_us);
-- What was answered, by day (UTC). The line of model * counts calls.
CREATE TABLE bill (
  day          TEXT NOT NULL,
  provider     TEXT NOT NULL,
  account      TEXT NOT NULL,
  model        TEXT NOT NULL,
  answered     INTEGER NOT NULL,
  charged      INTEGER NOT NULL,
  cost_micros  INTEGER NOT NULL,
  currency     TEXT NOT NULL,
  PRIMARY KEY (day, provider, account, model)
) WITHOUT ROWID;

-- Answers of before, and who is about to get one.
CREATE TABLE answers (
  key       BLOB PRIMARY KEY,
  until_us  INTEGER NOT NULL,
  body      BLOB NOT NULL       -- JSON
);
CREATE INDEX answers_until ON answers (until_us);
CREATE TABLE claims (
  key       BLOB PRIMARY KEY,
  holder    INTEGER NOT NULL,   -- processes.token
  until_us  INTEGER NOT NULL
) WITHOUT ROWID;

-- Batches: when they were first heard of, what their producers say, what their results count as, and their end.
ALTER TABLE batches ADD COLUMN opened_us INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN said_jobs INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN said_results INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN ok_results INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN cached_results INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN rejected_results INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN dead_results INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN cancelled_results INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN ambiguous_results INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN ending INTEGER NOT NULL DEFAULT 0;    -- 0 under way, 1 complete, 2 and subscribers were told
ALTER TABLE batches ADD COLUMN teller INTEGER NOT NULL DEFAULT 0;    -- who tells them: processes.token
UPDATE batches SET
  opened_us = coalesce((SELECT at_us FROM log WHERE log.batch = batches.batch ORDER BY seq LIMIT 1), 0),
  ok_results = (SELECT coalesce(sum(o.results), 0) FROM outcomes o WHERE o.batch = batches.batch AND o.outcome = 'ok'),
  rejected_results =
    (SELECT coalesce(sum(o.results), 0) FROM outcomes o WHERE o.batch = batches.batch AND o.outcome = 'rejected'),
  dead_results = (SELECT coalesce(sum(o.results), 0) FROM outcomes o WHERE o.batch = batches.batch AND o.outcome = 'dead');
UPDATE batches SET ending = 2 WHERE closed AND ok_results + rejected_results + dead_results >= results;
-- What keeps a batch.
CREATE TABLE held (
  batch    TEXT PRIMARY KEY,
  hold     TEXT NOT NULL,       -- paused, cancelled
  said_by  TEXT NOT NULL,
  said_at  TEXT NOT NULL        -- RFC 3339, as it was said
) WITHOUT ROWID;

-- A job's state may be 3: set aside, as long as its batch is paused.
ALTER TABLE jobs ADD COLUMN again INTEGER NOT NULL DEFAULT 0;  -- 1: lent before, and not settled
ALTER TABLE jobs ADD COLUMN batch TEXT;                        -- of a job that is set aside
CREATE INDEX jobs_parked ON jobs (batch, seq) WHERE state = 3;
-- Batches that were let go on. Who has not heard of it yet sets nothing aside any more.
CREATE TABLE resumed (batch TEXT PRIMARY KEY) WITHOUT ROWID;

-- Dead letters say why. A number is never given to another one: who looks through them holds nothing.
CREATE TABLE letters (
  seq      INTEGER PRIMARY KEY AUTOINCREMENT,
  at_us    INTEGER NOT NULL,
  batch    TEXT NOT NULL,
  reason   TEXT NOT NULL,
  job      BLOB NOT NULL,
  class    TEXT,                -- of the last failure
  message  TEXT NOT NULL,
  status   INTEGER,             -- HTTP
  worker   TEXT
);
INSERT INTO letters SELECT seq, at_us, batch, reason, job, NULL, '', NULL, NULL FROM dead ORDER BY seq;
-- Their turns are over, and a replay takes back what they count as. Which of a letter's models were rejected, and which
-- given up, an earlier format did not keep: of each it says the one that its reason speaks of.
INSERT OR IGNORE INTO settled (job, at_us, floor, dead)
SELECT unhex(json_extract(text, '$.id')), at_us,
  coalesce(json_extract(text, '$.replays'), 0) * 1000 + coalesce(json_extract(text, '$.attempt'), 0) + 1,
  json_object('letters', 1, 'outcomes', json('[]'), 'tally', json_object(
    'ok', 0, 'cached', 0, 'cancelled', 0, 'ambiguous', 0,
    'rejected', iif(reason = 'rejected', json_array_length(text, '$.models'), 0),
    'dead', iif(reason = 'rejected', 0, json_array_length(text, '$.models'))))
FROM (SELECT CAST(job AS TEXT) AS text, at_us, reason FROM dead);
DROP TABLE dead;
ALTER TABLE letters RENAME TO dead;
