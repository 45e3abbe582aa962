"""What a table's rows and indexes make doubtful in a proposal that its names made."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import sqlalchemy as sa

from unstick.config import ColumnKey
from unstick.domain.job import JobState
from unstick.sql.mapping import LEADING_TIMES
from unstick.sql.proposal import (
    TIME_KEYS,
    Doubt,
    IndexFacts,
    Proposal,
    TableFacts,
    blocker,
    is_last_change,
    named,
    not_read_as_time,
    sounds_like_time,
    warning,
)

_SAME_STEP = timedelta(seconds=1)
"""An application's clock and its database's, or two statements of one step, are no further apart than this."""
_JUST_NOW = timedelta(minutes=1)
_SECONDS_IN_2001 = 1_000_000_000
"""A number from here on may be seconds since 1970, or parts of them; what counts something is rarely so large."""
_PREFIX = 32
"""How much of a status MariaDB's index keeps where the column is TEXT."""

Row = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Examined:
    """A table under examination, with all that its doubts are drawn from."""

    table: sa.Table
    facts: TableFacts
    proposal: Proposal
    rows: Sequence[Row]
    dialect: sa.Dialect
    partitioned: bool

    def values(self, key: ColumnKey) -> list[object]:
        """Return what the rows hold for a key, none where it has no column."""
        name = self.proposal.columns.get(key)
        return [row.get(name) for row in self.rows] if name is not None else []

    def at(self, key: ColumnKey) -> str:
        """Return the column of a key with its table, as sentences name it."""
        return f"{self.facts.spelling}.{self.proposal.columns[key]}"


def data_doubts(examined: Examined) -> Iterator[Doubt]:
    """Yield what the rows that were read, and the indexes, make doubtful."""
    yield from _doubt_passed_over_times(examined)
    yield from _doubt_unknown_times(examined)
    yield from _doubt_still_heartbeat(examined)
    yield from _doubt_times_that_do_not_parse(examined)
    yield from _doubt_running_without_start(examined)
    yield from _doubt_missing_index(examined)
    yield from _doubt_indexed_heartbeat(examined)
    yield from _doubt_retry(examined)


def _doubt_passed_over_times(examined: Examined) -> Iterator[Doubt]:
    """Name columns that mean a time by their name and hold it in a form that can't be used."""
    for key in TIME_KEYS:
        taken = examined.proposal.columns.get(key)
        for column in named(examined.facts, key):
            if column.name == taken:
                break  # those that follow mean it less
            values = [row.get(column.name) for row in examined.rows]
            if taken is None and sounds_like_time(column.name):
                continue  # which its name alone raised a doubt about
            if sounds_like_time(column.name) or any(map(_could_be_time, values)):
                instead = "" if taken is None else f"; {taken} is taken in its place"
                yield warning(key, not_read_as_time(examined.facts, key, column) + instead)


def _could_be_time(value: object) -> bool:
    """Tell whether a value may be when something happened: a time as text, or seconds since 1970."""
    if isinstance(value, int | float | Decimal):
        return value >= _SECONDS_IN_2001
    return as_time(value) is not None


def _doubt_unknown_times(examined: Examined) -> Iterator[Doubt]:
    known = {column.name for key in TIME_KEYS for column in named(examined.facts, key)}
    times = [each.name for each in examined.facts.columns if each.kind in ("time", "naive_time")]
    unknown = [name for name in times if name not in known | set(examined.proposal.columns.values())]
    if unknown:
        names = f"{', '.join(unknown)} of {examined.facts.spelling}"
        are = "are times, and their names don't" if len(unknown) > 1 else "is a time, and its name doesn't"
        one = "one" if len(unknown) > 1 else "it"
        yield warning(
            "columns",
            f"{names} {are} tell of what: if {one} is when a job came, began, showed life or ended, name it in "
            "`columns`",
        )


def _doubt_still_heartbeat(examined: Examined) -> Iterator[Doubt]:
    name = examined.proposal.columns.get("heartbeat_at")
    if name is None or not is_last_change(name):
        return
    rows = [_instants(examined, row) for row in examined.rows]
    latest = max((time for row in rows for time in row.values()), default=None)
    told = [moved for row in rows if (moved := _moved(row, latest)) is not None]
    if told and not any(told):
        yield warning(
            "heartbeat_at",
            f"{examined.at('heartbeat_at')} never moves while a job runs: in all {len(told)} rows that tell, it is "
            "when the job was queued or started; leave `columns.heartbeat_at` out",
        )


def _instants(examined: Examined, row: Row) -> dict[ColumnKey, datetime]:
    columns = examined.proposal.columns
    times = {key: _instant(row.get(columns[key])) for key in TIME_KEYS if key in columns}
    return {key: time for key, time in times.items() if time is not None}


