"""The guarded write: the statements that carry out decisions, with their guard in the statement itself.

Each job of a batch was looked at, and must be as it was seen. What many jobs alike are ruled is in `rulings`, and what
a preset has done to other tables in `own_writes`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from unstick.config import ColumnKey
from unstick.domain.job import JobState
from unstick.domain.recovery import Action, Decision, Outcome
from unstick.domain.suspect import ACCUSED_STATES
from unstick.presets.preset import Write
from unstick.sql import tables
from unstick.sql.mapping import MappedTable
from unstick.sql.statements import Predicate, Values, is_bound, is_suspect, rows_first, time_type
from unstick.sql.times import TimeForm

_TEXT = sa.Text()
SEEN = "seen"
"""What the bound rows are called in a statement."""
FOR_ALL = ("operation_id", "source", "action", "at")
"""What every record of a batch has in common, by the ledger's column names."""


@dataclass(frozen=True, slots=True)
class Way:
    """How an action is carried out: as the mapping has it, or as a preset tells of jobs of one state."""

    action: Action
    told: Write | None = None

    @property
    def aimed_at(self) -> JobState:
        """What a job is to be then."""
        return JobState.FAILED if self.action is Action.MARK_FAILED else JobState.QUEUED

    @property
    def is_one_write(self) -> bool:
        """Tell whether the jobs' rows are all that it changes, by a write of ours."""
        return self.told is None or self.told.is_undoable


@dataclass(frozen=True, slots=True)
class Found:
    """How the rows of a batch are found, and what is said of each."""

    rows: sa.FromClause
    """The bound rows."""
    guard: Predicate
    said: Mapping[str, sa.ColumnElement[Any]]
    """`job_id`, `state`, `reason`, `detail`, and `due` where a retried job can wait."""


def by_decision(mapped: MappedTable) -> Found:
    """Find the rows that still are suspects and of whose fence nothing moved since they were seen (R1, R2, R9)."""
    seen = mapped.dialect.rows(seen_types(mapped)).subquery(SEEN)
    same = [
        mapped.dialect.unindexed(column).is_not_distinct_from(seen.c[f"seen_{key}"])
        for key, column in mapped.fence.items()
    ]
    guard = sa.and_(is_bound(mapped, seen), is_suspect(mapped, *ACCUSED_STATES, bound=True), *same)
    names = ("job_id", "state", "reason", "detail", "due")
    return Found(seen, guard, {name: seen.c[name] for name in names if name in seen.c})


def held(mapped: MappedTable, found: Found) -> Found:
    """Find rows that were found before and are locked since, whatever else has changed with our own writes."""
    return Found(found.rows, is_bound(mapped, found.rows), found.said)


def seen_types(mapped: MappedTable) -> dict[str, sa.types.TypeEngine[Any]]:
    """Return names and types of the rows a batch hands over: the key, the fence, and what is written per job."""
    fence = {
        f"seen_{key}": time_type(mapped, key) if key in mapped.times else column.type
        for key, column in mapped.fence.items()
    }
    recorded = {"job_id": _TEXT, "state": _TEXT, "reason": _TEXT, "detail": _TEXT}
    form = due_form(mapped)
    due = {} if form is None else {"due": mapped.dialect.time_type(form) if _is_told(mapped) else _due_type(mapped)}
    return {"id": mapped.column("id").type, **fence, **recorded, **due}


def due_form(mapped: MappedTable) -> TimeForm | None:
    """Return the form in which it is said when a retried job is due, None where nothing can wait."""
    return mapped.dialect.common_form if _is_told(mapped) else mapped.times.get("scheduled_at")


def _is_told(mapped: MappedTable) -> bool:
    preset = mapped.declared.preset
    return preset is not None and bool(preset.fail or preset.retry)


def _due_type(mapped: MappedTable) -> sa.types.TypeEngine[Any]:
    return time_type(mapped, "scheduled_at")


