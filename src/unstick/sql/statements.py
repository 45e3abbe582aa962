"""Every statement on a jobs table: one function each, each with its guard in the statement itself.

Their parameters are bound by `look_values` and `batch_values`; horizons are bound, not computed, so that one
pass judges all its jobs by one reading of the database's clock.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from unstick.config import ColumnKey
from unstick.domain.job import JobId, JobState
from unstick.domain.recovery import Action, Decision, Outcome
from unstick.domain.suspect import ACCUSED_STATES, Look, Position
from unstick.sql import tables
from unstick.sql.mapping import MappedTable

JOB_KEYS: tuple[ColumnKey, ...] = (
    "kind", "queue", "enqueued_at", "scheduled_at", "started_at", "heartbeat_at", "completed_at", "attempt",
    "max_attempts", "worker",
)  # fmt: skip
_EACH = sa.Text()
_RECORDED = ("operation_id", "source", "job_id", "state", "action", "reason", "outcome", "detail", "pre_image", "at")
USAGE_JOBS = 10_000
"""How many of the newest jobs statistics are taken over: bounded, so that history costs nothing."""

Predicate = sa.ColumnElement[bool]
Values = dict[str, Any]


def suspect_columns(mapped: MappedTable) -> dict[ColumnKey, sa.Column[Any]]:
    """Return what a sweep reads of each suspect: the key and the fence, which holds every time it is judged by."""
    keys: tuple[ColumnKey, ...] = ("id", *mapped.fence)
    return mapped.columns(keys)


def job_columns(mapped: MappedTable) -> dict[ColumnKey, sa.Column[Any]]:
    """Return what a person wants to know of a job."""
    keys: tuple[ColumnKey, ...] = ("id", "state", *JOB_KEYS)
    return mapped.columns(keys)


def is_suspect(mapped: MappedTable, *states: JobState) -> Predicate:
    """Hold for jobs in one of these states that age accuses: the contract's rule, word for word.

    `completed_at IS NULL` stands apart and literally, or a partial index on it would not be used.
    """
    rules = {JobState.QUEUED: _is_unclaimed, JobState.RUNNING: _is_silent}
    accused = [rules[state](mapped) for state in states if state in mapped.judges]
    return sa.and_(is_open(mapped), sa.or_(sa.false(), *accused))


def is_open(mapped: MappedTable) -> Predicate:
    """Hold for jobs that are not over, as far as the table says so by a completion time."""
    return mapped.column("completed_at").is_(None) if mapped.has("completed_at") else sa.true()


def _is_unclaimed(mapped: MappedTable) -> Predicate:
    waiting = _first_of(mapped, JobState.QUEUED, ("started_at", "enqueued_at", "scheduled_at"))
    in_state = mapped.column("state").in_(mapped.words(JobState.QUEUED))
    if not mapped.has("scheduled_at"):
        return sa.and_(in_state, waiting)
    return sa.and_(in_state, waiting, _null_or_before(mapped, JobState.QUEUED, "scheduled_at"))


def _is_silent(mapped: MappedTable) -> Predicate:
    signs = list(mapped.columns(("started_at", "heartbeat_at")))
    return sa.and_(
        mapped.column("state").in_(mapped.words(JobState.RUNNING)),
        sa.or_(*(mapped.column(key).is_not(None) for key in signs)),
        *(_null_or_before(mapped, JobState.RUNNING, key) for key in signs),
    )


def _first_of(mapped: MappedTable, state: JobState, keys: Sequence[ColumnKey]) -> Predicate:
    """Hold where the first of these times that isn't null is before the horizon."""
    present = list(mapped.columns(keys))
    branches = [
        sa.and_(*(mapped.column(earlier).is_(None) for earlier in present[:place]), _before(mapped, state, key))
        for place, key in enumerate(present)
    ]
    return sa.or_(*branches)


def _null_or_before(mapped: MappedTable, state: JobState, key: ColumnKey) -> Predicate:
    return sa.or_(mapped.column(key).is_(None), _before(mapped, state, key))


def _before(mapped: MappedTable, state: JobState, key: ColumnKey) -> Predicate:
    form = mapped.times[key]
    return form.comparable(mapped.column(key)) < sa.bindparam(_horizon_name(state, key), type_=_time_type(mapped, key))


