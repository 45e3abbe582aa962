"""Procrastinate recovers jobs of workers that fell silent, as its docs say: ask for them, then retry each."""

import asyncio
import json
import os
import sys
import time

import procrastinate

LOOKS = 5

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=os.environ["DATABASE"]))


async def main(command: str) -> None:
    async with app.open_async():
        print(json.dumps(await {"migrate": migrate, "look": look, "recover": recover}[command]()))


async def migrate() -> None:
    await app.schema_manager.apply_schema_async()


async def look() -> list[float]:
    taken = []
    for _ in range(LOOKS):
        begin = time.perf_counter()
        assert not list(await app.job_manager.get_stalled_jobs())
        taken.append((time.perf_counter() - begin) * 1000)
    return taken


async def recover() -> dict[str, float]:
    begin = time.perf_counter()
    stalled = list(await app.job_manager.get_stalled_jobs())
    for job in stalled:
        await app.job_manager.retry_job(job)
    return {"jobs": len(stalled), "seconds": time.perf_counter() - begin}


asyncio.run(main(*sys.argv[1:]))
