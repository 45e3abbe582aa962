"""Every statement on a jobs table: one function each, each with its guard in the statement itself.

Their parameters are bound by `look_values` and `batch_values`; horizons are bound, not computed, so that one
pass judges all its jobs by one reading of the database's clock.
"""

import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from unstick.config import ColumnKey, StateValue
from unstick.domain.job import JobClass, JobId, JobState
from unstick.domain.suspect import ACCUSED_STATES, Look, Mark, Position
from unstick.presets.preset import Waiting
from unstick.sql import tables
from unstick.sql.mapping import MappedTable

JOB_KEYS: tuple[ColumnKey, ...] = (
    "kind", "queue", "enqueued_at", "scheduled_at", "started_at", "heartbeat_at", "completed_at", "attempt",
    "max_attempts", "worker", "progress",
)  # fmt: skip
USAGE_JOBS = 10_000
"""How many of the newest jobs statistics are taken over: bounded, so that history costs nothing."""

_TEXT = sa.Text()
Predicate = sa.ColumnElement[bool]
Values = dict[str, Any]


def suspect_columns(mapped: MappedTable) -> dict[ColumnKey, sa.ColumnElement[Any]]:
    """Return what a sweep reads of each suspect: the key and the fence, which holds every time it is judged by."""
    keys: tuple[ColumnKey, ...] = ("id", *mapped.fence)
    return mapped.columns(keys)


def job_columns(mapped: MappedTable) -> dict[ColumnKey, sa.ColumnElement[Any]]:
    """Return what a person wants to know of a job."""
    keys: tuple[ColumnKey, ...] = ("id", "state", *JOB_KEYS)
    return mapped.columns(keys)


def is_suspect(mapped: MappedTable, *states: JobState, bound: bool = False) -> Predicate:
    """Hold for jobs in one of these states that age accuses: the contract's rule, word for word.

    `completed_at IS NULL` stands apart and literally, or a partial index on it would not be used. Where the rows are
    `bound` by key, no other index may be: SQLite would rather search all open jobs for each of them.
    """
    rules = {JobState.QUEUED: _is_unclaimed, JobState.RUNNING: _is_silent}
    accused = [
        sa.and_(_in_state(mapped, state, bound=bound), rules[state](mapped))
        for state in states
        if state in mapped.judges
    ]
    return sa.and_(is_open(mapped, bound=bound), sa.or_(sa.false(), *accused), *_limits(mapped))


def waits(mapped: MappedTable) -> list[tuple[Waiting, sa.ColumnElement[Any]]]:
    """Return why a queued job of a preset's may wait, and what says whether it does."""
    preset = mapped.declared.preset
    return [] if preset is None else [(each, mapped.told(each.sql, _TEXT)) for each in preset.waiting]


def _limits(mapped: MappedTable) -> list[Predicate]:
    """Hold for jobs that the look judges: of its classes, not left alone, and no backlog."""
    look = mapped.look
    if look is None:
        return []
    limits = [] if look.classes is None else [_is_of(mapped, look.classes)]
    if left := known_ids(mapped, look.left_alone):
        limits.append(mapped.column("id").not_in(left))
    if look.only is not None:
        limits.append(mapped.column("id").in_(known_ids(mapped, look.only)))
    waiting = [_waits(mapped, queue, reached) for queue, reached in look.draining.items()]
    return [*limits, sa.not_(sa.or_(*waiting))] if waiting else limits


def _is_of(mapped: MappedTable, classes: Iterable[JobClass]) -> Predicate:
    """Hold for jobs of these classes alone: one that nobody has seen yet is in none of them."""
    kinds: dict[str | None, list[str | None]] = {}
    for kind, queue in sorted(classes, key=str):
        kinds.setdefault(queue, []).append(kind)
    return sa.or_(
        sa.false(),
        *(sa.and_(_named(mapped, "queue", [queue]), _named(mapped, "kind", named)) for queue, named in kinds.items()),
    )


