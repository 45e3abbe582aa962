"""What tests of witnesses share: words to compare, and statements to count."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

    from unstick.domain.evidence import Holding
    from unstick.domain.job import Job
    from unstick.ports import Witness


async def word(witness: Witness, job: Job) -> tuple[Holding, str | None]:
    """Return what a witness says of one job, and in which words."""
    assert job.started_at is not None
    evidence = (await witness.ask([job], job.started_at))[job.id]
    return evidence.holding, evidence.value


async def words(witness: Witness, jobs: Sequence[Job]) -> list[Holding]:
    assert jobs[0].started_at is not None
    said = await witness.ask(jobs, jobs[0].started_at)
    return [said[job.id].holding for job in jobs]


@contextmanager
def statements_of(engine: AsyncEngine) -> Iterator[list[str]]:
    """Collect every statement that runs on an engine meanwhile."""
    ran: list[str] = []

    def _ran(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        ran.append(statement)

    sa.event.listen(engine.sync_engine, "before_cursor_execute", _ran)
    try:
        yield ran
    finally:
        sa.event.remove(engine.sync_engine, "before_cursor_execute", _ran)
