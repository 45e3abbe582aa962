"""Procrastinate as its users run it. `app.py migrate | enqueue TOKEN… | lock NAME TOKEN… | work TOKEN | tell ID…`."""

import asyncio
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import procrastinate

sys.path.insert(0, str(Path(__file__).parent.parent))
from work import work

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=os.environ["DATABASE"]))


@app.task(name="hold", queue="held")
def hold(token: str) -> None:
    work(token)


async def main(command: str, *arguments: str) -> None:
    async with app.open_async():
        if command == "migrate":
            await app.schema_manager.apply_schema_async()
            print(json.dumps(version("procrastinate")))
        elif command == "enqueue":
            print(json.dumps([await hold.defer_async(token=token) for token in arguments]))
        elif command == "lock":
            locked = hold.configure(lock=arguments[0])
            print(json.dumps([await locked.defer_async(token=token) for token in arguments[1:]]))
        elif command == "tell":
            print(json.dumps([await tell(int(job_id)) for job_id in arguments]))
        else:
            await app.run_worker_async(update_heartbeat_interval=0.2, fetch_job_polling_interval=0.2, concurrency=1)


async def tell(job_id: int) -> dict[str, object]:
    (job,) = await app.job_manager.list_jobs_async(id=job_id)
    return {"state": job.status, "attempts": job.attempts}


asyncio.run(main(*sys.argv[1:]))
