"""A small image API behind Flask-Limiter: an independent judge (tests/src/judges/flask.rs).

usage: flask_api.py PORT LOG STRATEGY LIMIT LATENCY_MS

One process with the counts in its memory, so that its judge sees every call. For each call a line goes into LOG, before
the answer leaves: "<µs since 1970 at which it was judged> <µs until its answer was ready> <status>".
"""

import sys
import time

from flask import Flask, jsonify, request
from flask_limiter import Limiter
from waitress import serve

# More than one limit's calls in flight: a call that waits for a thread would arrive at the judge late.
THREADS = 64


def now_us():
    return time.time_ns() // 1000


def api(strategy, limit, latency_s):
    app = Flask(__name__)
    limiter = Limiter(
        key_func=lambda: request.headers.get("Authorization", "nobody"),
        app=app,
        storage_uri="memory://",
        strategy=strategy,
    )

    # The moment at which the limiter looks at its clock: a thread may have waited for its turn since the call arrived.
    hit = limiter.limiter.hit

    def noted_hit(*limit_and_key, **cost):
        request.environ["judged_at_us"] = now_us()
        return hit(*limit_and_key, **cost)

    limiter.limiter.hit = noted_hit

    @app.post("/v1/analyze")
    @limiter.limit(limit)
    def analyze():
        models = request.get_json()["models"]
        time.sleep(latency_s)
        return jsonify(results={model: {"label": "house", "score": 0.5} for model in models})

    return app


def logged(app, log):
    def call(environ, start_response):
        told = []

        def start(status, headers, exc_info=None):
            told.append(status.split()[0])
            return start_response(status, headers, exc_info)

        body = app(environ, start)
        judged_at = environ["judged_at_us"]
        # One write a line, so that the lines of two threads don't mix.
        log.write(f"{judged_at} {now_us() - judged_at} {told[-1]}\n".encode())
        return body

    return call


def main(port, path, strategy, limit, latency_ms):
    with open(path, "ab", buffering=0) as log:
        app = logged(api(strategy, limit, float(latency_ms) / 1000), log)
        serve(app, host="127.0.0.1", port=int(port), threads=THREADS, connection_limit=1000, ident=None)


if __name__ == "__main__":
    main(*sys.argv[1:])
