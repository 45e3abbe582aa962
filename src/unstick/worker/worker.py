"""This process as a worker: it claims jobs, keeps them alive, and ends them only if they are still its own."""

from collections.abc import Mapping, Sequence
from datetime import timedelta

from unstick.domain.errors import LateFinishError
from unstick.domain.job import JobId
from unstick.domain.work import ClaimedJob, WorkerIdentity
from unstick.ports import JobQueue
from unstick.worker.heartbeat import Heartbeat, Heartbeats


class Worker:
    """Claims, beats and ends, each conditional on the claim's fencing token."""

    def __init__(self, queue: JobQueue, heartbeats: Heartbeats, identity: WorkerIdentity) -> None:
        self.identity = identity
        self._queue = queue
        self._heartbeats = heartbeats

    async def claim(self, *, limit: int = 1, kinds: Sequence[str] | None = None) -> Sequence[ClaimedJob]:
        """Claim queued jobs that are due; nobody else gets them."""
        return self._noted(await self._queue.claim(self.identity, limit=limit, kinds=kinds))

    async def claim_one(self, job_id: JobId) -> ClaimedJob | None:
        """Claim this very job, as a background task does with the row it was started for; None if it can't be had."""
        claimed = self._noted(await self._queue.claim(self.identity, limit=1, job_id=job_id))
        return claimed[0] if claimed else None

    def _noted(self, jobs: Sequence[ClaimedJob]) -> Sequence[ClaimedJob]:
        for job in jobs:
            self._heartbeats.expect(job)
        return jobs

    def heartbeat(self, job: ClaimedJob) -> Heartbeat:
        """Return what keeps a job alive while its block runs."""
        return Heartbeat(self._heartbeats, job)

    async def finish(self, job: ClaimedJob, results: Mapping[str, object] | None = None) -> None:
        """End a job as succeeded, with results by column name.

        Raises:
            LateFinishError: the job was taken meanwhile; nothing was written but the record of this.
        """
        self._heartbeats.release(job)
        written = await self._queue.finish(job, results or {})
        self._heartbeats.forget(job)
        if not written:
            raise _late(job, "finished")

    async def fail(self, job: ClaimedJob, error: str) -> None:
        """End a job as failed.

        Raises:
            LateFinishError: the job was taken meanwhile; nothing was written but the record of this.
        """
        self._heartbeats.release(job)
        written = await self._queue.fail(job, error)
        self._heartbeats.forget(job)
        if not written:
            raise _late(job, "failed")

    async def requeue(
        self, job: ClaimedJob, *, wait: timedelta = timedelta(0), error: str | None = None, counted: bool = False
    ) -> None:
        """Queue a job again, due after a while, as a new attempt if `counted`.

        Raises:
            LateFinishError: the job was taken meanwhile; nothing was written.
        """
        self._heartbeats.release(job)
        written = await self._queue.requeue(job, wait, error=error, counted=counted)
        self._heartbeats.forget(job)
        if not written:
            raise _late(job, "was handed back")


def _late(job: ClaimedJob, what: str) -> LateFinishError:
    return LateFinishError(
        f"Job {job.id} {what} too late: it had been taken from worker {job.worker} meanwhile. "
        f"Its row was left as it is."
    )
