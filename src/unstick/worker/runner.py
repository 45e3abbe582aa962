"""Runs registered handlers for queued jobs, so many at a time, until it is told to stop.

Guarantee: each job that is run was claimed by this process alone, beats while it runs, and ends by a fenced write.
Known weakness: a handler in a thread that never asks its heartbeat can't be stopped, and delays the process's end.
"""

import asyncio
import inspect
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import cast

from unstick.domain.errors import LateFinishError, LeaseLostError, SourceUnavailableError
from unstick.domain.policy import backoff
from unstick.domain.work import ClaimedJob
from unstick.worker.registry import Registry
from unstick.worker.worker import Worker

_log = logging.getLogger("unstick")

_TELLING = timedelta(seconds=60)
"""How long a stopping worker tries to write an end while the database is away; after that the job is found stuck."""


class Runner:
    """A worker's loop.

    Args:
        worker: claims and ends the jobs.
        registry: says which kinds are run, and by what.
        concurrency: how many jobs run at a time.
        poll: how long to wait where no job is due; spread by ±25 %, so that workers part.
        drain: how long running jobs may go on once it is told to stop; then they are cancelled and queued again.
        retry_backoff: the wait before the first retry of a job whose handler raised; it doubles, up to an hour.
    """

    def __init__(
        self,
        worker: Worker,
        registry: Registry,
        *,
        concurrency: int = 4,
        poll: timedelta = timedelta(seconds=1),
        drain: timedelta = timedelta(seconds=30),
        retry_backoff: timedelta = timedelta(seconds=30),
    ) -> None:
        self._worker = worker
        self._registry = registry
        self._concurrency = concurrency
        self._poll = poll
        self._drain = drain
        self._retry_backoff = retry_backoff
        self._stopping = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="unstick-job")

    def stop(self) -> None:
        """Claim no more jobs, and end when those that run have ended."""
        self._stopping.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run in the background for as long as the block lasts."""
        loop = asyncio.create_task(self.run())
        try:
            yield
        finally:
            self.stop()
            await loop

    async def run(self) -> None:
        """Run jobs until told to stop, and then drain."""
        try:
            while not self._stopping.is_set():
                if not await self._fill():
                    await self._wait()
        finally:
            await self._drained()
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _fill(self) -> bool:
        """Claim as many jobs as there is room for, and tell whether there is anything to claim at once."""
        free = self._concurrency - len(self._running)
        if not free:
            return False
        try:
            jobs = await self._worker.claim(limit=free, kinds=self._registry.kinds)
        except SourceUnavailableError as error:
            _log.warning("No job can be claimed: %s", error)
            return False
        except Exception:  # noqa: BLE001
            # Whatever it is, the loop goes on: a dead one would look like an idle one.
            _log.exception("No job can be claimed")
            return False
        for job in jobs:
            task = asyncio.create_task(self._run_job(job))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return len(jobs) == free

    async def _wait(self) -> None:
        """Wait for a while, or until a job ends or somebody says stop."""
        stopping = asyncio.create_task(self._stopping.wait())
        pause = self._poll.total_seconds() * random.uniform(0.75, 1.25)  # noqa: S311 - spreads polls
        full = len(self._running) >= self._concurrency
        await asyncio.wait(
            {stopping, *self._running}, timeout=None if full else pause, return_when=asyncio.FIRST_COMPLETED
        )
        stopping.cancel()

    async def _drained(self) -> None:
        if not self._running:
            return
        _, pending = await asyncio.wait(self._running, timeout=self._drain.total_seconds())
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    async def _run_job(self, job: ClaimedJob) -> None:
        try:
            results = await self._handled(job)
            await self._end(partial(self._worker.finish, job, results))
        except LeaseLostError as error:
            _log.warning("%s", error)
        except asyncio.CancelledError:
            await asyncio.shield(self._end(partial(self._worker.requeue, job)))
            raise
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is what its job came to
            _log.exception("Job %s of kind %s failed", job.id, job.kind)
            await self._end(self._after(job, error))

    def _after(self, job: ClaimedJob, error: Exception) -> Callable[[], Awaitable[None]]:
        """Return what is done about a job whose handler raised: another attempt where it has any left."""
        said, begun = f"{type(error).__name__}: {error}", (job.attempt or 0) + 1
        if job.max_attempts is None or begun >= job.max_attempts:
            return partial(self._worker.fail, job, said)
        wait = backoff(job.id, begun - 1, self._retry_backoff)
        return partial(self._worker.requeue, job, wait=wait, error=said, counted=True)

    async def _end(self, write: Callable[[], Awaitable[None]]) -> None:
        """Write a job's end; while the database is away, try again for as long as this worker lives."""
        give_up_at = monotonic() + _TELLING.total_seconds()
        while True:
            try:
                return await write()
            except LateFinishError as error:
                return _log.warning("%s", error)
            except SourceUnavailableError as error:
                if self._stopping.is_set() and monotonic() >= give_up_at:
                    return _log.error("The end of a job could not be written; it will be found stuck: %s", error)
            await asyncio.sleep(self._poll.total_seconds())

    async def _handled(self, job: ClaimedJob) -> Mapping[str, object] | None:
        handler = self._registry.handler(job.kind)
        async with self._worker.heartbeat(job) as beat:
            try:
                if inspect.iscoroutinefunction(handler):
                    return cast("Mapping[str, object] | None", await handler(job, beat))
                running = asyncio.get_running_loop().run_in_executor(self._threads, handler, job, beat)
                return cast("Mapping[str, object] | None", await running)
            except SystemExit as error:  # of one job, not of its worker
                raise RuntimeError(f"the handler called sys.exit({error.code!r})") from error
