#!/usr/bin/env python3
"""The requests of a lead-scoring service: each checks a limit, reads the cache, publishes an event, records usage.

Python's standard library alone; lead_scoring.ts is the same in TypeScript. Beside `make dev`:

    export OUTRIGGER_TOKEN=$(bin/outrigger token mint --data .outrigger --subject demo \\
        --tenant 0190c7a8-3c5e-7f00-8000-0000000000a1 --tier enterprise)
    python3 examples/lead_scoring.py --requests 20 --callers 4

`outrigger run` sets OUTRIGGER_SOCKET, which is used where it is set, and OUTRIGGER_URL. The last line is a summary of the
requests that were done; where not all were, the exit code is 1.
"""

import argparse
import http.client
import json
import math
import os
import random
import socket
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote, urlsplit

UNAVAILABLE = (503, 504)  # The statuses after which the same call is worth another try...
PATIENCE_S = 15.0  # ...and for how long.
TIMEOUT_S = 10.0  # How long one answer may take.
WAIT_MS = 2000  # How long to wait for a score that another caller computes.
MODEL = "demo-1"


class Problem(Exception):
    """What a problem document (RFC 9457) says."""

    def __init__(self, status, code, detail, retry_after_s=None):
        super().__init__(f"{status} {code}: {detail}")
        self.status, self.code, self.detail, self.retry_after_s = status, code, detail, retry_after_s


class SocketConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Outrigger:
    """One connection, kept alive: each thread has its own."""

    def __init__(self, token):
        self.token = token
        path = os.environ.get("OUTRIGGER_SOCKET")
        url = urlsplit(os.environ.get("OUTRIGGER_URL", "http://127.0.0.1:7780"))
        if path:
            self.connection = SocketConnection(path, TIMEOUT_S)
        else:
            self.connection = http.client.HTTPConnection(url.hostname, url.port, timeout=TIMEOUT_S)

    def post(self, target, document, media_type="application/json"):
        """Posts a document; after a 503 the same again, with the same ids, so that nothing counts twice."""
        give_up, pause_s = time.monotonic() + PATIENCE_S, 0.1
        while True:
            try:
                return self.call("POST", target, json.dumps(document), {"Content-Type": media_type})
            except Problem as problem:
                # Callers that were refused together do not come back together.
                wait_s = (problem.retry_after_s or 0) + random.uniform(pause_s / 2, pause_s)
                if problem.status not in UNAVAILABLE or time.monotonic() + wait_s > give_up:
                    raise
            time.sleep(wait_s)
            pause_s = min(pause_s * 2, 1.0)

    def call(self, method, target, body=None, headers=None):
        """Status, headers and body of a success, or of a GET that found nothing; raises a Problem for all else."""
        headers = {"Authorization": f"Bearer {self.token()}", **(headers or {})}
        try:
            self.connection.request(method, target, body, headers)
            reply = self.connection.getresponse()
            content = reply.read()
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()  # The next call connects again.
            raise Problem(503, "no_answer", repr(error)) from error
        if reply.status < 400 or (method == "GET" and reply.status == 404):
            return reply.status, reply.headers, content
        problem, retry_after = json.loads(content), reply.headers["Retry-After"]
        raise Problem(reply.status, problem["code"], problem["detail"], int(retry_after) if retry_after else None)


def score_lead(lead):
    """Stands for the model: seconds of computing, which the cache saves."""
    return round(zlib.crc32(lead.encode()) / 2**32, 3)


