"""How the demo platform runs its jobs: from claimed to finished, with a heartbeat in between."""

import asyncio
import logging
from time import monotonic
from typing import Any

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.exc import OperationalError

from unstick.demo.database import AIGenerationJob, Sessions, now
from unstick.demo.text import Draft, Kind, Steps, write

BEAT = 0.2
"""Seconds of work between two progress writes, which are a job's heartbeat."""
POLL = 0.2
SLOTS = 2
"""How many rescheduled jobs run at a time."""

_PRICE_PER_TOKEN = 0.000_002
_Job = AIGenerationJob
_log = logging.getLogger(__name__)


async def run_first(sessions: Sessions, job_id: int) -> None:
    """Run a new job; what a background task does after its request was answered."""
    job = await _claim(sessions, _Job.id == job_id, _Job.scheduled_at.is_(None))
    if job is not None:
        await _run(sessions, job)


async def run_due(sessions: Sessions) -> None:
    """Run, for ever, the jobs that are scheduled and due.

    Jobs that were never scheduled are not looked at: those are the background tasks' to run.
    """
    async with asyncio.TaskGroup() as slots:
        for _ in range(SLOTS):
            slots.create_task(_serve_slot(sessions))


async def _serve_slot(sessions: Sessions) -> None:
    while True:
        try:
            job = await _claim_due(sessions)
            if job is not None:
                await _run(sessions, job)
                continue
        except OperationalError as error:
            _log.warning("The database refused, looking again soon: %s", error)
        await asyncio.sleep(POLL)


async def _claim_due(sessions: Sessions) -> AIGenerationJob | None:
    due = (
        select(_Job.id)
        .where(_Job.status == "queued", _Job.scheduled_at <= now())
        .order_by(_Job.scheduled_at, _Job.id)
        .limit(1)
    )
    return await _claim(sessions, _Job.id == due.scalar_subquery(), _Job.scheduled_at <= now())


async def _claim(sessions: Sessions, *conditions: ColumnElement[bool]) -> AIGenerationJob | None:
    """Make one queued job ours, or return None where there is none or another was quicker."""
    at = now()
    claim = (
        update(_Job)
        .where(_Job.status == "queued", *conditions)
        .values(status="running", progress=0, started_at=at, updated_at=at)
        .returning(_Job)
        .execution_options(synchronize_session=False)
    )
    async with sessions.begin() as session:
        return (await session.scalars(claim)).one_or_none()


async def _run(sessions: Sessions, job: AIGenerationJob) -> None:
    try:
        draft = await _work(sessions, job)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the job came to
        _log.exception("Job %s failed", job.id)
        await _finish(sessions, job.id, status="failed", success=False, error_message=str(error))
    else:
        await _finish(sessions, job.id, status="completed", success=True, error_message=None, **_outcome(draft))


async def _work(sessions: Sessions, job: AIGenerationJob) -> Draft:
    steps = write(Kind(job.job_type), job.prompt, job.size)
    while True:
        reached = await asyncio.to_thread(_advance, steps)
        if isinstance(reached, Draft):
            return reached
        await _save(sessions, job.id, progress=reached)


def _advance(steps: Steps) -> int | Draft:
    """Work until the next beat; return the progress made, or the draft when it is done."""
    until = monotonic() + BEAT
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            draft: Draft = end.value
            return draft
        if monotonic() >= until:
            return progress


def _outcome(draft: Draft) -> dict[str, Any]:
    return {"progress": 100, "result": draft.text, "tokens_used": draft.words, "cost": draft.words * _PRICE_PER_TOKEN}


async def _finish(sessions: Sessions, job_id: int, **values: Any) -> None:  # noqa: ANN401 - columns of any type
    await _save(sessions, job_id, completed_at=now(), **values)


async def _save(sessions: Sessions, job_id: int, **values: Any) -> None:  # noqa: ANN401 - columns of any type
    """Write to a job's row, named by its id alone.

    This is how such platforms write, and it is blind: whoever was given the job meanwhile is overwritten.
    """
    async with sessions.begin() as session:
        await session.execute(update(_Job).where(_Job.id == job_id).values(updated_at=now(), **values))