def _moved(times: Mapping[ColumnKey, datetime], latest: datetime | None) -> bool | None:
    """Tell whether a job's row changed after its start; None where its times can't tell.

    They can't where the last change was the job's end, or the job began only just now.
    """
    beat, started, ended = times.get("heartbeat_at"), times.get("started_at"), times.get("completed_at")
    if beat is None or started is None or latest is None:
        return None
    if ended is not None and abs(ended - beat) <= _SAME_STEP:
        return None
    if beat - started > _SAME_STEP:
        return True
    return False if latest - started > _JUST_NOW else None


def _doubt_times_that_do_not_parse(examined: Examined) -> Iterator[Doubt]:
    for key in TIME_KEYS:
        values = [value for value in examined.values(key) if value is not None]
        bad = [value for value in values if as_time(value) is None]
        if bad:
            doubt = blocker if len(bad) == len(values) else warning
            yield doubt(
                key,
                f"{examined.at(key)} holds {bad[0]!r}, no ISO 8601 time, and so do {len(bad)} of the {len(values)} "
                f"rows read: rewrite them, or leave `columns.{key}` out",
            )


def _doubt_running_without_start(examined: Examined) -> Iterator[Doubt]:
    if "started_at" not in examined.proposal.columns:
        return
    words = examined.proposal.states.get(JobState.RUNNING, ())
    states = examined.values("state")
    starts = examined.values("started_at")
    running = [start for state, start in zip(states, starts, strict=False) if state in words]
    if running and None in running:
        beats = "heartbeat_at" in examined.proposal.columns
        rest = "by `heartbeat_at` alone" if beats else "by nothing, so never found"
        yield warning(
            "started_at",
            f"{examined.at('started_at')} is null in {running.count(None)} of the {len(running)} running rows read: "
            f"these are judged {rest}; set it in the statement that claims a job",
        )


def _doubt_missing_index(examined: Examined) -> Iterator[Doubt]:
    statement = _index_statement(examined)
    if statement is not None and not any(_finds_open_jobs(examined, index) for index in examined.facts.indexes):
        yield warning(
            "index",
            f"no index of {examined.facts.spelling} leads to its open jobs, so each look reads the finished ones too: "
            f"run {statement}",
        )


def _finds_open_jobs(examined: Examined, index: IndexFacts) -> bool:
    columns = examined.proposal.columns
    if index.where is None:
        return index.columns[0] in (columns["state"], columns.get("completed_at"))
    plain = re.sub(r'[\s()"`]', "", index.where).lower()
    return "completed_at" in columns and plain.rpartition(".")[2] == f"{columns['completed_at'].lower()}isnull"


def _index_statement(examined: Examined) -> str | None:
    columns, table = examined.proposal.columns, examined.table
    time = next((columns[key] for key in LEADING_TIMES if key in columns), None)
    if time is None or "state" not in columns:
        return None
    state = table.c[columns["state"]]
    still_open = table.c[columns["completed_at"]].is_(None) if "completed_at" in columns else None
    index = sa.Index(
        f"{table.name[:50]}_open",
        state,
        table.c[time],
        postgresql_where=still_open,
        postgresql_concurrently=not examined.partitioned,
        sqlite_where=still_open,
        mysql_length={state.name: _PREFIX} if isinstance(state.type, sa.Text) else None,
    )
    return f"{sa.schema.CreateIndex(index).compile(dialect=examined.dialect)};"


def _doubt_indexed_heartbeat(examined: Examined) -> Iterator[Doubt]:
    name = examined.proposal.columns.get("heartbeat_at")
    indexes = [index.name for index in examined.facts.indexes if name in (*index.columns, *index.stored)]
    if examined.dialect.name == "postgresql" and indexes:
        yield warning(
            "heartbeat_at",
            f"{examined.at('heartbeat_at')} is in the index {' and '.join(indexes)}, so every heartbeat writes to all "
            "indexes of the table (no heap-only update): drop it unless another query needs it",
        )


def _doubt_retry(examined: Examined) -> Iterator[Doubt]:
    """Say what a retry writes where a worker's claim could stumble over it."""
    columns = examined.proposal.columns
    if JobState.QUEUED not in examined.proposal.states:
        return
    if "started_at" in columns and "scheduled_at" not in columns:
        yield warning(
            "scheduled_at",
            f"{examined.facts.spelling} has no `scheduled_at` for a retried job to wait by, so `retry` sets "
            f"{examined.at('started_at')} to now: a worker that claims only rows where it is null never takes such a "
            "job; let it claim by the state, or leave the action at mark_failed",
        )
    if "attempt" in columns:
        yield warning(
            "attempt",
            f"{examined.at('attempt')} goes up by one when `retry` puts a running job back: where the worker counts as "
            "it claims, that attempt counts twice; then leave `columns.attempt` out",
        )


def as_time(value: object) -> datetime | None:
    """Return the time that a value is or, as text, says; None where it is none."""
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str) or re.match(r"\d{4}-\d\d-\d\d", value) is None:
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return None


def _instant(value: object) -> datetime | None:
    time = as_time(value)
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time
