// BullMQ recovers jobs whose lock ran out by its workers' check for stalled jobs, which marks them at first, and moves
// those that it had marked before. What is timed is the check that moves them.

import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";

const installed = createRequire(`${process.env.ENVIRONMENT}/`);
const { Queue, Worker } = installed("bullmq");
const Redis = installed("ioredis").default;
const LOOKS = 20;
const BATCH = 1000;
const APART = 20; // ms between two checks, where its default is 30 s
const FINISHED = `
for number = ARGV[1], ARGV[2] do
    local id = 'finished-' .. number
    redis.call('HSET', KEYS[1] .. id, 'name', 'hold', 'data', ARGV[4], 'opts', '{"attempts":0}', 'delay', 0,
        'priority', 0, 'timestamp', ARGV[3], 'processedOn', ARGV[3], 'finishedOn', ARGV[3], 'returnvalue', 'null',
        'atm', 1, 'ats', 1)
    redis.call('ZADD', KEYS[1] .. 'completed', ARGV[3], id)
end
`;

const connection = new Redis({ path: new URL(process.env.DATABASE).pathname, maxRetriesPerRequest: null });
const queue = new Queue("held", { connection });
const worker = new Worker("held", null, { connection, autorun: false, lockDuration: 1000, stalledInterval: APART });

const commands = {
    /** Write finished jobs as BullMQ would have. */
    async fill(finished) {
        for (let first = 1; first <= finished; first += BATCH) {
            const last = Math.min(first + BATCH - 1, finished);
            await connection.eval(FINISHED, 1, queue.toKey(""), first, last, Date.now() - 3600000, "{}");
        }
    },

    /** Have jobs taken by a worker that renews no lock. */
    async stick(stuck) {
        await queue.drain();
        for (let first = 0; first < stuck; first += BATCH) {
            const number = Math.min(BATCH, stuck - first);
            await queue.addBulk(Array.from({ length: number }, () => ({ name: "hold", data: {} })));
            await Promise.all(Array.from({ length: number }, () => worker.getNextJob("taken", { block: false })));
        }
        await sleep(1500); // until all locks have run out
        await check();
    },

    async look() {
        const taken = [];
        for (let number = 0; number < LOOKS; number++) taken.push(await check());
        return taken;
    },

    async recover() {
        const before = await queue.getWaitingCount();
        const seconds = (await check()) / 1000;
        return { jobs: (await queue.getWaitingCount()) - before, seconds };
    },

    left: () => queue.getActiveCount(),
};

/** The milliseconds of one check. */
async function check() {
    await sleep(APART * 2);
    const begin = performance.now();
    await worker.moveStalledJobsToWait();
    return performance.now() - begin;
}

const [command, ...numbers] = process.argv.slice(2);
await queue.waitUntilReady();
await worker.waitUntilReady();
console.log(JSON.stringify((await commands[command](...numbers.map(Number))) ?? null));
await worker.close();
await queue.close();
connection.disconnect();
