"""What a database itself tells about its jobs table: reflection, a bounded sample, and doubts no name could raise.

Nothing is written. Each table costs one query of at most `SAMPLE_ROWS` rows by primary key, and where these hold no
queued or no running job a few more of its older rows, in a transaction that is read-only where the database can
promise it.
"""

import difflib
import json
import re
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, NoSuchTableError, SAWarning
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.types import NullType

from unstick.config import ColumnKey, StateValue
from unstick.domain.errors import ConfigurationError, SourceUnavailableError
from unstick.domain.job import JobState
from unstick.sql.connections import reachable
from unstick.sql.engine import SECRETS
from unstick.sql.facts import table_facts, underlying, unique_alone
from unstick.sql.proposal import (
    TIME_KEYS,
    ColumnFacts,
    Doubt,
    IndexFacts,
    Proposal,
    TableFacts,
    blocker,
    is_last_change,
    named,
    propose,
    warning,
)
from unstick.sql.recognition import Recognised, recognise

SAMPLE_ROWS = 10_000
_TIMEOUT_MS = 5_000
_LOOKED_INTO = 5
"""Of the tables that could be it by their columns, how many are read from before one is chosen."""
_MOST_WORDS = 40
"""A column with more distinct values than this is no status."""
_ENOUGH = 5
"""The score below which a table isn't taken for a jobs table unless somebody names it."""

_WEIGHTS: Mapping[ColumnKey, int] = {
    "started_at": 3, "attempt": 2, "error": 2, "worker": 2, "queue": 2, "kind": 1, "max_attempts": 1,
    "scheduled_at": 1, "completed_at": 1, "payload": 1, "progress": 1,
}  # fmt: skip
_WORD_WEIGHTS: Mapping[JobState, int] = {JobState.RUNNING: 3, JobState.QUEUED: 2, JobState.FAILED: 2}
_NAME_WEIGHT = 5

_LEADING_TIMES: tuple[ColumnKey, ...] = ("started_at", "heartbeat_at", "enqueued_at", "scheduled_at")
_OPEN = frozenset({JobState.QUEUED, JobState.RUNNING})
_COMMON_WORDS = sa.text(
    "SELECT unnest(CAST(CAST(s.most_common_vals AS text) AS text[])) AS word FROM pg_stats AS s"
    " JOIN pg_namespace AS n ON n.nspname = s.schemaname"
    " JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = s.tablename"
    " WHERE c.oid = to_regclass(CAST(:name AS text)) AND s.attname = :column"
)
_SAME_STEP = timedelta(seconds=1)
"""An application's clock and its database's, or two statements of one step, are no further apart than this."""
_JUST_NOW = timedelta(minutes=1)
_PREFIX = 32
"""How much of a status MariaDB's index keeps where the column is TEXT."""

Row = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A table with a state and a time, and how much it looks like a jobs table."""

    table: str
    """As configuration names it."""
    score: int
    columns: Mapping[ColumnKey, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Everything found out about one table."""

    facts: TableFacts
    proposal: Proposal
    doubts: tuple[Doubt, ...]
    """The proposal's and the data's, blockers first."""
    sampled: int
    """How many rows were read."""
    others: tuple[str, ...] = ()
    """Where no table was named: the other tables it could have been, likeliest first."""

    @property
    def blocked(self) -> bool:
        """Tell whether the proposal can't work as it stands."""
        return any(doubt.severity == "blocker" for doubt in self.doubts)


@dataclass(frozen=True, slots=True)
class _Sample:
    """Rows of a table, the newest where its key tells; raw values by column."""

    rows: Sequence[Row]
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class _Examined:
    """A table under examination, with all that its doubts are drawn from."""

    table: sa.Table
    facts: TableFacts
    proposal: Proposal
    rows: Sequence[Row]
    dialect: sa.Dialect
    partitioned: bool

    def values(self, key: ColumnKey) -> list[object]:
        name = self.proposal.columns.get(key)
        return [row.get(name) for row in self.rows] if name is not None else []

    def at(self, key: ColumnKey) -> str:
        return f"{self.facts.spelling}.{self.proposal.columns[key]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a database holds: job systems that are known, and one table that is like any other."""

    systems: tuple[Recognised, ...]
    inspection: Inspection | None
    """The likeliest of the tables that are of no known system; None where none looks like jobs."""


