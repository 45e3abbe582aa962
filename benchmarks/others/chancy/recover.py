"""Chancy recovers jobs of workers that fell silent by its recovery plugin, which is on by default."""

import asyncio
import json
import os
import sys
import time

from chancy import Chancy, Worker
from chancy.plugins.recovery import Recovery
from psycopg.rows import dict_row

LOOKS = 5


async def main(command: str) -> None:
    async with Chancy(os.environ["DATABASE"]) as chancy:
        print(json.dumps(await {"migrate": migrate, "look": look, "recover": recover}[command](chancy)))


async def migrate(chancy: Chancy) -> None:
    await chancy.migrate()


async def look(chancy: Chancy) -> list[float]:
    taken = []
    for _ in range(LOOKS):
        said = await recover(chancy)
        assert not said["jobs"]
        taken.append(said["seconds"] * 1000)
    return taken


async def recover(chancy: Chancy) -> dict[str, float]:
    worker = Worker(chancy)
    begin = time.perf_counter()
    async with chancy.pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
        jobs = await Recovery.recover(worker, chancy, cursor)
    return {"jobs": jobs, "seconds": time.perf_counter() - begin}


asyncio.run(main(*sys.argv[1:]))
