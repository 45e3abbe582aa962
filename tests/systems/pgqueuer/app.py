"""PgQueuer as its users run it. `app.py migrate | enqueue TOKEN… | work TOKEN | tell ID…`."""

import asyncio
import json
import os
import sys
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import asyncpg
from pgqueuer import PgQueuer, Queries
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job

sys.path.insert(0, str(Path(__file__).parent.parent))
from work import work

BEAT = timedelta(seconds=1)
"""How old a heartbeat may be; workers beat twice as often."""


async def main(command: str, *arguments: str) -> None:
    driver = AsyncpgDriver(await asyncpg.connect(os.environ["DATABASE"]))
    queries = Queries(driver)
    if command == "migrate":
        await queries.install()
        print(json.dumps(version("pgqueuer")))
    elif command == "enqueue":
        print(json.dumps([(await queries.enqueue(token, token.encode()))[0] for token in arguments]))
    elif command == "tell":
        print(json.dumps([await tell(queries, int(job_id)) for job_id in arguments]))
    else:
        await run(driver, *arguments)


async def run(driver: AsyncpgDriver, token: str) -> None:
    """Take the jobs of one token: a worker takes two jobs at least where it is let."""
    pgq = PgQueuer(driver)

    @pgq.entrypoint(token)
    async def hold(job: Job) -> None:
        await asyncio.to_thread(work, (job.payload or b"").decode())

    await pgq.run(batch_size=1, max_concurrent_tasks=2, heartbeat_timeout=BEAT, dequeue_timeout=BEAT)


async def tell(queries: Queries, job_id: int) -> dict[str, object]:
    ((_, state),) = await queries.job_status([job_id])
    told = [entry for entry in await queries.queue_log() if entry.job_id == job_id and entry.traceback is not None]
    return {"state": state} | ({"error": told[0].traceback.exception_message} if told else {})


asyncio.run(main(*sys.argv[1:]))
