"""Chancy as its users run it. `app.py migrate | enqueue TOKEN… | work TOKEN | tell ID…`."""

import asyncio
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

from chancy import Chancy, Queue, Reference, Worker, job

sys.path.insert(0, str(Path(__file__).parent.parent))
from work import work


@job()
def hold(*, token: str) -> None:
    work(token)


async def main(command: str, *arguments: str) -> None:
    async with Chancy(os.environ["DATABASE"]) as chancy:
        if command == "migrate":
            await chancy.migrate()
            print(json.dumps(version("chancy")))
        elif command == "enqueue":
            print(json.dumps([await enqueue(chancy, token) for token in arguments]))
        elif command == "tell":
            print(json.dumps([await tell(chancy, job_id) for job_id in arguments]))
        else:
            await run(chancy, *arguments)


async def enqueue(chancy: Chancy, token: str) -> str:
    executor = Chancy.Executor.Threaded
    await chancy.declare(Queue(token, concurrency=1, tags={token}, polling_interval=1, executor=executor))
    reference = await chancy.push(hold.job.with_queue(token).with_kwargs(token=token))
    return str(reference.identifier)


async def run(chancy: Chancy, token: str) -> None:
    worker = Worker(chancy, tags={token}, heartbeat_poll_interval=1)
    worker.send_outgoing_interval = 0.2
    async with worker:
        await worker.wait_for_shutdown()


async def tell(chancy: Chancy, job_id: str) -> dict[str, object]:
    job = await chancy.get_job(Reference(job_id))
    told = {"state": job.state.value, "attempts": job.attempts, "max_attempts": job.max_attempts}
    return told | ({"error": job.errors[-1]["traceback"]} if job.errors else {})


if __name__ == "__main__":  # which the processes of its default queue import, too
    asyncio.run(main(*sys.argv[1:]))
