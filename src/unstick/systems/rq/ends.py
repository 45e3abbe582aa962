"""Which attempt it was that finished: RQ names the execution that did it."""

from unstick.domain.aftermath import Attempt, Finished, Recovered
from unstick.domain.job import Job
from unstick.domain.recovery import Action
from unstick.systems.rq.changes import from_text
from unstick.systems.rq.kept import attempt


def finished(recovered: Recovered, job: Job, token: str | None) -> Finished:
    """Tell of a job that succeeded after it was recovered; the token is the execution's that did it."""
    return Finished(
        recovered=recovered,
        kind=job.kind,
        worker=job.worker,
        completed_at=job.completed_at,
        now=Attempt(job.started_at, job.attempt, token),
        before=_before(recovered),
        tells_start=True,
        tells_token=token is not None,
    )


def _before(recovered: Recovered) -> Attempt | None:
    """Return the attempt that a retry overwrote."""
    if recovered.action is not Action.RETRY or recovered.pre_image is None:
        return None
    was = from_text(recovered.pre_image)
    return Attempt(None, attempt(was["fields"]), next(iter(was["executions"]), None))