async def inspect_database(engine: AsyncEngine) -> Found:
    """Recognise job systems by their tables, and find out what the likeliest of the others means.

    Raises:
        ConfigurationError: there is neither.
        SourceUnavailableError: the database doesn't answer, or stops the inspection.
    """
    async with _reading(engine) as connection:
        tables = await connection.run_sync(_reflect_all)
        systems = await recognise(connection, tables)
        theirs = {name for each in systems for name in (each.table, *each.beside)}
        candidates = _rank([table for table in tables if table.fullname not in theirs], connection.dialect.name)
        inspected = [await _inspect(connection, candidate.table) for candidate in candidates[:_LOOKED_INTO]]
    likeliest = _likeliest(inspected, [candidate.table for candidate in candidates])
    if likeliest is None and not systems:
        raise ConfigurationError(_NO_JOBS)
    return Found(systems=systems, inspection=likeliest)


async def inspect_tables(engine: AsyncEngine) -> tuple[Candidate, ...]:
    """Return the tables that have a state and a time, those that look most like jobs first."""
    async with _reading(engine) as connection:
        return _rank(await connection.run_sync(_reflect_all), connection.dialect.name)


async def inspect_table(engine: AsyncEngine, table: str) -> Inspection:
    """Find out what a table's columns and words mean, and how far that can be trusted.

    Args:
        engine: the database.
        table: the table as configuration names it (`jobs`, `billing.jobs`).

    Raises:
        ConfigurationError: the table isn't there.
        SourceUnavailableError: the database doesn't answer, or stops the inspection.
    """
    async with _reading(engine) as connection:
        return await _inspect(connection, table)


def to_toml(name: str, url: str, found: Found) -> str:
    """Write what was found as an `unstick.toml`, its doubts as comments and without the URL's password.

    Args:
        name: what the source of the table that is of no known system is to be called.
        url: the database's URL, as it was given.
        found: what was found out.
    """
    sections = [_section(each, url) for each in found.systems]
    if found.inspection is not None:
        sections.append(_section_of_table(name, url, found.inspection))
    return "\n".join(sections)


def _section(recognised: Recognised, url: str) -> str:
    problem = [] if recognised.problem is None else [_comment(f"It will only be read: {recognised.problem}")]
    return "\n".join((
        _comment(f"{recognised.system}, recognised by its tables."),
        *problem,
        f"[sources.{recognised.source}]",
        *_toml_url(recognised.source, url),
        f"preset = {_toml(recognised.preset)}",
        *([] if recognised.is_plain else [f"table = {_toml(recognised.table)}"]),
        "",
    ))  # fmt: skip


def _section_of_table(name: str, url: str, inspection: Inspection) -> str:
    proposal = inspection.proposal
    columns = ", ".join(f"{key} = {_toml(column)}" for key, column in proposal.columns.items())
    states = ", ".join(f"{state.value} = {_toml_words(words)}" for state, words in proposal.states.items())
    return "\n".join((
        *_preamble(inspection),
        f"[sources.{_toml_key(name)}]",
        *_toml_url(name, url),
        f"table = {_toml(inspection.facts.spelling)}",
        f"columns = {{ {columns} }}",
        f"states = {{ {states} }}",
        *_toml_timezone(inspection),
        "",
    ))  # fmt: skip


@asynccontextmanager
async def _reading(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    try:
        async with reachable(engine.sync_engine), engine.connect() as connection:
            await _forbid_writes(connection)
            yield connection
    except DBAPIError as error:
        raise SourceUnavailableError(
            f"The database stopped the inspection: {_first_line(error)}. Nothing was changed; try again."
        ) from error


async def _forbid_writes(connection: AsyncConnection) -> None:
    if connection.dialect.name != "sqlite":
        await connection.execute(sa.text("SET TRANSACTION READ ONLY"))
    if connection.dialect.name == "postgresql":
        await connection.execute(sa.text(f"SET LOCAL statement_timeout = {_TIMEOUT_MS}"))


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).partition("\n")[0]


