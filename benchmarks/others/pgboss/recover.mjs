// pg-boss recovers jobs that ran out of time by its supervisor's pass, which counts its queues, too, each time.

import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";

const installed = createRequire(`${process.env.ENVIRONMENT}/`);
const { PgBoss } = installed("pg-boss");
const LOOKS = 3;
// It passes over a queue that it looked at less than this long ago: a minute where nothing else is said.
const APART = 1;

const boss = new PgBoss({
    connectionString: process.env.DATABASE,
    supervise: false,
    schedule: false,
    monitorIntervalSeconds: APART,
});
boss.on("error", console.error);

const commands = {
    migrate: () => boss.createQueue("held"),

    async look() {
        await pass(); // the first one each day also walks over all finished jobs, for those to be deleted
        const taken = [];
        for (let number = 0; number < LOOKS; number++) taken.push(await pass());
        return taken;
    },

    async recover() {
        return { seconds: (await pass()) / 1000 };
    },
};

/** The milliseconds of one pass. */
async function pass() {
    await sleep(APART * 1100);
    const begin = performance.now();
    await boss.supervise("held");
    return performance.now() - begin;
}

await boss.start();
console.log(JSON.stringify((await commands[process.argv[2]]()) ?? null));
await boss.stop();