def _named(mapped: MappedTable, key: ColumnKey, names: Sequence[str | None]) -> Predicate:
    """Hold where a column holds one of these names, null being one of them; where there is no such column, always."""
    if not mapped.has(key):
        return sa.true()
    column = mapped.dialect.unindexed(as_text(mapped.column(key)))
    named = column.in_([name for name in names if name is not None])
    return sa.or_(named, column.is_(None)) if None in names else sa.func.coalesce(named, sa.false())


def as_text(column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """Return a column as text, as it is where it holds any text."""
    free = isinstance(column.type, sa.String) and not isinstance(column.type, sa.Enum)
    return column if free else sa.cast(column, _TEXT)


def _waits(mapped: MappedTable, queue: str | None, reached: datetime) -> Predicate:
    """Hold for a queued job whose turn comes after that of the youngest that was claimed from its queue."""
    since = since_expression(mapped, JobState.QUEUED)
    at = mapped.since_form.comparable(sa.literal(mapped.since_form.write(reached), mapped.since_type))
    queued = _in_state(mapped, JobState.QUEUED, bound=True)
    return sa.and_(queued, _named(mapped, "queue", [queue]), sa.func.coalesce(since >= at, sa.false()))


def open_classes(mapped: MappedTable, most: int | None = None) -> sa.Select[Any]:
    """Count the jobs that are not over by kind and queue; with `most`, no more rows are read than that."""
    keys: tuple[ColumnKey, ...] = ("kind", "queue")
    columns = [(as_text(mapped.column(key)) if mapped.has(key) else sa.null()).label(key) for key in keys]
    open_words = mapped.words(*ACCUSED_STATES)
    found = sa.select(*columns).select_from(mapped.table)
    found = found.where(is_open(mapped), mapped.column("state").in_(open_words))
    some = (found if most is None else found.limit(sa.literal_column(str(most)))).subquery("some")
    return sa.select(some.c.kind, some.c.queue, sa.func.count()).group_by(some.c.kind, some.c.queue)


_NONE: sa.ColumnElement[int] = sa.literal_column("0", sa.Integer())
FLOW_JOBS = 1_000
"""How many of the newest claimed jobs tell how queues move: bounded, so that history costs nothing."""


def can_flow(mapped: MappedTable) -> bool:
    """Tell whether a table records what tells how its queues move; where it doesn't, age stands alone."""
    return mapped.has("enqueued_at") and mapped.has("started_at") and JobState.QUEUED in mapped.judges


def flows(mapped: MappedTable, *, whole: bool) -> sa.Select[Any]:
    """Read how each queue moves: how many of its newest claims are recent, and how far it has come.

    Of the running jobs those are read that began last, so that they cost nothing that have run for long; where even the
    last of these is a recent claim, `more` isn't 0, and only the `whole` tells all.
    """
    newest, _ = mapped.newest_first
    most: sa.ColumnClause[Any] = sa.literal_column(str(FLOW_JOBS))
    waiting = _said(mapped, JobState.QUEUED, JobState.SCHEDULED)
    key, started, state = mapped.column("id"), mapped.column("started_at"), mapped.column("state")
    recent = sa.not_(_before(mapped, JobState.QUEUED, "started_at"))
    columns = [
        key.label("id"),
        (as_text(mapped.column("queue")) if mapped.has("queue") else sa.null()).label("queue"),
        sa.case((recent, 1), else_=0).label("recent"),
        sa.case((started.is_not(None), 1), else_=0).label("was_claimed"),
        _instant(mapped, "enqueued_at").label("enqueued_at"),
    ]
    # Only jobs that wait are passed over to find the newest others, and those are open: history costs nothing.
    over = sa.select(*columns).where(state.not_in(waiting)).order_by(newest.desc()).limit(most).subquery("newest")
    running = [_last_begun(mapped, word, columns) for word in mapped.words(JobState.RUNNING)]
    some = [each.limit(most).subquery(f"newest_{number}") for number, each in enumerate(running)]
    claims = [each.where(recent).order_by(None) for each in running] if whole else [_recent(each) for each in some]
    parts = sa.union(sa.select(over), *claims).subquery("claimed")
    # What is computed names no column, and so not by itself the table either.
    lasts = [each.with_only_columns(columns[2], maintain_column_froms=True) for each in running]
    next_ones = [each.offset(most).limit(sa.literal_column("1")) for each in lasts]
    more = [sa.func.coalesce(each.scalar_subquery(), 0) for each in next_ones]
    figures = sa.func.sum(parts.c.recent), sa.func.max(parts.c.enqueued_at)
    return sa.select(parts.c.queue, *figures, sum(more, _NONE)).where(parts.c.was_claimed == 1).group_by(parts.c.queue)


def _last_begun(mapped: MappedTable, word: StateValue, columns: Sequence[sa.ColumnElement[Any]]) -> sa.Select[Any]:
    """Read the running jobs of one word, those that began last first: their index has them in that order."""
    started, state = mapped.column("started_at"), mapped.column("state")
    said = sa.bindparam(None, word, state.type, literal_execute=True)
    running = sa.select(*columns).where(is_open(mapped), state == said, started.is_not(None))
    return running.order_by(started.desc())


def _recent(claims: sa.Subquery) -> sa.Select[Any]:
    return sa.select(claims).where(claims.c.recent == 1)


def _said(mapped: MappedTable, *states: JobState) -> sa.BindParameter[Any]:
    """Return the table's words for states, to be said in the statement: a plan must know how common they are."""
    words = mapped.words(*states)
    return sa.bindparam(None, words, mapped.column("state").type, expanding=True, literal_execute=True)


def lease_counts(now: datetime) -> sa.Select[Any]:
    """Count the workers that were ever vouched for, and those that are."""
    lives = sa.case((tables.leases.c.expires_at > now, 1), else_=0)
    return sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(lives), 0)).select_from(tables.leases)


