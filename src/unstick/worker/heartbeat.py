"""Signs of life of the jobs a process runs, sent from a thread of their own.

Guarantee: a beat is never part of a job's own transaction, and goes on while a job blocks the event loop: the thread
has a loop and a connection of its own. A job that was taken from this worker is told so within one beat, and one that
its code left without an end is vouched for no longer than a lease.
Known weakness: code that holds Python's interpreter lock for longer than the lease silences the beats; and no thread
can be stopped from outside, so a job in a thread learns of its loss where it asks (`check`, `progress`).
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self

from unstick.domain.errors import LeaseLostError, SourceUnavailableError
from unstick.domain.work import BEAT_EVERY, LEASE, Beat, ClaimedJob, WorkerIdentity
from unstick.ports import JobQueue

if TYPE_CHECKING:
    from unstick.domain.job import JobId

_log = logging.getLogger("unstick")

OpenQueue = Callable[[], AbstractAsyncContextManager[JobQueue]]
"""Opens a queue of its own, with connections of its own, on the loop it is called on."""


class Heartbeats:
    """Beats for a whole process: one statement a beat, however many jobs it runs.

    Args:
        open_queue: opens the queue the beats go to.
        worker: who beats.
        every: the time between two beats.
        lease: how long the process is believed to live after a beat; several times `every`.
    """

    def __init__(
        self, open_queue: OpenQueue, worker: WorkerIdentity, *, every: timedelta = BEAT_EVERY, lease: timedelta = LEASE
    ) -> None:
        if lease < 2 * every:
            raise ValueError(f"A lease of {lease} can't outlast one missed beat of every {every}; make it longer.")
        self._open_queue = open_queue
        self._worker = worker
        self._every = every
        self._lease = lease
        self._held: dict[JobId, Heartbeat] = {}
        self._unattended: dict[JobId, tuple[ClaimedJob, float]] = {}
        self._lock = threading.Lock()
        self._joined: threading.Event = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="unstick-heartbeats", daemon=True)

    def start(self) -> None:
        """Begin to beat; returns when the worker is vouched for.

        Raises:
            UnstickError: the queue can't be opened, or its table can't show signs of life.
        """
        self._thread.start()
        self._joined.wait()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Stop beating, and have the worker's lease run out."""
        if self._loop is not None and self._stopping is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def expect(self, job: ClaimedJob) -> None:
        """Expect a claimed job to be held or ended soon; one that isn't within a lease is vouched for no longer."""
        with self._lock:
            self._unattended[job.id] = job, monotonic()

    def hold(self, heartbeat: "Heartbeat") -> None:
        """Beat for a job from now on."""
        with self._lock:
            self._forget(heartbeat.job)
            self._held[heartbeat.job.id] = heartbeat

    def release(self, job: ClaimedJob) -> None:
        """Beat for a job no longer, and expect its end soon."""
        with self._lock:
            if self._forget(job):
                self._unattended[job.id] = job, monotonic()

    def forget(self, job: ClaimedJob) -> None:
        """Have nothing to do with a job any more: it has ended, or is somebody else's."""
        with self._lock:
            self._forget(job)

    def _forget(self, job: ClaimedJob) -> bool:
        """Strike an attempt, and tell whether it was there; a later attempt of its job, claimed here too, stays."""
        held, left = self._held.get(job.id), self._unattended.get(job.id)
        if held is not None and held.job.fence == job.fence:
            del self._held[job.id]
        elif left is not None and left[0].fence == job.fence:
            del self._unattended[job.id]
        else:
            return False
        return True

    def _run(self) -> None:
        try:
            asyncio.run(self._beat_until_stopped())
        except BaseException as error:  # noqa: BLE001 - told to whoever waits for the start
            self._failure = error
            if self._joined.is_set():
                _log.exception("Worker %s beats no longer", self._worker.name)
                self._lose(self._snapshot())
        finally:
            self._joined.set()

    async def _beat_until_stopped(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        async with self._open_queue() as queue:
            await queue.join(self._worker, self._lease)
            self._joined.set()
            heard = monotonic()
            while not await self._stopped_within(self._every):
                heard = await self._beat(queue, heard)
            await self._leave(queue)

    async def _stopped_within(self, wait: timedelta) -> bool:
        assert self._stopping is not None  # noqa: S101 - set before the first wait
        try:
            await asyncio.wait_for(self._stopping.wait(), wait.total_seconds())
        except TimeoutError:
            return False
        return True

    async def _beat(self, queue: JobQueue, heard: float) -> float:
        """Beat once, and return when the database last heard of us."""
        began, held = monotonic(), self._snapshot()
        beats = [Beat(job=heartbeat.job, progress=heartbeat.take_progress()) for heartbeat in held]
        try:
            async with asyncio.timeout(self._lease.total_seconds()):
                still = await queue.beat(self._worker, self._lease, beats)
                await self._disown_unattended(queue)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next beat may do better
            silent = monotonic() - heard
            _log.warning("Worker %s could not beat for %.0f s: %s", self._worker.name, silent, error)
            if silent >= self._lease.total_seconds():
                self._lose(held)  # whoever watches has every right to take them
            return heard
        self._lose([heartbeat for heartbeat in held if heartbeat.job.id not in still])
        return began

    async def _disown_unattended(self, queue: JobQueue) -> None:
        """Let go of jobs that nobody here runs, or this process would vouch for them as long as it lives."""
        horizon = monotonic() - self._lease.total_seconds()
        with self._lock:
            left = [job for job, since in self._unattended.values() if since <= horizon]
        if left:
            await queue.disown(left)
        for job in left:
            _log.warning("Job %s was neither run nor ended by worker %s any more; let go", job.id, self._worker.name)
            self.forget(job)

    async def _leave(self, queue: JobQueue) -> None:
        try:
            await queue.leave(self._worker)
        except SourceUnavailableError as error:
            _log.warning("The lease of worker %s runs out by itself: %s", self._worker.name, error)

    def _snapshot(self) -> list["Heartbeat"]:
        with self._lock:
            return list(self._held.values())

    def _lose(self, lost: list["Heartbeat"]) -> None:
        """Tell jobs that they were taken; one that has ended meanwhile isn't told."""
        for heartbeat in lost:
            with self._lock:
                gone = self._held.get(heartbeat.job.id) is heartbeat and self._held.pop(heartbeat.job.id)
            if gone:
                heartbeat.lose()


class Heartbeat:
    """Keeps one job alive for as long as its block runs: `async with` in a coroutine, `with` in a thread.

    In a coroutine the block is cancelled when the job was taken, and `LeaseLostError` raised in its place; in a
    thread `check`, `progress` and the block's end raise it.
    """

    def __init__(self, heartbeats: Heartbeats, job: ClaimedJob) -> None:
        self.job = job
        self._heartbeats = heartbeats
        self._lost = threading.Event()
        self._progress: int | None = None
        self._task: asyncio.Task[object] | None = None
        self._cancel: Callable[[], object] | None = None
        self._cancelled = False

    @property
    def is_lost(self) -> bool:
        """Tell whether the job was taken from this worker."""
        return self._lost.is_set()

    def progress(self, reached: int) -> None:
        """Say how far the job is, with the next beat; raise `LeaseLostError` if it was taken."""
        self._progress = reached
        self.check()

    def check(self) -> None:
        """Raise `LeaseLostError` if the job was taken from this worker."""
        if self.is_lost:
            raise LeaseLostError(
                f"Job {self.job.id} was taken from worker {self.job.worker}: it was recovered, or its lease ran out. "
                f"Another attempt may be under way."
            )

    def take_progress(self) -> int | None:
        """Return the progress since the last beat, if there was any."""
        reached, self._progress = self._progress, None
        return reached

    def lose(self) -> None:
        """Tell the job that it was taken; called from the beats' own thread."""
        self._lost.set()
        if self._cancel is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed: nobody runs there any more
                self._cancel()

    def __enter__(self) -> Self:
        self._heartbeats.hold(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._heartbeats.release(self.job)
        if error is None:
            self.check()

    async def __aenter__(self) -> Self:
        loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._cancel = lambda: loop.call_soon_threadsafe(self._cancel_task)
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._heartbeats.release(self.job)
        task, self._task = self._task, None
        others = task.uncancel() if self._cancelled and task is not None else 0
        if error is None or (isinstance(error, asyncio.CancelledError) and self._cancelled and not others):
            self.check()

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._cancelled = True
            self._task.cancel()