def seen_row(decision: Decision, detail: str, due: object) -> tuple[object, ...]:
    """Return one row for `seen_types`, which take no `due` where nothing can wait; the fence is what the look read."""
    suspect = decision.suspect
    recorded = (str(suspect.job_id), suspect.state.value, decision.reason.value, detail)
    return (*suspect.seen, *recorded, due)


def bound_rows(rows: Sequence[Sequence[object]]) -> Values:
    """Return rows, each with its key first, as the one JSON parameter the database expands."""
    return {"unstick_seen": json.dumps(rows, default=str), "unstick_keys": [row[0] for row in rows]}


def way_of(mapped: MappedTable, action: Action, state: JobState) -> Way:
    """Return how an action is carried out on jobs of a state."""
    preset = mapped.declared.preset
    return Way(action, None if preset is None else preset.write(action, state))


def changes(mapped: MappedTable, way: Way, said: Mapping[str, sa.ColumnElement[Any]]) -> dict[str, Any]:
    """Return what is written, by the table's own column names."""
    if way.told is not None:
        places = said_places(mapped, said)
        return {name: mapped.told(sql, mapped.table.c[name].type, **places) for name, sql in way.told.set.items()}
    by_key = _failed(mapped, said) if way.action is Action.MARK_FAILED else _requeued(mapped, said)
    return {mapped.stored(key).name: value for key, value in by_key.items() if mapped.has(key)}


def said_places(mapped: MappedTable, said: Mapping[str, sa.ColumnElement[Any]]) -> dict[str, str]:
    """Return what a preset's SQL may name of what is said of a job, and of the instant of the write."""
    type_ = mapped.dialect.time_type(mapped.dialect.common_form)
    now: sa.ColumnElement[Any] = sa.literal_column(f"CAST(:unstick_now AS {mapped.dialect.type_name(type_)})", type_)
    naive = {
        f"naive_{name}": _without_zone(mapped, time) for name, time in {**said, "now": now}.items() if name in _TIMES
    }
    rows = {name: str(column) for name, column in said.items()}
    key = f"{mapped.places['jobs']}.{mapped.quoted(mapped.stored('id').name)}"
    return rows | naive | {"id": key, "now": str(now)}


_TIMES = {"now", "due"}


def _without_zone(mapped: MappedTable, time: sa.ColumnElement[Any]) -> str:
    return str(mapped.dialect.without_zone(time).compile(compile_kwargs={"literal_binds": True}))


def _failed(mapped: MappedTable, said: Mapping[str, sa.ColumnElement[Any]]) -> dict[ColumnKey, Any]:
    values: dict[ColumnKey, Any] = {
        "state": _literal(mapped, "state", mapped.word(JobState.FAILED)),
        "error": said["detail"],
    }
    if mapped.has("success"):
        values["success"] = _literal(mapped, "success", mapped.column("success").type.python_type(False))
    if mapped.has("completed_at"):
        values["completed_at"] = _at(mapped, "completed_at")
    return values


def _requeued(mapped: MappedTable, said: Mapping[str, sa.ColumnElement[Any]]) -> dict[ColumnKey, Any]:
    values: dict[ColumnKey, Any] = {"state": _literal(mapped, "state", mapped.word(JobState.QUEUED))}
    values |= _waiting_anew(mapped, said)
    for key in ("heartbeat_at", "worker"):
        if mapped.has(key) and mapped.nullable(key):
            values[key] = sa.null()
        elif mapped.has(key) and key == "heartbeat_at":
            values[key] = _at(mapped, key)
    if mapped.has("token"):
        values |= _next_token(mapped)
    if mapped.has("attempt"):
        values["attempt"] = _next_attempt(mapped, said)
    return values


