// graphile-worker as a client of the benchmark; what it reads and says is told in ../client.py.
import fs from "node:fs";
import readline from "node:readline";
import { Logger, makeWorkerUtils, run, runMigrations } from "graphile-worker";
import pg from "pg";

const order = { jobs: 0, warm_up: 0, writers: 1, rate: 0, ...JSON.parse(process.env.BENCH_JOB) };
const settings = order.settings;
const tally = { executed: 0, total: 0, latencies: [] };
const logger = new Logger(() => (level, message) => level === "error" && console.error(message));
const pool = new pg.Pool({
  connectionString: order.url,
  max: order.command === "work" ? settings.pool : Math.min(order.writers, settings.producers),
});
const tell = (error) => console.error(error.message);
pool.on("error", tell);
pool.on("connect", (client) => client.on("error", tell));

const now = () => (performance.timeOrigin + performance.now()) / 1000;
const say = (what) => fs.writeSync(1, `${what}\n`);
const took = (began) =>
  say(JSON.stringify({ jobs: order.jobs - order.warm_up, seconds: (performance.now() - began) / 1000 }));

async function bulk(utils) {
  const insert = (first, end) =>
    utils.addJobs(
      Array.from({ length: end - first }, (_, n) => ({ identifier: "noop", payload: { i: first + n } })),
    );
  if (order.warm_up) await insert(0, order.warm_up);
  const began = performance.now();
  for (let first = order.warm_up; first < order.jobs; first += settings.chunk)
    await insert(first, Math.min(first + settings.chunk, order.jobs));
  took(began);
}

async function insert(utils) {
  let next = 0;
  const write = async (share) => {
    for (let n = 0; n < share; n++) await utils.addJob("noop", { i: next++ });
  };
  const together = (share) => Promise.all(Array.from({ length: order.writers }, () => write(share)));
  await together(Math.floor(order.warm_up / order.writers));
  const began = performance.now();
  await together(Math.floor((order.jobs - order.warm_up) / order.writers));
  took(began);
}

async function paced(utils) {
  const began = performance.now();
  const calls = [];
  for (let number = 0; number < order.jobs; number++) {
    const early = began + (number * 1000) / order.rate - performance.now();
    if (early > 0) await new Promise((resolve) => setTimeout(resolve, early));
    calls.push(utils.addJob("noop", { i: number, t: now() }));
  }
  await Promise.all(calls);
  took(began);
}

async function work() {
  const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  await (await pool.connect()).release();
  const noop = async ({ i, t }) => {
    if (t) tally.latencies.push(now() - t);
    tally.executed += 1;
    tally.total += i;
  };
  say("ready");
  await lines.next();
  const file = fs.openSync(order.progress, "w");
  let last = -1;
  setInterval(() => {
    if (tally.executed !== last) {
      last = tally.executed;
      fs.writeSync(file, String(last).padStart(20), 0);
    }
  }, 10);
  const worker = {
    concurrentJobs: settings.concurrency,
    maxPoolSize: settings.pool,
    localQueue: { size: settings.batch },
    completeJobBatchDelay: settings.complete_delay,
    failJobBatchDelay: settings.complete_delay,
  };
  const runner = await run({
    preset: { worker },
    pgPool: pool,
    logger,
    noHandleSignals: true,
    crontab: "",
    taskList: { noop },
  });
  await lines.next();
  await runner.stop();
  say(JSON.stringify(tally));
  process.exit(0);
}

if (order.command === "work") {
  await work();
} else if (order.command === "install") {
  await runMigrations({ pgPool: pool, logger });
  say("{}");
} else {
  const utils = await makeWorkerUtils({ pgPool: pool, logger });
  await { bulk, insert, paced }[order.command](utils);
}
process.exit(0);
