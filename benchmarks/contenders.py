"""What Unstick is held against: the least a database can do, and what people write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.filling import TABLE, ago, now

if TYPE_CHECKING:
    from benchmarks.filling import Backend

_MESSAGE = "Job stuck in running for more than 30 minutes. Automatically cleaned up."
_BEFORE = '{"status": "running", "error_message": null, "success": null, "completed_at": null}'
_TEXT = {"postgresql": "text", "sqlite": "text", "mariadb": "char"}


def bare(backend: Backend) -> tuple[str, ...]:
    """The limit: one UPDATE, nothing recorded, nothing explained."""
    return (f"UPDATE {TABLE} SET {_changes(backend)} WHERE {stuck(backend)}",)


def audited(backend: Backend) -> tuple[str, ...]:
    """The audited limit: the same UPDATE in one transaction with the least record of each job in Unstick's ledger."""
    record = f"""
        INSERT INTO unstick_recoveries
            (operation_id, source, job_id, state, action, reason, outcome, detail, pre_image, at)
        SELECT 1, 'main', CAST(id AS {_TEXT[backend]}), 'running', 'mark_failed', 'silent', 'applied', '{_MESSAGE}',
            '{_BEFORE}', {now(backend)}
    """
    if backend == "postgresql":
        return (f"WITH changed AS ({bare(backend)[0]} RETURNING id) {record} FROM changed",)
    return (f"{record} FROM {TABLE} WHERE {stuck(backend)}", *bare(backend))  # no writing statement within another


def listing(backend: Backend) -> str:
    """What finds the stuck jobs for a person, by the right index and nothing else."""
    return f"{_COLUMNS} FROM {TABLE} WHERE {stuck(backend)} ORDER BY updated_at, id"


def floor() -> str:
    """The same rows from a table that holds nothing else."""
    return f"{_COLUMNS} FROM only_stuck ORDER BY updated_at, id"


def only_stuck(backend: Backend) -> str:
    """Make that table."""
    return f"CREATE TABLE only_stuck AS {_COLUMNS} FROM {TABLE} WHERE {stuck(backend)}"


def stuck(backend: Backend) -> str:
    """Hold for the jobs that are stuck; the first condition is that of the partial index."""
    then = ago(backend, "1800")
    return f"completed_at IS NULL AND status = 'running' AND started_at < {then} AND updated_at < {then}"


_TIMES = "created_at, scheduled_at, started_at, updated_at, completed_at"
_COLUMNS = f"SELECT id, status, job_type, {_TIMES}, error_message, attempt"


def _changes(backend: Backend) -> str:
    return f"status = 'failed', success = false, error_message = '{_MESSAGE}', completed_at = {now(backend)}"