def _rank(tables: Sequence[sa.Table], dialect: str) -> tuple[Candidate, ...]:
    found = [_candidate(table_facts(table, dialect)) for table in tables]
    ranked = [candidate for candidate in found if candidate is not None]
    return tuple(sorted(ranked, key=lambda candidate: (-candidate.score, len(candidate.table), candidate.table)))


def _candidate(facts: TableFacts) -> Candidate | None:
    proposal = propose(facts)
    if "state" not in proposal.columns or not proposal.columns.keys() & set(TIME_KEYS):
        return None
    return Candidate(table=facts.spelling, score=_score(facts, proposal), columns=proposal.columns)


def _score(facts: TableFacts, proposal: Proposal) -> int:
    columns = sum(_WEIGHTS.get(key, 0) for key in proposal.columns)
    state = facts.column(proposal.columns.get("state"))
    told = state is not None and state.values
    words = sum(_WORD_WEIGHTS.get(word, 0) for word in proposal.states) if told else 0
    called = re.search("job|task|queue", facts.name, re.IGNORECASE) is not None
    return columns + words + _NAME_WEIGHT * called


_NO_JOBS = (
    "No table here looks like a jobs table, which has a state, a time and words such as queued or running; name it "
    "with --table."
)


def _likeliest(inspected: Sequence[Inspection], tables: Sequence[str]) -> Inspection | None:
    best = max(inspected, key=lambda found: _score(found.facts, found.proposal), default=None)
    if best is None or _score(best.facts, best.proposal) < _ENOUGH:
        return None
    return replace(best, others=tuple(table for table in tables if table != best.facts.spelling))


async def _inspect(connection: AsyncConnection, name: str) -> Inspection:
    table, partitioned = await connection.run_sync(_reflect, name)
    bare = table_facts(table, connection.dialect.name)
    sample = await _read_sample(connection, table, bare)
    facts = _with_sample(bare, sample.rows, connection.dialect.name)
    proposal = propose(facts)
    if (column := _lacks_open_words(facts, proposal)) is not None:
        words, failures = await _read_further_words(connection, table, column, proposal)
        facts = _with_further_words(facts, column, words)
        sample = replace(sample, failure=next(iter(failures), sample.failure))
        proposal = propose(facts)
    examined = _Examined(table, facts, proposal, sample.rows, connection.dialect, partitioned)
    doubts = [*proposal.doubts, *_sample_doubts(sample, facts), *_data_doubts(examined)]
    doubts.sort(key=lambda doubt: doubt.severity != "blocker")
    return Inspection(facts=facts, proposal=proposal, doubts=tuple(doubts), sampled=len(sample.rows))


# Reflection


def _reflect_all(connection: sa.Connection) -> list[sa.Table]:
    metadata = sa.MetaData()
    with _unknown_types_ignored():
        for schema in _schemas(connection):
            metadata.reflect(connection, schema=schema, only=_foreign, resolve_fks=False)
    return list(metadata.tables.values())


def _schemas(connection: sa.Connection) -> list[str | None]:
    """Return the schemas to look in; None is the connection's own."""
    if connection.dialect.name != "postgresql":
        return [None]
    inspector = sa.inspect(connection)
    own = ("information_schema", inspector.default_schema_name)
    return [None, *(name for name in inspector.get_schema_names() if name not in own and not name.startswith("pg_"))]


def _foreign(name: str, _metadata: sa.MetaData) -> bool:
    return not name.startswith("unstick_")


def _reflect(connection: sa.Connection, spelling: str) -> tuple[sa.Table, bool]:
    schema, _, name = spelling.rpartition(".")
    try:
        with _unknown_types_ignored():
            table = sa.Table(name, sa.MetaData(), schema=schema or None, autoload_with=connection, resolve_fks=False)
    except NoSuchTableError:
        raise ConfigurationError(_no_such_table(connection, spelling)) from None
    return table, _is_partitioned(connection, table)


def _unknown_types_ignored() -> AbstractContextManager[None]:
    return warnings.catch_warnings(action="ignore", category=SAWarning)