def _time_type(mapped: MappedTable, key: ColumnKey) -> sa.types.TypeEngine[Any]:
    """SQLite's times are text to us, whatever the column was declared as."""
    return sa.String() if mapped.dialect.name == "sqlite" else mapped.column(key).type


def _horizon_name(state: JobState, key: ColumnKey) -> str:
    return f"{state.value}_{key}_before"


def look_values(mapped: MappedTable, look: Look) -> Values:
    """Return the horizons every suspect predicate is bound to, each in its column's own form."""
    return {
        _horizon_name(state, key): form.horizon(look.horizon(state))
        for state in ACCUSED_STATES
        for key, form in mapped.times.items()
        if key != "completed_at"
    }


def count_suspects(mapped: MappedTable) -> sa.Select[Any]:
    """Count suspects by the table's own word."""
    state = mapped.column("state")
    return sa.select(state, sa.func.count()).where(is_suspect(mapped, *ACCUSED_STATES)).group_by(state)


def suspects_page(mapped: MappedTable, *, after: bool) -> sa.Select[Any]:
    """Read one page of suspects by ascending id, after the last page's last id."""
    key = mapped.column("id")
    page = sa.select(*_raw(mapped, suspect_columns(mapped))).where(is_suspect(mapped, *ACCUSED_STATES))
    if after:
        page = page.where(key > sa.bindparam("after", type_=key.type))
    return page.order_by(key).limit(sa.bindparam("page_size", type_=sa.Integer()))


def suspect_id(mapped: MappedTable, *, after: bool) -> sa.Select[Any]:
    """Read only id and state of the next suspects, where a whole row can't be read."""
    return suspects_page(mapped, after=after).with_only_columns(mapped.column("id"), mapped.column("state"))


def oldest_suspects(mapped: MappedTable, state: JobState, *, after: bool) -> sa.Select[Any]:
    """Read a state's suspects, oldest sign of life first, after a position."""
    key, since = mapped.column("id"), since_expression(mapped, state)
    oldest = sa.select(*_raw(mapped, job_columns(mapped))).where(is_suspect(mapped, state))
    if after:
        # The same expression as of the column, or a rounding of it would leave a job out between two pages.
        form = mapped.times[since_key(mapped, state)]
        last = form.comparable(sa.bindparam("after_since", type_=_time_type(mapped, since_key(mapped, state))))
        last_id = sa.bindparam("after_id", type_=key.type)
        oldest = oldest.where(sa.or_(since > last, sa.and_(since == last, key > last_id)))
    return oldest.order_by(since, key).limit(sa.bindparam("page_size", type_=sa.Integer()))


def since_key(mapped: MappedTable, state: JobState) -> ColumnKey:
    """Return the key of the time whose form a state's sign of life is stored in."""
    keys = mapped.columns(_signs(state))
    return next(iter(keys))


def since_expression(mapped: MappedTable, state: JobState) -> sa.ColumnElement[Any]:
    """Return the sign of life a state's jobs are judged by, as `domain.job` says it."""
    times = {key: _instant(mapped, key) for key in mapped.columns(_signs(state))}
    if state is JobState.RUNNING:
        return _later(times.get("started_at"), times.get("heartbeat_at"))
    waiting = [times[key] for key in ("started_at", "enqueued_at") if key in times]
    first = sa.func.coalesce(*waiting) if len(waiting) > 1 else next(iter(waiting), None)
    return _later(first, times.get("scheduled_at"))


def _signs(state: JobState) -> tuple[ColumnKey, ...]:
    if state is JobState.RUNNING:
        return ("started_at", "heartbeat_at")
    return ("started_at", "enqueued_at", "scheduled_at")


def _later(one: sa.ColumnElement[Any] | None, other: sa.ColumnElement[Any] | None) -> sa.ColumnElement[Any]:
    """Return the later of two times, the one that isn't null where the other is."""
    if one is None or other is None:
        either = one if one is not None else other
        return sa.null() if either is None else either
    return sa.case((sa.or_(one.is_(None), other > one), sa.func.coalesce(other, one)), else_=one)


def _instant(mapped: MappedTable, key: ColumnKey) -> sa.ColumnElement[Any]:
    expression = mapped.times[key].comparable(mapped.column(key))
    return sa.type_coerce(expression, _time_type(mapped, key))