def _waiting_anew(mapped: MappedTable, said: Mapping[str, sa.ColumnElement[Any]]) -> dict[ColumnKey, Any]:
    """Restart the clock the queued job is judged by, or the next sweep would find it stuck at once."""
    if mapped.has("scheduled_at"):
        values: dict[ColumnKey, Any] = {"scheduled_at": said["due"]}
        if mapped.has("started_at"):
            values["started_at"] = sa.null() if mapped.nullable("started_at") else _at(mapped, "started_at")
        return values
    key: ColumnKey = "started_at" if mapped.has("started_at") else "enqueued_at"
    return {key: _at(mapped, key)}


def _next_token(mapped: MappedTable) -> dict[ColumnKey, Any]:
    """Take the fencing token from a worker that may still be running."""
    token = mapped.column("token")
    if isinstance(token.type, sa.Integer):
        return {"token": sa.func.coalesce(token, 0) + 1}
    return {"token": sa.null()} if mapped.nullable("token") else {}


def _next_attempt(mapped: MappedTable, said: Mapping[str, sa.ColumnElement[Any]]) -> sa.ColumnElement[Any]:
    """Count an attempt that had begun; one that never began isn't counted, and the app's own limit isn't passed."""
    attempt = mapped.column("attempt")
    current = sa.func.coalesce(attempt, 0)
    following: sa.ColumnElement[Any] = current + 1
    if mapped.has("max_attempts"):
        limit = mapped.column("max_attempts")
        following = sa.case((current >= limit, current), else_=following)
    return sa.case((said["state"] == JobState.RUNNING.value, following), else_=attempt)


def _literal(mapped: MappedTable, key: ColumnKey, value: object) -> sa.ColumnElement[Any]:
    return sa.literal(value, mapped.column(key).type)


def _at(mapped: MappedTable, key: ColumnKey) -> sa.ColumnElement[Any]:
    return sa.bindparam(f"unstick_at_{key}", type_=time_type(mapped, key))


def pre_image(mapped: MappedTable, way: Way, found: Found) -> sa.ColumnElement[str]:
    """Return what the action overwrites, as a JSON object by the table's own column names."""
    return mapped.dialect.json_object({name: mapped.table.c[name] for name in changes(mapped, way, found.said)})


def recover_in_one(mapped: MappedTable, way: Way, found: Found, *, recorded: bool) -> sa.Select[Any]:
    """Lock, compare, change and record a batch in one statement, and return the ids that were changed (PostgreSQL).

    Rows that somebody holds are skipped, not waited for (SKIP LOCKED). The lock re-reads a row that changed
    after the statement's snapshot and tests the whole guard again on what it finds.
    """
    locked = (
        _found(mapped, way, found)
        .add_columns(mapped.column("id").label("locked_id"), mapped.table.c.ctid.label("locked_at"))
        .with_for_update(skip_locked=True, key_share=True)
        .cte("locked")
    )
    said = {name: locked.c[name] for name in found.said}
    left = {name: mapped.table.c[name] for name in changes(mapped, way, said)}
    changed = (
        sa.update(mapped.table)
        # The address saves the second look-up by key; the key stays, for a partition's address isn't unique.
        .where(mapped.column("id") == locked.c.locked_id, locked.c.locked_at == mapped.table.c.ctid)
        .values(changes(mapped, way, said))
        .returning(
            *locked.c,
            mapped.dialect.exact(mapped.column("state")).label("now_is"),
            mapped.dialect.json_object(left).label("post_image"),
        )
        .cte("changed")
    )
    # A trigger that keeps a row as it was leaves nothing to be recorded.
    changed = sa.select(changed).where(changed.c.now_is.in_(_aimed_at(mapped, way))).cte("kept")
    if not recorded:
        return sa.select(changed.c.job_id, changed.c.pre_image)
    return sa.select(changed.c.job_id, sa.literal("", _TEXT)).add_cte(
        _record(changed).returning(tables.recoveries.c.job_id).cte("recorded")
    )


def _aimed_at(mapped: MappedTable, way: Way) -> list[str]:
    """Return the words of which one must stand there after the write."""
    return [str(mapped.word(way.aimed_at))] if way.told is None else [str(word) for word in mapped.words(way.aimed_at)]


