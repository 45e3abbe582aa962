"""What Unstick's recovery is held against: the least a database can do, and what people write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.filling import TABLE

if TYPE_CHECKING:
    from benchmarks.filling import Backend

_MESSAGE = "Job stuck in running for more than 30 minutes. Automatically cleaned up."
_BEFORE = '{"status": "running", "error_message": null, "success": null, "completed_at": null}'
_NOW = {"postgresql": "now()", "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', 'now')"}
_LONG_AGO = {
    "postgresql": "now() - interval '30 minutes'",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', 'now', '-30 minutes')",
}


def bare(backend: Backend) -> tuple[str, ...]:
    """The limit: one UPDATE, nothing recorded, nothing explained."""
    return (f"UPDATE {TABLE} SET {_changes(backend)} WHERE {_stuck(backend)}",)


def audited(backend: Backend) -> tuple[str, ...]:
    """The audited limit: the same UPDATE in one transaction with the least record of each job in Unstick's ledger."""
    record = f"""
        INSERT INTO unstick_recoveries
            (operation_id, source, job_id, state, action, reason, outcome, detail, pre_image, at)
        SELECT 1, 'main', CAST(id AS text), 'running', 'mark_failed', 'silent', 'applied', '{_MESSAGE}', '{_BEFORE}',
            {_NOW[backend]}
    """
    if backend == "sqlite":  # which has no writing statement within another
        return (f"{record} FROM {TABLE} WHERE {_stuck(backend)}", *bare(backend))
    return (f"WITH changed AS ({bare(backend)[0]} RETURNING id) {record} FROM changed",)


def _changes(backend: Backend) -> str:
    return f"status = 'failed', success = false, error_message = '{_MESSAGE}', completed_at = {_NOW[backend]}"


def _stuck(backend: Backend) -> str:
    then = _LONG_AGO[backend]
    return f"completed_at IS NULL AND status = 'running' AND started_at < {then} AND updated_at < {then}"
