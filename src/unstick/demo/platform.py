"""The demo platform: a small FastAPI application whose jobs live in a table and run beside its requests.

It runs them on Unstick's kit (`jobs_on_kit`), or, where it is told to, as it did before (`jobs_in_background_tasks`):
that is how many such platforms do it, and how their jobs get stuck.
"""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from html import escape

from fastapi import APIRouter, FastAPI, HTTPException
from fastapi.responses import HTMLResponse
from sqlalchemy import select

from unstick.demo import jobs_in_background_tasks, jobs_on_kit
from unstick.demo.database import AIGenerationJob, Sessions, opened
from unstick.demo.orders import Database, JobView
from unstick.demo.settings import BACKGROUND_TASKS_VARIABLE, URL_VARIABLE

_COLUMNS = ("id", "job_type", "status", "progress", "attempt", "created_at", "started_at", "updated_at", "completed_at")

router = APIRouter()


def create_app(url: str | None = None, *, in_background_tasks: bool | None = None) -> FastAPI:
    """Make the platform on the database at a URL, or else at that of the environment, which also says how jobs run."""
    database = url or os.environ[URL_VARIABLE]
    old_way = in_background_tasks
    if old_way is None:
        old_way = os.environ.get(BACKGROUND_TASKS_VARIABLE) == "1"

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with opened(database) as sessions:
            app.state.sessions = sessions
            async with (
                jobs_in_background_tasks.running_due(sessions) if old_way else jobs_on_kit.running_jobs(database)
            ):
                yield

    app = FastAPI(title="Demo platform", lifespan=lifespan)
    app.include_router(router)
    app.include_router(jobs_in_background_tasks.router if old_way else jobs_on_kit.router)
    return app


@router.get("/jobs")
async def list_jobs(sessions: Database, status: str | None = None, limit: int = 100) -> list[JobView]:
    """List the newest jobs."""
    return [JobView.model_validate(job) for job in await _newest(sessions, status, limit)]


@router.get("/jobs/{job_id}")
async def show_job(job_id: int, sessions: Database) -> JobView:
    """Show one job with its result."""
    async with sessions() as session:
        job = await session.get(AIGenerationJob, job_id)
    if job is None:
        raise HTTPException(404, f"There is no job {job_id}.")
    return JobView.model_validate(job)


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def index(sessions: Database) -> str:
    """Show the newest jobs as a page."""
    rows = "".join(_row("td", [getattr(job, name) for name in _COLUMNS]) for job in await _newest(sessions, None, 50))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="2">'
        "<title>Demo platform</title><style>body{font:14px system-ui}td,th{padding:2px 12px;text-align:left}</style>"
        f"<h1>Jobs</h1><table>{_row('th', _COLUMNS)}{rows}</table></html>"
    )


def _row(tag: str, cells: Sequence[object]) -> str:
    shown = (
        "" if cell is None else escape(f"{cell:%H:%M:%S}" if isinstance(cell, datetime) else str(cell))
        for cell in cells
    )
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in shown)}</tr>"


async def _newest(sessions: Sessions, status: str | None, limit: int) -> Sequence[AIGenerationJob]:
    wanted = select(AIGenerationJob).order_by(AIGenerationJob.id.desc()).limit(limit)
    if status is not None:
        wanted = wanted.where(AIGenerationJob.status == status)
    async with sessions() as session:
        return (await session.scalars(wanted)).all()
