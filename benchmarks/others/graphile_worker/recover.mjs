// Graphile Worker recovers jobs that have been locked for four hours by a statement that each worker sends every eight
// to ten minutes. It is no part of its interface, so it is taken from inside of the package.

import { createRequire } from "node:module";

const installed = createRequire(`${process.env.ENVIRONMENT}/`);
const { Logger, makeWorkerUtils, runMigrations } = installed("graphile-worker");
const { getUtilsAndReleasersFromOptions } = installed("graphile-worker/dist/lib.js");
const { resetLockedAt } = installed("graphile-worker/dist/sql/resetLockedAt.js");
const LOOKS = 5;

const logger = new Logger(() => (level, message) => console.error(level, message));
const options = { connectionString: process.env.DATABASE, logger };

const commands = {
    async migrate() {
        await runMigrations(options);
        const utils = await makeWorkerUtils(options);
        await utils.addJob("hold", {}); // which makes the task known
        await utils.release();
    },

    async look() {
        const taken = [];
        for (let number = 0; number < LOOKS; number++) taken.push((await commands.recover()).seconds * 1000);
        return taken;
    },

    async recover() {
        const [compiled, release] = await getUtilsAndReleasersFromOptions(options);
        await compiled.withPgClient((client) => client.query("SELECT 1")); // opens the connection
        const begin = performance.now();
        await resetLockedAt(compiled, compiled.withPgClient);
        const seconds = (performance.now() - begin) / 1000;
        await release();
        return { seconds };
    },
};

console.log(JSON.stringify((await commands[process.argv[2]]()) ?? null));
