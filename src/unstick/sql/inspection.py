"""What a database itself tells about its jobs table: reflection, a bounded sample, and doubts no name could raise.

Nothing is written. Each table costs one query of at most `SAMPLE_ROWS` rows by primary key, and where these hold no
queued or no running job a few more of its older rows, in a transaction that is read-only where the database can
promise it.
"""

import difflib
import re
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, NoSuchTableError, SAWarning
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.types import NullType

from unstick.config import ColumnKey, StateValue
from unstick.domain.errors import ConfigurationError, SourceUnavailableError
from unstick.domain.job import JobState
from unstick.sql.connections import reachable
from unstick.sql.data_doubts import Examined, Row, as_time, data_doubts
from unstick.sql.dialects import dialect_for
from unstick.sql.facts import table_facts, underlying, unique_alone
from unstick.sql.mapping import JobTable, map_table
from unstick.sql.proposal import (
    TIME_KEYS,
    ColumnFacts,
    Doubt,
    Proposal,
    TableFacts,
    blocker,
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

_OPEN = frozenset({JobState.QUEUED, JobState.RUNNING})
_COMMON_WORDS = sa.text(
    "SELECT unnest(CAST(CAST(s.most_common_vals AS text) AS text[])) AS word FROM pg_stats AS s"
    " JOIN pg_namespace AS n ON n.nspname = s.schemaname"
    " JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = s.tablename"
    " WHERE c.oid = to_regclass(CAST(:name AS text)) AND s.attname = :column"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """A table that could not be read, and so had no say."""

    table: str
    """As configuration names it."""
    cause: str
    """In the database's words."""
    remedy: str
    """What to do."""
    forbidden: bool
    """Nothing that comes as this user will ever read it."""

    @property
    def sentence(self) -> str:
        """All of it."""
        return f"{self.table} could not be read ({self.cause}): {self.remedy}"


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
    unread: Unread | None = None
    """Why none of its rows was read, where they should have been."""

    @property
    def blocked(self) -> bool:
        """Tell whether the proposal can't work as it stands."""
        return any(doubt.severity == "blocker" for doubt in self.doubts)


@dataclass(frozen=True, slots=True)
class _Sample:
    """Rows of a table, the newest where its key tells; raw values by column."""

    rows: Sequence[Row]
    failure: DBAPIError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a database holds: job systems that are known, and one table that is like any other."""

    systems: tuple[Recognised, ...]
    inspection: Inspection | None
    """The likeliest of the tables that are of no known system; None where none looks like jobs."""
    unread: tuple[Unread, ...] = ()
    """The tables that could be it for all we know, but could not be read."""

    @property
    def blocked(self) -> bool:
        """Tell whether what is proposed can't work as it stands."""
        return self.inspection is not None and self.inspection.blocked


async def inspect_database(engine: AsyncEngine) -> Found:
    """Recognise job systems by their tables, and find out what the likeliest of the others means.

    Raises:
        ConfigurationError: there is neither.
        SourceUnavailableError: the database doesn't answer, or stops the inspection.
    """
    async with _reading(engine) as connection:
        tables, unread = await connection.run_sync(_reflect_all)
        systems = await recognise(connection, tables)
        theirs = {name for each in systems for name in (each.table, *each.beside)}
        candidates = _rank([table for table in tables if table.fullname not in theirs], connection.dialect.name)
        inspected = [await _inspect(connection, candidate) for candidate in candidates[:_LOOKED_INTO]]
    likeliest = _likeliest(inspected, candidates)
    unread += [each.unread for each in inspected if each.unread is not None]
    untold = tuple(each for each in unread if likeliest is None or each != likeliest.unread)
    if likeliest is None and not systems:
        raise ConfigurationError(" ".join((_NO_JOBS, *(f"{each.sentence}." for each in untold))))
    return Found(systems=systems, inspection=likeliest, unread=untold)


async def inspect_table(engine: AsyncEngine, table: str) -> Inspection:
    """Find out what a table's columns and words mean, and how far that can be trusted.

    Args:
        engine: the database.
        table: the table as configuration names it (`jobs`, `billing.jobs`).

    Raises:
        ConfigurationError: the table isn't there.
        SourceUnavailableError: the database doesn't answer, or tells nothing of the table.
    """
    async with _reading(engine) as connection:
        try:
            return await _inspect(connection, table)
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            raise SourceUnavailableError(f"{_unread(connection.dialect, table, error).sentence}.") from error


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


def _rank(tables: Sequence[sa.Table], dialect: str) -> list[str]:
    """Return the tables that have a state and a time, those that look most like jobs first."""
    guesses = [(facts, propose(facts)) for facts in (table_facts(table, dialect) for table in tables)]
    scores = {facts.spelling: _score(facts, guess) for facts, guess in guesses if _could_be(guess)}
    return sorted(scores, key=lambda table: (-scores[table], len(table), table))


def _could_be(guess: Proposal) -> bool:
    return "state" in guess.columns and bool(guess.columns.keys() & set(TIME_KEYS))


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
    examined = Examined(table, facts, proposal, sample.rows, connection.dialect, partitioned)
    unread = None if sample.failure is None else _unread(connection.dialect, facts.spelling, sample.failure)
    doubts = [*proposal.doubts, *_sample_doubts(sample, unread), *data_doubts(examined)]
    if not any(doubt.severity == "blocker" for doubt in doubts):
        doubts += _doubt_fit(examined)
    doubts.sort(key=lambda doubt: doubt.severity != "blocker")
    return Inspection(
        facts=facts,
        proposal=proposal,
        doubts=tuple(doubts),
        sampled=len(sample.rows),
        unread=None if sample.rows else unread,
    )


# Reflection


def _reflect_all(connection: sa.Connection) -> tuple[list[sa.Table], list[Unread]]:
    """Read the columns of all tables at once, or of each by itself where one of them can't be read."""
    schemas, metadata = _schemas(connection), sa.MetaData()
    try:
        with _unknown_types_ignored(), connection.begin_nested():
            for schema in schemas:
                metadata.reflect(connection, schema=schema, only=_foreign, resolve_fks=False)
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        return _reflect_each(connection, schemas)
    return list(metadata.tables.values()), []


def _reflect_each(connection: sa.Connection, schemas: Sequence[str | None]) -> tuple[list[sa.Table], list[Unread]]:
    tables, unread, inspector = [], [], sa.inspect(connection)
    for schema in schemas:
        for name in filter(_foreign, inspector.get_table_names(schema)):
            spelling = name if schema is None else f"{schema}.{name}"
            try:
                with _unknown_types_ignored(), connection.begin_nested():
                    tables.append(_columns_of(connection, schema, name))
            except DBAPIError as error:
                if error.connection_invalidated:
                    raise
                unread.append(_unread(connection.dialect, spelling, error))
    return tables, unread


def _columns_of(connection: sa.Connection, schema: str | None, name: str) -> sa.Table:
    return sa.Table(name, sa.MetaData(), schema=schema, autoload_with=connection, resolve_fks=False)


def _unread(dialect: sa.Dialect, table: str, error: DBAPIError) -> Unread:
    own = dialect_for(dialect)
    forbidden = own.forbids(error)
    if forbidden:
        remedy = f"grant SELECT on {table} to the user that the URL names, or name another user"
    elif own.is_slow(error) or own.is_held(error):
        remedy = "look again when nobody has it locked"
    else:
        remedy = "mend that in the database, if its jobs are in it"
    return Unread(table=table, cause=_first_line(error), remedy=remedy, forbidden=forbidden)


def _schemas(connection: sa.Connection) -> list[str | None]:
    """Return the schemas to look in; None is the connection's own."""
    if connection.dialect.name != "postgresql":
        return [None]
    inspector = sa.inspect(connection)
    own = ("information_schema", inspector.default_schema_name)
    return [None, *(name for name in inspector.get_schema_names() if name not in own and not name.startswith("pg_"))]


def _foreign(name: str, _metadata: sa.MetaData | None = None) -> bool:
    return not name.startswith("unstick_")


def _reflect(connection: sa.Connection, spelling: str) -> tuple[sa.Table, bool]:
    schema, _, name = spelling.rpartition(".")
    try:
        with _unknown_types_ignored():
            table = _columns_of(connection, schema or None, name)
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
        return _Sample((), failure=error)


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
) -> tuple[list[StateValue], list[DBAPIError]]:
    """Look for words where the newest rows have none: stuck jobs may be far older than these."""
    state = table.c[column.name]
    words, failures = _default_word(state), list[DBAPIError]()
    for query in _further_looks(state, proposal.columns, connection.dialect):
        try:
            async with connection.begin_nested():
                words += (await connection.execute(query)).scalars()
        except DBAPIError as error:
            failures.append(error)
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
    times = [time for value in values if (time := as_time(value)) is not None]
    if column.kind not in ("text", "naive_time") or (column.kind == "text" and len(times) < len(values)):
        return column
    aware = bool(times) and all(time.tzinfo is not None for time in times)
    return replace(column, kind="time" if aware else "naive_time")


def _sample_doubts(sample: _Sample, unread: Unread | None) -> Iterator[Doubt]:
    if unread is None:
        return
    which, data = ("the older rows of ", "their words") if sample.rows else ("", "the data")
    doubt = blocker if unread.forbidden and not sample.rows else warning
    yield doubt(
        "sample",
        f"{which}{unread.table} could not be read ({unread.cause}), so {data} had no say in this proposal: "
        f"{unread.remedy}",
    )


def _doubt_fit(examined: Examined) -> Iterator[Doubt]:
    """Hold the proposal against the table as every command does that is started with it."""
    facts, proposal = examined.facts, examined.proposal
    declared = JobTable(name=facts.name, schema=facts.schema, columns=proposal.columns, states=proposal.states)
    try:
        map_table(declared, examined.table, dialect_for(examined.dialect))
    except ConfigurationError as error:
        yield blocker("mapping", str(error))
