"""Oban for Python as its users run it. `app.py migrate | enqueue TOKEN… | work TOKEN | tell ID…`."""

import asyncio
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

from oban import Oban, worker
from oban.job import Job
from oban.schema import install

sys.path.insert(0, str(Path(__file__).parent.parent))
from work import work


@worker()
class Hold:
    async def process(self, job: Job) -> None:
        await asyncio.to_thread(work, job.args["token"])


async def main(command: str, *arguments: str) -> None:
    pool = await Oban.create_pool(os.environ["DATABASE"])
    if command == "migrate":
        await install(pool)
        print(json.dumps(version("oban")))
    elif command == "enqueue":
        oban = Oban(pool=pool)
        jobs = [await oban.enqueue(Hold.new({"token": token}, queue=token)) for token in arguments]
        print(json.dumps([job.id for job in jobs]))
    elif command == "tell":
        oban = Oban(pool=pool)
        print(json.dumps([await tell(oban, int(job_id)) for job_id in arguments]))
    else:
        (token,) = arguments
        async with Oban(pool=pool, queues={token: 1}, refresher={"interval": 0.2}, stager={"interval": 0.2}):
            await asyncio.Event().wait()
    await pool.close()


async def tell(oban: Oban, job_id: int) -> dict[str, object]:
    job = await oban.get_job(job_id)
    told = {"state": str(job.state), "attempt": job.attempt, "rescued": job.meta.get("rescued", 0)}
    return told | ({"error": job.errors[-1]["error"]} if job.errors else {})


asyncio.run(main(*sys.argv[1:]))
