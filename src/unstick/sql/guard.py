"""The guard: a trigger on a jobs table, which refuses a late result of a worker that knows nothing of Unstick.

Guarantee: it refuses the end of another attempt and the success of a job that is queued again, each judged on the row
as it stands when the write has its lock; whatever ends no job, and what Unstick itself writes, passes. Known weakness:
once a recovered job was claimed again, a late write that names neither token nor attempt looks like the new worker's.
While it is there, PostgreSQL lets nobody drop the columns it names, or change their types.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.mysql.base import MySQLDialect
from sqlalchemy.sql import quoted_name

from unstick.config import ColumnKey
from unstick.domain.errors import ConfigurationError
from unstick.domain.job import JobState
from unstick.sql.connections import Connections
from unstick.sql.mapping import MappedTable
from unstick.sql.statements import Predicate

_PREFIX = "unstick_guard_"
_LONGEST_NAME = 63
"""Bytes in PostgreSQL; MariaDB takes 64 characters, SQLite any number."""
_FENCES: tuple[ColumnKey, ...] = ("token", "attempt")
_ENDS = (JobState.SUCCEEDED, JobState.FAILED)
_TAKEN = "was taken from this worker; its result came too late"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """The guard of one jobs table, as statements to print or to run."""

    name: str
    table: str
    dialect: str
    install: tuple[str, ...]
    remove: tuple[str, ...]
    gaps: tuple[str, ...]
    """What it can't refuse, for want of something in the mapping."""


def guard(mapped: MappedTable) -> Guard:
    """Return the guard of a jobs table.

    Raises:
        ConfigurationError: the mapping names nothing by which a late result could be told.
    """
    found = {rule: rule(mapped) for rule in RULES}
    refused = [condition for condition in found.values() if condition is not None]
    if not refused:
        raise ConfigurationError(
            f"The mapping of {mapped.declared.full_name} names nothing by which a late result could be told: it needs "
            "the word for succeeded, and `token` or `attempt` under `columns`, or the words for queued and running."
        )
    install, remove = _BY_DIALECT[mapped.dialect.name](mapped, sa.or_(*refused))
    return Guard(
        name=guard_name(mapped.table.name),
        table=mapped.declared.full_name,
        dialect=mapped.dialect.name,
        install=tuple(_as_sent(mapped, statement) for statement in install),
        remove=tuple(_as_sent(mapped, statement) for statement in remove),
        gaps=tuple(gap for rule, gap in RULES.items() if found[rule] is None),
    )


async def run_statements(connections: Connections, statements: Sequence[str]) -> None:
    """Install or remove a guard, waiting no longer for the table than a guest may."""
    async with connections.writing() as (connection, _):
        for statement in statements:
            # Without parameters no driver looks for placeholders: a percent sign is one.
            await connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def script(dialect: str, statements: Sequence[str]) -> str:
    """Return statements as their database's own client reads them."""
    if dialect != "mysql":
        return "".join(f"{statement};\n" for statement in statements)
    # Its client would end a trigger at the first semicolon in it.
    return "DELIMITER //\n" + "".join(f"{statement}//\n" for statement in statements) + "DELIMITER ;\n"


def guard_name(table: str) -> str:
    """Return the trigger's name; one too long is cut, and told from others that begin alike by a digest."""
    name = f"{_PREFIX}{table}".encode()
    if len(name) <= _LONGEST_NAME:
        return name.decode()
    digest = f"_{sha256(name).hexdigest()[:8]}"
    return name[: _LONGEST_NAME - len(digest)].decode(errors="ignore") + digest


# The rules


def another_attempt(mapped: MappedTable) -> Predicate | None:
    """Hold where a write ends a job with a token or an attempt that isn't the row's."""
    fences = [mapped.stored(key) for key in _FENCES if mapped.has(key)]
    if not fences or not mapped.words(*_ENDS):
        return None
    new, old = _new(mapped), _old(mapped)
    others = [new.c[column.name].is_distinct_from(old.c[column.name]) for column in fences]
    # A row without a state isn't over, and what compares with it is neither true nor false.
    was_over = _is_in(mapped, old, *_ENDS, JobState.CANCELLED).is_not(sa.true())
    return sa.and_(_is_in(mapped, new, *_ENDS), was_over, sa.or_(*others))


def queued_again(mapped: MappedTable) -> Predicate | None:
    """Hold where a write makes a job succeed that nobody has claimed, in a table whose workers claim at all."""
    needed = (JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED)
    if not all(mapped.words(state) for state in needed):
        return None
    succeeds = _is_in(mapped, _new(mapped), JobState.SUCCEEDED)
    return sa.and_(succeeds, _is_in(mapped, _old(mapped), JobState.QUEUED))


Rule = Callable[[MappedTable], Predicate | None]
RULES: Mapping[Rule, str] = {
    another_attempt: "it has no `token` and no `attempt`, so once a recovered job was claimed again no late result of "
    "it is refused",
    queued_again: "it lacks a word for queued, running or succeeded, so the late success of a job that waits to be "
    "claimed again is not refused",
}
"""What is refused, and what to say where the mapping hasn't what it takes."""