def _raw(mapped: MappedTable, columns: Mapping[ColumnKey, sa.Column[Any]]) -> list[sa.ColumnElement[Any]]:
    """Return columns as stored: SQLite's times stay the text they are, so that they can be compared again."""
    return [
        (sa.type_coerce(column, _time_type(mapped, key)) if key in mapped.times else column).label(f"job_{key}")
        for key, column in columns.items()
    ]


# The guarded write.


def seen_types(mapped: MappedTable) -> dict[str, sa.types.TypeEngine[Any]]:
    """Return names and types of the rows a batch hands over: the key, the fence, and what is written per job."""
    fence = {f"seen_{key}": _seen_type(mapped, key, column) for key, column in mapped.fence.items()}
    due = (
        {"due": _seen_type(mapped, "scheduled_at", mapped.column("scheduled_at"))} if mapped.has("scheduled_at") else {}
    )
    recorded = {"job_id": _EACH, "state": _EACH, "reason": _EACH, "detail": _EACH}
    return {"id": mapped.column("id").type, **fence, **recorded, **due}


def _seen_type(mapped: MappedTable, key: ColumnKey, column: sa.Column[Any]) -> sa.types.TypeEngine[Any]:
    return _time_type(mapped, key) if key in mapped.times else column.type


def seen_row(mapped: MappedTable, decision: Decision, detail: str, due: object) -> tuple[object, ...]:
    """Return one row for `seen_types`; the fence is what the look read, raw."""
    suspect = decision.suspect
    recorded = (str(suspect.job_id), suspect.state.value, decision.reason.value, detail)
    return (*suspect.seen, *recorded, due) if mapped.has("scheduled_at") else (*suspect.seen, *recorded)


def seen_json(rows: Sequence[Sequence[object]]) -> str:
    """Return rows as the one JSON parameter the database expands."""
    return json.dumps(rows, default=str)


def is_unchanged(mapped: MappedTable, seen: sa.FromClause) -> Predicate:
    """Hold for the row that was seen, if it still is a suspect and nothing of its fence moved (R1, R2, R9)."""
    same = [column.is_not_distinct_from(seen.c[f"seen_{key}"]) for key, column in _fence(mapped).items()]
    return sa.and_(mapped.column("id") == seen.c.id, is_suspect(mapped, *ACCUSED_STATES), *same)


def _fence(mapped: MappedTable) -> dict[ColumnKey, sa.ColumnElement[Any]]:
    return {
        key: sa.type_coerce(column, _time_type(mapped, key)) if key in mapped.times else column
        for key, column in mapped.fence.items()
    }


def changes(mapped: MappedTable, action: Action, seen: sa.FromClause) -> dict[str, Any]:
    """Return what an action writes, by the table's own column names."""
    by_key = _failed(mapped, seen) if action is Action.MARK_FAILED else _requeued(mapped, seen)
    return {mapped.column(key).name: value for key, value in by_key.items() if mapped.has(key)}


def _failed(mapped: MappedTable, seen: sa.FromClause) -> dict[ColumnKey, Any]:
    values: dict[ColumnKey, Any] = {
        "state": _literal(mapped, "state", mapped.word(JobState.FAILED)),
        "error": seen.c.detail,
    }
    if mapped.has("success"):
        values["success"] = _literal(mapped, "success", mapped.column("success").type.python_type(False))
    if mapped.has("completed_at"):
        values["completed_at"] = _at(mapped, "completed_at")
    return values


def _requeued(mapped: MappedTable, seen: sa.FromClause) -> dict[ColumnKey, Any]:
    values: dict[ColumnKey, Any] = {"state": _literal(mapped, "state", mapped.word(JobState.QUEUED))}
    values |= _waiting_anew(mapped, seen)
    for key in ("heartbeat_at", "worker"):
        if mapped.has(key) and mapped.nullable(key):
            values[key] = sa.null()
        elif mapped.has(key) and key == "heartbeat_at":
            values[key] = _at(mapped, key)
    if mapped.has("token"):
        values |= _next_token(mapped)
    if mapped.has("attempt"):
        values["attempt"] = _next_attempt(mapped, seen)
    return values