def is_open(mapped: MappedTable, *, bound: bool = False) -> Predicate:
    """Hold for jobs that are not over, as far as the table says so by a completion time."""
    if mapped.declared.preset is not None and mapped.declared.preset.open is not None:
        return mapped.told(mapped.declared.preset.open, sa.Boolean())
    if not mapped.has("completed_at"):
        return sa.true()
    completed_at: sa.ColumnElement[Any] = mapped.column("completed_at")
    return (mapped.dialect.unindexed(completed_at) if bound else completed_at).is_(None)


def _in_state(mapped: MappedTable, state: JobState, *, bound: bool) -> Predicate:
    column: sa.ColumnElement[Any] = mapped.column("state")
    return (mapped.dialect.unindexed(column) if bound else column).in_(mapped.words(state))


def _is_unclaimed(mapped: MappedTable) -> Predicate:
    free = [told.is_(None) for _, told in waits(mapped)]
    waiting = sa.and_(_first_of(mapped, JobState.QUEUED, ("started_at", "enqueued_at", "scheduled_at")), *free)
    if not mapped.has("scheduled_at"):
        return waiting
    return sa.and_(waiting, _null_or_before(mapped, JobState.QUEUED, "scheduled_at"))


def _is_silent(mapped: MappedTable) -> Predicate:
    """Hold where age accuses and no lease acquits, and where a lease that ran out convicts."""
    if mapped.look is not None and mapped.look.by_start:
        return _before(mapped, JobState.RUNNING, "started_at") if mapped.has("started_at") else sa.false()
    if not mapped.leases:
        return _is_aged(mapped)
    looked_at = sa.bindparam("unstick_looked_at", type_=tables.UtcDateTime())
    held = has_lease(mapped, tables.leases.c.expires_at > looked_at)
    return sa.or_(sa.and_(_is_aged(mapped), sa.not_(held)), has_lease(mapped, tables.leases.c.expires_at <= looked_at))


def has_lease(mapped: MappedTable, *conditions: Predicate) -> Predicate:
    """Hold where a job's worker has a lease of which these conditions are true."""
    lease = tables.leases
    worker = mapped.dialect.as_name(mapped.column("worker"))
    return sa.exists().where(lease.c.id == worker, *conditions).correlate(mapped.table)


