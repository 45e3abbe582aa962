// The work that each system's jobs do, as work.py says it, for applications that run on Node.js.

import { appendFileSync, existsSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const journal = process.env.JOURNAL;

/** Say that a job was begun, wait for its gate, and say that it was finished. */
export async function work(token) {
    note(`began ${token} ${process.pid}`);
    while (!existsSync(join(journal, `gate-${token}`))) await sleep(10);
    note(`ended ${token} ${process.pid}`);
}

function note(line) {
    appendFileSync(join(journal, "journal"), `${line}\n`);
}