def _waiting_anew(mapped: MappedTable, seen: sa.FromClause) -> dict[ColumnKey, Any]:
    """Restart the clock the queued job is judged by, or the next sweep would find it stuck at once."""
    if mapped.has("scheduled_at"):
        values: dict[ColumnKey, Any] = {"scheduled_at": seen.c.due}
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


def _next_attempt(mapped: MappedTable, seen: sa.FromClause) -> sa.ColumnElement[Any]:
    """Count an attempt that had begun; one that never began isn't counted, and the app's own limit isn't passed."""
    attempt = mapped.column("attempt")
    current = sa.func.coalesce(attempt, 0)
    following: sa.ColumnElement[Any] = current + 1
    if mapped.has("max_attempts"):
        limit = mapped.column("max_attempts")
        following = sa.case((current >= limit, current), else_=following)
    return sa.case((seen.c.state == JobState.RUNNING.value, following), else_=attempt)


def _literal(mapped: MappedTable, key: ColumnKey, value: object) -> sa.ColumnElement[Any]:
    return sa.literal(value, mapped.column(key).type)


def _at(mapped: MappedTable, key: ColumnKey) -> sa.ColumnElement[Any]:
    return sa.bindparam(f"at_{key}", type_=_time_type(mapped, key))


def pre_image(mapped: MappedTable, action: Action, seen: sa.FromClause) -> sa.ColumnElement[str]:
    """Return what the action overwrites, as a JSON object by the table's own column names."""
    columns = {name: mapped.table.c[name] for name in changes(mapped, action, seen)}
    raw = {
        name: sa.type_coerce(c, sa.String()) if mapped.dialect.name == "sqlite" else c for name, c in columns.items()
    }
    return mapped.dialect.json_object(raw)


def recover_in_one(mapped: MappedTable, action: Action) -> sa.Select[Any]:
    """Lock, compare, change and record a batch in one statement, and return the ids that were changed.

    Rows that somebody holds are skipped, not waited for (SKIP LOCKED). The lock re-reads a row that changed
    after the statement's snapshot and tests the whole predicate again on what it finds.
    """
    seen = mapped.dialect.rows(seen_types(mapped)).cte("seen")
    locked = (
        sa.select(*seen.c, pre_image(mapped, action, seen).label("pre_image"))
        .select_from(mapped.table.join(seen, mapped.column("id") == seen.c.id))
        .where(is_unchanged(mapped, seen))
        .with_for_update(of=mapped.table, skip_locked=True)
        .cte("locked")
    )
    changed = _change(mapped, action, locked).returning(*locked.c).cte("changed")
    recorded = _record(changed, changed.c.pre_image).returning(tables.recoveries.c.job_id).cte("recorded")
    return sa.select(changed.c.job_id).add_cte(recorded)


def lock_unchanged(mapped: MappedTable) -> sa.Select[Any]:
    """Lock those rows of a batch that are as they were seen, skipping what somebody holds."""
    seen = mapped.dialect.rows(seen_types(mapped)).subquery("seen")
    return (
        sa.select(seen.c.job_id)
        .select_from(seen.join(mapped.table, mapped.column("id") == seen.c.id))
        .where(is_unchanged(mapped, seen))
        .with_for_update(skip_locked=True)
    )


def record_locked(mapped: MappedTable, action: Action) -> sa.Insert:
    """Record the rows about to be changed, with their pre-image."""
    seen = mapped.dialect.rows(seen_types(mapped)).subquery("seen")
    joined = sa.select(seen, pre_image(mapped, action, seen).label("pre_image")).select_from(
        seen.join(mapped.table, mapped.column("id") == seen.c.id)
    )
    found = joined.where(is_unchanged(mapped, seen)).subquery("found")
    return _record(found, found.c.pre_image)


def change_locked(mapped: MappedTable, action: Action) -> sa.Update:
    """Change the rows of a batch that are as they were seen: the whole predicate once more, in the write itself."""
    seen = mapped.dialect.rows(seen_types(mapped)).subquery("seen")
    return _change(mapped, action, seen).where(is_unchanged(mapped, seen))


def _change(mapped: MappedTable, action: Action, seen: sa.FromClause) -> sa.Update:
    return sa.update(mapped.table).where(mapped.column("id") == seen.c.id).values(changes(mapped, action, seen))