def lease_beat(mapped: MappedTable) -> sa.ColumnElement[Any]:
    """Return when a job's worker last beat, by a lease that is over at the look; null where there is none."""
    lease, looked_at = tables.leases, sa.bindparam("unstick_looked_at", type_=tables.UtcDateTime())
    worker = mapped.dialect.as_name(mapped.column("worker"))
    over = sa.select(lease.c.beat_at).where(lease.c.id == worker, lease.c.expires_at <= looked_at)
    running = mapped.column("state").in_(mapped.words(JobState.RUNNING))
    return sa.case((running, over.correlate(mapped.table).scalar_subquery()), else_=sa.null()).label("lease_beat_at")


def _is_aged(mapped: MappedTable) -> Predicate:
    signs = list(mapped.columns(("started_at", "heartbeat_at")))
    return sa.and_(
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
    horizon = sa.bindparam(_horizon_name(state, key), type_=time_type(mapped, key))
    utc = sa.bindparam(f"{_horizon_name(state, key)}_utc", type_=time_type(mapped, key))
    return mapped.times[key].before(mapped.column(key), horizon, utc)


def time_type(mapped: MappedTable, key: ColumnKey) -> sa.types.TypeEngine[Any]:
    """SQLite's times are text to us, whatever the column was declared as."""
    return sa.String() if mapped.dialect.name == "sqlite" else mapped.column(key).type


def _horizon_name(state: JobState, key: ColumnKey) -> str:
    # No bound name may be a column of a host's table: SQLAlchemy would take it for a value to write there.
    return f"unstick_{state.value}_{key}_before"


def look_values(mapped: MappedTable, look: Look) -> Values:
    """Return the horizons every suspect predicate is bound to, each in its column's own form."""
    judged = [
        (state, key, form) for state in ACCUSED_STATES for key, form in mapped.times.items() if key != "completed_at"
    ]
    return (
        {_horizon_name(state, key): form.horizon(look.horizon(state)) for state, key, form in judged}
        | {f"{_horizon_name(state, key)}_utc": form.horizon_utc(look.horizon(state)) for state, key, form in judged}
        | {"unstick_looked_at": look.taken_at}
    )


def count_suspects(mapped: MappedTable) -> sa.Select[Any]:
    """Count suspects by the table's own word."""
    suspect, state = is_suspect(mapped, *ACCUSED_STATES), mapped.column("state")
    return sa.select(state, sa.func.count()).select_from(mapped.table).where(suspect).group_by(state)


def suspects_by_queue(mapped: MappedTable) -> sa.Select[Any]:
    """Count suspects by their queue, the table's own word, and whether a lease that ran out accuses them."""
    expired = lease_beat(mapped).is_not(None) if mapped.leases else sa.false()
    columns = [_queue(mapped), mapped.column("state").label("state"), expired.label("expired")]
    found = sa.select(*columns).select_from(mapped.table).where(is_suspect(mapped, *ACCUSED_STATES))
    each = found.subquery("each_suspect")
    return sa.select(*each.c, sa.func.count()).group_by(*each.c)


def _queue(mapped: MappedTable) -> sa.ColumnElement[Any]:
    return (mapped.column("queue") if mapped.has("queue") else sa.null()).label("queue")


def suspect_ids(mapped: MappedTable, *states: JobState, after: bool) -> sa.Select[Any]:
    """Read the ids of suspects in ascending order, after the last one read.

    They are sorted, not read in the order of the key: SQLite would go through all jobs by that, the finished ones too.
    """
    key = mapped.column("id")
    ids = sa.select(key).where(is_suspect(mapped, *states))
    if after:
        ids = ids.where(mapped.dialect.unindexed(key) > sa.bindparam("after", type_=key.type))
    return ids.order_by(mapped.dialect.unindexed(key)).limit(sa.bindparam("stride", type_=sa.Integer()))


def suspects_among(mapped: MappedTable) -> sa.Select[Any]:
    """Read those of the bound ids that are suspects still, by ascending id."""
    key, given = mapped.column("id"), mapped.dialect.rows({"id": mapped.column("id").type}).subquery("given")
    columns = [*raw_columns(mapped, suspect_columns(mapped)), *([lease_beat(mapped)] if mapped.leases else [])]
    found = sa.select(*columns).select_from(given.join(mapped.table, key == given.c.id))
    return rows_first(found.where(is_suspect(mapped, *ACCUSED_STATES, bound=True))).order_by(key)


def is_bound(mapped: MappedTable, rows: sa.FromClause) -> Predicate:
    """Hold for the rows a write was given.

    MariaDB and MySQL get the keys as literals, too: they guess that JSON holds few rows and would scan the table
    instead, which is slow, and in a write waits for every row that anybody holds.
    """
    key = mapped.column("id")
    parted = [mapped.column(by) == rows.c[f"seen_{by}"] for by in mapped.declared.parted_by if f"seen_{by}" in rows.c]
    if mapped.dialect.name != "mysql":
        return sa.and_(key == rows.c.id, *parted)
    return sa.and_(key == rows.c.id, *parted, key.in_(sa.bindparam("unstick_keys", expanding=True, type_=key.type)))


def rows_first(joined: sa.Select[Any]) -> sa.Select[Any]:
    """Have MariaDB and MySQL look the table up for each bound row, not the other way round."""
    return joined.prefix_with("STRAIGHT_JOIN", dialect="mysql")


def jobs_among(mapped: MappedTable) -> sa.Select[Any]:
    """Read what a person wants to know of the bound ids, whatever their state."""
    key, given = mapped.column("id"), mapped.dialect.rows({"id": mapped.column("id").type}).subquery("given")
    leases = [lease_beat(mapped)] if mapped.leases else []
    found = sa.select(*raw_columns(mapped, job_columns(mapped)), *leases)
    return rows_first(found.select_from(given.join(mapped.table, key == given.c.id)))


def state_of_one(mapped: MappedTable) -> sa.Select[Any]:
    """Read only the state of the bound id, where the rest of its row can't be fetched."""
    key = mapped.column("id")
    return sa.select(mapped.column("state")).where(key == sa.bindparam("id", type_=key.type))


def suspects_by_age(mapped: MappedTable, state: JobState, *, after: bool) -> sa.Select[Any]:
    """Read a state's suspects, oldest sign of life first, after a position."""
    key, since = mapped.column("id"), since_expression(mapped, state)
    leases = [lease_beat(mapped)] if mapped.leases else []
    found = sa.select(*raw_columns(mapped, job_columns(mapped)), *leases).where(is_suspect(mapped, state))
    if after:
        # The same expression as of the column, or a rounding of it would leave a job out between two pages.
        last = mapped.since_form.comparable(sa.bindparam("after_since", type_=mapped.since_type))
        last_id = sa.bindparam("after_id", type_=key.type)
        found = found.where(sa.or_(since > last, sa.and_(since == last, key > last_id)))
    return found.order_by(since, key).limit(sa.bindparam("page_size", type_=sa.Integer()))


def stretch(
    mapped: MappedTable, state: JobState, *, after: Mark | None = None, newest_first: bool = False
) -> sa.Select[Any]:
    """Read a bounded number of a state's suspects, those that began first or last, after a mark.

    Nothing but columns of the advised index orders them, and each word for the state is read for itself, or all
    suspects would have to be read and sorted.
    """
    begun, key = _begun(mapped), mapped.column("id")
    leases = [lease_beat(mapped)] if mapped.leases else []
    columns = [*raw_columns(mapped, job_columns(mapped)), *leases]
    order = (begun.desc(), key.desc()) if newest_first else (begun, key)
    places = [begun.label("unstick_begun"), key.label("unstick_id")]
    past = [] if after is None else [_is_past(mapped, after, newest_first=newest_first)]
    size = sa.bindparam("page_size", type_=sa.Integer())
    parts = [
        sa.select(*columns, *places)
        .where(is_suspect(mapped, state), mapped.column("state") == word, *past)
        .order_by(*order)
        .limit(size)
        .subquery(f"part_{number}")
        for number, word in enumerate(mapped.words(state))
    ]
    each = sa.union_all(*(sa.select(part) for part in parts)).subquery("each_part")
    last = (each.c.unstick_begun, each.c.unstick_id)
    return sa.select(each).order_by(*(place.desc() if newest_first else place for place in last)).limit(size)


def _begun(mapped: MappedTable) -> sa.ColumnElement[Any]:
    key = mapped.leading_time
    return sa.type_coerce(mapped.column(key), time_type(mapped, key))


def _is_past(mapped: MappedTable, after: Mark, *, newest_first: bool) -> Predicate:
    """Hold for what comes after a mark in the order of a stretch; PostgreSQL takes null for the latest time."""
    begun, key = _begun(mapped), mapped.column("id")
    last, last_id = sa.bindparam("after_begun", type_=begun.type), sa.bindparam("after_id", type_=key.type)
    has_id_past = key < last_id if newest_first else key > last_id
    nulls_last = (mapped.dialect.name == "postgresql") is not newest_first
    if after.begun is None:
        same = sa.and_(begun.is_(None), has_id_past)
        return same if nulls_last else sa.or_(same, begun.is_not(None))
    is_past = begun < last if newest_first else begun > last
    past = sa.or_(is_past, sa.and_(begun == last, has_id_past))
    if nulls_last:
        return sa.or_(past, begun.is_(None))
    # What is added follows from the other condition, and is what an index serves.
    return sa.and_(past, begun <= last if newest_first else begun >= last)


def mark_values(mapped: MappedTable, after: Mark | None) -> Values:
    """Return what `stretch` is bound to after a mark; raise ValueError where it is none of this table's."""
    if after is None:
        return {}
    begun: object = after.begun
    if after.begun is not None and mapped.dialect.name != "sqlite":
        begun = datetime.fromisoformat(after.begun)
    return ({} if begun is None else {"after_begun": begun}) | {"after_id": typed_id(mapped, after.job_id)}


def since_expression(mapped: MappedTable, state: JobState) -> sa.ColumnElement[Any]:
    """Return the sign of life a state's jobs are judged by, as `domain.job` says it."""
    times = {key: _instant(mapped, key) for key in mapped.columns(signs(state))}
    if state is JobState.RUNNING:
        return _later(times.get("started_at"), times.get("heartbeat_at"))
    waiting = [times[key] for key in ("started_at", "enqueued_at") if key in times]
    first = sa.func.coalesce(*waiting) if len(waiting) > 1 else next(iter(waiting), None)
    return _later(first, times.get("scheduled_at"))


def signs(state: JobState) -> tuple[ColumnKey, ...]:
    """Return the times that a state's jobs are judged by."""
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
    if mapped.mixes_times:
        return mapped.dialect.in_utc(expression, mapped.times[key])
    return sa.type_coerce(expression, time_type(mapped, key))


def raw_columns(mapped: MappedTable, columns: Mapping[ColumnKey, sa.ColumnElement[Any]]) -> list[sa.ColumnElement[Any]]:
    """Return columns as stored: SQLite's times stay the text they are, so that they can be compared again."""
    return [
        (sa.type_coerce(column, time_type(mapped, key)) if key in mapped.times else column).label(f"job_{key}")
        for key, column in columns.items()
    ]


def open_jobs(mapped: MappedTable) -> sa.Select[Any]:
    """Count the jobs that are not over by the table's own word and queue, with the oldest sign of life of each."""
    state = mapped.column("state")
    open_words = mapped.words(JobState.QUEUED, JobState.RUNNING, JobState.SCHEDULED)
    queued, running = (_oldest(mapped, each) for each in ACCUSED_STATES)
    parts = [state, mapped.column("queue")] if mapped.has("queue") else [state]
    counted = sa.select(state, sa.func.count(), queued, running, _queue(mapped)).select_from(mapped.table)
    return counted.where(is_open(mapped), state.in_(open_words)).group_by(*parts)


def _oldest(mapped: MappedTable, state: JobState) -> sa.ColumnElement[Any]:
    if state not in mapped.judges:
        return sa.null()
    return sa.func.min(since_expression(mapped, state))


def usage(mapped: MappedTable) -> sa.Select[Any]:
    """Sum up the newest jobs by the table's own word; how many rows are read is bounded."""
    newest, _ = mapped.newest_first
    keys: tuple[ColumnKey, ...] = ("state", "enqueued_at", "started_at", "completed_at", "tokens", "cost")
    columns = {key: column.label(key) for key, column in mapped.columns(keys).items()}
    rows = sa.select(*columns.values()).select_from(mapped.table)
    sample = rows.order_by(newest.desc()).limit(USAGE_JOBS).subquery("newest")
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
    times: list[sa.ColumnElement[Any]] = [sample.c.started_at, sample.c.completed_at]
    forms = [mapped.times["started_at"], mapped.times["completed_at"]]
    if forms[0] != forms[1]:  # or the session's own zone would come between them
        times = [mapped.dialect.in_utc(time, form) for time, form in zip(times, forms, strict=True)]
    seconds = mapped.dialect.seconds_between(*times)
    return [sa.func.count(seconds), sa.func.avg(seconds), sa.func.max(seconds)]


def _sum(mapped: MappedTable, sample: sa.Subquery, key: ColumnKey) -> sa.ColumnElement[Any]:
    return sa.func.sum(sample.c[key]) if mapped.has(key) else sa.null()


def _span(mapped: MappedTable, sample: sa.Subquery) -> list[sa.ColumnElement[Any]]:
    key = span_key(mapped)
    if key is None:
        return [sa.null(), sa.null()]
    time = sa.type_coerce(mapped.times[key].comparable(sample.c[key]), time_type(mapped, key))
    return [sa.func.min(time), sa.func.max(time)]


def span_key(mapped: MappedTable) -> ColumnKey | None:
    """Return the time by which the window of `usage` is told."""
    keys: tuple[ColumnKey, ...] = ("enqueued_at", "started_at", "completed_at")
    return next(iter(mapped.columns(keys)), None)


def position_values(mapped: MappedTable, after: Position | None) -> Values:
    """Return what `suspects_by_age` is bound to after a position."""
    if after is None:
        return {}
    return {"after_since": mapped.since_form.write(after.since), "after_id": typed_id(mapped, after.job_id)}


def typed_id(mapped: MappedTable, job_id: JobId) -> object:
    """Return a job's id in the type of its column; raise ValueError where it can't be one."""
    python_type = mapped.column("id").type.python_type
    return job_id if isinstance(job_id, python_type) else python_type(job_id)


def known_ids(mapped: MappedTable, job_ids: Iterable[JobId]) -> list[object]:
    """Return those ids that can be some of this table's, in the type of its column."""
    typed = (known_id(mapped, job_id) for job_id in sorted(job_ids, key=str))
    return [job_id for job_id in typed if job_id is not None]


def known_id(mapped: MappedTable, job_id: JobId) -> object | None:
    """Return an id in the type of its column, None where no row of this table can have it.

    An id may come from a person, as text; what isn't written as the column's own are must not reach the database, which
    would fail on it or take it for another.
    """
    type_ = mapped.column("id").type
    if isinstance(type_, sa.Integer):
        return _known_number(mapped, job_id)
    text = str(job_id)
    if isinstance(type_, sa.Uuid):
        try:
            number = uuid.UUID(text)
        except ValueError:
            return None
        return number if type_.python_type is uuid.UUID else str(number)
    return None if "\0" in text or not _is_encodable(text) else text


def _known_number(mapped: MappedTable, job_id: JobId) -> int | None:
    if isinstance(job_id, str) and not _NUMBER.fullmatch(job_id):
        return None
    number, type_ = int(job_id), mapped.column("id").type
    bits = 16 if isinstance(type_, sa.SmallInteger) else 64 if isinstance(type_, sa.BigInteger) else 32
    if mapped.dialect.name == "postgresql":  # which refuses to compare with what its column can't hold
        return number if -(2 ** (bits - 1)) <= number < 2 ** (bits - 1) else None
    most = 2**64 if mapped.dialect.name == "mysql" else 2**63
    return number if -(2**63) <= number < most else None


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_NUMBER = re.compile("-?(0|[1-9][0-9]{0,19})")
