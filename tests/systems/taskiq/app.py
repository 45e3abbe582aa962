"""TaskIQ on PostgreSQL as its users run it. `app.py migrate | enqueue TOKEN… | work TOKEN | tell ID…`."""

import asyncio
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

from taskiq.api import run_receiver_task
from taskiq_pg.asyncpg import AsyncpgBroker, AsyncpgResultBackend

sys.path.insert(0, str(Path(__file__).parent.parent))
from work import JOURNAL, note, work


class Broker(AsyncpgBroker):
    """The broker, which hears of one task alone where a token is told: a worker claims more than it runs."""

    token: str | None = None

    def _notification_handler(self, *heard: object) -> None:
        self.hearing = asyncio.get_running_loop().create_task(self._hear(str(heard[-1])))

    async def _hear(self, message_id: str) -> None:
        if await task_of(message_id) == self.token:
            self._queue.put_nowait(message_id)


broker = Broker(os.environ["DATABASE"], AsyncpgResultBackend(os.environ["DATABASE"]))


@broker.task("hold")
def hold(token: str) -> None:
    work(token)


async def main(command: str, *arguments: str) -> None:
    await broker.startup()
    if command == "migrate":
        print(json.dumps(version("taskiq-postgres")))
    elif command == "enqueue":
        print(json.dumps([await enqueue(token) for token in arguments]))
    elif command == "tell":
        print(json.dumps([await tell(message_id) for message_id in arguments]))
    else:
        (broker.token,) = arguments
        note(f"hears {broker.token} {os.getpid()}")
        await run_receiver_task(broker, sync_workers=1, max_async_tasks=1)
    await broker.shutdown()


async def enqueue(token: str) -> int:
    """Queue a task and return the number of its row, which is gone when it has succeeded."""
    task = await hold.kicker().with_task_id(token).kiq(token)
    message_id = await broker._write_pool.fetchval("SELECT id FROM taskiq_messages WHERE task_id = $1", task.task_id)
    (JOURNAL / f"message-{message_id}").write_text(task.task_id)
    return message_id


async def task_of(message_id: str) -> str | None:
    return await broker._write_pool.fetchval("SELECT task_id FROM taskiq_messages WHERE id = $1", int(message_id))


async def tell(message_id: str) -> dict[str, object]:
    """Ask for the result; TaskIQ tells nothing of a task that has none."""
    task_id = (JOURNAL / f"message-{message_id}").read_text()
    if not await broker.result_backend.is_result_ready(task_id):
        return {"state": "no result"}
    result = await broker.result_backend.get_result(task_id)
    return {"state": "an error" if result.is_err else "a result"}


asyncio.run(main(*sys.argv[1:]))