def cached_score(outrigger, lead):
    """A lead's score, and where it came from. A cache that does not answer is a miss, and no reason to fail."""
    target = f"/v1/cache/scoring/{quote(lead, safe='')}"
    try:
        # In a namespace with fill leases one of those who miss gets a lease at once; the others wait for its PUT.
        status, headers, content = outrigger.call("GET", f"{target}?wait_ms={WAIT_MS}")
    except Problem as problem:
        if problem.status not in UNAVAILABLE:
            raise
        return score_lead(lead), problem.code
    if status == 200:
        return json.loads(content)["score"], headers["Outrigger-Cache"]
    score, lease = score_lead(lead), headers["Outrigger-Fill-Lease"]
    try:
        outrigger.call("PUT", target, json.dumps({"score": score}), {"Outrigger-Fill-Lease": lease} if lease else {})
    except Problem as problem:
        # 409: another wrote or removed it meanwhile, and the lease is void. The score is right all the same.
        if problem.status not in (409, *UNAVAILABLE):
            raise
        return score, problem.code
    return score, "filled"


def serve(outrigger, request_id, at, lead):
    """One request, whose id and time came with it: it can end anywhere and be sent again, and counts once."""
    outrigger.post("/v1/ratelimit/check", {"checks": [{"limit": "api", "key": "/leads/score"}]})
    score, source = cached_score(outrigger, lead)
    event = {"specversion": "1.0", "id": request_id, "source": "/lead-scoring", "type": "lead.scored",
             "time": at, "partitionkey": lead, "data": {"lead": lead, "score": score, "model": MODEL}}
    outrigger.post("/v1/events/leads", event, "application/cloudevents+json")
    record = {"metric": "leads_scored", "value": 1, "time": at, "idempotency_key": request_id,
              "tags": {"model": MODEL}}
    outrigger.post("/v1/usage", {"records": [record]})
    return {"score": score, "cache": source}


def work(caller, options):
    """Every C-th request, one after the other; returns the milliseconds of those that were done."""
    outrigger, done_ms = Outrigger(options.token), []
    at = datetime.fromtimestamp(options.at_ms / 1000, timezone.utc).isoformat(timespec="milliseconds")
    for number in range(caller, options.requests, options.callers):
        request_id, lead = f"{options.at_ms}-{number:06}", f"lead-{number % options.leads}"
        begun = time.perf_counter()
        try:
            outcome = serve(outrigger, request_id, at, lead)
            done_ms.append((time.perf_counter() - begun) * 1000)
        except Problem as problem:
            # A service would answer its own client so: 429 with Retry-After where the limit is reached.
            outcome = vars(problem)
        sys.stdout.write(json.dumps({"id": request_id, "lead": lead, **outcome}) + "\n")
        sys.stdout.flush()
    return done_ms


def summary(done_ms, seconds):
    done_ms.sort()
    figures = {"requests": len(done_ms), "seconds": round(seconds, 3),
               "requests_per_s": round(len(done_ms) / seconds, 1)}
    for percent in (50, 95, 99):
        nearest_rank = math.ceil(len(done_ms) * percent / 100)
        figures[f"p{percent}_ms"] = round(done_ms[nearest_rank - 1], 2) if done_ms else None
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1)
    parser.add_argument("--callers", type=int, default=1, help="requests under way at once")
    parser.add_argument("--leads", type=int, default=100, help="how many leads there are")
    parser.add_argument("--at-ms", type=int, default=time.time_ns() // 1_000_000,
                        help="when the requests were made: the same again is the same requests")
    parser.add_argument("--token-file", help="read for each call, since a mounted token is renewed")
    options = parser.parse_args()
    if options.token_file:
        options.token = lambda: Path(options.token_file).read_text(encoding="ascii").strip()
    elif token := os.environ.get("OUTRIGGER_TOKEN"):
        options.token = lambda: token
    else:
        parser.error("a token is needed: OUTRIGGER_TOKEN or --token-file")
    begun = time.perf_counter()
    with ThreadPoolExecutor(options.callers) as callers:
        per_caller = list(callers.map(lambda caller: work(caller, options), range(options.callers)))
    done_ms = [ms for part in per_caller for ms in part]
    print(json.dumps(summary(done_ms, time.perf_counter() - begun)))
    return 0 if len(done_ms) == options.requests else 1


if __name__ == "__main__":
    sys.exit(main())
