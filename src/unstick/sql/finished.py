"""Which recovered jobs of a table are succeeded now, and what their rows tell of the attempt that finished."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from unstick.config import ColumnKey
from unstick.domain.aftermath import Attempt, Finished, Recovered
from unstick.domain.job import JobState
from unstick.domain.recovery import Action
from unstick.sql.mapping import MappedTable
from unstick.sql.statements import Values, rows_first, time_type, typed_id
from unstick.sql.writes import bound_rows

_TEXT = sa.Text()
_TOLD: tuple[ColumnKey, ...] = ("kind", "worker", "started_at", "completed_at", "attempt", "token")
_UNREADABLE = (ValueError, TypeError, OverflowError)


def finished_among(mapped: MappedTable) -> sa.Select[Any]:
    """Read those of the bound jobs that are succeeded; times stay as they are stored."""
    key = mapped.column("id")
    given = mapped.dialect.rows({"id": key.type, "job_id": _TEXT}).subquery("given")
    told = [
        (sa.type_coerce(column, time_type(mapped, name)) if name in mapped.times else column).label(f"job_{name}")
        for name, column in mapped.columns(_TOLD).items()
    ]
    succeeded = mapped.dialect.unindexed(mapped.column("state")).in_(mapped.words(JobState.SUCCEEDED))
    found = sa.select(given.c.job_id, *told).select_from(given.join(mapped.table, key == given.c.id))
    if mapped.dialect.name == "postgresql":
        # Or the planner, who doesn't know how few are given, may rather read every job there ever was.
        keys = sa.func.array(sa.select(given.c.id).scalar_subquery(), type_=ARRAY(key.type))
        found = found.where(key == sa.any_(keys))
    return rows_first(found.where(succeeded))


def bound_jobs(mapped: MappedTable, recovered: Sequence[Recovered]) -> Values:
    """Return the jobs by their keys; one whose key this table's can't be is left out, and each is bound once."""
    keys: dict[str, object] = {}
    for each in recovered:
        try:
            keys[str(each.job_id)] = typed_id(mapped, each.job_id)
        except ValueError:
            continue
    return bound_rows([(key, text) for text, key in keys.items()])


class FinishedReader:
    """Reads rows of `finished_among`."""

    def __init__(self, mapped: MappedTable, recovered: Sequence[Recovered]) -> None:
        self._mapped = mapped
        self._place = {key: at + 1 for at, key in enumerate(mapped.columns(_TOLD))}
        self._recoveries: dict[str, list[Recovered]] = {}
        for each in recovered:
            self._recoveries.setdefault(str(each.job_id), []).append(each)

    def read(self, row: Sequence[Any]) -> list[Finished]:
        """Return what a row tells of each recovery of its job; nothing where it can't be understood."""
        try:
            now = Attempt(self._time(row, "started_at"), self._number(row), _token(self._value(row, "token")))
            completed_at = self._time(row, "completed_at")
        except _UNREADABLE:
            return []
        return [
            Finished(
                recovered=each,
                kind=_text(self._value(row, "kind")),
                worker=_text(self._value(row, "worker")),
                completed_at=completed_at,
                now=now,
                before=self._before(each),
                tells_start=self._mapped.has("started_at"),
                tells_token=self._mapped.has("token"),
            )
            for each in self._recoveries[row[0]]
        ]

    def _value(self, row: Sequence[Any], key: ColumnKey) -> Any:  # noqa: ANN401 - a column of any type
        return row[self._place[key]] if key in self._place else None

    def _time(self, row: Sequence[Any], key: ColumnKey) -> datetime | None:
        raw = self._value(row, key)
        return None if raw is None else self._mapped.times[key].read(raw)

    def _number(self, row: Sequence[Any]) -> int | None:
        raw = self._value(row, "attempt")
        return None if raw is None else int(raw)

    def _before(self, recovered: Recovered) -> Attempt | None:
        """Return the attempt that a retry overwrote, from its pre-image."""
        if recovered.action is not Action.RETRY or recovered.pre_image is None:
            return None
        try:
            held = json.loads(recovered.pre_image)
            return Attempt(self._held_time(held), self._held(held, "attempt"), _token(self._held(held, "token")))
        except _UNREADABLE:
            return None

    def _held(self, held: Mapping[str, Any], key: ColumnKey) -> Any:  # noqa: ANN401 - a column of any type
        name = self._mapped.declared.columns.get(key)
        return None if name is None else held.get(name)

    def _held_time(self, held: Mapping[str, Any]) -> datetime | None:
        """Read a time as JSON tells it: in ISO 8601, with an offset where the column has one."""
        raw = self._held(held, "started_at")
        if raw is None:
            return None
        said = datetime.fromisoformat(str(raw))
        if said.tzinfo is not None:
            return said.astimezone(UTC)
        return self._mapped.times["started_at"].read(said)


def _text(raw: object) -> str | None:
    return None if raw is None else str(raw).rstrip()


def _token(raw: object) -> int | str | None:
    return raw if raw is None or isinstance(raw, int) else str(raw)
