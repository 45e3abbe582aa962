"""The worker kit for host apps: put jobs into the app's own table, and run them with signs of life and fenced ends.

from unstick import Registry, enqueue, running

registry = Registry()

@registry.job("essay")
async def essay(job, beat):
    ...

app = FastAPI(lifespan=lambda _app: running(registry, url=DATABASE_URL))

async with AsyncSessionLocal() as db:          # the row of yours and its job commit together, or not at all
    db.add(order)
    await enqueue(db, "essay", {"prompt": order.prompt}, key=f"order-{order.id}")
    await db.commit()
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from unstick.domain.work import BEAT_EVERY, LEASE, Enqueued, NewJob
from unstick.hosting import host_settings, hosted
from unstick.sql import enqueueing
from unstick.sql.connections import SessionConnections
from unstick.sql.mapping import JobTable
from unstick.wiring import chosen_source, worker_on
from unstick.worker import Registry, Runner, Worker

_SOURCE = "main"
"""What a table goes by in the ledger where nothing was configured."""


async def enqueue(
    db: AsyncSession,
    kind: str,
    payload: object = None,
    *,
    key: str | None = None,
    queue: str | None = None,
    wait: timedelta | None = None,
    values: Mapping[str, object] | None = None,
    jobs: JobTable | None = None,
) -> Enqueued:
    """Put a job into the table, within the session's own transaction: it is there when the caller commits.

    Args:
        db: the session; nothing is committed.
        kind: which handler runs it.
        payload: what the handler is given; JSON.
        key: makes repeating the call safe: a job with this key is queued once, ever.
        queue: which queue it waits in.
        wait: how long until it is due.
        values: the table's other columns, by name.
        jobs: the table, where it is not the one `configure` or the configuration names.

    Raises:
        ConfigurationError: the table has no column for what is asked.
    """
    job = NewJob(kind=kind, payload=payload, key=key, queue=queue, wait=wait, values=values or {})
    return await enqueueing.enqueue(SessionConnections(db), await db.connection(), jobs or hosted(None, None).jobs, job)


def open_worker(
    *,
    url: str | None = None,
    jobs: JobTable | None = None,
    beat_every: timedelta = BEAT_EVERY,
    lease: timedelta = LEASE,
) -> AbstractAsyncContextManager[Worker]:
    """Make this process a worker over the app's jobs table for as long as the block lasts.

    Args:
        url: the database, where it is not the one the configuration names.
        jobs: the table, likewise or by `configure`.
        beat_every: the time between two signs of life.
        lease: how long the process is believed to live after one.
    """
    if url is not None and jobs is not None:
        return worker_on(_SOURCE, url, jobs, every=beat_every, lease=lease)
    host = hosted(jobs, None)
    if url is None:
        _, section = chosen_source(host_settings())
        url = section.url.get_secret_value()
    return worker_on(host.source, url, host.jobs, every=beat_every, lease=lease)


@asynccontextmanager
async def running(
    registry: Registry,
    *,
    url: str | None = None,
    jobs: JobTable | None = None,
    concurrency: int = 4,
    poll: timedelta = timedelta(seconds=1),
    drain: timedelta = timedelta(seconds=30),
    beat_every: timedelta = BEAT_EVERY,
    lease: timedelta = LEASE,
) -> AsyncIterator[None]:
    """Run jobs in the background for as long as the block lasts, as in a FastAPI app's lifespan; then drain.

    Args:
        registry: the handlers.
        url: the database, where it is not the one the configuration names.
        jobs: the table, likewise or by `configure`.
        concurrency: how many jobs run at a time.
        poll: how long to wait where no job is due.
        drain: how long running jobs may go on at the end; then they are queued again.
        beat_every: the time between two signs of life.
        lease: how long the process is believed to live after one.
    """
    async with open_worker(url=url, jobs=jobs, beat_every=beat_every, lease=lease) as worker:
        runner = Runner(worker, registry, concurrency=concurrency, poll=poll, drain=drain)
        async with runner.running():
            yield
