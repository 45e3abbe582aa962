"""SAQ on PostgreSQL as its users run it. `app.py migrate | enqueue TOKEN… | work TOKEN | tell KEY…`."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from saq.queue.postgres import PostgresQueue
from saq.worker import Worker

sys.path.insert(0, str(Path(__file__).parent.parent))
from work import work


def hold(ctx: object, *, token: str) -> None:
    work(token)


async def main(command: str, *arguments: str) -> None:
    if command == "migrate":
        async with connected("held"):
            print(json.dumps(version("saq")))
    elif command == "enqueue":
        print(json.dumps([await enqueue(token) for token in arguments]))
    elif command == "tell":
        print(json.dumps([await tell(*job_id.split(":")) for job_id in arguments]))
    else:
        async with connected(*arguments) as queue:
            await Worker(queue, [hold], concurrency=1, timers={"worker_info": 1, "sweep": 1}).start()


@asynccontextmanager
async def connected(name: str) -> AsyncIterator[PostgresQueue]:
    queue = PostgresQueue.from_url(os.environ["DATABASE"], name=name, min_size=1)
    await queue.connect()
    try:
        yield queue
    finally:
        await queue.disconnect()


async def enqueue(token: str) -> str:
    async with connected(token) as queue:
        # The shorter of SAQ's own limits would have it sweep jobs itself.
        job = await queue.enqueue("hold", key=f"{token}:1", token=token, timeout=0)
        return job.key


async def tell(token: str, number: str) -> dict[str, object]:
    async with connected(token) as queue:
        job = await queue.job(f"{token}:{number}")
        return {"state": job.status.value, "attempts": job.attempts, "error": job.error or ""}


asyncio.run(main(*sys.argv[1:]))