def intended(mapped: MappedTable, way: Way, found: Found) -> sa.Select[Any]:
    """Read what carrying out a batch would overwrite, and what it would write, job by job."""
    written = {name: as_stored(mapped, name, value) for name, value in changes(mapped, way, found.said).items()}
    return _found(mapped, way, found).add_columns(mapped.dialect.json_object(written).label("post_image"))


def as_stored(mapped: MappedTable, name: str, value: Any) -> Any:  # noqa: ANN401 - what is written to a column
    """Return a value as its column would give it back: rounded, filled up with blanks, or as a number for a truth."""
    type_ = mapped.dialect.cast_type(mapped.table.c[name].type)
    return value if type_ is None else sa.cast(value, type_)


def images_now(mapped: MappedTable, names: Sequence[str]) -> sa.Select[Any]:
    """Read what stands in these columns of the bound rows."""
    given = mapped.dialect.rows({"id": mapped.column("id").type, "job_id": _TEXT}).subquery("given")
    image = mapped.dialect.json_object({name: mapped.table.c[name] for name in names})
    joined = sa.select(given.c.job_id, image).select_from(given.join(mapped.table, mapped.column("id") == given.c.id))
    return rows_first(joined)


def lock(mapped: MappedTable, way: Way, found: Found, *, recorded: bool) -> sa.Select[Any]:
    """Lock those rows of a batch that the guard holds for, skipping what somebody holds; read what nobody records."""
    image = sa.literal("", _TEXT) if recorded else pre_image(mapped, way, found)
    ids = sa.select(mapped.column("id"), found.said["job_id"].label("job_id"), image)
    joined = ids.select_from(found.rows.join(mapped.table, mapped.column("id") == found.rows.c.id))
    return rows_first(joined.where(found.guard)).with_for_update(skip_locked=True, key_share=True)


def record_locked(mapped: MappedTable, way: Way, found: Found) -> sa.Insert:
    """Record the rows about to be changed, with what is overwritten and what is written."""
    return _record(intended(mapped, way, found).subquery("found"))


def change_locked(mapped: MappedTable, way: Way, found: Found) -> sa.Update:
    """Change the rows of a batch: the whole guard once more, in the write itself."""
    return sa.update(mapped.table).where(found.guard).values(changes(mapped, way, found.said))


def _found(mapped: MappedTable, way: Way, found: Found) -> sa.Select[Any]:
    said = [column.label(name) for name, column in found.said.items()]
    columns = sa.select(*said, pre_image(mapped, way, found).label("pre_image"))
    joined = columns.select_from(found.rows.join(mapped.table, mapped.column("id") == found.rows.c.id))
    return rows_first(joined.where(found.guard))


def _record(found: sa.FromClause) -> sa.Insert:
    row = sa.select(
        *recorded_for_all(),
        *(found.c[name] for name in _RECORDED),
        sa.literal(Outcome.APPLIED.value, sa.String()),
    )
    return sa.insert(tables.recoveries).from_select([*FOR_ALL, *_RECORDED, "outcome"], row)


_RECORDED = ("job_id", "state", "reason", "detail", "pre_image", "post_image")


def recorded_for_all() -> list[sa.BindParameter[Any]]:
    """Return what every record of a batch has in common, in the order of `FOR_ALL`."""
    return [
        sa.bindparam("unstick_operation_id", type_=sa.BigInteger()),
        sa.bindparam("unstick_source", type_=sa.String()),
        sa.bindparam("unstick_action", type_=sa.String()),
        sa.bindparam("unstick_recorded_at", type_=tables.UtcDateTime()),
    ]


def at_values(mapped: MappedTable, at: datetime) -> Values:
    """Return the instant of a write in each time column's own form, and in the form that presets are told it in."""
    written = {f"unstick_at_{key}": form.write(at) for key, form in mapped.times.items()}
    return written | {"unstick_now": mapped.dialect.common_form.write(at)}
