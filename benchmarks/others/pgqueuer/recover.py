"""PgQueuer recovers jobs by having its workers pick them again, a thousand at a time here where its default is ten."""

import asyncio
import json
import os
import sys
import time
import uuid
from datetime import timedelta

import asyncpg
from pgqueuer import Queries
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.ports.repository import EntrypointExecutionParameter

LOOKS = 20
BATCH = 1_000


async def main(command: str) -> None:
    queries = Queries(AsyncpgDriver(await asyncpg.connect(os.environ["DATABASE"])))
    print(json.dumps(await {"migrate": migrate, "look": look, "recover": recover}[command](queries)))


async def migrate(queries: Queries) -> None:
    await queries.install()


async def look(queries: Queries) -> list[float]:
    taken = []
    for _ in range(LOOKS):
        begin = time.perf_counter()
        assert not await pick(queries)
        taken.append((time.perf_counter() - begin) * 1000)
    return taken


async def recover(queries: Queries) -> dict[str, float]:
    begin, jobs = time.perf_counter(), 0
    while picked := await pick(queries):
        jobs += len(picked)
    return {"jobs": jobs, "seconds": time.perf_counter() - begin}


async def pick(queries: Queries) -> list[Job]:
    entrypoints = {"hold": EntrypointExecutionParameter(concurrency_limit=0)}
    return await queries.dequeue(BATCH, entrypoints, uuid.uuid4(), None, timedelta(seconds=30))


asyncio.run(main(*sys.argv[1:]))