def _record(found: sa.FromClause, before: sa.ColumnElement[str]) -> sa.Insert:
    row = sa.select(
        sa.bindparam("operation_id", type_=sa.BigInteger()),
        sa.bindparam("source", type_=sa.String()),
        found.c.job_id,
        found.c.state,
        sa.bindparam("action", type_=sa.String()),
        found.c.reason,
        sa.literal(Outcome.APPLIED.value, sa.String()),
        found.c.detail,
        before,
        sa.bindparam("recorded_at", type_=tables.UtcDateTime()),
    )
    return sa.insert(tables.recoveries).from_select(list(_RECORDED), row)


# Statistics.


def open_jobs(mapped: MappedTable) -> sa.Select[Any]:
    """Count the jobs that are not over by the table's own word, with the oldest sign of life of each."""
    state = mapped.column("state")
    open_words = mapped.words(JobState.QUEUED, JobState.RUNNING, JobState.SCHEDULED)
    queued, running = (_oldest(mapped, each) for each in ACCUSED_STATES)
    return (
        sa.select(state, sa.func.count(), queued, running).where(is_open(mapped), state.in_(open_words)).group_by(state)
    )


def _oldest(mapped: MappedTable, state: JobState) -> sa.ColumnElement[Any]:
    if state not in mapped.judges:
        return sa.null()
    return sa.func.min(since_expression(mapped, state))


def usage(mapped: MappedTable) -> sa.Select[Any]:
    """Sum up the newest jobs by the table's own word; how many rows are read is bounded."""
    newest, _ = mapped.newest_first
    keys: tuple[ColumnKey, ...] = ("state", "enqueued_at", "started_at", "completed_at", "tokens", "cost")
    columns = {key: column.label(key) for key, column in mapped.columns(keys).items()}
    sample = sa.select(*columns.values()).order_by(newest.desc()).limit(USAGE_JOBS).subquery("newest")
    return sa.select(sample.c.state, sa.func.count(), *_figures(mapped, sample)).group_by(sample.c.state)


def _figures(mapped: MappedTable, sample: sa.Subquery) -> list[sa.ColumnElement[Any]]:
    return [
        *_durations(mapped, sample),
        _sum(mapped, sample, "tokens"),
        _sum(mapped, sample, "cost"),
        *_span(mapped, sample),
    ]


def _durations(mapped: MappedTable, sample: sa.Subquery) -> list[sa.ColumnElement[Any]]:
    if not (mapped.has("started_at") and mapped.has("completed_at")):
        return [sa.null(), sa.null(), sa.null()]
    seconds = mapped.dialect.seconds_between(sample.c.started_at, sample.c.completed_at)
    return [sa.func.count(seconds), sa.func.avg(seconds), sa.func.max(seconds)]


def _sum(mapped: MappedTable, sample: sa.Subquery, key: ColumnKey) -> sa.ColumnElement[Any]:
    return sa.func.sum(sample.c[key]) if mapped.has(key) else sa.null()


def _span(mapped: MappedTable, sample: sa.Subquery) -> list[sa.ColumnElement[Any]]:
    key = span_key(mapped)
    if key is None:
        return [sa.null(), sa.null()]
    time = sa.type_coerce(mapped.times[key].comparable(sample.c[key]), _time_type(mapped, key))
    return [sa.func.min(time), sa.func.max(time)]


def span_key(mapped: MappedTable) -> ColumnKey | None:
    """Return the time by which the window of `usage` is told."""
    keys: tuple[ColumnKey, ...] = ("enqueued_at", "started_at", "completed_at")
    return next(iter(mapped.columns(keys)), None)


def position_values(mapped: MappedTable, state: JobState, after: Position | None) -> Values:
    """Return what `oldest_suspects` is bound to after a position."""
    if after is None:
        return {}
    form = mapped.times[since_key(mapped, state)]
    return {"after_since": form.write(after.since), "after_id": typed_id(mapped, after.job_id)}


def typed_id(mapped: MappedTable, job_id: JobId) -> object:
    """Return a job's id in the type of its column; raise ValueError where it can't be one."""
    python_type = mapped.column("id").type.python_type
    return job_id if isinstance(job_id, python_type) else python_type(job_id)


def at_values(mapped: MappedTable, at: Any) -> Values:  # noqa: ANN401
    """Return the instant of a write in each time column's own form."""
    return {f"at_{key}": form.write(at) for key, form in mapped.times.items()}