def _is_in(mapped: MappedTable, row: sa.FromClause, *states: JobState) -> Predicate:
    """Compare as a sweep does: by the column's own rules, with the mapping's words as they are."""
    state = row.c[mapped.stored("state").name]
    words = mapped.words(*states)
    if isinstance(state.type, sa.Integer):
        return state.in_(words)
    return sa.type_coerce(state, sa.String).in_([str(word) for word in words])


def _new(mapped: MappedTable) -> sa.FromClause:
    return mapped.table.alias(quoted_name("NEW", quote=False))


def _old(mapped: MappedTable) -> sa.FromClause:
    return mapped.table.alias(quoted_name("OLD", quote=False))


# The statements


def _postgres(mapped: MappedTable, refused: Predicate) -> tuple[list[str], list[str]]:
    """Judge in the trigger's own condition: what passes costs no call, and no search path changes what it means."""
    trigger, function, table = _quoted(mapped, guard_name(mapped.table.name)), _qualified(mapped), _table(mapped)
    says = _lines(
        f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $unstick$",
        "BEGIN",
        f"  RAISE EXCEPTION USING MESSAGE = 'unstick guard: job ' || CAST({_job_id(mapped)} AS text) || ' {_TAKEN}';",
        "END",
        "$unstick$",
    )
    judges = _lines(
        f"CREATE OR REPLACE TRIGGER {trigger} BEFORE UPDATE OF {_state(mapped)} ON {table} FOR EACH ROW",
        f"WHEN ({_sql(mapped, refused)})",
        f"EXECUTE FUNCTION {function}()",
    )
    return [says, judges], [f"DROP TRIGGER IF EXISTS {trigger} ON {table}", f"DROP FUNCTION IF EXISTS {function}()"]


def _mysql(mapped: MappedTable, refused: Predicate) -> tuple[list[str], list[str]]:
    """Keep the message within the 128 characters that MySQL takes, which can't replace a trigger either."""
    trigger, dialect = _qualified(mapped), mapped.dialect.sql
    remove = f"DROP TRIGGER IF EXISTS {trigger}"
    replaces = isinstance(dialect, MySQLDialect) and dialect.is_mariadb
    install = _lines(
        f"CREATE {'OR REPLACE ' if replaces else ''}TRIGGER {trigger} BEFORE UPDATE ON {_table(mapped)} FOR EACH ROW",
        "BEGIN",
        "  DECLARE refusal VARCHAR(128) CHARACTER SET utf8mb4;",
        f"  IF {_sql(mapped, refused)} THEN",
        f"    SET refusal = CONCAT('unstick guard: job ', LEFT({_job_id(mapped)}, 50), ' {_TAKEN}');",
        "    SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = refusal;",
        "  END IF;",
        "END",
    )
    return [install] if replaces else [remove, install], [remove]


def _sqlite(mapped: MappedTable, refused: Predicate) -> tuple[list[str], list[str]]:
    """Name no job: SQLite before 3.47 takes no expression there, and can't open a file with a trigger it can't read."""
    trigger = _qualified(mapped)
    remove = f"DROP TRIGGER IF EXISTS {trigger}"
    install = _lines(
        f"CREATE TRIGGER {trigger} BEFORE UPDATE OF {_state(mapped)} ON {_quoted(mapped, mapped.table.name)}",
        f"FOR EACH ROW WHEN {_sql(mapped, refused)}",
        "BEGIN",
        f"  SELECT RAISE(ABORT, 'unstick guard: this job {_TAKEN}');",
        "END",
    )
    return [remove, install], [remove]


_BY_DIALECT = {"postgresql": _postgres, "mysql": _mysql, "sqlite": _sqlite}


def _lines(*lines: str) -> str:
    return "\n".join(lines)


def _job_id(mapped: MappedTable) -> str:
    return _sql(mapped, _old(mapped).c[mapped.stored("id").name])


def _state(mapped: MappedTable) -> str:
    return _quoted(mapped, mapped.stored("state").name)


def _table(mapped: MappedTable) -> str:
    return mapped.dialect.sql.identifier_preparer.format_table(mapped.table)


def _qualified(mapped: MappedTable) -> str:
    """Return the guard's name in the schema of its table."""
    return ".".join(
        _quoted(mapped, part) for part in (mapped.table.schema, guard_name(mapped.table.name)) if part is not None
    )


def _quoted(mapped: MappedTable, name: str) -> str:
    return mapped.dialect.sql.identifier_preparer.quote(name)


def _sql(mapped: MappedTable, clause: sa.ColumnElement[Any]) -> str:
    """Write a condition out, its words among it: a trigger has no parameters."""
    return str(clause.compile(dialect=mapped.dialect.sql, compile_kwargs={"literal_binds": True}))


def _as_sent(mapped: MappedTable, statement: str) -> str:
    """Undo the doubling of percent signs, in which SQLAlchemy expects a driver to look for placeholders."""
    return statement % () if mapped.dialect.sql.paramstyle in {"format", "pyformat"} else statement