def _no_such_table(connection: sa.Connection, spelling: str) -> str:
    inspector = sa.inspect(connection)
    tables = [(schema, name) for schema in _schemas(connection) for name in inspector.get_table_names(schema=schema)]
    there = {name if schema is None else f"{schema}.{name}": name for schema, name in tables}
    elsewhere = [spelled for spelled, name in there.items() if name == spelling]
    near = elsewhere or difflib.get_close_matches(spelling, there, n=1)
    return f"There is no table {spelling}{f'; did you mean {near[0]}?' if near else '.'}"


def _is_partitioned(connection: sa.Connection, table: sa.Table) -> bool:
    if connection.dialect.name != "postgresql":
        return False
    name = connection.dialect.identifier_preparer.format_table(table)
    query = sa.text("SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass(:name)")
    return bool(connection.scalar(query, {"name": name}))


# The sample


async def _read_sample(connection: AsyncConnection, table: sa.Table, facts: TableFacts) -> _Sample:
    names = _worth_sampling(facts)
    if not names:
        return _Sample(())
    # Without a type the driver's value comes through raw, whatever nonsense SQLite keeps in the column.
    query = sa.select(*(sa.type_coerce(table.c[name], NullType()).label(name) for name in names)).limit(SAMPLE_ROWS)
    key = facts.column(propose(facts).columns.get("id"))
    if key is not None and key.unique:
        query = query.order_by(table.c[key.name].desc())
    try:
        async with connection.begin_nested():
            result = await connection.execute(query)
            return _Sample(
                [{name: _unpadded(table.c[name], raw) for name, raw in row.items()} for row in result.mappings()]
            )
    except DBAPIError as error:
        return _Sample((), failure=_first_line(error))


def _unpadded(column: sa.Column[Any], raw: object) -> object:
    """Leave out the blanks a CHAR column is filled up with: as a word, they mean nothing."""
    return raw.rstrip(" ") if isinstance(raw, str) and isinstance(underlying(column.type), sa.CHAR) else raw


def _worth_sampling(facts: TableFacts) -> list[str]:
    keys: tuple[ColumnKey, ...] = ("state", *TIME_KEYS)
    readable = ("text", "integer", "number", "time", "naive_time", "other")
    return [column.name for key in keys for column in named(facts, key) if column.kind in readable]


def _lacks_open_words(facts: TableFacts, proposal: Proposal) -> ColumnFacts | None:
    """Return the state column where the rows that were read have words, and none for queued or none for running."""
    column = facts.column(proposal.columns.get("state"))
    if column is None or column.closed or not column.values or proposal.states.keys() >= _OPEN:
        return None
    return column


async def _read_further_words(
    connection: AsyncConnection, table: sa.Table, column: ColumnFacts, proposal: Proposal
) -> tuple[list[StateValue], list[str]]:
    """Look for words where the newest rows have none: stuck jobs may be far older than these."""
    state = table.c[column.name]
    words, failures = _default_word(state), []
    for query in _further_looks(state, proposal.columns, connection.dialect):
        try:
            async with connection.begin_nested():
                words += (await connection.execute(query)).scalars()
        except DBAPIError as error:
            failures.append(_first_line(error))
    plain = (_unpadded(state, word) for word in words)
    return sorted({word for word in plain if isinstance(word, str | int)}, key=str), failures


def _further_looks(
    state: sa.Column[Any], columns: Mapping[ColumnKey, str], dialect: sa.Dialect
) -> Iterator[sa.Executable]:
    """Yield queries for distinct words, each over a bounded number of rows."""
    table, rows = state.table, sa.select(sa.type_coerce(state, NullType()).label("word")).limit(SAMPLE_ROWS)
    if "id" in columns and columns["id"] in unique_alone(table):
        yield _distinct(rows.order_by(table.c[columns["id"]]))
    if "completed_at" in columns:  # where no index leads to them, as far as the database lets a statement run
        yield _distinct(rows.where(table.c[columns["completed_at"]].is_(None)))
    if dialect.name == "postgresql" and isinstance(underlying(state.type), sa.String):
        yield _common_words(state, dialect)


