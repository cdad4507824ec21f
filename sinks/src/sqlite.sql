-- Results of pixfleet. Times are UTC, as 2026-11-22T10:50:50.267672Z: they sort as text, and SQLite's date functions read them.

-- The pictures.
CREATE TABLE images (
    batch TEXT NOT NULL,      -- the batch that asked
    image TEXT NOT NULL,      -- the user's id of the image
    source TEXT NOT NULL,     -- its URL or path; '' for inline bytes
    metadata TEXT NOT NULL,   -- the manifest's further columns: a JSON object of texts
    PRIMARY KEY (batch, image, source)
) WITHOUT ROWID;

-- One image seen by one model.
CREATE TABLE results (
    id TEXT NOT NULL PRIMARY KEY,   -- hash of batch, image, provider and model, in hex
    job TEXT NOT NULL,              -- the job that asked
    batch TEXT NOT NULL,            -- with image and source: the row of images
    image TEXT NOT NULL,
    source TEXT NOT NULL,
    provider TEXT NOT NULL,         -- the image API
    model TEXT NOT NULL,            -- what it was asked
    outcome TEXT NOT NULL,          -- ok; rejected: this image will never work at this model; dead: given up; cancelled: no call was made; ambiguous: a call left, and its answer never came
    label TEXT,                     -- the best label
    confidence REAL,                -- its confidence, 0 to 1, where the provider tells
    labels TEXT NOT NULL,           -- every label, the best first: a JSON array of {"label", "confidence"}
    value,                          -- what is not a label: a number or a text as it is, anything else as JSON
    failure_class TEXT,             -- why there is no answer: rejected, transient, ambiguous, unauthorized, ...
    failure_message TEXT,           -- what the provider or the network said
    call TEXT,                      -- the row of calls that settled it; null when none was made
    enqueued_at TEXT NOT NULL,      -- when the job was enqueued
    completed_at TEXT NOT NULL,     -- when the result was made
    cached INTEGER NOT NULL DEFAULT 0   -- 1 for an answer of before: no call was made for it
);

-- The HTTP requests that settled results; the models of one call share it, and its cost.
CREATE TABLE calls (
    id TEXT NOT NULL PRIMARY KEY,   -- hash of job and attempt, in hex
    batch TEXT NOT NULL,            -- the batch
    provider TEXT NOT NULL,         -- the image API
    sent_at TEXT NOT NULL,          -- when the request left
    duration_ms REAL NOT NULL,      -- from its leaving to the response's last byte, in milliseconds
    status INTEGER,                 -- the HTTP status, where one came
    attempt INTEGER NOT NULL,       -- which attempt it was, from 1
    throttled INTEGER NOT NULL,     -- times that this job met "over the limit" before
    cost REAL NOT NULL,             -- in the provider's units
    limit_per_s REAL,               -- the limit in force when it left, in calls per second; null without one
    worker TEXT NOT NULL            -- the worker that made it
);

-- How many results went into this file, each time that one did: whoever goes on sees that it is the same file, and whole.
CREATE TABLE written (results INTEGER NOT NULL);
INSERT INTO written VALUES (0);
