// The requests of a lead-scoring service: each checks a limit, reads the cache, publishes an event, records usage.
//
// Node's own modules alone; lead_scoring.py is the same in Python. Node 22.18 and later run it as it is. Beside `make dev`:
//
//     export OUTRIGGER_TOKEN=$(bin/outrigger token mint --data .outrigger --subject demo \
//         --tenant 0190c7a8-3c5e-7f00-8000-0000000000a1 --tier enterprise)
//     node examples/lead_scoring.ts --requests 20 --callers 4
//
// `outrigger run` sets OUTRIGGER_SOCKET, which is used where it is set, and OUTRIGGER_URL. The last line is a summary of
// the requests that were done; where not all were, the exit code is 1.

import { readFileSync } from "node:fs";
import * as http from "node:http";
import { text } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { crc32 } from "node:zlib";

const UNAVAILABLE = [503, 504]; // The statuses after which the same call is worth another try...
const PATIENCE_MS = 15_000; // ...and for how long.
const TIMEOUT_MS = 10_000; // How long one answer may take.
const WAIT_MS = 2000; // How long to wait for a score that another caller computes.
const MODEL = "demo-1";

type Headers = Record<string, string>;
type Reply = { status: number; headers: http.IncomingHttpHeaders; body: string };
type Outcome = { score: number; cache: string };
type Token = () => string;

/** What a problem document (RFC 9457) says. */
class Problem extends Error {
  status: number;
  code: string;
  retry_after_s: number | undefined;

  constructor(status: number, code: string, detail: string, retry_after_s?: number) {
    super(detail);
    this.status = status;
    this.code = code;
    this.retry_after_s = retry_after_s;
  }
}

/** One connection, kept alive: each caller has its own. */
class Outrigger {
  token: Token;
  address: http.RequestOptions;

  constructor(token: Token) {
    this.token = token;
    const socketPath = process.env.OUTRIGGER_SOCKET;
    const url = new URL(process.env.OUTRIGGER_URL ?? "http://127.0.0.1:7780");
    const place = socketPath ? { socketPath } : { host: url.hostname, port: url.port };
    this.address = { ...place, agent: new http.Agent({ keepAlive: true, maxSockets: 1 }) };
  }

  /** Posts a document; after a 503 the same again, with the same ids, so that nothing counts twice. */
  async post(path: string, document: object, mediaType = "application/json"): Promise<Reply> {
    const giveUp = performance.now() + PATIENCE_MS;
    for (let pauseMs = 100; ; pauseMs = Math.min(pauseMs * 2, 1000)) {
      try {
        return await this.call("POST", path, JSON.stringify(document), { "Content-Type": mediaType });
      } catch (problem) {
        if (!isProblem(problem, UNAVAILABLE)) throw problem;
        // Callers that were refused together do not come back together.
        const waitMs = (problem.retry_after_s ?? 0) * 1000 + pauseMs * (0.5 + Math.random() / 2);
        if (performance.now() + waitMs > giveUp) throw problem;
        await sleep(waitMs);
      }
    }
  }

  /** The reply of a success, or of a GET that found nothing; throws a Problem for all else. */
  async call(method: string, path: string, body?: string, headers: Headers = {}): Promise<Reply> {
    headers = { Authorization: `Bearer ${this.token()}`, ...headers };
    const reply = await this.exchange({ ...this.address, method, path, headers, timeout: TIMEOUT_MS }, body);
    if (reply.status < 400 || (method === "GET" && reply.status === 404)) return reply;
    const { code, detail } = JSON.parse(reply.body);
    const retryAfter = reply.headers["retry-after"];
    throw new Problem(reply.status, code, detail, retryAfter ? Number(retryAfter) : undefined);
  }

  exchange(options: http.RequestOptions, body?: string): Promise<Reply> {
    return new Promise((resolve, reject) => {
      const fail = (error: Error) => reject(new Problem(503, "no_answer", error.message));
      const request = http.request(options, (response) => {
        const done = (body: string) => resolve({ status: response.statusCode ?? 0, headers: response.headers, body });
        text(response).then(done, fail);
      });
      request.on("error", fail);
      request.on("timeout", () => request.destroy(new Error(`no answer within ${TIMEOUT_MS} ms`)));
      request.end(body);
    });
  }
}

function isProblem(error: unknown, statuses: number[]): error is Problem {
  return error instanceof Problem && statuses.includes(error.status);
}

/** Stands for the model: seconds of computing, which the cache saves. */
function scoreLead(lead: string): number {
  return Math.round((crc32(lead) / 2 ** 32) * 1000) / 1000;
}

