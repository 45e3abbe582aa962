"""What a measured jobs table holds, and the statement that fills it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TABLE = "ai_generation_jobs"

Backend = Literal["postgresql", "sqlite", "mariadb"]
Placement = Literal["even", "end"]


@dataclass(frozen=True, kw_only=True)
class Filling:
    """Finished jobs, stuck ones among or behind them, and last the healthy ones that are running now."""

    finished: int
    stuck: int
    healthy: int = 1_000
    placement: Placement = "even"

    @property
    def rows(self) -> int:
        return self.finished + self.stuck + self.healthy

    @property
    def sentence(self) -> str:
        where = {"even": "spread evenly among", "end": "all newer than"}[self.placement]
        return f"{self.stuck:,} stuck jobs {where} {self.finished:,} finished ones, {self.healthy:,} healthy"


def insert(backend: Backend, filling: Filling) -> str:
    """Fill the table server-side, by ascending id and time, ten jobs a second until two hours ago."""
    body = filling.finished + filling.stuck
    over = {"postgresql": "/", "sqlite": "/", "mariadb": "DIV"}[backend]
    stuck = {
        "even": f"(i * {filling.stuck}) {over} {body} <> ((i - 1) * {filling.stuck}) {over} {body}",
        "end": f"i > {filling.finished}",
    }[filling.placement]
    age = f"CASE WHEN i > {body} THEN 60 ELSE 7200 + ({body} - i) {over} 10 END"
    return f"""
        INSERT INTO {TABLE}
            (id, status, job_type, created_at, started_at, updated_at, completed_at, success, attempt)
        {_numbers(backend, filling.rows)},
        job AS (SELECT i, {age} AS age, i > {body} AS healthy, i <= {body} AND {stuck} AS stuck FROM number)
        SELECT i,
            CASE WHEN healthy OR stuck THEN 'running' ELSE 'completed' END,
            CASE i % 3 WHEN 0 THEN 'summary' WHEN 1 THEN 'quiz' ELSE 'flashcards' END,
            {ago(backend, "age + 35")},
            {ago(backend, "age + 30")},
            {ago(backend, "age")},
            CASE WHEN healthy OR stuck THEN NULL ELSE {ago(backend, "age")} END,
            CASE WHEN healthy OR stuck THEN NULL ELSE true END,
            1
        FROM job ORDER BY i
    """


def ago(backend: Backend, seconds: str) -> str:
    """Return an instant so many seconds ago, as SQLAlchemy stores it."""
    match backend:
        case "postgresql":
            return f"now() - make_interval(secs => {seconds})"
        case "sqlite":
            return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', '-' || ({seconds}) || ' seconds')"
        case "mariadb":
            return f"now(6) - INTERVAL ({seconds}) SECOND"


def now(backend: Backend) -> str:
    """Return the present instant."""
    return ago(backend, "0")


def _numbers(backend: Backend, rows: int) -> str:
    match backend:
        case "postgresql":
            return f"WITH number AS (SELECT i FROM generate_series(1::bigint, {rows}) AS i)"
        case "sqlite":
            return f"WITH RECURSIVE number (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM number WHERE i < {rows})"
        case "mariadb":
            return f"WITH number AS (SELECT CAST(seq AS SIGNED) AS i FROM seq_1_to_{rows})"
