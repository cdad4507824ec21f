"""Keeps pixfleet's results in SQLite: a durable subscriber in about a hundred lines.

    python subscriber.py --name sqlite --database results.sqlite --filter '#'

Its queue is its own: it keeps what this program has not stored yet, also while it is away. A result that is
delivered twice shows nowhere, because its id is the key of its row. Messages are acknowledged only after the
database has committed them: a crash in between costs a repetition, and no result.
"""

import argparse
import json
import os
import signal
import sqlite3
import sys
import time

import pika
from pika.exceptions import AMQPError

EXCHANGE = "pixfleet.results"  # topic: <provider>.<model>.<outcome>.<batch>
BATCH = 200  # results a transaction, and the most that are on their way to us at once
QUIET = 0.2  # seconds without a message after which an unfinished transaction is committed
PAUSES = (0.5, 15.0)  # seconds between two tries to connect: from the first to the longest

SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    id TEXT PRIMARY KEY, batch TEXT NOT NULL, image TEXT NOT NULL, provider TEXT NOT NULL, model TEXT NOT NULL,
    outcome TEXT NOT NULL, label TEXT, confidence REAL, value TEXT, error TEXT, completed_at TEXT NOT NULL,
    event TEXT NOT NULL
) WITHOUT ROWID
"""

# The same result may be made twice (a worker died between publishing and acknowledging): the row stays one. A dead
# letter that was replayed and is answered now replaces its failure, and a late copy of the failure does not undo it.
UPSERT = """
INSERT INTO results VALUES (:id, :batch, :image, :provider, :model, :outcome, :label, :confidence, :value, :error,
                            :completed_at, :event)
ON CONFLICT (id) DO UPDATE SET outcome = excluded.outcome, label = excluded.label, confidence = excluded.confidence,
    value = excluded.value, error = excluded.error, completed_at = excluded.completed_at, event = excluded.event
WHERE results.outcome <> 'ok' AND (excluded.outcome = 'ok' OR excluded.completed_at > results.completed_at)
"""


def row(body):
    """The row of a CloudEvent (docs/schemas/result.v1.json); None for an event of another type."""
    event = json.loads(body)
    if event.get("type") != "pixfleet.result.v1":
        return None
    result = event["data"]
    answer, failure = result.get("answer") or {}, result.get("failure")
    best = (answer.get("labels") or [{}])[0]
    value = answer.get("value")
    return {
        **{key: result[key] for key in ("id", "batch", "image", "provider", "model", "outcome", "completed_at")},
        "label": best.get("label"),
        "confidence": best.get("confidence"),
        "value": None if value is None else json.dumps(value),
        "error": failure and f"{failure['class']}: {failure['message']}",
        "event": body.decode(),
    }


def readable(body):
    """The row, or None with a word on stderr: one strange message must not stop the others."""
    try:
        return row(body)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"passed over a message that is not a result: {error!r}", file=sys.stderr)
        return None


def open_channel(connection, queue, topic):
    """A channel on which our own durable quorum queue exists and is bound."""
    channel = connection.channel()
    channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
    channel.queue_bind(queue, EXCHANGE, topic)
    channel.basic_qos(prefetch_count=BATCH)
    return channel


def store(database, channel, rows, last_tag):
    """Commits, then acknowledges everything up to `last_tag`: in this order nothing is lost."""
    with database:
        database.executemany(UPSERT, rows)
    channel.basic_ack(last_tag, multiple=True)


def consume(connection, queue, topic, database, stopping):
    """Stores what comes, until `stopping()` or until the connection is lost."""
    channel = open_channel(connection, queue, topic)
    rows, last_tag = [], None
    print(f"subscribed to {topic} as {queue}", file=sys.stderr, flush=True)
    for method, _, body in channel.consume(queue, inactivity_timeout=QUIET):
        if method is not None:
            last_tag = method.delivery_tag
            result = readable(body)
            if result:
                rows.append(result)
        quiet = method is None or stopping()
        if last_tag is not None and (quiet or last_tag % BATCH == 0):
            store(database, channel, rows, last_tag)
            rows, last_tag = [], None
        if stopping():
            channel.cancel()  # gives back what was sent ahead and not stored
            return


def run(url, queue, topic, database, stopping):
    """Consumes for ever: a lost connection is opened again, and what was not acknowledged comes again."""
    pause = PAUSES[0]
    while not stopping():
        try:
            connection = pika.BlockingConnection(pika.URLParameters(url))
            try:
                pause = PAUSES[0]
                consume(connection, queue, topic, database, stopping)
            finally:
                if connection.is_open:
                    connection.close()
        except (AMQPError, OSError) as error:
            print(f"RabbitMQ is away ({error!r}): again in {pause:g} s", file=sys.stderr, flush=True)
            time.sleep(pause)
            pause = min(pause * 2, PAUSES[1])


def main():
    arguments = argparse.ArgumentParser(description="Keeps pixfleet's results in SQLite.")
    arguments.add_argument("--name", required=True, help="this subscriber's name: its queue is pixfleet.sqlite.NAME")
    arguments.add_argument("--database", default="results.sqlite", help="the SQLite file (default: results.sqlite)")
    arguments.add_argument("--filter", default="#", help="a topic: PROVIDER.MODEL.OUTCOME.BATCH, * for any (default: #)")
    given = arguments.parse_args()
    # The URL may hold a password: it comes from the environment, and is not printed.
    url = os.environ.get("PIXFLEET_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672/%2f")

    stop = []
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.append(True))
    database = sqlite3.connect(given.database)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")  # a commit is on the disk before its messages are acknowledged
    database.execute(SCHEMA)
    run(url, f"pixfleet.sqlite.{given.name}", given.filter, database, lambda: bool(stop))
    database.close()


if __name__ == "__main__":
    main()