/** A lead's score, and where it came from. A cache that does not answer is a miss, and no reason to fail. */
async function cachedScore(outrigger: Outrigger, lead: string): Promise<Outcome> {
  const path = `/v1/cache/scoring/${encodeURIComponent(lead)}`;
  let found: Reply;
  try {
    // In a namespace with fill leases one of those who miss gets a lease at once; the others wait for its PUT.
    found = await outrigger.call("GET", `${path}?wait_ms=${WAIT_MS}`);
  } catch (problem) {
    if (!isProblem(problem, UNAVAILABLE)) throw problem;
    return { score: scoreLead(lead), cache: problem.code };
  }
  if (found.status === 200) {
    return { score: JSON.parse(found.body).score, cache: String(found.headers["outrigger-cache"]) };
  }
  const score = scoreLead(lead);
  const lease = found.headers["outrigger-fill-lease"];
  try {
    await outrigger.call("PUT", path, JSON.stringify({ score }), lease ? { "Outrigger-Fill-Lease": String(lease) } : {});
  } catch (problem) {
    // 409: another wrote or removed it meanwhile, and the lease is void. The score is right all the same.
    if (!isProblem(problem, [409, ...UNAVAILABLE])) throw problem;
    return { score, cache: problem.code };
  }
  return { score, cache: "filled" };
}

/** One request, whose id and time came with it: it can end anywhere and be sent again, and counts once. */
async function serve(outrigger: Outrigger, id: string, time: string, lead: string): Promise<Outcome> {
  await outrigger.post("/v1/ratelimit/check", { checks: [{ limit: "api", key: "/leads/score" }] });
  const { score, cache } = await cachedScore(outrigger, lead);
  const event = { specversion: "1.0", id, source: "/lead-scoring", type: "lead.scored", time, partitionkey: lead,
    data: { lead, score, model: MODEL } };
  await outrigger.post("/v1/events/leads", event, "application/cloudevents+json");
  const record = { metric: "leads_scored", value: 1, time, idempotency_key: id, tags: { model: MODEL } };
  await outrigger.post("/v1/usage", { records: [record] });
  return { score, cache };
}

/** What the command line says. */
function options() {
  const { values } = parseArgs({
    options: {
      requests: { type: "string", default: "1" },
      callers: { type: "string", default: "1" }, // Requests under way at once.
      leads: { type: "string", default: "100" },
      "at-ms": { type: "string", default: String(Date.now()) }, // The same again is the same requests.
      "token-file": { type: "string" },
    },
  });
  const [file, fixed] = [values["token-file"], process.env.OUTRIGGER_TOKEN];
  if (!file && !fixed) throw new Error("a token is needed: OUTRIGGER_TOKEN or --token-file");
  // Read for each call, since a mounted token is renewed.
  const token: Token = () => (file ? readFileSync(file, "ascii").trim() : String(fixed));
  const [requests, callers, leads] = [values.requests, values.callers, values.leads].map(Number);
  return { requests, callers, leads, atMs: Number(values["at-ms"]), token };
}

const { requests, callers, leads, atMs, token } = options();
const doneMs: number[] = [];

/** Every C-th request, one after the other. */
async function work(caller: number): Promise<void> {
  const outrigger = new Outrigger(token);
  for (let number = caller; number < requests; number += callers) {
    const [id, lead] = [`${atMs}-${String(number).padStart(6, "0")}`, `lead-${number % leads}`];
    const begun = performance.now();
    let outcome: object;
    try {
      outcome = await serve(outrigger, id, new Date(atMs).toISOString(), lead);
      doneMs.push(performance.now() - begun);
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      // A service would answer its own client so: 429 with Retry-After where the limit is reached.
      outcome = { ...problem, detail: problem.message };
    }
    console.log(JSON.stringify({ id, lead, ...outcome }));
  }
}

const begun = performance.now();
await Promise.all(Array.from({ length: callers }, (_, caller) => work(caller)));
const seconds = (performance.now() - begun) / 1000;
doneMs.sort((one, other) => one - other);
const rounded = (value: number | undefined, digits: number) => value === undefined ? null : Number(value.toFixed(digits));
const percentile = (percent: number) => rounded(doneMs[Math.ceil((doneMs.length * percent) / 100) - 1], 2);
console.log(JSON.stringify({
  requests: doneMs.length, seconds: rounded(seconds, 3), requests_per_s: rounded(doneMs.length / seconds, 1),
  p50_ms: percentile(50), p95_ms: percentile(95), p99_ms: percentile(99),
}));
process.exitCode = doneMs.length === requests ? 0 : 1;
