"""How the demo platform runs its jobs: on Unstick's kit, beside the requests.

A job is queued in the request's own transaction, so that it is there, with all it needs, or not at all. The runner
takes whatever is queued and due, whoever left it there. A process that dies lets its lease run out, and a result that
comes when its job was taken meanwhile is refused.
"""

import asyncio
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Header, Response

from unstick import ClaimedJob, Heartbeat, JobTable, Registry, enqueue, running
from unstick.demo.database import AIGenerationJob
from unstick.demo.drafting import advance, outcome
from unstick.demo.orders import Database, JobView, Order, link
from unstick.demo.text import Draft, Kind, Steps, write

JOBS = JobTable.from_model(AIGenerationJob)
BEAT_EVERY = timedelta(seconds=0.5)
LEASE = timedelta(seconds=3)
"""Short, for nobody wants to watch a minute go by."""

_SLOTS = 2
_POLL = timedelta(seconds=0.2)
_DRAIN = timedelta(seconds=1)

registry = Registry()
router = APIRouter()


@router.post("/generate", status_code=202)
async def generate(
    order: Order,
    sessions: Database,
    response: Response,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> JobView:
    """Order a text; an order repeated under its `Idempotency-Key` is the same job."""
    values = order.model_dump(mode="json", exclude={"job_type", "title"})
    async with sessions.begin() as session:
        queued = await enqueue(session, order.job_type, key=idempotency_key, values=values, jobs=JOBS)
        job = await session.get_one(AIGenerationJob, queued.job_id)
        # What raises in here, as this does for a title with a dash, takes the job back.
        response.headers["Link"] = link(job.id, order.title)
    return JobView.model_validate(job)


def running_jobs(url: str) -> AbstractAsyncContextManager[None]:
    """Run what is queued for as long as the block lasts."""
    return running(
        registry,
        url=url,
        jobs=JOBS,
        concurrency=_SLOTS,
        poll=_POLL,
        drain=_DRAIN,
        beat_every=BEAT_EVERY,
        lease=LEASE,
    )


async def generate_text(job: ClaimedJob, beat: Heartbeat) -> dict[str, Any]:
    """Write what was ordered, saying how far it is; what is returned is written only if the job is still ours."""
    steps = steps_of(job)
    while not isinstance(reached := await asyncio.to_thread(advance, steps), Draft):
        beat.progress(reached)
    return outcome(reached)


for _kind in Kind:
    registry.job(_kind)(generate_text)


def steps_of(job: ClaimedJob) -> Steps:
    """Return the work that a claimed job's row asks for."""
    return write(Kind(str(job.kind)), str(job.row["prompt"]), int(str(job.row["size"])))
