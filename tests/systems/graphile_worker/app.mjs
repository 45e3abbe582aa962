// Graphile Worker as its users run it. `app.mjs migrate | enqueue TOKEN… | work TOKEN | tell ID…`.

import { createRequire } from "node:module";

import { work } from "../work.mjs";

const installed = createRequire(`${process.env.ENVIRONMENT}/`);
const { Logger, makeWorkerUtils, run, runMigrations } = installed("graphile-worker");
const pg = installed("pg");
const connectionString = process.env.DATABASE;
const logger = new Logger(() => (level, message) => console.error(level, message));

const commands = {
    async migrate() {
        await runMigrations({ connectionString, logger });
        return installed("graphile-worker/package.json").version;
    },

    async enqueue(...tokens) {
        const utils = await makeWorkerUtils({ connectionString, logger });
        const ids = [];
        for (const token of tokens) {
            // In a queue of its own, which is locked as long as its job is; and one job has no attempt left after this.
            const spec = { queueName: token, maxAttempts: token === "retried" ? 1 : 25 };
            ids.push(Number((await utils.addJob("hold", { token }, spec)).id));
        }
        await utils.release();
        return ids;
    },

    async work() {
        const taskList = { hold: ({ token }) => work(token) };
        await (await run({ connectionString, logger, taskList, concurrency: 1, pollInterval: 200 })).promise;
    },

    /** What its public view says, and whether a job's queue is free; a job that succeeded is there no longer. */
    async tell(...ids) {
        const client = new pg.Client({ connectionString });
        await client.connect();
        const queues = "LEFT JOIN graphile_worker._private_job_queues AS queue USING (queue_name)";
        const jobs = `SELECT job.*, queue.is_available FROM graphile_worker.jobs AS job ${queues} WHERE job.id = ANY($1)`;
        const found = await client.query(jobs, [ids]);
        await client.end();
        return ids.map((id) => said(found.rows.find((job) => job.id === id)));
    },
};

function said(job) {
    if (job === undefined) return { state: "completed" };
    const state = job.locked_by ? "locked" : job.attempts < job.max_attempts ? "waiting" : "failed";
    return { state, attempts: job.attempts, queue_is_free: job.is_available, ...(job.last_error && { error: job.last_error }) };
}

const [command, ...words] = process.argv.slice(2);
console.log(JSON.stringify(await commands[command](...words)));
