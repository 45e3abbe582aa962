// pg-boss as its users run it. `app.mjs migrate | enqueue TOKEN… | work TOKEN | tell ID…`.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

import { work } from "../work.mjs";

const installed = createRequire(`${process.env.ENVIRONMENT}/`);
const { PgBoss } = installed("pg-boss");
const boss = new PgBoss(process.env.DATABASE);
boss.on("error", console.error);

const commands = {
    async migrate() {
        await boss.createQueue("lost");
        await boss.createQueue("held", { heartbeatSeconds: 10, deadLetter: "lost" });
        return JSON.parse(readFileSync(`${process.env.ENVIRONMENT}/node_modules/pg-boss/package.json`)).version;
    },

    async enqueue(...tokens) {
        const ids = [];
        // No attempt is left after the first one.
        for (const token of tokens) ids.push(await boss.send("held", { token }, { retryLimit: 0 }));
        return ids;
    },

    async work() {
        const options = { pollingIntervalSeconds: 0.5, heartbeatRefreshSeconds: 0.2 };
        await boss.work("held", options, ([job]) => work(job.data.token));
        await new Promise(() => {});
    },

    async tell(...ids) {
        const letters = await boss.findJobs("lost");
        return Promise.all(ids.map(async (id) => said(await boss.getJobById("held", id), letters)));
    },
};

function said(job, letters) {
    const told = { state: job.state, attempts: job.retryCount + 1, attempts_at_most: job.retryLimit + 1 };
    const copies = letters.filter((letter) => letter.sourceId === job.id).map((letter) => letter.data.token);
    return { ...told, letters: copies, ...(job.output?.value && { error: job.output.value.message }) };
}

const [command, ...words] = process.argv.slice(2);
await boss.start();
console.log(JSON.stringify(await commands[command](...words)));
await boss.stop();