def _distinct(rows: sa.Select[Any]) -> sa.Select[Any]:
    return sa.select(rows.subquery("rows_read").c.word).distinct()


def _common_words(state: sa.Column[Any], dialect: sa.Dialect) -> sa.TextualSelect:
    """Read what PostgreSQL's own sample of the table found to be common."""
    name = dialect.identifier_preparer.format_table(state.table)
    return _COMMON_WORDS.bindparams(name=name, column=state.name).columns(sa.column("word"))


def _default_word(state: sa.Column[Any]) -> list[object]:
    """Return the word that a new row has by itself, which is most likely that for queued."""
    default = state.server_default
    told = str(default.arg) if isinstance(default, sa.DefaultClause) else ""
    word = re.fullmatch(r"'((?:[^']|'')*)'(::[a-z ]+)?", told)
    return [word[1].replace("''", "'")] if word else []


def _with_further_words(facts: TableFacts, column: ColumnFacts, words: Sequence[StateValue]) -> TableFacts:
    values = tuple(dict.fromkeys((*column.values, *words)))
    if len(values) > _MOST_WORDS:
        return facts
    told = replace(column, values=values)
    return replace(facts, columns=tuple(told if each is column else each for each in facts.columns))


def _with_sample(facts: TableFacts, rows: Sequence[Row], dialect: str) -> TableFacts:
    states = {column.name for column in named(facts, "state")}
    times = {column.name for key in TIME_KEYS for column in named(facts, key)} if dialect == "sqlite" else set()
    columns = (_with_words(column, rows) if column.name in states else column for column in facts.columns)
    return replace(
        facts, columns=tuple(_with_zone(column, rows) if column.name in times else column for column in columns)
    )


def _with_words(column: ColumnFacts, rows: Sequence[Row]) -> ColumnFacts:
    values = (row.get(column.name) for row in rows)
    counts: Counter[StateValue] = Counter(value for value in values if isinstance(value, str | int))
    if len(counts) > _MOST_WORDS:
        return column
    seen = (value for value, _ in counts.most_common())
    return replace(column, values=tuple(dict.fromkeys((*column.values, *seen))), counts=dict(counts))


def _with_zone(column: ColumnFacts, rows: Sequence[Row]) -> ColumnFacts:
    """Tell SQLite's times, which are text, by what the text says."""
    values = [value for row in rows if (value := row.get(column.name)) is not None]
    times = [time for value in values if (time := _as_time(value)) is not None]
    if column.kind not in ("text", "naive_time") or (column.kind == "text" and len(times) < len(values)):
        return column
    aware = bool(times) and all(time.tzinfo is not None for time in times)
    return replace(column, kind="time" if aware else "naive_time")


def _as_time(value: object) -> datetime | None:
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str) or re.match(r"\d{4}-\d\d-\d\d", value) is None:
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return None


def _instant(value: object) -> datetime | None:
    time = _as_time(value)
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time


# What the data and the indexes make doubtful


def _sample_doubts(sample: _Sample, facts: TableFacts) -> Iterator[Doubt]:
    if sample.failure is not None:
        unread, data = ("the older rows of ", "their words") if sample.rows else ("", "the data")
        yield warning(
            "sample",
            f"{unread}{facts.spelling} could not be read ({sample.failure}), so {data} had no say in this proposal",
        )


def _data_doubts(examined: _Examined) -> Iterator[Doubt]:
    yield from _doubt_still_heartbeat(examined)
    yield from _doubt_times_that_do_not_parse(examined)
    yield from _doubt_running_without_start(examined)
    yield from _doubt_missing_index(examined)
    yield from _doubt_indexed_heartbeat(examined)
    yield from _doubt_retry(examined)


def _doubt_still_heartbeat(examined: _Examined) -> Iterator[Doubt]:
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


def _instants(examined: _Examined, row: Row) -> dict[ColumnKey, datetime]:
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


