// Emmett in bench/run: its own append, with the version that it expects.
//
// usage: node bench/emmett.mjs setup
//        node bench/emmett.mjs append CLIENTS STREAMS WARM SECONDS DATA
//
// setup makes its tables.  Each client has STREAMS streams of its own, reads their versions, and appends to one of them at a
// time, so no append is refused.  As many threads as there are processors share the clients, since a thread of node uses one.
// Prints what bench/client.c does.
//
// EVPG_BENCH_BUILD names the directory with node_modules.  Connects as psql does (PGHOST, PGDATABASE, PGUSER, PGOPTIONS).

import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { performance } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';
import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads';

const require = createRequire(process.env.EVPG_BENCH_BUILD + '/');
const { getPostgreSQLEventStore } = require('@event-driven-io/emmett-postgresql');
const { Client } = require('pg');

function connectionString() {
  const value = (name, otherwise = '') => encodeURIComponent(process.env[name] ?? otherwise);

  return `postgresql://${value('PGUSER')}@/${value('PGDATABASE')}?host=${value('PGHOST')}&port=${value('PGPORT', '5432')}` +
    `&options=${value('PGOPTIONS')}`;
}

// One client: what it has measured, in microseconds, and how many of these appends had ended when time was over.
async function append(store, streams, { warm, seconds, data }) {
  const begin = performance.now() + warm * 1000;
  const end = begin + seconds * 1000;
  const times = [];
  let inTime = 0;

  for (let sent = performance.now(); sent < end;) {
    const stream = streams[Math.floor(Math.random() * streams.length)];
    const appended = await store.appendToStream(stream.id, [{ type: 'MoneyDeposited', data }],
      { expectedStreamVersion: stream.version });
    const now = performance.now();

    stream.version = appended.nextExpectedStreamVersion;
    if (sent >= begin) {
      times.push(Math.round((now - sent) * 1000));
      inTime += now < end ? 1 : 0;
    }
    sent = now;
  }
  return { times, inTime };
}

async function work() {
  const { clients, streams } = workerData;
  const store = getPostgreSQLEventStore(connectionString(), { schema: { autoMigration: 'None' } });
  const reader = new Client({ connectionString: connectionString() });

  await reader.connect();
  const versions = new Map((await reader.query('SELECT stream_id, stream_position FROM emt_streams')).rows
    .map((row) => [row.stream_id, BigInt(row.stream_position)]));
  await reader.end();
  const own = clients.map((client) => Array.from({ length: streams }, (_, i) => {
    const id = `bench-${client * streams + i + 1}`;

    if (!versions.has(id))
      throw new Error(`there is no stream ${id}`);
    return { id, version: versions.get(id) };
  }));
  parentPort.postMessage('ready');
  await new Promise((resolve) => parentPort.once('message', resolve));
  parentPort.postMessage(await Promise.all(own.map((mine) => append(store, mine, workerData))));
  await store.close();
}

async function measure(clients, streams, warm, seconds, data) {
  const threads = Math.min(clients, availableParallelism());
  const workers = Array.from({ length: threads }, (_, thread) => new Worker(fileURLToPath(import.meta.url), {
    workerData: { clients: Array.from({ length: clients }, (_, i) => i).filter((i) => i % threads === thread),
      streams, warm, seconds, data },
  }));
  const next = (worker) => new Promise((resolve, reject) => {
    worker.once('message', resolve);
    worker.once('error', reject);
  });

  await Promise.all(workers.map(next));
  const results = workers.map(next);
  workers.forEach((worker) => worker.postMessage('begin'));
  const all = (await Promise.all(results)).flat();
  const times = Uint32Array.from(all.flatMap((client) => client.times)).sort();
  const inTime = all.reduce((sum, client) => sum + client.inTime, 0);

  if (inTime === 0)
    throw new Error('no append has ended in time');
  console.log((inTime / seconds).toFixed(2), ...[0.5, 0.99, 0.999].map((part) => times[Math.floor(times.length * part)]), '0.0');
}

if (!isMainThread) {
  await work();
} else if (process.argv[2] === 'setup') {
  const store = getPostgreSQLEventStore(connectionString());

  await store.schema.migrate();
  await store.close();
} else {
  const [clients, streams, warm, seconds] = process.argv.slice(3, 7).map(Number);

  await measure(clients, streams, warm, seconds, JSON.parse(process.argv[7]));
}
