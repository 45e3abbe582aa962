"""SAQ recovers jobs by its sweep, which aborts each and waits for five seconds that it ends, before it queues it."""

import asyncio
import json
import os
import sys
import time

from saq.queue.postgres import PostgresQueue

LOOKS = 5


async def main(command: str) -> None:
    queue = PostgresQueue.from_url(os.environ["DATABASE"], name="held", min_size=1)
    await queue.connect()
    print(json.dumps(await {"migrate": migrate, "look": look, "recover": recover}[command](queue)))
    await queue.disconnect()


async def migrate(_: PostgresQueue) -> None:
    """Its tables are made as it connects."""


async def look(queue: PostgresQueue) -> list[float]:
    taken = []
    for _ in range(LOOKS):
        said = await recover(queue)
        assert not said["jobs"]
        taken.append(said["seconds"] * 1000)
    return taken


async def recover(queue: PostgresQueue) -> dict[str, float]:
    begin = time.perf_counter()
    swept = await queue.sweep()
    return {"jobs": len(swept), "seconds": time.perf_counter() - begin}


asyncio.run(main(*sys.argv[1:]))