def _doubt_times_that_do_not_parse(examined: _Examined) -> Iterator[Doubt]:
    for key in TIME_KEYS:
        values = [value for value in examined.values(key) if value is not None]
        bad = [value for value in values if _as_time(value) is None]
        if bad:
            doubt = blocker if len(bad) == len(values) else warning
            yield doubt(
                key,
                f"{examined.at(key)} holds {bad[0]!r}, no ISO 8601 time, and so do {len(bad)} of the {len(values)} "
                f"rows read: rewrite them, or leave `columns.{key}` out",
            )


def _doubt_running_without_start(examined: _Examined) -> Iterator[Doubt]:
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


def _doubt_missing_index(examined: _Examined) -> Iterator[Doubt]:
    statement = _index_statement(examined)
    if statement is not None and not any(_finds_open_jobs(examined, index) for index in examined.facts.indexes):
        yield warning(
            "index",
            f"no index of {examined.facts.spelling} leads to its open jobs, so each look reads the finished ones too: "
            f"run {statement}",
        )


def _finds_open_jobs(examined: _Examined, index: IndexFacts) -> bool:
    columns = examined.proposal.columns
    if index.where is None:
        return index.columns[0] in (columns["state"], columns.get("completed_at"))
    plain = re.sub(r'[\s()"`]', "", index.where).lower()
    return "completed_at" in columns and plain.rpartition(".")[2] == f"{columns['completed_at'].lower()}isnull"


def _index_statement(examined: _Examined) -> str | None:
    columns, table = examined.proposal.columns, examined.table
    time = next((columns[key] for key in _LEADING_TIMES if key in columns), None)
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


def _doubt_indexed_heartbeat(examined: _Examined) -> Iterator[Doubt]:
    name = examined.proposal.columns.get("heartbeat_at")
    indexes = [index.name for index in examined.facts.indexes if name in (*index.columns, *index.stored)]
    if examined.dialect.name == "postgresql" and indexes:
        yield warning(
            "heartbeat_at",
            f"{examined.at('heartbeat_at')} is in the index {' and '.join(indexes)}, so every heartbeat writes to all "
            "indexes of the table (no heap-only update): drop it unless another query needs it",
        )


def _doubt_retry(examined: _Examined) -> Iterator[Doubt]:
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


# The file


def _preamble(inspection: Inspection) -> Iterator[str]:
    yield _comment("Proposed by `unstick inspect` from the table itself. Check it before anything is recovered.")
    if inspection.doubts:
        yield "#"
    for doubt in inspection.doubts:
        yield _comment(f"{doubt.severity}, {doubt.key}: {doubt.message}")
    yield ""


def _toml_url(name: str, url: str) -> Iterator[str]:
    left_out = password_left_out(name, url)
    if left_out is not None:
        yield _comment(left_out)
    yield f"url = {_toml(_without_password(url))}"


def password_left_out(name: str, url: str) -> str | None:
    """Say how to give the password that a file leaves out, None where the URL has none."""
    if _without_password(url) == url:
        return None
    return f"The password is left out: give the whole URL in UNSTICK_SOURCES__{name.upper()}__URL."


def _without_password(url: str) -> str:
    parsed = sa.make_url(url)
    if parsed.password is None and not SECRETS & parsed.query.keys():
        return url
    bare = sa.URL.create(
        parsed.drivername,
        username=parsed.username,
        host=parsed.host,
        port=parsed.port,
        database=parsed.database,
        query=parsed.query,
    )
    return bare.difference_update_query(SECRETS).render_as_string(hide_password=False)


def _toml_timezone(inspection: Inspection) -> Iterator[str]:
    if any(doubt.key == "timezone" for doubt in inspection.doubts):
        yield 'timezone = "UTC"'


def _toml_words(words: tuple[StateValue, ...]) -> str:
    said = [_toml(word) if isinstance(word, str) else str(word) for word in words]
    return said[0] if len(said) == 1 else f"[{', '.join(said)}]"


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(text: str) -> str:
    # JSON's escapes are TOML's too; TOML alone wants DEL escaped.
    quoted: str = json.dumps(text, ensure_ascii=False)
    return quoted.replace("\x7f", "\\u007f")


def _comment(text: str) -> str:
    return "# " + "".join(character if character.isprintable() else " " for character in text)
