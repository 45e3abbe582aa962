"""How the demo platform ran its jobs before it had Unstick's kit: in background tasks, with blind writes.

It is what many such platforms do, and its jobs get stuck in the two ways theirs do.

**The process dies in the middle of a job.** Nobody is left to write to the row: it stays `running` for ever.

**A row without a task.** `POST /generate` writes two things that no transaction joins: the row, committed at once so
that the client can be given its number, and the background task, which Starlette starts after the response was sent.
Whatever happens in between (the client hangs up, a worker is restarted, a line raises) leaves a row that no task
belongs to: it stays `queued` for ever. Here a line raises: the answer's `Link` header bears the title, headers are
Latin-1, and a title with a dash or a curly quote isn't. The client gets 500, and asks again without the dash.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import APIRouter, BackgroundTasks, Response
from sqlalchemy import ColumnElement, select, update
from sqlalchemy.exc import OperationalError

from unstick.demo.database import AIGenerationJob, Sessions, now
from unstick.demo.drafting import advance, outcome
from unstick.demo.orders import Database, JobView, Order, link
from unstick.demo.text import Draft, Kind, write

POLL = 0.2
SLOTS = 2
"""How many rescheduled jobs run at a time."""

_Job = AIGenerationJob
_log = logging.getLogger(__name__)

router = APIRouter()


@router.post("/generate", status_code=202)
async def generate(order: Order, sessions: Database, tasks: BackgroundTasks, response: Response) -> JobView:
    """Order a text; it is written after the answer was sent."""
    job = AIGenerationJob(**order.model_dump(mode="json", exclude={"title"}))
    async with sessions.begin() as session:
        session.add(job)
    # From here to the end of the answer the row exists and its task doesn't.
    response.headers["Link"] = link(job.id, order.title)
    tasks.add_task(run_first, sessions, job.id)
    return JobView.model_validate(job)


@asynccontextmanager
async def running_due(sessions: Sessions) -> AsyncIterator[None]:
    """Run the jobs that are scheduled and due for as long as the block lasts."""
    runner = asyncio.create_task(run_due(sessions))
    try:
        yield
    finally:
        runner.cancel()
        with suppress(asyncio.CancelledError):
            await runner


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
        await _finish(sessions, job.id, status="completed", success=True, error_message=None, **outcome(draft))


async def _work(sessions: Sessions, job: AIGenerationJob) -> Draft:
    steps = write(Kind(job.job_type), job.prompt, job.size)
    while True:
        reached = await asyncio.to_thread(advance, steps)
        if isinstance(reached, Draft):
            return reached
        await _save(sessions, job.id, progress=reached)


async def _finish(sessions: Sessions, job_id: int, **values: Any) -> None:  # noqa: ANN401 - columns of any type
    await _save(sessions, job_id, completed_at=now(), **values)


async def _save(sessions: Sessions, job_id: int, **values: Any) -> None:  # noqa: ANN401 - columns of any type
    """Write to a job's row, named by its id alone.

    This is how such platforms write, and it is blind: whoever was given the job meanwhile is overwritten.
    """
    async with sessions.begin() as session:
        await session.execute(update(_Job).where(_Job.id == job_id).values(updated_at=now(), **values))
